"""A GPU through the CUDA driver, and what every device of a job can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxopt.errors import MissingError, OnnxOptError

Array = npt.NDArray[Any]


class DeviceError(OnnxOptError):
    """The driver refused a call, or a kernel faulted."""


@dataclass(frozen=True)
class Launch:
    """One kernel with its arguments: arrays that were uploaded, by their handles, and int32 values."""

    code: bytes
    entry: str
    grid: int
    block: int
    shared_bytes: int
    arguments: tuple[Any, ...]


class Device(Protocol):
    """Where kernels of a job run."""

    architecture: str

    def describe(self) -> dict[str, Any]:
        """Name, driver, clocks in Hz, multiprocessors: what a measured figure must be given with."""

    def upload(self, array: Array, *, output: bool = False) -> Any:
        """A handle of the array on the device; of an ``output`` the content is a poison that kernels overwrite."""

    def download(self, handle: Any, like: Array) -> Array:
        """The content of a handle, in the type and shape of ``like``."""

    def run(self, launches: Sequence[Launch]) -> None:
        """Run kernels one after another and wait; raises DeviceError where one faults."""

    def release(self) -> None:
        """Free every buffer."""

    def microseconds(self, launches: Sequence[Launch], replays: int) -> list[float] | None:
        """Times of all launches together, one for each replay of them as one graph; None where time says nothing."""


class Gpu:
    """A GPU of this machine, in its primary context; buffers live until the process ends or :meth:`release`."""

    def __init__(self, ordinal: int = 0) -> None:
        self.driver = _driver()
        self._call("cuInit", 0)
        self.device = self._call("cuDeviceGet", ordinal)
        context = self._call("cuDevicePrimaryCtxRetain", self.device)
        self._call("cuCtxSetCurrent", context)
        self.stream = self._call("cuStreamCreate", self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        major, minor = (self._attribute(f"COMPUTE_CAPABILITY_{name}") for name in ("MAJOR", "MINOR"))
        # Kernels for these two are compiled with the instructions that only they have.
        own = {(9, 0): "sm_90a", (10, 0): "sm_100a"}
        self.architecture = own.get((major, minor), f"sm_{major}{minor}")
        self._functions: dict[tuple[bytes, str], Any] = {}
        self._buffers: list[int] = []

    def describe(self) -> dict[str, Any]:
        name = self._call("cuDeviceGetName", 200, self.device)
        version = int(self._call("cuDriverGetVersion"))
        return {
            "gpu": name.split(b"\0")[0].decode(),
            "architecture": self.architecture,
            "cuda_driver": f"{version // 1000}.{version % 1000 // 10}",
            "multiprocessors": self._attribute("MULTIPROCESSOR_COUNT"),
            "l2_bytes": self._attribute("L2_CACHE_SIZE"),
            "shared_bytes": self._attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
            "shared_bytes_per_block": self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            "largest_clock_hz": 1000.0 * self._attribute("CLOCK_RATE"),
        }

    def upload(self, array: Array, *, output: bool = False) -> Any:
        array = np.ascontiguousarray(array)
        pointer = int(self._call("cuMemAlloc", max(16, array.nbytes)))
        self._buffers.append(pointer)
        if array.nbytes:
            self._call("cuMemcpyHtoD", pointer, array.ctypes.data, array.nbytes)
        return pointer

    def download(self, handle: Any, like: Array) -> Array:
        result = np.empty_like(like)
        self._call("cuMemcpyDtoH", result.ctypes.data, handle, result.nbytes)
        return result

    def release(self) -> None:
        """Free every buffer."""
        while self._buffers:
            self._call("cuMemFree", self._buffers.pop())

    def run(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            self._launch(launch, self.stream)
        self._call("cuStreamSynchronize", self.stream)

    def enqueue(self, launch: Launch, stream: int) -> None:
        """Put a kernel into a stream of someone else's, which may be captured once the kernel ran a first time."""
        self._launch(launch, stream)

    def microseconds(self, launches: Sequence[Launch], replays: int) -> list[float] | None:
        graph = self._graph(launches)
        start, end = (self._call("cuEventCreate", 0) for _ in range(2))
        times = []
        for replay in range(-3, replays):
            self._call("cuEventRecord", start, self.stream)
            self._call("cuGraphLaunch", graph, self.stream)
            self._call("cuEventRecord", end, self.stream)
            self._call("cuEventSynchronize", end)
            if replay >= 0:
                times.append(1000.0 * float(self._call("cuEventElapsedTime", start, end)))
        self._call("cuGraphExecDestroy", graph)
        for event in (start, end):
            self._call("cuEventDestroy", event)
        return times

    def _graph(self, launches: Sequence[Launch]) -> Any:
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        for launch in launches:
            self._function(launch)
        self._call("cuStreamBeginCapture", self.stream, mode)
        for launch in launches:
            self._launch(launch, self.stream)
        captured = self._call("cuStreamEndCapture", self.stream)
        graph = self._call("cuGraphInstantiate", captured, 0)
        self._call("cuGraphDestroy", captured)
        return graph

    def _launch(self, launch: Launch, stream: Any) -> None:
        values = tuple(launch.arguments)
        types = tuple(_ctype(value) for value in values)
        plain = tuple(int(value) for value in values)
        sizes = (launch.grid, 1, 1, launch.block, 1, 1, launch.shared_bytes)
        self._call("cuLaunchKernel", self._function(launch), *sizes, stream, (plain, types), 0)

    def _function(self, launch: Launch) -> Any:
        key = (launch.code, launch.entry)
        if key not in self._functions:
            # PTX is a text and must end with a zero byte; machine code carries its own length.
            module = self._call("cuModuleLoadData", launch.code + b"\0")
            function = self._call("cuModuleGetFunction", module, launch.entry.encode())
            attribute = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, attribute, launch.shared_bytes)
            self._functions[key] = function
        return self._functions[key]

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self.device))

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self.driver, name)(*arguments)
        if int(status) != 0:
            _, text = self.driver.cuGetErrorString(status)
            said = text.decode() if isinstance(text, bytes) else str(status)
            raise DeviceError(f"{name} failed: {said} ({int(status)})")
        return results[0] if len(results) == 1 else results or None


def _ctype(value: Any) -> Any:
    import ctypes

    return ctypes.c_int32 if isinstance(value, np.int32) else ctypes.c_void_p


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        raise MissingError(
            "the package cuda-bindings is missing; install it with `pip install cuda-bindings`"
        ) from None
    try:
        driver.cuDriverGetVersion()
    except RuntimeError as error:
        raise MissingError(f"no CUDA driver was found ({error}); run this on a machine with an NVIDIA GPU") from None
    return driver

"""The GPU while an engine runs on it, through CUDA's driver: buffers, a stream, a graph of it, and its clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from onnxopt.errors import OnnxOptError

Array = npt.NDArray[Any]


class DeviceError(OnnxOptError):
    """The driver refused a call, or a kernel faulted."""


class EngineDevice:
    """The first GPU, in its primary context, which is the one that TensorRT uses; ``driver`` is CUDA's.

    Every call raises DeviceError where the driver refuses it. Buffers live until :meth:`close`.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._buffers: list[int] = []
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", 0)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._device))
        self._stream = self._call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)

    @property
    def stream(self) -> int:
        """The stream's handle, for TensorRT."""
        return int(self._stream)

    def allocate(self, size: int) -> int:
        """The address of a new buffer; of an empty tensor, too, it is one of its own."""
        pointer = int(self._call("cuMemAlloc", max(1, size)))
        self._buffers.append(pointer)
        return pointer

    def upload(self, pointer: int, array: Array) -> None:
        """Copy an array, which lies densely, to a buffer."""
        if array.nbytes:
            self._call("cuMemcpyHtoDAsync", pointer, array.ctypes.data, array.nbytes, self._stream)
            self.wait()

    def download(self, pointer: int, array: Array) -> None:
        """Fill an array, which lies densely, from a buffer."""
        if array.nbytes:
            self._call("cuMemcpyDtoHAsync", array.ctypes.data, pointer, array.nbytes, self._stream)
            self.wait()

    def wait(self) -> None:
        """Wait until the stream has done everything; a kernel that faulted is an error here."""
        self._call("cuStreamSynchronize", self._stream)

    def captured(self, enqueue: Callable[[], bool]) -> Callable[[], bool] | str:
        """What launches a graph of all that ``enqueue`` puts into the stream; or why there is none."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        try:
            self._call("cuStreamBeginCapture", self._stream, mode)
            try:
                whole = enqueue()
            finally:
                # Whatever happened, the stream has to leave its capture before it can be used again.
                recorded = self._driver.cuStreamEndCapture(self._stream)
            graph = self._checked("cuStreamEndCapture", recorded)
            if not whole:
                self._call("cuGraphDestroy", graph)
                return "the engine refuses to be captured"
            executable = self._call("cuGraphInstantiate", graph, 0)
            self._call("cuGraphDestroy", graph)
        except DeviceError as error:
            return str(error)

        def launch() -> bool:
            self._call("cuGraphLaunch", executable, self._stream)
            return True

        return launch

    def milliseconds(self, run: Callable[[], bool], iterations: int) -> tuple[list[float], float] | None:
        """The time of each of many runs, and that from the first one's start to the last one's end.

        None where a run refuses.
        """
        starts, ends = ([self._call("cuEventCreate", 0) for _ in range(iterations)] for _ in range(2))
        try:
            for start, end in zip(starts, ends, strict=True):
                self._call("cuEventRecord", start, self._stream)
                if not run():
                    return None
                self._call("cuEventRecord", end, self._stream)
            self.wait()
            times = [self._elapsed(start, end) for start, end in zip(starts, ends, strict=True)]
            return times, self._elapsed(starts[0], ends[-1])
        finally:
            for event in (*starts, *ends):
                self._call("cuEventDestroy", event)

    def close(self) -> None:
        """Free every buffer, and let the context go."""
        while self._buffers:
            self._call("cuMemFree", self._buffers.pop())
        self._call("cuStreamDestroy", self._stream)
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _elapsed(self, start: Any, end: Any) -> float:
        return float(self._call("cuEventElapsedTime", start, end))

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._checked(name, getattr(self._driver, name)(*arguments))

    def _checked(self, name: str, result: tuple[Any, ...]) -> Any:
        if result[0] != self._driver.CUresult.CUDA_SUCCESS:
            raise DeviceError(f"{name} answers {result[0].name}")
        return result[1] if len(result) > 1 else None

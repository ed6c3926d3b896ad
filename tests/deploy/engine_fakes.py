"""A library and a driver for running engines without a GPU, as strict as the real ones about names and order.

Every name that is used has to exist in the real thing: the classes of TensorRT-RTX, which are those of TensorRT, and
the functions of cuda-python, which also say how many arguments each takes.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver as real_driver

Array = np.ndarray[Any, np.dtype[Any]]


class FakeDriver:
    """CUDA's driver with memory in the CPU; work that is put into the stream is done at once, or recorded."""

    CUresult = real_driver.CUresult
    CUstream_flags = real_driver.CUstream_flags
    CUstreamCaptureMode = real_driver.CUstreamCaptureMode

    def __init__(self, *, failing: str = "") -> None:
        self.memory: dict[int, bytearray] = {}
        self.calls: list[str] = []
        self.recording: list[Callable[[], None]] | None = None
        self.time = 0.0
        self.runs = 0
        self._failing = failing
        self._next = 1 << 20

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        signature = re.match(r"\w+\((.*?)\)", getattr(real_driver, name).__doc__)
        assert signature is not None, name
        count = len([part for part in signature[1].split(",") if part.strip()])

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == count, f"{name} takes {count} arguments"
            self.calls.append(name)
            if name == self._failing:
                self.recording = None
                return (self.CUresult.CUDA_ERROR_UNKNOWN, None)
            work = getattr(self, f"_{name}", None)
            result = work(*arguments) if work is not None else 1
            return (self.CUresult.CUDA_SUCCESS,) if result is None else (self.CUresult.CUDA_SUCCESS, result)

        return call

    def find(self, pointer: int) -> bytearray:
        """The memory behind an address."""
        return self.memory[pointer]

    def enqueue(self, work: Callable[[], None]) -> None:
        """Put work into the stream: it is recorded while the stream is captured."""
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()

    def _cuMemAlloc(self, size: int) -> int:  # noqa: N802
        self._next += 1 << 20
        self.memory[self._next] = bytearray(size)
        return self._next

    def _cuMemFree(self, pointer: int) -> None:  # noqa: N802
        del self.memory[pointer]

    def _cuMemcpyHtoDAsync(self, pointer: int, source: int, size: int, _: Any) -> None:  # noqa: N802
        assert size <= len(self.memory[pointer])
        self.memory[pointer][:size] = _bytes_at(source, size).tobytes()

    def _cuMemcpyDtoHAsync(self, target: int, pointer: int, size: int, _: Any) -> None:  # noqa: N802
        _bytes_at(target, size)[:] = np.frombuffer(self.memory[pointer], np.uint8)[:size]

    def _cuStreamBeginCapture(self, _: Any, __: Any) -> None:  # noqa: N802
        self.recording = []

    def _cuStreamEndCapture(self, _: Any) -> list[Callable[[], None]]:  # noqa: N802
        recorded, self.recording = self.recording, None
        assert recorded is not None
        return recorded

    def _cuGraphInstantiate(self, graph: list[Callable[[], None]], _: int) -> list[Callable[[], None]]:  # noqa: N802
        return list(graph)

    def _cuGraphLaunch(self, graph: list[Callable[[], None]], _: Any) -> None:  # noqa: N802
        for work in graph:
            work()

    def _cuEventCreate(self, _: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(at=None)

    def _cuEventRecord(self, event: SimpleNamespace, _: Any) -> None:  # noqa: N802
        event.at = self.time

    def _cuEventElapsedTime(self, start: SimpleNamespace, end: SimpleNamespace) -> float:  # noqa: N802
        return float(end.at - start.at)


def _bytes_at(address: int, size: int) -> Array:
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8)


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 2
    FP8 = 3
    INT64 = 4


class FakeTensorrt:
    """The library: its enumerations, and a runtime that gives one engine for any bytes."""

    __version__ = "10.13.3.9"
    TensorLocation = Enum("TensorLocation", "DEVICE HOST")
    TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
    DataType = DataType
    ILogger = type("ILogger", (), {"__init__": lambda self: None, "VERBOSE": "VERBOSE"})

    def __init__(self, engine: FakeEngine | None) -> None:
        self.deserialized: list[bytes] = []

        class Runtime:
            def __init__(self, logger: Any) -> None:
                del logger

            def deserialize_cuda_engine(runtime, content: bytes) -> FakeEngine | None:  # noqa: N805
                self.deserialized.append(content)
                return engine

        self.Runtime = Runtime

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        return True


class FakeEngine:
    """An engine that computes y = 2 x in whatever types, for a batch from 1 to 4."""

    def __init__(self, driver: FakeDriver, x: str = "FLOAT", y: str = "FLOAT", **odd: Any) -> None:
        self.driver = driver
        self.types = {"x": DataType[x], "y": DataType[y]}
        self.odd = odd
        self.num_io_tensors = 2

    def get_tensor_name(self, number: int) -> str:
        return "xy"[number]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.types[name]

    def get_tensor_location(self, name: str) -> Any:
        return FakeTensorrt.TensorLocation.HOST if self.odd.get("host") == name else FakeTensorrt.TensorLocation.DEVICE

    def get_tensor_mode(self, name: str) -> Any:
        return FakeTensorrt.TensorIOMode.INPUT if name == "x" else FakeTensorrt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1, 3]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        assert (name, profile_index) == ("x", 0)
        return [[1, 3], [2, 3], [4, 3]]

    def create_execution_context(self) -> FakeContext | None:
        return None if self.odd.get("context") is False else FakeContext(self)


class FakeContext:
    """A context that runs only when every shape and address was set."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "x"

    def infer_shapes(self) -> list[str]:
        return [] if self.shape is not None else ["x"]

    def get_tensor_shape(self, name: str) -> list[int]:
        assert self.shape is not None
        return [-1, 3] if name == "y" and self.engine.odd.get("data_dependent") else list(self.shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert isinstance(stream_handle, int)
        assert set(self.addresses) == {"x", "y"}
        self.runs += 1
        if self.runs > self.engine.odd.get("runs", 1 << 30):
            return False
        self.engine.driver.enqueue(self._double)
        return True

    def _double(self) -> None:
        from onnxopt.deploy.runner_engine import _TYPES, EnginePort

        driver = self.engine.driver
        x, y = (EnginePort(n, n == "x", _TYPES[self.engine.types[n].name], ()).dtype for n in "xy")
        assert self.shape is not None
        count = int(np.prod(self.shape))
        values = np.frombuffer(driver.find(self.addresses["x"]), x)[:count].astype(np.float32) * 2
        result = values.astype(y).tobytes()
        driver.find(self.addresses["y"])[: len(result)] = result
        driver.runs += 1
        driver.time += 0.5 + 0.25 * (driver.runs % 2)


def public(cls: type) -> Mapping[str, Any]:
    """What a fake lets others use."""
    return {name: value for name, value in vars(cls).items() if not name.startswith("_")}

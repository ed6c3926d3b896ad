"""A stand-in for the CUDA driver's bindings that notes what is asked of it."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any


class Driver(types.ModuleType):
    """A CUDA driver that notes what is asked of it; ``failing`` is the function that gives an error."""

    class CUfunction_attribute:  # noqa: N801
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    class CUdevice_attribute:  # noqa: N801
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76

    def __init__(self, capability: Sequence[int], failing: str) -> None:
        super().__init__("cuda.bindings.driver")
        self._capability, self._failing = capability, failing
        self.calls: list[list[Any]] = []

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"a made-up error"

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        given = {
            "cuCtxGetDevice": lambda: 0,
            "cuDeviceGetAttribute": lambda attribute, _: self._capability[attribute - 75],
            "cuModuleLoadData": lambda _: "module",
            "cuModuleGetFunction": lambda _, entry: f"function {entry.decode()}",
            "cuFuncSetAttribute": lambda *_: None,
            "cuLaunchKernel": lambda *_: None,
        }[name]

        def called(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append([name, *map(_told, arguments)])
            if name == self._failing:
                return (700,)
            result = given(*arguments)
            return (0,) if result is None else (0, result)

        return called


def _told(value: Any) -> Any:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, tuple):
        return [_told(each) for each in value]
    return getattr(value, "__name__", value)

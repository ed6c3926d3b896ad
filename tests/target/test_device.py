"""Looking for a GPU never fails and never hangs, whatever the driver does."""

from __future__ import annotations

import sys
import threading
import types
from enum import Enum

import pytest

from onnxopt.target import device as device_module
from onnxopt.target.device import find_device


class _Result(Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100


def _install(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    """Put a driver made of these functions where cuda.bindings.driver is imported from."""
    module = types.ModuleType("cuda.bindings.driver")
    attributes = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="multiprocessors",
    )
    values = {"major": 8, "minor": 9, "multiprocessors": 58}
    ok = _Result.CUDA_SUCCESS
    working = {
        "CUresult": _Result,
        "CUdevice_attribute": attributes,
        "cuInit": lambda flags: (ok,),
        "cuDeviceGetCount": lambda: (ok, 1),
        "cuDeviceGet": lambda ordinal: (ok, ordinal),
        "cuDeviceGetAttribute": lambda attribute, handle: (ok, values[attribute]),
        "cuDriverGetVersion": lambda: (ok, 13000),
        "cuDeviceGetName": lambda length, handle: (ok, b"NVIDIA L4" + b"\0" * (length - 9)),
        "cuDeviceTotalMem": lambda handle: (ok, 24 << 30),
    }
    for name, value in {**working, **functions}.items():
        setattr(module, name, value)
    package = types.ModuleType("cuda.bindings")
    package.driver = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", module)


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch)
    device = find_device().device
    assert device is not None
    assert (device.name, device.architecture, device.multiprocessors) == ("NVIDIA L4", "sm_89", 58)
    assert device.driver_version == "CUDA 13.0"


def _no_driver(flags: int) -> None:
    raise RuntimeError("Failed to dlopen libcuda.so.1")


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ({"cuInit": _no_driver}, "no CUDA driver"),
        ({"cuInit": lambda flags: (_Result.CUDA_ERROR_NO_DEVICE,)}, "CUDA_ERROR_NO_DEVICE"),
        ({"cuDeviceGetCount": lambda: (_Result.CUDA_SUCCESS, 0)}, "sees 0 GPU"),
        ({"cuDeviceGetCount": lambda: (_Result.CUDA_ERROR_NO_DEVICE, None)}, "CUDA_ERROR_NO_DEVICE"),
        ({"cuDeviceGetName": lambda length, handle: ()}, "IndexError"),
    ],
)
def test_every_failure_is_a_reason(monkeypatch: pytest.MonkeyPatch, functions: dict[str, object], reason: str) -> None:
    _install(monkeypatch, **functions)
    search = find_device()
    assert search.device is None
    assert reason in search.reason


def test_a_missing_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    search = find_device()
    assert search.device is None
    assert "cuda-bindings" in search.reason


def test_a_driver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    _install(monkeypatch, cuInit=lambda flags: release.wait(60) and (_Result.CUDA_SUCCESS,))
    monkeypatch.setattr(device_module, "_PATIENCE_SECONDS", 0.05)
    try:
        search = find_device()
    finally:
        release.set()
    assert search.device is None
    assert "did not answer" in search.reason

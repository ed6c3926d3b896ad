"""The GPU of this machine, asked for through CUDA's driver; no GPU and no driver are ordinary answers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

# A driver that does not answer in this time is as good as none; a healthy one needs well under a second.
_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class Device:
    """A GPU that CUDA's driver reports."""

    ordinal: int
    name: str
    architecture: str
    multiprocessors: int
    memory_bytes: int
    driver_version: str


@dataclass(frozen=True)
class DeviceSearch:
    """What the search for a GPU found: the device, or the reason why there is none."""

    device: Device | None
    reason: str


def find_device(ordinal: int = 0) -> DeviceSearch:
    """Look for a GPU. Never raises and never hangs: whatever goes wrong becomes the ``reason``.

    The driver is called in a thread of its own, because initialising a broken driver can block for ever.
    """
    found: list[DeviceSearch] = []

    def search() -> None:
        try:
            found.append(_ask_driver(ordinal))
        except Exception as error:  # any failure of a foreign driver means: no usable GPU
            found.append(DeviceSearch(None, f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=search, name="find-gpu", daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    if not found:
        return DeviceSearch(None, f"the CUDA driver did not answer within {_PATIENCE_SECONDS:.0f} s")
    return found[0]


def _ask_driver(ordinal: int) -> DeviceSearch:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        return DeviceSearch(None, f"the package cuda-bindings cannot be imported ({error})")
    try:
        status = driver.cuInit(0)[0]
    except RuntimeError as error:
        return DeviceSearch(None, f"no CUDA driver ({error})")
    if status != driver.CUresult.CUDA_SUCCESS:
        return DeviceSearch(None, f"the CUDA driver refuses to start ({status.name})")
    count = _checked(driver, driver.cuDeviceGetCount())
    if ordinal >= count:
        return DeviceSearch(None, f"the CUDA driver sees {count} GPU(s); number {ordinal} was asked for")
    handle = _checked(driver, driver.cuDeviceGet(ordinal))
    attribute = driver.CUdevice_attribute
    major, minor, multiprocessors = (
        int(_checked(driver, driver.cuDeviceGetAttribute(a, handle)))
        for a in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    version = int(_checked(driver, driver.cuDriverGetVersion()))
    device = Device(
        ordinal=ordinal,
        name=_checked(driver, driver.cuDeviceGetName(128, handle)).split(b"\0")[0].decode(errors="replace"),
        architecture=f"sm_{major}{minor}",
        multiprocessors=multiprocessors,
        memory_bytes=int(_checked(driver, driver.cuDeviceTotalMem(handle))),
        driver_version=f"CUDA {version // 1000}.{version % 1000 // 10}",
    )
    return DeviceSearch(device, "")


def _checked(driver: Any, result: tuple[Any, ...]) -> Any:
    """The value of a driver call; raises RuntimeError where it failed."""
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver answers {result[0].name}")
    return result[1]

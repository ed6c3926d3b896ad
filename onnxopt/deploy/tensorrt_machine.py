"""What of TensorRT is on this machine: its version, and the GPU that it builds for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec

from onnxopt.deploy.child import Event, module_command, run_child
from onnxopt.deploy.tensorrt_build import TENSORRT, WORKER, Library
from onnxopt.errors import InputError, MissingError
from onnxopt.target.device import Device, find_device

PIP = "pip install 'onnxopt[tensorrt]' --extra-index-url https://pypi.nvidia.com"
"""The command that installs a TensorRT that works."""

INSTALL = f"install one that works with: {PIP}"
"""How to get a TensorRT that works, for messages."""

_OLDEST, _UNTRIED = (10, 9), (12, 0)
_BROKEN = (10, 14)


@dataclass(frozen=True)
class Machine:
    """What builds and runs engines here: TensorRT's version, and the GPU."""

    version: str
    device: Device


def check_machine(arch: str | None = None) -> Machine:
    """What this machine can build for, before any work.

    Raises MissingError where TensorRT is not installed, of a version that does not work, or there is no GPU, and
    InputError where ``arch`` is not the GPU's architecture.
    """
    version = installed_version(TENSORRT, INSTALL)
    check_version(version)
    search = find_device()
    if search.device is None:
        raise MissingError(
            f"TensorRT builds an engine on the GPU that will run it, and this machine has none: {search.reason}. Use a "
            "machine with the GPU, or build for another one with --engine rtx"
        )
    device = search.device
    if arch is not None and arch != device.architecture:
        raise InputError(
            f"TensorRT builds for the GPU of this machine, {device.name} ({device.architecture}), but the target is "
            f"{arch}; optimise the model with --target {device.architecture}, or build on a machine with that GPU"
        )
    return Machine(version, device)


def check_version(version: str) -> None:
    """Raise MissingError for a version of TensorRT that is not known to work, with the reason."""
    form = re.match(r"([0-9]{1,6})\.([0-9]{1,6})", version)
    found = (int(form[1]), int(form[2])) if form else (0, 0)
    if found < _OLDEST:
        reason = "plugins whose kernels an engine holds need 10.9 or later"
    elif found == _BROKEN:
        reason = "Python plugins do not work in 10.14"
    elif found >= _UNTRIED:
        reason = "versions from 12 on may have another interface"
    else:
        return
    raise MissingError(f"TensorRT {version} is installed, but {reason}; allowed: 10.9 to 11, but not 10.14; {INSTALL}")


def installed_version(library: Library, install: str) -> str:
    """The version of a library, asked for in a process of its own: an import that fails or crashes says why.

    Raises MissingError where there is none, with how to ``install`` it.
    """
    if find_spec(library.module) is None:
        raise MissingError(f"{library.name} is not installed; {install}")
    answers: list[Event] = []
    end = run_child(module_command(WORKER), {"library": library.module, "only_version": True}, answers.append)
    done = next((answer for answer in answers if answer.get("event") == "done"), None)
    if end.code == 0 and done is not None:
        return str(done["version"])
    lines = end.tail.splitlines()
    why = lines[-1] if lines else end.signal or f"exit code {end.code}"
    raise MissingError(f"{library.name} is installed, but cannot be imported: {why}; {install}")

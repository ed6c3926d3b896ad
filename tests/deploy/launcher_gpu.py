"""Runs plugins of the launcher in real device memory, and gives back what they wrote.

Needs the launcher, its host library, NumPy and an NVIDIA driver, which is called as C; nothing of the package.

    python tests/deploy/launcher_gpu.py FOLDER REQUEST

``FOLDER`` has both libraries, ``REQUEST`` is a pickled list of executions; a pickle with what each of them wrote, its
outputs and the bytes of its workspace where it has one, or the words of a refusal, goes beside it with the ending
``.answer``. All bits of outputs and workspace are 1 before, so that numbers are NaN or -1, and what is behind them has
to stay as it was.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.deploy.launcher_host import RUNTIME, Host, Plugin, RefusedError, Tensor
from tests.deploy.launcher_requests import Execution

Array = npt.NDArray[Any]

_GUARD_BYTES = 4096
_GUARD = 0xA5
_UNTOUCHED = 0xFF
_BYTES = {"fp16": np.uint16, "bf16": np.uint16, "float32": np.float32, "int32": np.int32}


class DriverError(Exception):
    """A call of the driver failed."""


class Device:
    """The first GPU, its context current in this thread, and one stream."""

    def __init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        device, self.context, self.stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self.call("cuCtxSetCurrent", self.context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), 1)

    def call(self, name: str, *arguments: object) -> None:
        code = getattr(self.driver, name)(*arguments)
        if code != 0:
            raise DriverError(f"{name} gives CUDA error {code}")

    def given(self, content: bytes) -> int:
        """Device memory with a content."""
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, len(content))))
        self.call("cuMemcpyHtoD_v2", pointer, content, ctypes.c_size_t(len(content)))
        return pointer.value

    def taken(self, pointer: int, count: int) -> bytes:
        content = ctypes.create_string_buffer(count)
        self.call("cuMemcpyDtoH_v2", content, ctypes.c_uint64(pointer), ctypes.c_size_t(count))
        return content.raw

    def free(self, pointer: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def wait(self) -> None:
        self.call("cuStreamSynchronize", self.stream)


@contextmanager
def held(device: Device, contents: Sequence[bytes]) -> Iterator[list[int]]:
    """Device memory with some contents, given back in the end."""
    pointers = [device.given(content) for content in contents]
    try:
        yield pointers
    finally:
        for pointer in pointers:
            device.free(pointer)


def run(host: Host, device: Device, execution: Execution) -> list[Array]:
    """What one execution writes, the workspace last.

    Raises RefusedError and DriverError, and ValueError where something wrote behind an output or the workspace.
    """
    plugin = host.create(execution.fields, RUNTIME)
    try:
        return _run(plugin, device, execution)
    finally:
        plugin.destroy()


def _run(plugin: Plugin, device: Device, execution: Execution) -> list[Array]:
    inputs, outputs = execution.inputs, execution.outputs
    guard = bytes([_GUARD]) * _GUARD_BYTES
    sizes = [_size(tensor) for tensor in outputs]
    plugin.shape_change(inputs, outputs)
    scratch = bytes([_UNTOUCHED]) * plugin.workspace(inputs, outputs)
    made = [bytes([_UNTOUCHED]) * size + guard for size in sizes]
    contents = [np.ascontiguousarray(array).tobytes() for array in execution.arrays]
    with held(device, [*contents, *made, scratch + guard]) as pointers:
        plugin.enqueue(inputs, outputs, pointers[:-1], pointers[-1], device.stream.value or 0)
        device.wait()
        found = [device.taken(p, s + _GUARD_BYTES) for p, s in zip(pointers[len(contents) : -1], sizes, strict=True)]
        between = device.taken(pointers[-1], len(scratch) + _GUARD_BYTES)
    if between[len(scratch) :] != guard or any(
        content[size:] != guard for content, size in zip(found, sizes, strict=True)
    ):
        raise ValueError("a kernel wrote behind the end of an output or of the workspace")
    arrays = [
        np.frombuffer(content[:size], _BYTES[tensor.type]).copy()
        for content, size, tensor in zip(found, sizes, outputs, strict=True)
    ]
    return [*arrays, np.frombuffer(between[: len(scratch)], np.uint8).copy()] if scratch else arrays


def _size(tensor: Tensor) -> int:
    return int(np.prod(tensor.sizes)) * np.dtype(_BYTES[tensor.type]).itemsize


def main() -> int:
    folder, request = map(Path, sys.argv[1:])
    try:
        device = Device()
    except (OSError, DriverError) as error:
        print(f"no GPU: {error}", file=sys.stderr)
        return 4
    host = Host(folder)
    answers: list[list[Array] | str] = []
    for execution in pickle.loads(request.read_bytes()):
        try:
            answers.append(run(host, device, execution))
        except (RefusedError, DriverError, ValueError) as error:
            answers.append(f"{type(error).__name__}: {error}")
    request.with_suffix(".answer").write_bytes(pickle.dumps(answers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Running a kernel's PTX on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.emulate.build import build_library
from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.layout import FIRST_WINDOW, WINDOW_BITS, Parameter
from onnxopt.emulate.request import ArgumentRecord, FailureRecord, RequestRecord
from onnxopt.emulate.translate import Program, translate
from onnxopt.errors import InputError, OnnxOptError

Array: TypeAlias = npt.NDArray[Any]
Dimensions: TypeAlias = tuple[int, int, int]


@dataclass
class Uninitialised:
    """An output: an array whose contents must not be read before the kernel has written them.

    After a run `writes` holds for each byte how often it was written (255: that often or more).
    """

    array: Array
    writes: npt.NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.writes = np.zeros(self.array.nbytes, np.uint8)


@dataclass(frozen=True)
class Limits:
    """What a run may take: backward branches of a block, and bytes of each thread's stack."""

    steps: int = 200_000_000
    stack_bytes: int = 256 * 1024


@dataclass(frozen=True)
class RunReport:
    """What a run did. `counts` are matrix instructions by kind, once for each warp that executed them."""

    blocks: int
    counts: dict[str, int]


Argument: TypeAlias = "Array | Uninitialised | np.generic"


@dataclass(frozen=True)
class CpuKernel:
    """A kernel that was translated from PTX and loaded. Runs of one kernel may follow each other in any order."""

    program: Program
    library: ctypes.CDLL

    def run(
        self,
        grid: Dimensions,
        block: Dimensions,
        shared_bytes: int,
        arguments: Sequence[Argument],
        order: int = 0,
        limits: Limits | None = None,
    ) -> RunReport:
        """Runs the kernel; arrays are modified in place.

        `shared_bytes` are of dynamic shared memory. Arguments are C-contiguous arrays for pointers and NumPy scalars
        for values; a read-only array may not be written to. `order` chooses who runs first: 0 low lanes and warps,
        1 high ones, every other number a sequence of its own; a result that depends on it shows a race.
        Raises InputError for arguments that do not fit the kernel, EmulationError for what it did wrong.
        """
        limits = limits or Limits()
        _check_launch(self.program, grid, block, shared_bytes, order)
        records, parameters = _bind(self.program, arguments)
        counters = (ctypes.c_uint64 * max(1, len(self.program.counters)))()
        request = RequestRecord(
            grid=(ctypes.c_uint64 * 3)(*grid),
            threads=(ctypes.c_uint64 * 3)(*block),
            dynamic_shared=shared_bytes,
            order=order,
            steps=limits.steps,
            argument_count=len(records),
            arguments=(ArgumentRecord * max(1, len(records)))(*records),
            parameter_bytes=len(parameters),
            parameters=ctypes.cast(ctypes.c_char_p(parameters), ctypes.c_void_p),
            stack_bytes=limits.stack_bytes,
            counters=counters,
        )
        failure = FailureRecord()
        status = self.library.emu_run(ctypes.byref(request), ctypes.byref(failure))
        if status == 1:
            arrays = [index for index, argument in enumerate(arguments) if not isinstance(argument, np.generic)]
            raise _error(self.program, arrays, failure)
        if status:
            raise OnnxOptError("no memory for the stacks of an emulated block; run fewer of them at a time")
        counts = dict(zip(self.program.counters, counters, strict=False))
        return RunReport(grid[0] * grid[1] * grid[2], counts)


def build_cpu_kernel(ptx: str, entry: str, cache: Path | None = None) -> CpuKernel:
    """The kernel `entry` of a PTX text, ready to run on this CPU.

    `cache` is a folder for compiled kernels, which several processes may share; without one they live as long as this
    process. Raises EmulationError for PTX that the emulator does not support, MissingError without g++.
    """
    program = translate(ptx, entry)
    return CpuKernel(program, build_library(program, cache))


def _check_launch(program: Program, grid: Dimensions, block: Dimensions, shared_bytes: int, order: int) -> None:
    if len(grid) != 3 or min(grid) < 1 or max(grid) >= 1 << 31:
        raise InputError(f"the grid of {program.entry} is {grid}; it takes three numbers from 1 to 2^31 - 1")
    threads = block[0] * block[1] * block[2] if len(block) == 3 else 0
    if len(block) != 3 or min(block) < 1 or threads > 1024:
        raise InputError(f"the block of {program.entry} is {block}; it takes three numbers with a product of 1 to 1024")
    if program.threads is not None and threads > program.threads:
        raise InputError(f"{program.entry} was compiled for at most {program.threads} threads, not {threads}")
    if program.required is not None and tuple(block)[: len(program.required)] != program.required:
        raise InputError(f"{program.entry} was compiled for blocks of {program.required}, not {block}")
    if not 0 <= shared_bytes < 1 << 20:
        raise InputError(
            f"{program.entry} was given {shared_bytes} bytes of dynamic shared memory; 0 to 2^20 - 1 is allowed"
        )
    if order < 0:
        raise InputError(f"the order of lanes is {order}; it takes 0 (ascending), 1 (descending) or more (drawn)")


def _bind(program: Program, arguments: Sequence[Argument]) -> tuple[list[ArgumentRecord], bytes]:
    """The records of arguments that are arrays, and the parameter block."""
    if len(arguments) != len(program.parameters):
        raise InputError(f"{program.entry} takes {len(program.parameters)} arguments, not {len(arguments)}")
    records: list[ArgumentRecord] = []
    parameters = bytearray(program.parameter_bytes)
    for index, (argument, parameter) in enumerate(zip(arguments, program.parameters, strict=True)):
        if isinstance(argument, np.generic):
            data = argument.tobytes()
        else:
            window = FIRST_WINDOW + len(program.variables) + len(records)
            records.append(_record(program, index, argument))
            data = (window << WINDOW_BITS).to_bytes(8, "little")
        _check_size(program, index, parameter, len(data))
        parameters[parameter.offset : parameter.offset + len(data)] = data
    return records, bytes(parameters)


def _check_size(program: Program, index: int, parameter: Parameter, size: int) -> None:
    if parameter.size != size:
        raise InputError(
            f"argument {index} of {program.entry} has {size} bytes as a parameter, the kernel takes {parameter.size}; "
            "arrays are pointers of 8 bytes, values NumPy scalars of the kernel's type"
        )


def _record(program: Program, index: int, argument: Array | Uninitialised) -> ArgumentRecord:
    array = argument.array if isinstance(argument, Uninitialised) else argument
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"argument {index} of {program.entry} is a {type(array).__name__}; it takes an array or a NumPy scalar"
        )
    if not array.flags.c_contiguous:
        raise InputError(f"argument {index} of {program.entry} is not C-contiguous; pass numpy.ascontiguousarray of it")
    if isinstance(argument, Uninitialised):
        argument.writes.fill(0)
        return ArgumentRecord(array.ctypes.data, array.nbytes, argument.writes.ctypes.data, array.flags.writeable)
    return ArgumentRecord(array.ctypes.data, array.nbytes, None, array.flags.writeable)


def _error(program: Program, arrays: Sequence[int], failure: FailureRecord) -> EmulationError:
    """The error for a failure; `arrays` are the numbers of the arguments that are arrays."""
    text = f"{program.entry}: {failure.message.decode(errors='replace')}"
    if failure.bytes:
        text += f": {failure.bytes} bytes at {_place(program, arrays, failure.address)}"
    elif failure.address:
        text += f" (found {failure.address})"
    if failure.line:
        text += f"; PTX line {failure.line}: {program.instructions.get(failure.line, '')}"
    x, y, z = failure.block
    text += f"; block {(x, y, z)}"
    if failure.thread[0] < 0:
        return EmulationError(text, failure.line, (x, y, z))
    i, j, k = failure.thread
    return EmulationError(f"{text}, thread {(i, j, k)}", failure.line, (x, y, z), (i, j, k))


def _place(program: Program, arrays: Sequence[int], address: int) -> str:
    window, offset = address >> WINDOW_BITS, address & ((1 << WINDOW_BITS) - 1)
    if offset >> (WINDOW_BITS - 1):
        # Just below an array is the end of the window in front of it.
        window, offset = window + 1, offset - (1 << WINDOW_BITS)
    index = window - FIRST_WINDOW
    if 0 <= index < len(program.variables):
        return f"byte {offset} of the variable {program.variables[index]}"
    index -= len(program.variables)
    if 0 <= index < len(arrays):
        return f"byte {offset} of argument {arrays[index]}"
    return f"address {address}"

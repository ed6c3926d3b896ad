"""Where variables lie: windows of the generic address space, shared memory, local memory and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.ptx import Function, Module, Variable

WINDOW_BITS = 40
FIRST_WINDOW = 16
SHARED_BASE = 1024
LOCAL_BASE = 64
"""These four are the constants of the same names in runtime/thread.h."""


@dataclass(frozen=True)
class Layout:
    """Addresses of a module's variables. `addresses` are in the variable's own state space, shared_bytes is static."""

    addresses: Mapping[str, int]
    variables: tuple[Variable, ...]
    shared_bytes: int
    local_bytes: int


@dataclass(frozen=True)
class Parameter:
    """A parameter of the entry: its place in the parameter block and its size, in bytes."""

    name: str
    offset: int
    size: int


def lay_out(module: Module, functions: Iterable[Function]) -> Layout:
    """Gives each variable of the module and of the functions in use an address.

    Dynamic shared memory begins where static variables end, at the largest alignment that anything asks for.
    """
    inner = [variable for function in functions for variable in function.variables]
    everything = [*module.variables, *inner]
    _check(everything)
    addresses: dict[str, int] = {}
    windows = tuple(variable for variable in everything if variable.space in ("global", "const"))
    for index, variable in enumerate(windows):
        addresses[variable.name] = (FIRST_WINDOW + index) << WINDOW_BITS
    shared = [variable for variable in everything if variable.space == "shared"]
    end = _place([v for v in shared if v.size is not None and not v.extern], SHARED_BASE, addresses)
    dynamic = [v for v in shared if v.size is None or v.extern]
    end = _aligned(end, max((v.alignment for v in dynamic), default=1))
    for variable in dynamic:
        addresses[variable.name] = end
    local_end = _place([v for v in everything if v.space == "local"], LOCAL_BASE, addresses)
    # Each thread's piece begins at a multiple of 16 bytes.
    return Layout(addresses, windows, end - SHARED_BASE, _aligned(local_end - LOCAL_BASE, 16))


def parameter_block(function: Function) -> tuple[tuple[Parameter, ...], int]:
    """The places of an entry's parameters, in order, and the size of them all."""
    found: list[Parameter] = []
    end = 0
    for variable in function.parameters:
        size = variable.size or 0
        end = _aligned(end, variable.alignment)
        found.append(Parameter(variable.name, end, size))
        end += size
    return tuple(found), end


def _place(variables: Iterable[Variable], start: int, addresses: dict[str, int]) -> int:
    end = start
    for variable in variables:
        end = _aligned(end, variable.alignment)
        addresses[variable.name] = end
        end += variable.size or 0
    return end


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _check(variables: Iterable[Variable]) -> None:
    for variable in variables:
        where = f"PTX line {variable.line}: the variable {variable.name}"
        if variable.alignment & (variable.alignment - 1):
            raise EmulationError(f"{where} has alignment {variable.alignment}, which is no power of two", variable.line)
        if variable.extern and variable.space != "shared":
            raise EmulationError(f"{where} is defined in another module; only shared ones may be", variable.line)
        if variable.size is None and variable.space != "shared":
            raise EmulationError(f"{where} has no size; only dynamic shared memory may have none", variable.line)

"""Grids and arguments of any kernel, checked against what its configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from onnxopt.errors import InputError
from onnxopt.kernels.report import ResourceReport

_LARGEST_GRID = 2**31 - 1
# bfloat16 has no NumPy type of its own; its bits are as good.
_TYPES = {
    "fp16": ("float16",),
    "bf16": ("bfloat16", "uint16"),
    "tf32": ("float32",),
    "fp32": ("float32",),
    "float32": ("float32",),
    "int32": ("int32",),
}


class Tensor(Protocol):
    """An array of NumPy, or anything else that says its type and shape."""

    @property
    def dtype(self) -> Any: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Launch:
    """Blocks of the grid, threads of a block, and bytes of dynamic shared memory."""

    grid: int
    block: int
    shared_bytes: int


@dataclass(frozen=True)
class Wanted:
    """What a parameter must be: its type, and its shape, in which None is any size from 1 on.

    ``flat`` says that only the number of elements counts, ``whole`` that it is a tensor of the whole batch, which may
    have more than 2^31 elements.
    """

    type: str
    shape: tuple[int | None, ...]
    flat: bool = False
    whole: bool = False


def checked_grid(what: str, counts: Mapping[str, int], blocks: int) -> int:
    """``blocks``, where every count is at least 1 and a launch may have that many. Raises InputError."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{what}: {name} is {count}; allowed: 1 or more")
    if blocks > _LARGEST_GRID:
        sizes = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise InputError(f"{what}: {sizes} make {blocks:,} blocks; allowed: {_LARGEST_GRID:,}; use a smaller batch")
    return blocks


def check_report(threads: int, report: ResourceReport) -> None:
    """Whether a compiled kernel's blocks have the threads of its configuration. Raises InputError."""
    if report.threads != threads:
        raise InputError(
            f"the compiled kernel has blocks of {report.threads} threads, its configuration {threads}; compile it again"
        )


def ordered_arguments(
    what: str,
    names: Sequence[str],
    wanted: Mapping[str, Wanted],
    tensors: Mapping[str, Tensor],
    batch: int,
    parallel: Mapping[str, str],
) -> list[Any]:
    """The tensors in the order of ``names``, ``batch`` as a number; tables are ``parallel`` to those that they name.

    Raises InputError where one is missing, superfluous, or of another type or shape than wanted.
    """
    if batch < 1:
        raise InputError(f"{what}: batch is {batch}; allowed: 1 or more")
    expected = [name for name in names if name != "batch"]
    for problem, wrong in (
        ("missing", [name for name in expected if name not in tensors]),
        ("not of this kernel", [name for name in tensors if name not in expected]),
    ):
        if wrong:
            raise InputError(f"{what}: {', '.join(wrong)}: {problem}; allowed: exactly {', '.join(expected)}")
    for name in expected:
        _check(what, name, tensors[name], wanted[name])
    for table, other in parallel.items():
        if table in tensors and tuple(tensors[table].shape) != tuple(tensors[other].shape):
            raise InputError(
                f"{what}: {table!r} has the shape {_shape(tensors[table])}, but {other!r}, to which it is "
                f"parallel, {_shape(tensors[other])}"
            )
    return [batch if name == "batch" else tensors[name] for name in names]


def _check(what: str, name: str, tensor: Tensor, wanted: Wanted) -> None:
    allowed = _TYPES[wanted.type]
    seen = getattr(tensor.dtype, "name", str(tensor.dtype))
    if seen not in allowed:
        raise InputError(f"{what}: {name!r} is {seen}; allowed: {' or '.join(allowed)}")
    shape = tuple(tensor.shape)
    if wanted.flat:
        sizes = [size for size in wanted.shape if size is not None]
        if prod(shape) != prod(sizes):
            raise InputError(
                f"{what}: {name!r} has the shape {_shape(tensor)}, {prod(shape):,} elements; allowed: "
                f"{' x '.join(map(str, sizes))} = {prod(sizes):,}, the batch times what the configuration says"
            )
        return
    fits = len(shape) == len(wanted.shape) and all(
        size >= 1 if limit is None else size == limit for size, limit in zip(shape, wanted.shape, strict=True)
    )
    if not fits:
        sizes_text = " x ".join("any number from 1 on" if size is None else str(size) for size in wanted.shape)
        raise InputError(f"{what}: {name!r} has the shape {_shape(tensor)}; allowed: {sizes_text}")
    if prod(shape) > _LARGEST_GRID and not wanted.whole:
        raise InputError(f"{what}: {name!r} has {prod(shape):,} entries; allowed: {_LARGEST_GRID:,}")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "of a single number"

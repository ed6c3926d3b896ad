"""How a compiled kernel is launched: its grid, and its arguments in order, each checked against the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from onnxopt.errors import InputError
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import attention_source, attention_variants, merge_source

MERGE_WARPS = 4
"""Warps of a block of the merge kernel, each with one line of ``merges``."""

JOB_COLUMNS = 16
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
class _Wanted:
    """What a parameter must be: its type, and its shape, in which None is any size from 1 on.

    ``flat`` says that only the number of elements counts.
    """

    type: str
    shape: tuple[int | None, ...]
    flat: bool = False


def attention_launch(kernel: Mapping[str, Any], jobs: int, batch: int, report: ResourceReport) -> Launch:
    """One block for every job of every batch element; ``report`` is that of the compiled kernel.

    Raises InputError where the grid is empty or too large, or the report is about another number of threads.
    """
    threads = attention_variants(kernel)[0].threads
    if report.threads != threads:
        raise InputError(
            f"the compiled kernel has blocks of {report.threads} threads, its configuration {threads}; compile it again"
        )
    blocks = _grid("SparseAttention", {"jobs": jobs, "batch": batch}, jobs * batch)
    return Launch(blocks, threads, report.dynamic_shared)


def merge_launch(lines: int, batch: int) -> Launch:
    """A warp for every line of ``merges`` of every batch element. Raises InputError as :func:`attention_launch`."""
    warps = lines * batch
    blocks = _grid("MergeAttention", {"lines": lines, "batch": batch}, -(-warps // MERGE_WARPS))
    return Launch(blocks, 32 * MERGE_WARPS, 0)


def _grid(what: str, counts: Mapping[str, int], blocks: int) -> int:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{what}: {name} is {count}; allowed: 1 or more")
    if blocks > _LARGEST_GRID:
        sizes = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise InputError(f"{what}: {sizes} make {blocks:,} blocks; allowed: {_LARGEST_GRID:,}; use a smaller batch")
    return blocks


def parameter_names(kernel: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of an attention kernel's entry, in order: its inputs, ``batch``, its outputs."""
    tiled, weighed = kernel["masks"] or kernel["biases"], kernel["weights"]
    conditions = {
        "values": kernel["own_values"],
        "tiles": tiled,
        "masks": kernel["masks"],
        "biases": kernel["biases"],
        "extras": kernel["extras"],
        **dict.fromkeys(("weight", "columns", "diagonals", "epsilons"), weighed),
    }
    inputs = (
        *("q", "k", "v", "jobs", "rows", "results", "keys", "values", "tiles", "masks", "biases", "scales", "extras"),
        *("weight", "columns", "diagonals", "epsilons"),
    )
    outputs = ("partial", "lse") if kernel["split"] else ("y",)
    return (*(name for name in inputs if conditions.get(name, True)), "batch", *outputs)


MERGE_PARAMETERS = ("partial", "lse", "merges", "batch", "y")
"""The parameters of the merge kernel's entry, in order."""


def attention_arguments(kernel: Mapping[str, Any], tensors: Mapping[str, Tensor], batch: int) -> list[Any]:
    """The arguments of an attention kernel in the order of :func:`parameter_names`, ``batch`` as a number.

    ``tensors`` has every input and output by name. Raises InputError where the configuration is not supported, and
    where one is missing, superfluous, or of another type or shape than the configuration says.
    """
    attention_source(kernel, resident=1)
    names = parameter_names(kernel)
    wanted = _attention_tensors(kernel, batch)
    arguments = _arguments("SparseAttention", names, wanted, tensors, batch)
    for table, other in (("results", "rows"), ("diagonals", "rows"), ("columns", "keys")):
        if table in tensors and tuple(tensors[table].shape) != tuple(tensors[other].shape):
            raise InputError(
                f"SparseAttention: {table!r} has the shape {_shape(tensors[table])}, but {other!r}, to which it is "
                f"parallel, {_shape(tensors[other])}"
            )
    return arguments


def merge_arguments(kernel: Mapping[str, Any], tensors: Mapping[str, Tensor], batch: int) -> list[Any]:
    """The arguments of the merge kernel in the order of :data:`MERGE_PARAMETERS`; as :func:`attention_arguments`."""
    merge_source(kernel)
    slots, width = kernel["slots"], kernel["value_width"]
    lines, rest = divmod(kernel["y"][0], width)
    if rest or not lines:
        raise InputError(f"MergeAttention: 'y' has {kernel['y'][0]} elements; allowed: multiples of {width}, its width")
    wanted = {
        "partial": _Wanted("float32", (batch, slots, width)),
        "lse": _Wanted("float32", (batch, slots)),
        "merges": _Wanted("int32", (lines, 4)),
        "y": _Wanted(kernel["element"], (batch, kernel["y"][0]), flat=True),
    }
    return _arguments("MergeAttention", MERGE_PARAMETERS, wanted, tensors, batch)


def _attention_tensors(kernel: Mapping[str, Any], batch: int) -> dict[str, _Wanted]:
    element = kernel["element"]
    whole = {name: _Wanted(element, (batch, kernel[name][0]), flat=True) for name in "qkvy"}
    lists = {name: _Wanted("int32", (None,)) for name in ("rows", "results", "keys", "values", "masks")}
    return {
        **whole,
        **lists,
        "jobs": _Wanted("int32", (None, JOB_COLUMNS)),
        "tiles": _Wanted("int32", (None, 2)),
        "biases": _Wanted(element, (None,)),
        "scales": _Wanted("float32", (kernel["heads"],)),
        "extras": _Wanted("int32", (None, 2)),
        "weight": _Wanted("float32", (batch, kernel["columns"]), flat=True),
        "columns": _Wanted("int32", (None,)),
        "diagonals": _Wanted("int32", (None,)),
        "epsilons": _Wanted("float32", (2,)),
        "partial": _Wanted("float32", (batch, kernel["slots"], kernel["value_width"])),
        "lse": _Wanted("float32", (batch, kernel["slots"])),
    }


def _arguments(
    what: str,
    names: tuple[str, ...],
    wanted: Mapping[str, _Wanted],
    tensors: Mapping[str, Tensor],
    batch: int,
) -> list[Any]:
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
    return [batch if name == "batch" else tensors[name] for name in names]


def _check(what: str, name: str, tensor: Tensor, wanted: _Wanted) -> None:
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
    if prod(shape) > _LARGEST_GRID and name not in ("partial", "lse"):
        raise InputError(f"{what}: {name!r} has {prod(shape):,} entries; allowed: {_LARGEST_GRID:,}")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "of a single number"

"""How a compiled kernel is launched: its grid, and its arguments in order, each checked against the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxopt.errors import InputError
from onnxopt.kernels.arguments import Launch, Tensor, Wanted, check_report, checked_grid, ordered_arguments
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import attention_source, attention_variants, merge_source

__all__ = [
    "JOB_COLUMNS",
    "MERGE_PARAMETERS",
    "MERGE_WARPS",
    "Launch",
    "Tensor",
    "attention_arguments",
    "attention_launch",
    "merge_arguments",
    "merge_launch",
    "parameter_names",
]

MERGE_WARPS = 4
"""Warps of a block of the merge kernel, each with one line of ``merges``."""

JOB_COLUMNS = 16


def attention_launch(kernel: Mapping[str, Any], jobs: int, batch: int, report: ResourceReport) -> Launch:
    """One block for every job of every batch element; ``report`` is that of the compiled kernel.

    Raises InputError where the grid is empty or too large, or the report is about another number of threads.
    """
    threads = attention_variants(kernel)[0].threads
    check_report(threads, report)
    blocks = checked_grid("SparseAttention", {"jobs": jobs, "batch": batch}, jobs * batch)
    return Launch(blocks, threads, report.dynamic_shared)


def merge_launch(lines: int, batch: int) -> Launch:
    """A warp for every line of ``merges`` of every batch element. Raises InputError as :func:`attention_launch`."""
    warps = lines * batch
    blocks = checked_grid("MergeAttention", {"lines": lines, "batch": batch}, -(-warps // MERGE_WARPS))
    return Launch(blocks, 32 * MERGE_WARPS, 0)


def parameter_names(kernel: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of an attention kernel's entry, in order: its operands, its tables, ``batch``, its outputs."""
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
        *("q", "k", "v", "weight", "jobs", "rows", "results", "keys", "values", "tiles", "masks", "biases"),
        *("scales", "extras", "columns", "diagonals", "epsilons"),
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
    parallel = {"results": "rows", "diagonals": "rows", "columns": "keys"}
    return ordered_arguments("SparseAttention", names, wanted, tensors, batch, parallel)


def merge_arguments(kernel: Mapping[str, Any], tensors: Mapping[str, Tensor], batch: int) -> list[Any]:
    """The arguments of the merge kernel in the order of :data:`MERGE_PARAMETERS`; as :func:`attention_arguments`."""
    merge_source(kernel)
    slots, width = kernel["slots"], kernel["value_width"]
    lines, rest = divmod(kernel["y"][0], width)
    if rest or not lines:
        raise InputError(f"MergeAttention: 'y' has {kernel['y'][0]} elements; allowed: multiples of {width}, its width")
    wanted = {
        "partial": Wanted("float32", (batch, slots, width), whole=True),
        "lse": Wanted("float32", (batch, slots), whole=True),
        "merges": Wanted("int32", (lines, 4)),
        "y": Wanted(kernel["element"], (batch, kernel["y"][0]), flat=True),
    }
    return ordered_arguments("MergeAttention", MERGE_PARAMETERS, wanted, tensors, batch, {})


def _attention_tensors(kernel: Mapping[str, Any], batch: int) -> dict[str, Wanted]:
    element = kernel["element"]
    whole = {name: Wanted(element, (batch, kernel[name][0]), flat=True) for name in "qkvy"}
    lists = {name: Wanted("int32", (None,)) for name in ("rows", "results", "keys", "values", "masks")}
    return {
        **whole,
        **lists,
        "jobs": Wanted("int32", (None, JOB_COLUMNS)),
        "tiles": Wanted("int32", (None, 2)),
        "biases": Wanted(element, (None,)),
        "scales": Wanted("float32", (kernel["heads"],)),
        "extras": Wanted("int32", (None, 2)),
        "weight": Wanted("float32", (batch, kernel["columns"]), flat=True),
        "columns": Wanted("int32", (None,)),
        "diagonals": Wanted("int32", (None,)),
        "epsilons": Wanted("float32", (2,)),
        "partial": Wanted("float32", (batch, kernel["slots"], kernel["value_width"]), whole=True),
        "lse": Wanted("float32", (batch, kernel["slots"]), whole=True),
    }

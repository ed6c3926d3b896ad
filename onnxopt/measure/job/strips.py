"""Tables of strips that are all alike, for measuring one tile shape: rows and gathered keys of one head."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.plan.tables.addresses import TensorLayout
from onnxopt.plan.tables.types import AttentionKernel
from onnxopt.target.variant import AttentionVariant, Element

Array = npt.NDArray[Any]

# Tokens that keys are gathered from, and different strips: together with the tokens' width more than an L1 cache holds.
_TOKENS = 4096
_STRIPS = 64


def strip_tables(
    variant: AttentionVariant, element: Element, widths: tuple[int, int], rows: int, keys: int, *, masked: bool
) -> tuple[AttentionKernel, dict[str, Array]]:
    """Tables of ``_STRIPS`` strips with ``rows`` rows and ``keys`` distinct random keys each, and their kernel.

    With ``masked`` every tile has a mask, of which half the bits are set.
    """
    rng = np.random.default_rng(0)
    width, value_width = widths
    kernel = AttentionKernel(
        element=element,
        variants=(variant,),
        heads=1,
        width=width,
        value_width=value_width,
        q=TensorLayout(_TOKENS * width, 1),
        k=TensorLayout(_TOKENS * width, 1),
        v=TensorLayout(_TOKENS * value_width, 1),
        y=TensorLayout(_STRIPS * rows * value_width, 1),
        own_values=width != value_width,
        masks=masked,
        biases=False,
        extras=False,
        slots=0,
        columns=0,
    )
    chosen = np.stack([rng.permutation(_TOKENS)[:keys] for _ in range(_STRIPS)])
    queries = np.stack([np.sort(rng.permutation(_TOKENS)[:rows]) for _ in range(_STRIPS)])
    row_step = _multiple(rows, max(variant.row_granule, 4))
    key_step = _multiple(keys, max(variant.key_granule, 4))
    jobs = np.zeros((_STRIPS, 16), np.int32)
    strips = np.arange(_STRIPS)
    jobs[:, 2], jobs[:, 3] = strips * row_step, rows
    jobs[:, 4], jobs[:, 5], jobs[:, 6] = strips * key_step, keys, strips * key_step
    tables: dict[str, Array] = {
        "jobs": jobs,
        "rows": _padded(queries * width, row_step),
        "results": _padded(np.arange(_STRIPS * rows).reshape(_STRIPS, rows) * value_width, row_step),
        "keys": _padded(chosen * width, key_step),
        "scales": np.array([width**-0.5], np.float32),
    }
    if kernel.own_values:
        tables["values"] = _padded(chosen * value_width, key_step)
    if masked:
        tables |= _masks(variant, rows, keys, rng)
    return kernel, {name: tables[name] for name in _ORDER if name in tables}


_ORDER = ("jobs", "rows", "results", "keys", "values", "tiles", "masks", "scales")


def _masks(variant: AttentionVariant, rows: int, keys: int, rng: np.random.Generator) -> dict[str, Array]:
    """One piece of lines for all strips, each tile with a mask tile of its own."""
    lines: list[tuple[int, int]] = []
    words: list[Array] = []
    for first in range(0, keys, variant.keys):
        count = min(variant.keys, keys - first)
        needed = np.zeros((rows, variant.keys), bool)
        needed[:, :count] = rng.random((rows, count)) < 0.5
        # A row without any key would be NaN, which nobody measures.
        needed[:, 0] = True
        if variant.swapped:
            needed = np.pad(needed.T, ((0, 0), (0, variant.rows - rows)))[: _multiple(count, variant.key_granule)]
        tall = _multiple(len(needed), 1 if variant.swapped else variant.row_granule)
        bits = np.pad(needed, ((0, tall - len(needed)), (0, -needed.shape[1] % 32)))
        lines.append((sum(len(own) for own in words), -1))
        packed = np.ascontiguousarray(np.packbits(bits, axis=1, bitorder="little"))
        words.append(packed.view("<i4").astype(np.int32).ravel())
    return {"tiles": np.array(lines, np.int32), "masks": np.concatenate(words)}


def _padded(values: Array, step: int) -> Array:
    result = np.full((len(values), step), -1, np.int32)
    result[:, : values.shape[1]] = values
    return result.ravel()


def _multiple(value: int, granule: int) -> int:
    return -(-value // granule) * granule

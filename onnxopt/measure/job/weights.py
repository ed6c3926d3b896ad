"""Packed weights that a job draws anew from a seed: it then carries only which of them are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.verification.kernel_rule import rounded_to

Array = npt.NDArray[Any]

_LIVE, _DRAWN = "w_live", "w_drawn"


def weightless(tables: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """The tables without the values of ``w``: a bit for each that is not 0, with their number, seed and mean size."""
    w = np.asarray(tables["w"], np.float32).ravel()
    live = w != 0
    size = float(np.sqrt(np.mean(np.square(w[live])))) if live.any() else 1.0
    own: dict[str, Array] = {_LIVE: np.packbits(live), _DRAWN: np.array([len(w), seed, size], np.float64)}
    return {**{name: table for name, table in tables.items() if name != "w"}, **own}


def with_weights(tables: dict[str, Array], element: str) -> dict[str, Array]:
    """The tables with ``w`` drawn where :func:`weightless` left it out: normal, in float32, as the type can hold it."""
    if _LIVE not in tables:
        return tables
    count, seed, size = tables[_DRAWN].tolist()
    live = np.unpackbits(tables[_LIVE], count=int(count)).astype(bool)
    drawn = np.random.default_rng(int(seed)).standard_normal(int(count), dtype=np.float32) * np.float32(size)
    kept = "fp32" if element == "tf32" else element
    w = np.where(live, rounded_to(kept, drawn), np.float32(0))
    return {**{name: table for name, table in tables.items() if name not in (_LIVE, _DRAWN)}, "w": w}

"""The attention operators in NumPy, from their inputs and tables alone, as ``docs/tables.md`` describes them.

Slow and plain: every job is computed by itself. Nothing here comes from the code that makes tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.validate.failure import PlanError

Array = npt.NDArray[Any]


@dataclass
class Output:
    """An output, batch x elements, that remembers how often each element of a batch element was written."""

    name: str
    values: Array
    written: Array
    stride: int

    def store(self, offset: int, vectors: Array) -> None:
        """Write one vector of every batch element from the element ``offset`` on."""
        places = offset + np.arange(vectors.shape[1]) * self.stride
        self.values[:, places] = vectors
        self.written[places] += 1

    def finished(self) -> Array:
        """The values; raises :class:`PlanError` where an element was not written exactly once."""
        wrong = np.flatnonzero(self.written != 1)
        if wrong.size:
            raise PlanError(
                f"element {wrong[0]} of {self.name!r} is written {self.written[wrong[0]]} times, expected once"
            )
        return self.values


def _output(name: str, batch: int, elements: int, stride: int, dtype: npt.DTypeLike) -> Output:
    return Output(name, np.full((batch, elements), np.nan, dtype), np.zeros(elements, np.int64), stride)


def sparse_attention(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    q: Array,
    k: Array,
    v: Array,
    weight: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> tuple[Array, ...]:
    """``(y,)``, batch x elements, or ``(partial, lse)`` where the configuration's ``kernel`` says ``split``.

    Computed in ``dtype``. Raises :class:`PlanError` where an output is not written exactly once.
    """
    outputs = attention_outputs(kernel, tables, q, k, v, weight, dtype)
    values = [output.finished() for output in outputs]
    if not kernel["split"]:
        return (values[0],)
    return values[0].reshape(len(values[0]), kernel["slots"], kernel["value_width"]), values[1]


def attention_outputs(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    q: Array,
    k: Array,
    v: Array,
    weight: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
    rounded: Callable[[Array], Array] = lambda weights: weights,
) -> tuple[Output, ...]:
    """What the lines of ``jobs`` write, which may be some of an operator's only: ``y``, or ``partial`` and ``lse``.

    ``rounded`` is what happens to the exponentials before they weigh the values, in an implementation whose products
    take narrower numbers than its sums.
    """
    run = _Attention(kernel, tables, q, k, v, weight, np.dtype(dtype), rounded)
    for job in tables["jobs"].tolist():
        run.job(job)
    return (run.y, run.lse) if kernel["split"] else (run.y,)


class _Attention:
    def __init__(
        self,
        kernel: Mapping[str, Any],
        tables: Mapping[str, Array],
        q: Array,
        k: Array,
        v: Array,
        weight: Array | None,
        dtype: np.dtype[Any],
        rounded: Callable[[Array], Array],
    ) -> None:
        self.kernel, self.tables, self.dtype, self.rounded = kernel, tables, dtype, rounded
        self.tensors = {
            name: np.asarray(tensor).reshape(-1, kernel[name][0]).astype(dtype)
            for name, tensor in (("q", q), ("k", k), ("v", v))
        }
        batch = len(self.tensors["q"])
        self.weight = None if weight is None else np.asarray(weight, dtype).reshape(batch, kernel["columns"])
        width = kernel["value_width"]
        if kernel["split"]:
            self.y = _output("partial", batch, kernel["slots"] * width, 1, dtype)
            self.lse = _output("lse", batch, kernel["slots"], 1, dtype)
        else:
            elements, stride = kernel["y"]
            self.y = _output("y", batch, elements, stride, dtype)

    def job(self, job: list[int]) -> None:
        variant_number, head, row_begin, rows, key_begin, keys, value_begin, tile_begin = job[:8]
        q_shift, k_shift, v_shift, y_shift, extra_begin, extras = job[8:14]
        variant, kernel, tables = self.kernel["variants"][variant_number], self.kernel, self.tables
        queries = self._vectors("q", tables["rows"][row_begin : row_begin + rows], q_shift, kernel["width"])
        if keys:
            key_list = tables["keys"][key_begin : key_begin + keys]
            value_list = tables["values" if kernel["own_values"] else "keys"][value_begin : value_begin + keys]
            k = self._vectors("k", key_list, k_shift, kernel["width"])
            v = self._vectors("v", value_list, v_shift, kernel["value_width"])
            needed, bias = self._tiles(variant, rows, keys, tile_begin)
            scores = queries @ k.transpose(0, 2, 1) * self.dtype.type(tables["scales"][head]) + bias
            factors = self._factors(row_begin, rows, key_begin, keys)
            result, lse = self._softmax(np.where(needed, scores, -np.inf), v, needed, factors)
        else:
            result = np.zeros((len(queries), rows, kernel["value_width"]), self.dtype)
            lse = np.full((len(queries), rows), -np.inf, self.dtype)
        self._store(result, lse, tables["results"][row_begin : row_begin + rows], y_shift)
        if extras:
            for row, offset in tables["extras"][extra_begin : extra_begin + extras].tolist():
                self.y.store(offset, result[:, row])

    def _vectors(self, name: str, entries: Array, shift: int, width: int) -> Array:
        """Batch x entries x width."""
        places = (entries.astype(np.int64) + shift)[:, None] + np.arange(width) * self.kernel[name][1]
        zero = entries < 0
        vectors = self.tensors[name][:, np.where(zero[:, None], 0, places)]
        return np.where(zero[:, None], self.dtype.type(0), vectors)

    def _tiles(self, variant: Mapping[str, Any], rows: int, keys: int, begin: int) -> tuple[Array, Array]:
        """Which pairs are needed, and what is added to their scores, rows x keys."""
        needed, bias = np.ones((rows, keys), bool), np.zeros((rows, keys), self.dtype)
        if "tiles" not in self.tables:
            return needed, bias
        swapped, size = variant["swapped"], variant["keys"]
        for tile, first in enumerate(range(0, keys, size)):
            count = min(size, keys - first)
            if swapped:
                tall, wide, granule = count, variant["rows"], variant["key_granule"]
            else:
                tall, wide, granule = rows, size, variant["row_granule"]
            tall = -(-tall // granule) * granule
            mask_begin, bias_begin = self.tables["tiles"][begin + tile].tolist()
            place = np.s_[:, first : first + count]
            if mask_begin >= 0:
                words = -(-wide // 32)
                stored = self.tables["masks"][mask_begin : mask_begin + tall * words].reshape(tall, words)
                column = np.arange(wide)
                bits = (stored[:, column // 32].view(np.uint32) >> (column % 32).astype(np.uint32)) & 1
                needed[place] = (bits.T if swapped else bits)[:rows, :count] == 1
            if bias_begin >= 0:
                stored = self.tables["biases"][bias_begin : bias_begin + tall * wide].reshape(tall, wide)
                bias[place] = (stored.T if swapped else stored)[:rows, :count].astype(self.dtype)
        return needed, bias

    def _factors(self, row_begin: int, rows: int, key_begin: int, keys: int) -> Array | None:
        """Run-time weights, batch x rows x keys."""
        if self.weight is None:
            return None
        columns = self.tables["columns"][key_begin : key_begin + keys]
        own = self.tables["diagonals"][row_begin : row_begin + rows]
        factors = np.repeat(self.weight[:, None, columns], rows, axis=1)
        factors[:, own[:, None] == columns] = 1
        return factors

    def _softmax(self, scores: Array, v: Array, needed: Array, factors: Array | None) -> tuple[Array, Array]:
        """Weighted values, batch x rows x channels, and the logarithm of the sum of exponentials."""
        with np.errstate(invalid="ignore", divide="ignore"):
            largest = scores.max(axis=-1, keepdims=True)
            base = np.where(np.isfinite(largest), largest, 0)
            powers = np.where(needed, np.exp(scores - base), 0)
            if factors is not None:
                weighed = factors * powers
                above, below = self.tables["epsilons"].astype(self.dtype)
                weights = np.where(needed, weighed + above, 0)
                return self.rounded(weights) @ v / (weighed.sum(axis=-1, keepdims=True) + below), largest[..., 0]
            total = powers.sum(axis=-1, keepdims=True)
            return self.rounded(powers) @ v / total, (np.log(total) + base)[..., 0]

    def _store(self, result: Array, lse: Array, places: Array, shift: int) -> None:
        width = self.kernel["value_width"]
        if self.kernel["split"]:
            result = np.where(np.isneginf(lse)[..., None], 0, result)
        for row, place in enumerate(places.tolist()):
            if place < 0:
                continue
            if self.kernel["split"]:
                self.y.store((place + shift) * width, result[:, row])
                self.lse.store(place + shift, lse[:, row : row + 1])
            else:
                self.y.store(place + shift, result[:, row])


def merge_attention(
    kernel: Mapping[str, Any],
    tables: Mapping[str, Array],
    partial: Array,
    lse: Array,
    dtype: npt.DTypeLike = np.float64,
) -> Array:
    """``y``, batch x elements, from partial results. Raises :class:`PlanError` as :func:`sparse_attention` does."""
    elements, stride = kernel["y"]
    y = _output("y", len(partial), elements, stride, dtype)
    partial, lse = partial.astype(dtype), lse.astype(dtype)
    for first, count, offset, _ in tables["merges"].tolist():
        if not count:
            y.store(offset, np.zeros((len(partial), kernel["value_width"]), dtype))
            continue
        own = lse[:, first : first + count]
        with np.errstate(invalid="ignore"):
            weights = np.exp(own - own.max(axis=1, keepdims=True))
            weights = weights / weights.sum(axis=1, keepdims=True)
        y.store(offset, np.einsum("bs,bsc->bc", weights, partial[:, first : first + count]))
    return y.finished()

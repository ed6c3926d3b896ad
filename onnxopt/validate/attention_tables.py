"""Whether the written form of an attention computes its site: proved from its nodes and tables alone.

Every block of the output is followed back to the result that it reads, and that result to the query, keys, values,
scale and biases that it is computed from; these must be the site's, with multiplicity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.discover.operand import Operand
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph
from onnxopt.validate.attention_written import Batch, Gathered, read_written
from onnxopt.validate.failure import PlanError

# (query, key) pairs that are compared at a time, in a dozen arrays of 8 bytes a pair.
_CHUNK_PAIRS = 1 << 22


def validate_attention_tables(site: AttentionSite, rewrite: Rewrite, graph: Graph) -> None:
    """Prove that what ``rewrite`` says computes ``site.output``: each (query, key, value) with its bias, exactly once.

    ``graph`` is the view that the site was found in; only the shapes of the site's inputs are taken from it. Raises
    :class:`PlanError` for an index that points at nothing, and for whatever is not the site's.
    """
    if rewrite.site != site.id:
        raise PlanError(f"{site.id}: the rewrite is of site {rewrite.site!r}")
    sources = _numbered(site, graph)
    written = read_written(rewrite, sources, site.output)
    width = site.v.width
    results = _results_read(site, written.output, width)
    placed = _placed(site, results)
    check = _Check(site, {id(o): _vectors(o, sources) for o in (site.q, site.k, site.v)})
    for batch in written.batches:
        check.batch(batch, placed)


@dataclass(frozen=True)
class _Placed:
    """Which result stands for which row of which head; ascending by result. Arrays of equal length."""

    results: np.ndarray
    heads: np.ndarray
    rows: np.ndarray


def _numbered(site: AttentionSite, graph: Graph) -> dict[str, np.ndarray]:
    """Element numbers from 1 of one batch element of each tensor that the site reads."""
    numbers: dict[str, np.ndarray] = {}
    first = 1
    for name in site.inputs:
        shape = graph.shape(name)
        if not shape or shape[0] % site.batch:
            raise PlanError(f"{site.id}: {name!r} of shape {shape} has no {site.batch} batch elements")
        own = (shape[0] // site.batch, *shape[1:])
        size = int(np.prod(own))
        numbers[name] = np.arange(first, first + size).reshape(own)
        first += size
    return numbers


def _vectors(operand: Operand, sources: Mapping[str, np.ndarray]) -> np.ndarray:
    """The element numbers of an operand's vectors, vectors x width, as the site's contract says."""
    parts = [np.moveaxis(sources[s.tensor], s.channel_axis, -1).reshape(-1, operand.width) for s in operand.sources]
    return np.concatenate(parts)


def _results_read(site: AttentionSite, output: np.ndarray, width: int) -> np.ndarray:
    """The result in every slot of the output (output rows x channel blocks), -1 for zeros."""
    shape = (site.output_shape[0] // site.batch, *site.output_shape[1:])
    if output.shape != shape:
        raise PlanError(f"{site.id}: one batch element of the output is written as {output.shape}, expected {shape}")
    blocks = np.moveaxis(output, site.channel_axis, -1).reshape(*site.slots.shape, width)
    first = blocks[..., 0]
    whole = blocks == np.where(first > 0, (first - 1) // width * width + 1, 0)[..., None] + np.where(
        (first > 0)[..., None], np.arange(width), 0
    )
    if not whole.all():
        row, block, _ = (int(i[0]) for i in np.nonzero(~whole))
        raise PlanError(f"{site.id}: block {block} of output row {row} does not hold one whole result")
    return np.where(first > 0, (first - 1) // width, -1)


def _placed(site: AttentionSite, results: np.ndarray) -> _Placed:
    """The distinct (result, row of a head) that the output asks for, checking which of its blocks are zeros."""
    wanted, results = site.slots.reshape(-1), results.reshape(-1)
    zero = wanted < 0
    if site.empty_kind is EmptyRow.ZERO:
        zero = zero | site.empty[wanted % site.rows]
    wrong = np.flatnonzero(zero != (results < 0))
    if wrong.size:
        slot, head, row = int(wrong[0]), *divmod(int(wanted[wrong[0]]), site.rows)
        found = "zeros" if results[slot] < 0 else f"result {results[slot]}"
        expected = "zeros" if zero[slot] else f"the result of head {head}, query {row}"
        raise PlanError(f"{site.id}: slot {slot} of the output holds {found}, expected {expected}")
    codes = np.unique(results[~zero] * (site.heads * site.rows) + wanted[~zero])
    heads, rows = np.divmod(codes % (site.heads * site.rows), site.rows)
    return _Placed(codes // (site.heads * site.rows), heads, rows)


@dataclass(frozen=True)
class _Pairs:
    """Live pairs of some rows, row after row: ``row`` counts from 0, key and value are vectors of the operands."""

    row: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray

    def sorted(self) -> _Pairs:
        order = np.lexsort((self.bias, self.value, self.key, self.row))
        return _Pairs(self.row[order], self.key[order], self.value[order], self.bias[order])

    def of(self, row: int) -> Counter[tuple[int, int, float]]:
        own = self.row == row
        triples = zip(self.key[own].tolist(), self.value[own].tolist(), self.bias[own].tolist(), strict=True)
        return Counter(triples)


@dataclass
class _Check:
    """Compares batches with the site; ``vectors`` are the operands' vectors by the operand's identity."""

    site: AttentionSite
    vectors: Mapping[int, np.ndarray]
    _tables: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def batch(self, batch: Batch, placed: _Placed) -> None:
        shape = batch.queries.index.shape
        bounds = np.searchsorted(placed.results, [batch.first, batch.first + int(np.prod(shape))])
        own = slice(*bounds)
        heads, rows = placed.heads[own], placed.rows[own]
        places = np.unravel_index(placed.results[own] - batch.first, shape)
        self._queries(batch.queries, places, heads, rows)
        keys, values = self._numbers(batch.keys, self.site.k), self._numbers(batch.values, self.site.v)
        chosen = _unlike(self.site, batch, places, heads, rows)
        heads, rows = heads[chosen], rows[chosen]
        places = tuple(p[chosen] for p in places)
        step = max(1, _CHUNK_PAIRS // max(1, keys.shape[2]))
        for head in np.unique(heads):
            of_head = np.flatnonzero(heads == head)
            for start in range(0, len(of_head), step):
                part = of_head[start : start + step]
                seen = _live(batch.added, keys, values, tuple(p[part] for p in places))
                kind = np.dtype(np.float32) if batch.added is None else batch.added.dtype
                self._compare(int(head), rows[part], seen, _needed(self.site, int(head), rows[part], kind))

    def _numbers(self, gathered: Gathered, operand: Operand) -> np.ndarray:
        """The operand's vector at every place; -1 for a zero vector, -2 for what is no vector of the operand."""
        known = (id(gathered.table), id(operand))
        if known not in self._tables:
            self._tables[known] = _matched(gathered.table[0], self.vectors[id(operand)])
        return np.asarray(self._tables[known][gathered.index])

    def _queries(self, queries: Gathered, places: Sequence[np.ndarray], heads: np.ndarray, rows: np.ndarray) -> None:
        site = self.site
        seen, expected = self._numbers(queries, site.q)[tuple(places)], site.query_vectors[heads, rows]
        wrong = np.flatnonzero(seen != expected)
        if wrong.size:
            at = int(wrong[0])
            where = f"{site.id}: head {heads[at]}, query {rows[at]}"
            raise PlanError(f"{where}: computed of query vector {seen[at]}, expected {expected[at]}")
        kind = np.dtype(np.float64) if queries.factor is None else queries.factor.dtype
        factor = np.ones((1, 1, 1)) if queries.factor is None else queries.factor
        scale = np.broadcast_to(factor, queries.index.shape)[tuple(places)]
        wanted = site.scale.astype(kind)[heads]
        wrong = np.flatnonzero(scale != wanted)
        if wrong.size:
            at = int(wrong[0])
            where = f"{site.id}: head {heads[at]}, query {rows[at]}"
            raise PlanError(f"{where}: scaled by {scale[at]}, expected {wanted[at]}")

    def _compare(self, head: int, rows: np.ndarray, seen: _Pairs, expected: _Pairs) -> None:
        """Raise for the first row whose pairs differ; a form's own order is the site's nearly always."""
        if _same(seen, expected):
            return
        seen, expected = seen.sorted(), expected.sorted()
        if _same(seen, expected):
            return
        counts = [np.bincount(pairs.row, minlength=len(rows)) for pairs in (seen, expected)]
        uneven = np.flatnonzero(counts[0] != counts[1])
        if uneven.size:
            wrong = int(uneven[0])
        else:
            wrong = int(seen.row[np.flatnonzero(_unequal(seen, expected))[0]])
        raise PlanError(self._difference(head, int(rows[wrong]), seen.of(wrong), expected.of(wrong)))

    def _difference(
        self, head: int, row: int, seen: Counter[tuple[int, int, float]], expected: Counter[tuple[int, int, float]]
    ) -> str:
        pair = min((seen - expected) or (expected - seen))
        key, value, bias = pair
        site = self.site
        alike = np.flatnonzero((site.key_vectors[head] == key) & (site.value_vectors[head] == value))
        name = f"key {int(alike[0])}" if alike.size else "no key of the site"
        return (
            f"{site.id}: head {head}, query {row}: {name} (key vector {key}, value vector {value}, bias {bias:g}) is "
            f"computed {seen[pair]} times, expected {expected[pair]}; {seen.total()} pairs, expected {expected.total()}"
        )


def _same(a: _Pairs, b: _Pairs) -> bool:
    return len(a.row) == len(b.row) and not _unequal(a, b).any()


def _unequal(a: _Pairs, b: _Pairs) -> npt.NDArray[np.bool_]:
    return np.asarray((a.row != b.row) | (a.key != b.key) | (a.value != b.value) | (a.bias != b.bias))


def _matched(table: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """For each row of a table which of ``vectors`` it is; -1 for zeros, -2 for none."""
    if table.shape[1] != vectors.shape[1]:
        return np.full(len(table), -2)
    by_first = np.full(int(max(table.max(initial=0), vectors.max(initial=0))) + 1, -2)
    by_first[vectors[:, 0]] = np.arange(len(vectors))
    number = by_first[table[:, 0]]
    found = number >= 0
    found[found] = (table[found] == vectors[number[found]]).all(axis=1)
    return np.where(found, number, np.where((table == 0).all(axis=1), -1, -2))


def _unlike(
    site: AttentionSite, batch: Batch, places: Sequence[np.ndarray], heads: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """One of each kind of row: those of one strip with one key list are alike where neither mask nor bias differs."""
    masked_by_row = batch.added is not None and batch.added.shape[2] > 1
    shape = batch.queries.index.shape
    group = np.ravel_multi_index((places[0], places[1], places[2] if masked_by_row else places[2] * 0), shape)
    kind = np.where(site.head_bias[heads] >= 0, rows, 0)
    for number, lists in enumerate(site.lists):
        own = (site.head_lists[heads] == number) & (site.head_bias[heads] < 0)
        kind[own] = lists.row_list[rows[own]]
    codes = (group * site.heads + heads) * (site.rows + 1) + kind
    return np.unique(codes, return_index=True)[1]


def _live(added: np.ndarray | None, keys: np.ndarray, values: np.ndarray, places: Sequence[np.ndarray]) -> _Pairs:
    """The pairs that the tables leave live for the result rows at ``places``."""
    head, strip, row = places
    if added is None:
        added = np.zeros((1, 1, 1, 1), np.float32)
    own = tuple(p if size > 1 else 0 for p, size in zip((head, strip, row), added.shape[:3], strict=True))
    chosen = np.broadcast_to(added[own], (len(row), keys.shape[2]))
    number, key = np.nonzero(chosen != -np.inf)
    head, strip = head[number], strip[number]
    bias = _saturated(chosen[number, key], added.dtype)
    return _Pairs(number, keys[head, strip, key], values[head, strip, key], bias)


def _needed(site: AttentionSite, head: int, rows: np.ndarray, kind: np.dtype) -> _Pairs:
    """The pairs that the site needs for rows of a head; a bias of -inf leaves nothing of its pair."""
    lists = site.lists[int(site.head_lists[head])]
    lengths = np.diff(lists.offsets)[lists.row_list]
    own = lengths[rows]
    number = np.repeat(np.arange(len(rows)), own)
    within = np.arange(len(number)) - np.repeat(np.cumsum(own) - own, own)
    key = lists.keys[lists.offsets[lists.row_list[rows]][number] + within]
    bias = np.zeros(len(key))
    if site.head_bias[head] >= 0:
        starts = np.cumsum(lengths) - lengths
        flat = site.biases[int(site.head_bias[head])]
        bias = flat[starts[rows][number] + within]
        live = bias != -np.inf
        number, key, bias = number[live], key[live], _saturated(bias[live], kind)
    return _Pairs(number, site.key_vectors[head, key], site.value_vectors[head, key], bias)


def _saturated(bias: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Biases as the form's type holds them, as float64: finite ones stay finite, since -inf would be a mask."""
    limit = 65504.0 if kind == np.float16 else 3e38
    wide = bias.astype(np.float64)
    within = np.abs(wide) < limit
    held = np.where(within, wide, 0.0).astype(kind).astype(np.float64)
    return np.where(within | ~np.isfinite(wide), np.where(within, held, wide), np.copysign(limit, wide))

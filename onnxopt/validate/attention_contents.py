"""Whether the tables of an attention say what its site does: every query, key, value, bias and result, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.discover.operand import Operand
from onnxopt.plan.tables.types import AttentionTables
from onnxopt.validate.attention_weights import KeyWeightsCheck
from onnxopt.validate.failure import PlanError
from onnxopt.validate.launch import Array, all_entries

Shapes = Mapping[str, Sequence[int]]
_ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-20}
_LARGEST = {"float16": 65504.0}


def validate_attention_contents(site: AttentionSite, tables: AttentionTables, shapes: Shapes | None = None) -> None:
    """Prove that each block of the output is the result of its query over its keys, each with its value and bias, as
    often as the site needs it.

    ``shapes`` has the shapes of tensors that hold their channels first. The tables are expected to have passed
    :func:`onnxopt.validate.validate_attention_launch`; scales and biases are compared to within rounding. Run-time
    weights are those of the site; where it has none but a mask that depends on the input, weights that were given to
    its tables are not looked at. Raises :class:`PlanError`.
    """
    _Contents(site, tables, shapes or {}).check()


@dataclass(frozen=True)
class _Pairs:
    """Unmasked pairs of some rows, row after row: key and bias of each."""

    row: Array
    key: Array
    bias: Array

    def sorted(self) -> _Pairs:
        """In the order of row, key and bias; they often are already."""
        steps = np.diff(self.row * (int(self.key.max(initial=0)) + 1) + self.key)
        if not steps.size or steps.min() > 0:
            return self
        order = np.lexsort((self.bias, self.key, self.row))
        return _Pairs(self.row[order], self.key[order], self.bias[order])


class _Contents:
    def __init__(self, site: AttentionSite, tables: AttentionTables, shapes: Shapes) -> None:
        self.site, self.tables, self.kernel = site, tables, tables.configuration()["kernel"]
        self.query = _addresses(site.q, site.query_vectors, shapes)
        key, value = _addresses(site.k, site.key_vectors, shapes), _addresses(site.v, site.value_vectors, shapes)
        self.values = max(int(value.max(initial=0)) + 2, self.kernel["v"][0] + 2)
        self.pair = (key + 1) * self.values + value + 1
        self.weights = KeyWeightsCheck(site, tables, self.pair)
        if site.empty_kind is EmptyRow.UNIFORM:
            self.query = np.where(site.head_empty, -1, self.query)
        self.result = _results(site)
        self.starts = {n: lists.row_offsets() for n, lists in enumerate(site.lists)}

    def check(self) -> None:
        jobs = self.tables.jobs
        places, job = all_entries(self.tables.results, jobs[:, 2], jobs[:, 3].astype(np.int64))
        first = np.cumsum(jobs[:, 3]) - jobs[:, 3]
        row = np.arange(len(job)) - first[job]
        target = np.where(places >= 0, places + jobs[job, 11].astype(np.int64), -1)
        results = self._of_slots(target) if self.kernel["split"] else self._of_blocks(target, job, row)
        waiting: dict[int, list[tuple[int, _Pairs]]] = {}
        for number in range(len(jobs)):
            own = results[first[number] : first[number] + jobs[number, 3]]
            self._job(number, own, waiting)
        for result, pieces in waiting.items():
            self._compare(result, [pairs for _, pairs in pieces], f"query {result % self.site.rows}")

    def _of_blocks(self, target: Array, job: Array, row: Array) -> Array:
        """The result (head * rows + row, -1 zeros, -2 nothing) that each row of each job has to be."""
        result = np.where(target >= 0, self.result[np.maximum(target, 0)], -2)
        if self.tables.extras is not None:
            lines, owner = all_entries(
                self.tables.extras, self.tables.jobs[:, 12], self.tables.jobs[:, 13].astype(np.int64)
            )
            first = np.cumsum(self.tables.jobs[:, 3]) - self.tables.jobs[:, 3]
            same = result[first[owner] + lines[:, 0]]
            wrong = np.flatnonzero(same != self.result[lines[:, 1]])
            if wrong.size:
                raise PlanError(
                    f"{self.site.id}, job {owner[wrong[0]]}: an extra repeats another result than its row's"
                )
        return result

    def _of_slots(self, target: Array) -> Array:
        """The result that each partial result is a piece of."""
        assert self.tables.merge is not None
        owner = np.full(self.kernel["slots"], -2, np.int64)
        for first, count, offset, _ in self.tables.merge.merges.tolist():
            wanted = self.result[offset]
            if (count == 0) != (wanted == -1):
                raise PlanError(f"{self.site.id}: the merge at element {offset} has {count} pieces")
            own = owner[first : first + count]
            if np.any((own != -2) & (own != wanted)):
                raise PlanError(f"{self.site.id}: slot {first} is a piece of two results")
            owner[first : first + count] = wanted
        uses = np.bincount(np.maximum(owner, 0)[owner >= 0], minlength=1)
        sizes = {int(self.result[o]): int(c) for _, c, o, _ in self.tables.merge.merges.tolist()}
        for result, count in sizes.items():
            if result >= 0 and uses[result] != count:
                raise PlanError(f"{self.site.id}: a merge leaves out pieces of query {result % self.site.rows}")
        return np.where(target >= 0, owner[np.maximum(target, 0)], -2)

    def _job(self, number: int, results: Array, waiting: dict[int, list[tuple[int, _Pairs]]]) -> None:
        line = self.tables.jobs[number].tolist()
        name = f"{self.site.id}, job {number}"
        if not line[5]:
            if np.any(results >= 0):
                raise PlanError(f"{name}: it has no keys, but its result is read as one of a query")
            return
        if np.any(results == -1):
            raise PlanError(f"{name}: a block of zeros is written by a query")
        live = np.flatnonzero(results >= 0)
        heads, rows = np.divmod(results[live], self.site.rows)
        scales = self.tables.scales[line[1]]
        if np.any(np.abs(self.site.scale[heads] - scales) > 2.0**-20 * np.abs(scales)):
            raise PlanError(f"{name}: its scale is {scales}, expected {self.site.scale[heads[0]]}")
        queries = _shifted(self.tables.rows[line[2] : line[2] + line[3]], line[8])[live]
        wrong = np.flatnonzero(queries != self.query[heads, rows])
        if wrong.size:
            at = int(wrong[0])
            raise PlanError(
                f"{name}: query {rows[at]} of head {heads[at]} is read from element {queries[at]}, expected "
                f"{self.query[heads[at], rows[at]]}"
            )
        if self.site.weights is not None:
            self.weights.check_job(name, line, (heads, rows, live), self._codes(line))
        if not self.kernel["split"] and self._full(line, heads, rows):
            self._check_full(name, line, heads, rows)
            return
        pairs = self._pairs(line, live)
        for head in np.unique(heads).tolist():
            mine = np.flatnonzero(heads == head)
            chosen = pairs if len(mine) == len(heads) else _of_rows(pairs, mine)
            if self.kernel["split"]:
                for place in mine.tolist():
                    own = _of_rows(pairs, np.array([place]))
                    waiting.setdefault(int(results[live[place]]), []).append((number, own))
            else:
                self._check_pairs(name, head, rows[mine], chosen)

    def _full(self, line: list[int], heads: Array, rows: Array) -> bool:
        """Whether a job and the site say alike that nothing is masked or added, but for the keys themselves."""
        count = -(-line[5] // self.kernel["variants"][line[0]]["keys"])
        tiles = self.tables.tiles
        plain = tiles is None or bool(np.all(tiles[line[7] : line[7] + count] == -1))
        return plain and not np.any(self.site.head_bias[heads] >= 0) and not np.any(self.site.head_empty[heads, rows])

    def _check_full(self, name: str, line: list[int], heads: Array, rows: Array) -> None:
        """The pairs of a job without masks and biases: its keys are those of the list of each of its rows."""
        found = np.sort(self._codes(line))
        kinds: dict[tuple[int, int], int] = {}
        for head, row in zip(heads.tolist(), rows.tolist(), strict=True):
            kinds.setdefault((head, int(self.site.lists_of(head).row_list[row])), row)
        for (head, own), row in kinds.items():
            if not np.array_equal(found, np.sort(self.pair[head, self.site.lists_of(head).list(own)])):
                raise PlanError(f"{name}: query {row} of head {head} attends to other keys than the site's")

    def _codes(self, line: list[int]) -> Array:
        """The key and value of each of a job's keys, as one number."""
        tables, keys = self.tables, line[5]
        key = _shifted(tables.keys[line[4] : line[4] + keys], line[9])
        of_values = tables.keys if tables.values is None else tables.values
        value = _shifted(of_values[line[6] : line[6] + keys], line[10])
        return np.asarray((key + 1) * self.values + value + 1)

    def _pairs(self, line: list[int], live: Array) -> _Pairs:
        """The unmasked pairs of a job's live rows, rows counted from 0."""
        needed, bias = self._tiles(line)
        row, place = np.nonzero(needed[live])
        return _Pairs(row, self._codes(line)[place], bias[live[row], place])

    def _tiles(self, line: list[int]) -> tuple[Array, Array]:
        """Needed pairs and biases of a job, rows x keys."""
        variant, tables = self.kernel["variants"][line[0]], self.tables
        rows, keys, size = line[3], line[5], variant["keys"]
        needed, bias = np.ones((rows, keys), bool), np.zeros((rows, keys), np.float64)
        if tables.tiles is None:
            return needed, bias
        for tile in range(-(-keys // size)):
            here = slice(tile * size, min(keys, tile * size + size))
            width = here.stop - here.start
            m, n = (width, variant["rows"]) if variant["swapped"] else (rows, size)
            mask, added = tables.tiles[line[7] + tile].tolist()
            if mask >= 0 and tables.masks is not None:
                words = -(-n // 32)
                stored = np.ascontiguousarray(tables.masks[mask : mask + m * words].reshape(m, words))
                bits = np.unpackbits(stored.view(np.uint8), axis=1, bitorder="little").astype(bool)
                needed[:, here] = bits.T[:rows] if variant["swapped"] else bits[:, :width]
            if added >= 0 and tables.biases is not None:
                tiled = tables.biases[added : added + m * n].reshape(m, n).astype(np.float64)
                bias[:, here] = tiled.T[:rows] if variant["swapped"] else tiled[:, :width]
        return needed, bias

    def _expected(self, head: int, rows: Array) -> _Pairs:
        """The pairs that the site needs for some rows of a head."""
        number = int(self.site.head_lists[head])
        lists, starts, stored = self.site.lists[number], self.starts[number], self.site.bias_of(head)
        own = lists.row_list[rows]
        lengths = lists.offsets[own + 1] - lists.offsets[own]
        keys, row = all_entries(lists.keys, lists.offsets[own], lengths)
        bias = np.zeros(len(keys)) if stored is None else all_entries(stored, starts[rows], lengths)[0].astype(float)
        empty = self.site.head_empty[head, rows][row]
        if empty.any():
            if self.site.empty_kind is EmptyRow.NAN:
                keys, row, bias = keys[~empty], row[~empty], bias[~empty]
            elif self.site.empty_kind is EmptyRow.UNMASKED:
                highest = np.full(len(rows), -np.inf)
                np.maximum.at(highest, row, bias)
                bias = np.where(empty, bias - highest[row], bias)
            else:
                bias = np.where(empty, 0.0, bias)
        return _Pairs(row, self.pair[head, keys], bias)

    def _check_pairs(self, name: str, head: int, rows: Array, pairs: _Pairs) -> None:
        wanted, found = self._expected(head, rows).sorted(), pairs.sorted()
        counts = (np.bincount(p.row, minlength=len(rows)) for p in (wanted, found))
        uneven = np.flatnonzero(np.subtract(*counts))
        if uneven.size or not np.array_equal(wanted.key, found.key):
            at = int(uneven[0]) if uneven.size else int(wanted.row[np.argmax(wanted.key != found.key)])
            raise PlanError(f"{name}: query {rows[at]} of head {head} attends to other keys than the site's")
        kind = "float32" if self.tables.biases is None else self.tables.biases.dtype.name
        limit = _LARGEST.get(kind, np.inf)
        expected = np.clip(wanted.bias, -limit, limit)
        wrong = np.flatnonzero(np.abs(expected - found.bias) > _ROUNDING[kind] * (np.abs(expected) + 1e-3))
        if wrong.size:
            at = int(wrong[0])
            raise PlanError(
                f"{name}: query {rows[wanted.row[at]]} of head {head} has a bias of {found.bias[at]}, expected "
                f"{expected[at]}"
            )

    def _compare(self, result: int, pieces: list[_Pairs], name: str) -> None:
        """One split result against its pieces together."""
        head, row = divmod(result, self.site.rows)
        key = np.concatenate([p.key for p in pieces])
        joined = _Pairs(np.zeros(len(key), np.int64), key, np.concatenate([p.bias for p in pieces]))
        self._check_pairs(f"{self.site.id}, {name}", head, np.array([row]), joined)


def _of_rows(pairs: _Pairs, rows: Array) -> _Pairs:
    """The pairs of some of the rows, which are counted anew."""
    place = np.full(int(pairs.row.max(initial=0)) + 1 + int(rows.max()), -1)
    place[rows] = np.arange(len(rows))
    kept = place[pairs.row] >= 0
    return _Pairs(place[pairs.row[kept]], pairs.key[kept], pairs.bias[kept])


def _shifted(entries: Array, shift: int) -> Array:
    return np.where(entries >= 0, entries.astype(np.int64) + shift, -1)


def _addresses(operand: Operand, vectors: Array, shapes: Shapes) -> Array:
    """The element of the first channel of each vector, found by laying out the tensors; -1 for a zero vector."""
    firsts = []
    before = 0
    for source in operand.sources:
        if source.channel_axis == 1:
            positions = int(np.prod(shapes[source.tensor][2:]))
            shape = (source.rows // positions, source.channels, positions)
            numbers = np.arange(source.rows * source.channels).reshape(shape).transpose(0, 2, 1)
            firsts.append(before + numbers.reshape(-1, operand.width)[:, 0])
        else:
            firsts.append(before + np.arange(0, source.rows * source.channels, operand.width))
        before += source.rows * source.channels
    table = np.append(np.concatenate(firsts), -1).astype(np.int64)
    return np.asarray(table[vectors])


def _results(site: AttentionSite) -> Array:
    """For each element of the output the result that begins there (-1: zeros), -2 where none does."""
    shape = site.output_shape
    axis = site.channel_axis % len(shape)
    inner = int(np.prod(shape[axis + 1 :]))
    elements = int(np.prod(shape)) // site.batch
    numbers = np.arange(elements).reshape(-1, shape[axis], inner).transpose(0, 2, 1)
    begins = numbers.reshape(*site.slots.shape, site.v.width)[..., 0].reshape(-1)
    wanted = site.slots.reshape(-1).astype(np.int64)
    if site.empty_kind is EmptyRow.ZERO:
        wanted = np.where((wanted >= 0) & site.empty[wanted % site.rows], -1, wanted)
    result = np.full(elements, -2, np.int64)
    result[begins] = wanted
    return result

"""Whether an attention plan covers exactly what its site needs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists
from onnxopt.plan.attention import AttentionPlan, HeadPlan
from onnxopt.validate.failure import PlanError

# Keys that are laid out at a time, 8 bytes each in a handful of arrays.
_CHUNK_KEYS = 1 << 22


def validate_attention_plan(site: AttentionSite, plan: AttentionPlan) -> None:
    """Prove that every needed (query row, key, occurrence) of every head lies in exactly one strip, exactly once.

    Every head is in one part, every row that is computed in one strip of it, every strip in one bucket that is large
    enough; a strip holds what its rows need and nothing else, is full only where nothing is masked, and ``needed`` and
    ``computed`` are counted anew. Raises :class:`PlanError`.
    """
    if plan.site != site.id:
        raise PlanError(f"{site.id}: the plan is of site {plan.site!r}")
    _check_heads(site, plan)
    filled = filled_rows(site)
    needed = computed = 0
    for number, part in enumerate(plan.parts):
        _Part(site, part, f"{site.id}, part {number} (head {part.heads[0]})").check(filled)
        lists = site.lists[part.lists]
        lengths = lists.offsets[1:] - lists.offsets[:-1]
        needed += len(part.heads) * int(lengths[lists.row_list[filled]].sum())
        computed += len(part.heads) * sum(len(b.strips) * b.rows * b.keys for b in part.buckets)
    for name, said, counted in (("needed", plan.needed, needed), ("computed", plan.computed, computed)):
        if said != counted:
            raise PlanError(f"{site.id}: the plan says {name} = {said} pairs, counted {counted}")
    if plan.waste != computed / max(1, needed):
        raise PlanError(f"{site.id}: the plan says waste = {plan.waste}, counted {computed / max(1, needed)}")


def filled_rows(site: AttentionSite) -> np.ndarray:
    """Whether each row is computed; rows that the graph turns into zeros in every head are not."""
    if site.empty_kind is EmptyRow.ZERO:
        return np.asarray(~site.empty)
    return np.ones(site.rows, bool)


def _check_heads(site: AttentionSite, plan: AttentionPlan) -> None:
    seen = [0] * site.heads
    for part in plan.parts:
        if not part.heads:
            raise PlanError(f"{site.id}: a part of the plan has no heads")
        for head in part.heads:
            if not 0 <= head < site.heads:
                raise PlanError(f"{site.id}: a part names head {head}, but there are {site.heads}")
            seen[head] += 1
            wanted = int(site.head_lists[head])
            if part.lists != wanted:
                raise PlanError(f"{site.id}: head {head} is planned by key lists {part.lists}, but has {wanted}")
    for head, count in enumerate(seen):
        if count != 1:
            raise PlanError(f"{site.id}: head {head} is in {count} parts of the plan, expected 1")


class _Part:
    """One part of a plan; ``name`` says in messages which."""

    def __init__(self, site: AttentionSite, part: HeadPlan, name: str) -> None:
        self.part, self.name = part, name
        self.lists = site.lists[part.lists]
        self.rows, self.keys = site.rows, site.key_vectors.shape[1]

    def check(self, filled: np.ndarray) -> None:
        self._check_rows(filled)
        self._check_buckets()
        self._check_numbers("key", [strip.keys for strip in self.part.strips], self.keys)
        occurrences = _occurrences(self.lists, self.name)
        for first, last in self._chunks():
            self._check_cover(first, last, occurrences)

    def _check_rows(self, filled: np.ndarray) -> None:
        self._check_numbers("query", [strip.rows for strip in self.part.strips], self.rows)
        rows = [strip.rows for strip in self.part.strips]
        seen = np.bincount(np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64), minlength=self.rows)
        wrong = np.flatnonzero(seen != filled)
        if wrong.size:
            row = int(wrong[0])
            raise PlanError(f"{self.name}: query {row} is in {seen[row]} strips, expected {int(filled[row])}")

    def _check_numbers(self, what: str, numbers: list[np.ndarray], count: int) -> None:
        for strip, own in enumerate(numbers):
            if not len(own):
                raise PlanError(f"{self.name}, strip {strip}: it has no {what}")
            if own.min() < 0 or own.max() >= count:
                wrong = int(own[(own < 0) | (own >= count)][0])
                raise PlanError(f"{self.name}, strip {strip}: {what} {wrong} does not exist, there are {count}")

    def _check_buckets(self) -> None:
        strips = self.part.strips
        seen = [0] * len(strips)
        for number, bucket in enumerate(self.part.buckets):
            for index in bucket.strips:
                if not 0 <= index < len(strips):
                    raise PlanError(f"{self.name}, bucket {number}: strip {index} does not exist, of {len(strips)}")
                seen[index] += 1
                own = (len(strips[index].rows), len(strips[index].keys))
                if own[0] > bucket.rows or own[1] > bucket.keys:
                    raise PlanError(
                        f"{self.name}, bucket {number} of {bucket.rows} queries x {bucket.keys} keys: strip {index} "
                        f"has {own[0]} x {own[1]}"
                    )
        for index, count in enumerate(seen):
            if count != 1:
                raise PlanError(f"{self.name}: strip {index} is in {count} buckets, expected 1")

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of strips that lay out a bounded number of keys each."""
        lengths = np.diff(self.lists.offsets)
        first = size = 0
        for index, strip in enumerate(self.part.strips):
            own = int(lengths[np.unique(self.lists.row_list[strip.rows])].sum()) + len(strip.keys)
            if size + own > _CHUNK_KEYS and index > first:
                yield first, index
                first, size = index, 0
            size += own
        if first < len(self.part.strips):
            yield first, len(self.part.strips)

    def _check_cover(self, first: int, last: int, occurrences: np.ndarray) -> None:
        """A strip must have each key as often as the row of it that needs it most often."""
        strips = self.part.strips[first:last]
        lists = self.lists
        strip_of_row = np.repeat(np.arange(len(strips)), [len(s.rows) for s in strips])
        count = len(lists.offsets) - 1
        uses = np.unique(strip_of_row * count + lists.row_list[np.concatenate([s.rows for s in strips])])
        strip, used = uses // count, uses % count
        lengths = np.diff(lists.offsets)[used]
        places = _ranges(lists.offsets[:-1][used], lengths)

        stride = int(occurrences.max(initial=0)) + 1
        stride = max(stride, 1 + max(len(s.keys) for s in strips))
        needed = (np.repeat(strip, lengths) * self.keys + lists.keys[places]) * stride + occurrences[places]
        held = np.repeat(np.arange(len(strips)), [len(s.keys) for s in strips]) * self.keys
        held = np.sort(held + np.concatenate([s.keys for s in strips]))
        held = held * stride + _repetition(held)
        wanted = np.unique(needed)
        if not np.array_equal(wanted, held):
            code = int(np.setxor1d(wanted, held)[0])
            raise PlanError(self._uncovered(first, code // stride // self.keys, code // stride % self.keys))
        self._check_full(first, strip, used, lengths)

    def _uncovered(self, first: int, index: int, key: int) -> str:
        strip = self.part.strips[first + index]
        seen = int(np.count_nonzero(strip.keys == key))
        lists = self.lists
        needs = [
            int(np.count_nonzero(lists.keys[lists.offsets[c] : lists.offsets[c + 1]] == key))
            for c in lists.row_list[strip.rows]
        ]
        query = int(strip.rows[int(np.argmax(needs))])
        where = f"{self.name}, strip {first + index}, query {query}"
        return f"{where}: the strip has key {key} {seen} times, expected {max(needs)}"

    def _check_full(self, first: int, strip: np.ndarray, used: np.ndarray, lengths: np.ndarray) -> None:
        """Needed keys are a subset of the strip's, so a row masks nothing if it needs as many as there are."""
        strips = self.part.strips[first:]
        for index, own, length in zip(strip.tolist(), used.tolist(), lengths.tolist(), strict=True):
            held = len(strips[index].keys)
            if strips[index].full and length != held:
                query = int(strips[index].rows[self.lists.row_list[strips[index].rows] == own][0])
                raise PlanError(
                    f"{self.name}, strip {first + index}, query {query}: the strip is marked full with {held} keys, "
                    f"but the query needs {length}"
                )


def _occurrences(lists: KeyLists, name: str) -> np.ndarray:
    """How often each entry's key came before it in its list."""
    number = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    codes = number * (int(lists.keys.max(initial=0)) + 1) + lists.keys
    if np.any(np.diff(codes) < 0):
        index = int(number[1:][np.diff(codes) < 0][0])
        raise PlanError(f"{name}: the keys of the site's list {index} do not ascend")
    return _repetition(codes)


def _repetition(ascending: np.ndarray) -> np.ndarray:
    """For each value of an ascending array, how many equal ones stand before it."""
    new = np.ones(len(ascending), bool)
    new[1:] = ascending[1:] != ascending[:-1]
    return np.asarray(np.arange(len(ascending)) - np.flatnonzero(new)[np.cumsum(new) - 1])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``start``, ``start + 1`` ... of every range, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))

"""Whether a schedule for an attention kernel computes exactly what its site needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists
from onnxopt.plan.schedule import AttentionSchedule, PatternSchedule
from onnxopt.validate.failure import PlanError
from onnxopt.validate.proof import check_proof

# Keys that are laid out at a time, and entries of the table in which they are marked.
_CHUNK_KEYS = 1 << 22
_CHUNK_MARKS = 1 << 24


def validate_attention_schedule(site: AttentionSite, schedule: AttentionSchedule) -> None:
    """Prove that every needed (query row, key, occurrence) of every head is computed in exactly one strip.

    Every head is in one part, every row that is computed in a strip of it; a strip fits its variant and has no key
    that none of its rows needs; it is full only where nothing is masked. Where a row is in several strips, a key that
    it needs several times counts as taken from the first strips that have it. Jobs name every strip of every head
    once, and ``needed``, ``computed`` and the proof are true. Rows that the graph turns into zeros in every head are
    in no strip. Raises :class:`PlanError` with the first thing that is wrong.
    """
    if schedule.site != site.id:
        raise PlanError(f"{site.id}: the schedule is of site {schedule.site!r}")
    if not schedule.variants:
        raise PlanError(f"{site.id}: the schedule has no variants")
    _check_heads(site, schedule)
    filled = np.ones(site.rows, bool) if site.empty_kind is not EmptyRow.ZERO else ~site.empty
    needed = computed = 0
    for number, part in enumerate(schedule.parts):
        check = _Part(site, schedule, part, f"{site.id}, part {number}")
        check.check(filled)
        needed += len(part.heads) * check.needed(filled)
        computed += len(part.heads) * check.computed()
    _check_jobs(site, schedule)
    for name, said, counted in (("needed", schedule.needed, needed), ("computed", schedule.computed, computed)):
        if said != counted:
            raise PlanError(f"{site.id}: the schedule says {name} = {said} pairs, counted {counted}")
    check_proof(site.id, schedule)


def _check_heads(site: AttentionSite, schedule: AttentionSchedule) -> None:
    seen = [0] * site.heads
    for number, part in enumerate(schedule.parts):
        if not part.heads:
            raise PlanError(f"{site.id}, part {number}: it has no heads")
        for head in part.heads:
            if not 0 <= head < site.heads:
                raise PlanError(f"{site.id}, part {number}: head {head} does not exist, there are {site.heads}")
            seen[head] += 1
            wanted = int(site.head_lists[head])
            if part.lists != wanted:
                raise PlanError(
                    f"{site.id}, part {number}: head {head} is planned by key lists {part.lists}, but has {wanted}"
                )
    for head, count in enumerate(seen):
        if count != 1:
            raise PlanError(f"{site.id}: head {head} is in {count} parts of the schedule, expected 1")


def _check_jobs(site: AttentionSite, schedule: AttentionSchedule) -> None:
    jobs = np.asarray(schedule.jobs, np.int64)
    if jobs.ndim != 2 or jobs.shape[1] != 3:
        raise PlanError(f"{site.id}: jobs have the shape {jobs.shape}, expected (jobs, 3)")
    most = max((len(part.strips) for part in schedule.parts), default=0)
    limits = (len(schedule.parts), most, site.heads)
    for column, (word, limit) in enumerate(zip(("part", "strip", "head"), limits, strict=True)):
        wrong = np.flatnonzero((jobs[:, column] < 0) | (jobs[:, column] >= limit))
        if wrong.size:
            job = int(wrong[0])
            raise PlanError(f"{site.id}, job {job}: {word} {jobs[job, column]} does not exist, there are {limit}")
    wanted = [
        (number * most + strip) * site.heads + head
        for number, part in enumerate(schedule.parts)
        for head in part.heads
        for strip in range(len(part.strips))
    ]
    found, times = np.unique((jobs[:, 0] * most + jobs[:, 1]) * site.heads + jobs[:, 2], return_counts=True)
    if np.any(times > 1):
        raise PlanError(f"{site.id}: {_job(int(found[times > 1][0]), most, site.heads)} is in jobs more than once")
    lost = np.setdiff1d(wanted, found)
    if lost.size:
        raise PlanError(f"{site.id}: {_job(int(lost[0]), most, site.heads)} is in no job")
    more = np.setdiff1d(found, wanted)
    if more.size:
        raise PlanError(f"{site.id}: {_job(int(more[0]), most, site.heads)} is in jobs, but does not exist")


def _job(code: int, strips: int, heads: int) -> str:
    return f"strip {code // heads % strips} of part {code // heads // strips} for head {code % heads}"


class _Part:
    """One part of a schedule; ``name`` says in messages which."""

    def __init__(self, site: AttentionSite, schedule: AttentionSchedule, part: PatternSchedule, name: str) -> None:
        self.part, self.name, self.schedule = part, name, schedule
        self.lists = site.lists[part.lists]
        self.rows, self.keys = site.rows, site.key_vectors.shape[1]

    def needed(self, filled: np.ndarray) -> int:
        """Pairs that one head needs."""
        lengths = self.lists.offsets[1:] - self.lists.offsets[:-1]
        return int(lengths[self.lists.row_list[filled]].sum())

    def computed(self) -> int:
        """Pairs that one head computes, in whole granules of the variants."""
        total = 0
        for strip, number in zip(self.part.strips, self.part.variants, strict=True):
            variant = self.schedule.variants[number]
            whole, rest = divmod(len(strip.keys), variant.keys)
            keys = whole * _up(variant.keys, variant.key_granule) + _up(rest, variant.key_granule)
            total += _up(len(strip.rows), variant.row_granule) * keys
        return total

    def check(self, filled: np.ndarray) -> None:
        self._check_shapes()
        split = self._split_rows(filled)
        occurrence = _occurrences(self.lists, self.name)
        stride = int(occurrence.max(initial=0)) + 1
        whole: list[int] = []
        entangled: list[int] = []
        for number, strip in enumerate(self.part.strips):
            (entangled if split[strip.rows].any() else whole).append(number)
        for chunk in self._chunks(whole, stride):
            self._check_cover(chunk, occurrence, stride)
        if entangled:
            self._check_split(entangled)

    def _check_shapes(self) -> None:
        part = self.part
        if len(part.variants) != len(part.strips):
            raise PlanError(f"{self.name}: {len(part.strips)} strips have {len(part.variants)} variants")
        for number, (strip, own) in enumerate(zip(part.strips, part.variants, strict=True)):
            name = f"{self.name}, strip {number}"
            if not 0 <= own < len(self.schedule.variants):
                raise PlanError(f"{name}: variant {own} does not exist, there are {len(self.schedule.variants)}")
            variant = self.schedule.variants[own]
            if len(strip.rows) > variant.rows:
                raise PlanError(f"{name}: {len(strip.rows)} queries do not fit into {variant.describe()!r}")
            longest = self.schedule.split_keys
            if longest and len(strip.keys) > longest:
                raise PlanError(f"{name}: {len(strip.keys)} keys, though lists are split at {longest}")
            self._check_numbers(name, "query", strip.rows, self.rows)
            self._check_numbers(name, "key", strip.keys, self.keys)

    def _check_numbers(self, name: str, what: str, numbers: np.ndarray, count: int) -> None:
        if not len(numbers):
            raise PlanError(f"{name}: it has no {what}")
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= count:
            raise PlanError(f"{name}: {what} {low if low < 0 else high} does not exist, there are {count}")

    def _split_rows(self, filled: np.ndarray) -> np.ndarray:
        """Which rows are in several strips, checking that each row is where it may be."""
        strips = self.part.strips
        every = np.concatenate([*(strip.rows for strip in strips), np.empty(0, np.int64)]).astype(np.int64)
        seen = np.bincount(every, minlength=self.rows)
        wrong = np.flatnonzero((seen > 0) != filled)
        if wrong.size:
            row = int(wrong[0])
            raise PlanError(f"{self.name}: query {row} is in {seen[row]} strips, expected {int(filled[row])}")
        number = np.repeat(np.arange(len(strips)), [len(strip.rows) for strip in strips])
        places, times = np.unique(number * self.rows + every, return_counts=True)
        if np.any(times > 1):
            strip, row = divmod(int(places[times > 1][0]), self.rows)
            raise PlanError(f"{self.name}, strip {strip}: query {row} is in it more than once")
        if not self.schedule.split_keys and np.any(seen > 1):
            row = int(np.flatnonzero(seen > 1)[0])
            raise PlanError(f"{self.name}: query {row} is in {seen[row]} strips, though no list is split")
        return np.asarray(seen > 1)

    def _chunks(self, numbers: list[int], stride: int) -> Iterator[list[int]]:
        """Strips that lay out a bounded number of keys and marks."""
        lengths = np.diff(self.lists.offsets)
        chunk: list[int] = []
        size = 0
        for number in numbers:
            strip = self.part.strips[number]
            own = int(lengths[np.unique(self.lists.row_list[strip.rows])].sum()) + len(strip.keys)
            full = (len(chunk) + 1) * self.keys * stride > _CHUNK_MARKS or size + own > _CHUNK_KEYS
            if chunk and full:
                yield chunk
                chunk, size = [], 0
            chunk.append(number)
            size += own
        if chunk:
            yield chunk

    def _check_cover(self, numbers: list[int], occurrence: np.ndarray, stride: int) -> None:
        """A strip that holds all keys of its rows has each as often as the row that needs it most often."""
        strips = [self.part.strips[number] for number in numbers]
        lists, count = self.lists, len(self.lists.offsets) - 1
        strip_of_row = np.repeat(np.arange(len(strips)), [len(s.rows) for s in strips])
        uses = np.unique(strip_of_row * count + lists.row_list[np.concatenate([s.rows for s in strips])])
        strip, used = uses // count, uses % count
        lengths = np.diff(lists.offsets)[used]
        places = _ranges(lists.offsets[:-1][used], lengths)
        wanted = np.zeros(len(strips) * self.keys * stride, bool)
        wanted[(np.repeat(strip, lengths) * self.keys + lists.keys[places]) * stride + occurrence[places]] = True
        held = np.zeros(len(wanted), bool)
        for index, own in enumerate(strips):
            ordered = np.sort(own.keys.astype(np.int64))
            again = _repetition(ordered)
            if again.size and again.max() >= stride:
                key = int(ordered[np.argmax(again)])
                raise PlanError(self._uncovered(numbers[index], key))
            held[(index * self.keys + ordered) * stride + again] = True
        wrong = np.flatnonzero(wanted != held)
        if wrong.size:
            index, key = divmod(int(wrong[0]) // stride, self.keys)
            raise PlanError(self._uncovered(numbers[index], key))
        for index, own_list, length in zip(strip.tolist(), used.tolist(), lengths.tolist(), strict=True):
            if strips[index].full and length != len(strips[index].keys):
                row = int(strips[index].rows[lists.row_list[strips[index].rows] == own_list][0])
                raise PlanError(self._not_full(numbers[index], row, length))

    def _uncovered(self, number: int, key: int) -> str:
        strip = self.part.strips[number]
        seen = int(np.count_nonzero(strip.keys == key))
        needs = [int(np.count_nonzero(self.lists.list(int(c)) == key)) for c in self.lists.row_list[strip.rows]]
        row = int(strip.rows[int(np.argmax(needs))])
        return f"{self.name}, strip {number}, query {row}: the strip has key {key} {seen} times, expected {max(needs)}"

    def _not_full(self, number: int, row: int, length: int) -> str:
        held = len(self.part.strips[number].keys)
        return (
            f"{self.name}, strip {number}, query {row}: the strip is marked full with {held} keys, but the query "
            f"needs {length} of them"
        )

    def _check_split(self, numbers: Sequence[int]) -> None:
        """Strips of rows whose keys are split: each row takes its keys from its strips, one strip after the other."""
        strips_of_row: dict[int, list[int]] = defaultdict(list)
        for number in numbers:
            for row in self.part.strips[number].rows.tolist():
                strips_of_row[row].append(number)
        kinds: dict[tuple[int, ...], int] = {}
        for row, own in strips_of_row.items():
            kinds.setdefault((int(self.lists.row_list[row]), *own), row)
        held = {number: np.unique(self.part.strips[number].keys, return_counts=True) for number in numbers}
        taken = {number: np.zeros(len(held[number][0]), np.int64) for number in numbers}
        for (own_list, *own), row in kinds.items():
            left = np.bincount(self.lists.list(own_list), minlength=self.keys)
            for number in own:
                keys, times = held[number]
                takes = np.minimum(left[keys], times)
                left[keys] -= takes
                taken[number] = np.maximum(taken[number], takes)
                strip = self.part.strips[number]
                if strip.full and int(takes.sum()) != len(strip.keys):
                    raise PlanError(self._not_full(number, row, int(takes.sum())))
            if np.any(left):
                key = int(np.flatnonzero(left)[0])
                raise PlanError(
                    f"{self.name}, query {row}: {left[key]} of its uses of key {key} are in none of its strips {own}"
                )
        for number in numbers:
            keys, times = held[number]
            idle = np.flatnonzero(taken[number] < times)
            if idle.size:
                raise PlanError(
                    f"{self.name}, strip {number}: it has key {keys[idle[0]]} {times[idle[0]]} times, but its rows "
                    f"take it {taken[number][idle[0]]} times"
                )


def _up(count: int, granule: int) -> int:
    return -(-count // granule) * granule


def _occurrences(lists: KeyLists, name: str) -> np.ndarray:
    """How often each entry's key came before it in its list."""
    number = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    codes = number * (int(lists.keys.max(initial=0)) + 1) + lists.keys
    steps = np.diff(codes)
    lowest = int(steps.min(initial=1))
    if lowest < 0:
        raise PlanError(f"{name}: the keys of the site's list {number[int(np.argmin(steps)) + 1]} do not ascend")
    return _repetition(codes) if lowest == 0 else np.zeros(len(codes), np.int64)


def _repetition(ascending: np.ndarray) -> np.ndarray:
    """For each value of an ascending array, how many equal ones stand before it."""
    new = np.ones(len(ascending), bool)
    new[1:] = ascending[1:] != ascending[:-1]
    return np.asarray(np.arange(len(ascending)) - np.flatnonzero(new)[np.cumsum(new) - 1])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``start``, ``start + 1`` ... of every range, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))

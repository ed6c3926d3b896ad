"""Times of an entry on a GPU: of a whole launch with cold operands, and of a single tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from onnxopt.measure.job.content import Entry, Job
from onnxopt.measure.job.device import Device, Launch
from onnxopt.measure.job.operators import operator_of

_REPLAYS = 30
_LAUNCHES = 20
# Operand sets are rotated so that together they are larger than the cache by this factor.
_CACHE_FACTOR = 3
_MOST_SETS = 64
# A tile's time is the slope between launches of so many waves of blocks, so that the launch itself drops out.
WAVES = (4, 12)


@dataclass(frozen=True)
class Timing:
    """Microseconds of one run of an entry: the median over replays and the middle half; sets of operands rotated."""

    median_us: float
    low_us: float
    high_us: float
    sets: int


def time_entry(job: Job, entry: Entry, device: Device, seed: int, *, cold: bool = True) -> Timing | None:
    """Time all launches of an entry together; ``cold`` rotates operand sets that exceed the L2 cache."""
    operator, tables = operator_of(entry), job.tables(entry)
    loads = [
        operator.load(job, entry, device, tables, operator.draw(entry.kernel, entry.batch, seed + number))
        for number in range(_sets(entry, device) if cold else 1)
    ]
    rounds = max(1, _LAUNCHES // len(loads))
    launches: list[Launch] = [launch for _ in range(rounds) for load in loads for launch in load.launches]
    times = device.microseconds(launches, _REPLAYS)
    if times is None:
        return None
    each = sorted(time / (rounds * len(loads)) for time in times)
    quarter = len(each) // 4
    return Timing(median(each), each[quarter], each[-1 - quarter], len(loads))


def tile_microseconds(job: Job, entry: Entry, device: Device, seed: int) -> float | None:
    """How long one block keeps its place while ``entry.resident`` share a multiprocessor: the slope over waves.

    The entry's jobs must all be alike; they are repeated until every wave is full. Shared memory beyond what the kernel
    asks for holds the number of resident blocks to the one that is asked for.
    """
    operator, tables, facts = operator_of(entry), job.tables(entry), device.describe()
    slots = int(facts.get("multiprocessors", 1)) * entry.resident
    jobs = np.resize(tables["jobs"], (WAVES[-1] * slots, tables["jobs"].shape[1]))
    operands = operator.draw(entry.kernel, 1, seed)
    load = operator.load(job, replace(entry, batch=1), device, {**tables, "jobs": jobs}, operands)
    whole = replace(load.launches[0], shared_bytes=_padded_shared(entry, facts))
    results = []
    for waves in WAVES:
        times = device.microseconds([replace(whole, grid=waves * slots)], _REPLAYS)
        if times is None:
            return None
        results.append(median(times))
    return (results[1] - results[0]) / (WAVES[1] - WAVES[0])


def _padded_shared(entry: Entry, facts: Mapping[str, Any]) -> int:
    """Dynamic shared memory of a block with which no more than ``entry.resident`` of them fit a multiprocessor."""
    share = int(facts["shared_bytes"]) // (entry.resident + 1) if "shared_bytes" in facts else 0
    limit = int(facts.get("shared_bytes_per_block", entry.first.shared_bytes))
    return max(entry.first.shared_bytes, min(limit, share))


def _sets(entry: Entry, device: Device) -> int:
    """How many sets of operands exceed the cache."""
    one = entry.batch * operator_of(entry).moved_bytes(entry.kernel)
    cache: Any = device.describe().get("l2_bytes", 0)
    return max(1, min(_MOST_SETS, -(-_CACHE_FACTOR * int(cache) // max(1, one))))

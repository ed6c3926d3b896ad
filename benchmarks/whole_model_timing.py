"""Times of whole-model programs as CUDA graphs, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

_WARM_UPS = 3
_CACHE_FACTOR = 3
# So often the buffer is written that the GPU is busy for longer than the CPU takes to submit a graph.
_SPOILS = 8


@dataclass(frozen=True, eq=False)
class Captured:
    """A program as one graph; a replay reads the inputs it was captured with and writes ``outputs``."""

    graph: Any
    outputs: Sequence[Any]


def capture(torch: Any, program: Callable[[], Sequence[Any]]) -> Captured:
    """Record one run of a program, after some that load modules and let libraries choose their algorithms."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            program()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = program()
    return Captured(graph, outputs)


def times(
    torch: Any,
    graphs: Mapping[str, Captured],
    next_inputs: Callable[[int], None],
    rounds: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Microseconds of a replay of each graph, by name and state of the L2 cache: median, middle half, repeats.

    Every round measures each graph once, beginning with another one each time. ``cold``: a buffer larger than the cache
    is written first. ``warm``: the same graph was replayed just before. Both keep the GPU busy while the timed replay
    is submitted, so that its start is not waited for. ``next_inputs`` puts the inputs of a round in place.
    """
    spoiler = torch.empty(_CACHE_FACTOR * _cache_bytes(torch) // 4, dtype=torch.int32, device="cuda")

    def spoil() -> None:
        for _ in range(_SPOILS):
            spoiler.zero_()

    found: dict[tuple[str, str], list[float]] = {(name, state): [] for name in graphs for state in ("cold", "warm")}
    names = list(graphs)
    for number in range(-1, rounds):
        for name in (names[(number + i) % len(names)] for i in range(len(names))):
            for state in ("cold", "warm"):
                next_inputs(number)
                elapsed = _replay(torch, graphs[name], spoil if state == "cold" else graphs[name].graph.replay)
                if number >= 0:
                    found[name, state].append(elapsed)
    return {name: {state: _summary(found[name, state]) for state in ("cold", "warm")} for name in graphs}


def _replay(torch: Any, captured: Captured, before: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before()
    start.record()
    captured.graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1000.0 * float(start.elapsed_time(end))


def _cache_bytes(torch: Any) -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def _summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return {
        "median_us": median(ordered),
        "low_us": ordered[quarter],
        "high_us": ordered[-1 - quarter],
        "repeats": len(ordered),
    }

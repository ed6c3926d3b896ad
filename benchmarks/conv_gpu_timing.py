"""Times of PyTorch's convolutions on a GPU, taken as those of our kernels are: replays of a graph, warm and cold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from benchmarks.conv_gpu_peers import Convolution, Make

_CALLS = 20
_REPLAYS = 30
_WARM_UP = 3
# As for our kernels: operand sets that exceed the cache by this factor take turns.
_CACHE_FACTOR = 3
_MOST_SETS = 64


@contextmanager
def benchmarking(torch: Any, element: str) -> Iterator[None]:
    """cuDNN measures which of its algorithms is best for a layer; fp32 is fp32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=element == "tf32"):
        yield


def operand_sets(torch: Any, conv: Convolution, batch: int, sets: int, device: str) -> list[tuple[Any, Any]]:
    """x and, where the layer has one, the residual: random float32, channels first."""
    generator = torch.Generator(device=device).manual_seed(1)
    channels = conv.weights.shape[1]
    size = [
        (n + front + behind - (taps - 1) * dilation - 1) // stride + 1
        for n, front, behind, taps, dilation, stride in zip(
            conv.size, conv.pads[:2], conv.pads[2:], conv.weights.shape[2:], conv.dilations, conv.strides, strict=True
        )
    ]

    def drawn(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, device=device)

    return [
        (drawn(batch, channels, *conv.size), drawn(batch, len(conv.weights), *size) if conv.residual else None)
        for _ in range(sets)
    ]


def cold_sets(conv: Convolution, batch: int, element: str, cache: int) -> int:
    """How many sets of x, weights and y exceed the cache."""
    size = 2 if element in ("fp16", "bf16") else 4
    x = batch * conv.weights.shape[1] * conv.size[0] * conv.size[1]
    y = batch * len(conv.weights) * conv.size[0] * conv.size[1] // (conv.strides[0] * conv.strides[1])
    weights = int((conv.weights != 0).sum())
    return int(max(1, min(_MOST_SETS, -(-_CACHE_FACTOR * cache // max(1, size * (x + y + weights))))))


def peer_times(torch: Any, make: Make, operands: list[tuple[Any, Any]]) -> dict[str, dict[str, float]]:
    """Microseconds of a call with the first set of operands alone, ``warm``, and with all in turn, ``cold``."""
    calls = [make(*own) for own in operands]
    return {"warm_us": _times(torch, calls[:1]), "cold_us": _times(torch, calls)}


def _times(torch: Any, calls: list[Callable[[], Any]]) -> dict[str, float]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            for _ in range(_WARM_UP):
                call()
    torch.cuda.current_stream().wait_stream(stream)
    rounds = max(1, _CALLS // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            # Kept until the round ends, so that every call of it writes memory of its own.
            kept = [call() for call in calls]
            del kept
    times = []
    for replay in range(-_WARM_UP, _REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if replay >= 0:
            times.append(1000.0 * start.elapsed_time(end) / (rounds * len(calls)))
    times.sort()
    quarter = len(times) // 4
    return {"median_us": median(times), "low_us": times[quarter], "high_us": times[-1 - quarter], "sets": len(calls)}

"""What came of measuring convolutions: lines for each layer, sums over networks, layers that we lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from typing import Any

from benchmarks.conv_gpu_layers import GROUP_CONV, Layer
from benchmarks.conv_gpu_peers import PYTORCH

Result = Mapping[str, Any]
# Where the bound is shorter, launches decide.
_TELLING_US = 5.0
KINDS = ("cold", "warm")


def ours(result: Result, kind: str) -> dict[str, float]:
    """Microseconds of each of our ways to compute a layer that passed and was timed."""
    return _medians({way: own for way, own in result["ours"].items() if own["passed"]}, kind)


def peers(result: Result, kind: str) -> dict[str, float]:
    """Microseconds of each peer that ran, the layer as a model runs it included."""
    return _medians({name: own for name, own in result["peers"].items() if isinstance(own, Mapping)}, kind)


def best_peer(result: Result, kind: str) -> float | None:
    """The fastest of all peers."""
    return min(peers(result, kind).values(), default=None)


def _medians(found: Mapping[str, Any], kind: str) -> dict[str, float]:
    timed = {name: own.get(f"{kind}_us") for name, own in found.items()}
    return {name: float(own["median_us"]) for name, own in timed.items() if own}


def shown(result: Result) -> str:
    """A layer as a few lines of text."""
    lines = [f"{result['id']}: {result['connections']:,} connections, bound {result['bound_us']:.2f} us"]
    for way, own in result["ours"].items():
        if not own["passed"]:
            lines.append(f"  {way}: FAILED: {own['problem']}")
    for kind in KINDS:
        own, others = ours(result, kind), peers(result, kind)
        for way, us in own.items():
            parts = [f"  ours ({way}), {kind}: {us:.2f} us, {result['bound_us'] / us:.0%} of the bound"]
            if others:
                name = min(others, key=others.__getitem__)
                parts.append(f"{others[name] / us:.2f} times as fast as the best peer ({name})")
            if PYTORCH in others:
                parts.append(f"{others[PYTORCH] / us:.2f} times as fast as PyTorch")
            lines.append(", ".join(parts))
    cold, warm = (peers(result, kind) for kind in KINDS)
    for name, own in result["peers"].items():
        said = f"{cold[name]:.2f} us cold, {warm[name]:.2f} warm" if name in cold else own or "ran, not timed"
        lines.append(f"  {name}: {said}")
    return "\n".join(lines + ([f"  no peers: {result['no_peers']}"] if result["no_peers"] else []))


def summary(layers: Sequence[Layer], results: Mapping[str, Result]) -> list[str]:
    """Sums over networks, and the layers that we lose, as lines of text; times are those with the cache cold."""
    measured = [layer for layer in layers if layer.id in results and ours(results[layer.id], "cold")]
    if not measured:
        return ["no times: this was a dry run, or nothing passed"]
    lines = []
    for network in dict.fromkeys(name for layer in measured for name in layer.networks):
        own = [layer for layer in measured if network in layer.networks]
        missing = sum(network in layer.networks for layer in layers) - len(own)
        compared = any(layer.geometry is not None for layer in own)
        lines.append(f"{network}: {sum(layer.networks[network] for layer in own)} convolutions, {len(own)} distinct")
        lines += _algorithm_sums(network, own, results) if compared else _kernel_sums(network, own, results)
        lines += [f"  {missing} distinct layers are not part of these sums"] if missing else []
    return lines + _goals(measured, results) + _losers(measured, results)


def _sum(network: str, layers: Sequence[Layer], us: Callable[[Layer], float | None]) -> float | None:
    """The time of all convolutions of a network one after another; None where one is not known."""
    total = 0.0
    for layer in layers:
        own = us(layer)
        if own is None:
            return None
        total += layer.networks[network] * own
    return total


def _kernel_sums(network: str, layers: Sequence[Layer], results: Mapping[str, Result]) -> list[str]:
    def fastest(layer: Layer) -> float:
        return min(ours(results[layer.id], "cold").values())

    sums = {
        "ours": _sum(network, layers, fastest),
        "the faster of ours and the best peer": _sum(
            network, layers, lambda layer: min(fastest(layer), best_peer(results[layer.id], "cold") or fastest(layer))
        ),
        "best peer of each layer": _sum(network, layers, lambda layer: best_peer(results[layer.id], "cold")),
        PYTORCH: _sum(network, layers, lambda layer: peers(results[layer.id], "cold").get(PYTORCH)),
    }
    return [f"  {name}: {'not known' if us is None else f'{us:.1f} us'}" for name, us in sums.items()]


def _algorithm_sums(network: str, layers: Sequence[Layer], results: Mapping[str, Result]) -> list[str]:
    """Each algorithm wherever it computes a layer, cuDNN elsewhere; conversions between layouts are not counted."""
    ways = list(dict.fromkeys(way for layer in layers for way in layer.ways))
    sums = {"keep": _sum(network, layers, lambda layer: best_peer(results[layer.id], "cold"))}
    for way in ways:

        def alone(layer: Layer, way: str = way) -> float | None:
            result = results[layer.id]
            return ours(result, "cold").get(way, best_peer(result, "cold"))

        sums[way] = _sum(network, layers, alone)
    known = {name: us for name, us in sums.items() if us is not None}

    def fastest(layer: Layer) -> float:
        result = results[layer.id]
        return min([*ours(result, "cold").values(), *filter(None, [best_peer(result, "cold")])])

    least = _sum(network, layers, fastest)
    lines = [f"  {name} alone: {us:.1f} us" for name, us in known.items()]
    if least is not None and known:
        single = min(known, key=known.__getitem__)
        lines.append(
            f"  the fastest of each layer, conversions free: {least:.1f} us, {known[single] / least:.2f} times as fast "
            f"as the best alone ({single})"
        )
    choice = "add these results by `onnxopt profile --import`; `optimize --conv-algorithms` then chooses by them"
    return [*lines, f"  the choice with conversions: {choice}"]


def _goals(layers: Sequence[Layer], results: Mapping[str, Result]) -> list[str]:
    """Means over the layers of the planner's kernels."""
    own = [results[layer.id] for layer in layers if GROUP_CONV in layer.ways]
    lines = []
    for name, other in (("PyTorch", lambda r: peers(r, "cold").get(PYTORCH)), ("the best peer", _best_cold)):
        ratios = [us / min(ours(r, "cold").values()) for r in own if (us := other(r))]
        if ratios:
            mean = exp(sum(map(log, ratios)) / len(ratios))
            lines.append(f"{len(ratios)} layers: {mean:.2f} times as fast as {name} (geometric mean)")
    shares = [r["bound_us"] / min(ours(r, "cold").values()) for r in own if r["bound_us"] > _TELLING_US]
    if shares:
        lines.append(
            f"{len(shares)} layers with bounds over {_TELLING_US:g} us: at least {min(shares):.0%} of the bound"
        )
    return lines


def _best_cold(result: Result) -> float | None:
    return best_peer(result, "cold")


def _losers(layers: Sequence[Layer], results: Mapping[str, Result]) -> list[str]:
    lines = []
    for layer in layers:
        fastest, other = min(ours(results[layer.id], "cold").values()), best_peer(results[layer.id], "cold")
        if other is not None and other < fastest:
            lines.append(f"  {layer.id}: {fastest:.2f} us, the best peer {other:.2f} us")
    return (
        [f"{len(lines)} of {len(layers)} layers lose, and keep their nodes:", *lines] if lines else ["no layer loses"]
    )

"""What the planner is to reach, and whether it does: one function for each goal, from measured results to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.planner_layers import ConvLayer
from benchmarks.planner_measure import Plan, Result

# Relative differences that are rounding.
_SLACK = 1e-6
MOST_BOUND_DISTANCE = 0.05
CLOSED_GAP, CLOSED_SHARE, MOST_GAP = 0.005, 0.95, 0.02
MOST_RANDOM_GAP = 0.10
LAYER_SECONDS, MODEL_SECONDS, CACHE_SECONDS = 2.0, 10.0, 0.05


@dataclass(frozen=True)
class Goal:
    """One figure beside its goal."""

    section: int
    what: str
    goal: str
    figure: str
    met: bool

    @property
    def verdict(self) -> str:
        """In a word."""
        return "met" if self.met else "MISSED"


def waste_goals(results: Sequence[tuple[Result, float]]) -> list[Goal]:
    """Waste of masks, each with its goal, and how far the best plan of all could be below."""
    goals = []
    for result, most in results:
        plan = _plan(result.waste)
        waste = plan.computed / result.needed
        goals.append(Goal(1, f"{result.layer}: waste", f"<= {most:.2f}", f"{waste:.3f}", waste <= most))
        for name, gap in (("its space", plan.gap), ("any strips", plan.free_gap)):
            what = f"{result.layer}: distance to the bound of {name}"
            met = 0 <= gap <= MOST_BOUND_DISTANCE
            goals.append(Goal(1, what, f"<= {MOST_BOUND_DISTANCE:.0%}", f"{gap:.2%}", met))
    return goals


def fixed_shape_goals(results: Sequence[Result]) -> list[Goal]:
    """For every target the worst of all layers: time of the best fixed shape over ours."""
    goals = []
    for target in dict.fromkeys(result.target for result in results):
        ratios = {r.layer: fixed_shape_ratio(r) for r in results if r.target == target and r.planned}
        worst = min(ratios, key=lambda name: ratios[name])
        slower = sum(ratio < 1 - _SLACK for ratio in ratios.values())
        equal = sum(abs(ratio - 1) <= _SLACK for ratio in ratios.values())
        figure = (
            f"{ratios[worst]:.3f} ({worst}); median {np.median(list(ratios.values())):.2f}; "
            f"slower on {slower}, equal on {equal} of {len(ratios)}"
        )
        what = f"{target}: time of the best fixed shape / ours, worst layer"
        goals.append(Goal(2, what, ">= 1", figure, slower == 0))
    return goals


def fixed_shape_ratio(result: Result) -> float:
    """The time of the fastest fixed shape or tile over that of our plan."""
    times = [own.predicted_us for own in result.baselines if own.method != "greedy blocks"]
    return min(times) / _plan(result.time).predicted_us


def structure_goals(layers: Sequence[ConvLayer], results: Sequence[Result]) -> list[Goal]:
    """Waste of convolutions with exact structure, against their blocks rounded up to the matrix unit; by family."""
    families: dict[str, list[tuple[float, float]]] = {}
    for layer, result in zip(layers, results, strict=True):
        computed = _plan(result.waste).computed
        rounded = computed / rounded_need(layer)
        families.setdefault(layer.name.split(".")[0], []).append((rounded, computed / result.needed))
    goals = []
    for family, wastes in families.items():
        worst = max(rounded for rounded, _ in wastes)
        plain = np.array([waste for _, waste in wastes])
        figure = f"{worst:.3f}; {len(wastes)} layers; unrounded {plain.min():.3f} to {plain.max():.3f}"
        what = f"{family}: waste against the rounded need, worst layer"
        goals.append(Goal(3, what, "<= 1.00", figure, worst <= 1 + _SLACK))
    return goals


def rounded_need(layer: ConvLayer) -> int:
    """Connections of the outputs with equal inputs, each such block rounded up to the matrix unit.

    Where every output has one input there is nothing to round: such layers run without the matrix unit.
    """
    rows, counts = np.unique(layer.links[layer.links.any(axis=1)], axis=0, return_counts=True)
    inputs = rows.sum(axis=1)
    if (inputs == 1).all():
        return layer.needed
    return int((-(-counts // 8) * 8 * (-(-inputs // 16) * 16)).sum())


def gap_goals(results: Sequence[Result]) -> list[Goal]:
    """Proven gaps of the corpus's layers under each objective."""
    goals = []
    for objective in ("time", "waste"):
        for kind, name in (("attention", "attention"), ("conv", "convolution"), ("", "all")):
            gaps = {r.layer: _plan(getattr(r, objective)).gap for r in results if r.planned and kind in ("", r.kind)}
            if not gaps:
                continue
            values = np.array(list(gaps.values()))
            share = float((values <= CLOSED_GAP).mean())
            within = float((values <= MOST_GAP).mean())
            worst = max(gaps, key=lambda layer: gaps[layer])
            what = f"{objective}, {name}, {len(gaps)} layers: gap at most {CLOSED_GAP:.1%}"
            goals.append(Goal(4, what, f">= {CLOSED_SHARE:.0%}", f"{share:.1%}", share >= CLOSED_SHARE))
            what = f"{objective}, {name}: largest gap"
            figure = f"{gaps[worst]:.2%} ({worst}); at most {MOST_GAP:.0%} on {within:.1%}"
            goals.append(Goal(4, what, f"<= {MOST_GAP:.0%}", figure, gaps[worst] <= MOST_GAP))
    return goals


def random_goals(results: Sequence[Result]) -> list[Goal]:
    """Proven gaps of layers without structure."""
    goals = []
    for objective in ("waste", "time"):
        gaps = [_plan(getattr(result, objective)).gap for result in results]
        figure = f"{max(gaps):.2%}; {', '.join(f'{gap:.1%}' for gap in gaps)}"
        what = f"{results[0].layer.rsplit(', ', 1)[0]}, {len(gaps)} seeds, {objective}: largest gap"
        goals.append(Goal(4, what, f"<= {MOST_RANDOM_GAP:.0%}", figure, max(gaps) <= MOST_RANDOM_GAP))
    return goals


def bound_goals(results: Sequence[Result]) -> list[Goal]:
    """Whether any method goes below a bound of whatever strips or parts: a wrong bound, if one does."""
    tested, below = 0, []
    for result in results:
        least, fastest = _free_bound(_plan(result.waste)), _free_bound(_plan(result.time))
        for own in result.baselines:
            # Greedy blocks divide rows among several strips, and outputs among several parts.
            if own.method != "greedy blocks":
                tested += 1
                if own.computed < least * (1 - _SLACK) - 0.5 or own.predicted_us < fastest * (1 - _SLACK):
                    below.append(f"{result.layer} ({own.method})")
    figure = f"{len(below)} of {tested}" + (f": {', '.join(below[:3])}" if below else "")
    return [Goal(4, "other methods that go below a bound of any strips or parts", "0", figure, not below)]


def _free_bound(plan: Plan) -> float:
    return plan.value * (1 - plan.free_gap) if plan.free_gap >= 0 else 0.0


def layer_time_goals(results: Sequence[Result]) -> list[Goal]:
    """Seconds of planning single layers."""
    return [
        Goal(
            5,
            f"{result.layer}: planning for {name}",
            f"<= {LAYER_SECONDS:g} s",
            f"{plan.seconds:.2f} s, {plan.cpu_seconds:.2f} s of them working",
            plan.seconds <= LAYER_SECONDS,
        )
        for result in results
        for name, plan in (("time", _plan(result.time)), ("waste", _plan(result.waste)))
    ]


def model_time_goals(results: Sequence[Result]) -> list[Goal]:
    """Seconds of planning the different layers of each model; the slowest models are named."""
    goals = []
    for objective in ("time", "waste"):
        spent: dict[str, list[Plan]] = {}
        for result in results:
            for model in result.models if result.planned else ():
                spent.setdefault(model, []).append(_plan(getattr(result, objective)))
        seconds = {model: sum(plan.seconds for plan in plans) for model, plans in spent.items()}
        worked = {model: sum(plan.cpu_seconds for plan in plans) for model, plans in spent.items()}
        slowest = sorted(seconds, key=lambda model: -seconds[model])[:3]
        over = sum(own > MODEL_SECONDS for own in seconds.values())
        figure = "; ".join(f"{seconds[m]:.1f} s, {worked[m]:.1f} s working ({m})" for m in slowest)
        figure += f"; over the goal: {over} of {len(seconds)}"
        what = f"slowest of the corpus's models, cold, planning for {objective}"
        goals.append(Goal(5, what, f"<= {MODEL_SECONDS:g} s", figure, not over))
    return goals


def cache_goals(seconds: Mapping[str, float]) -> list[Goal]:
    """Seconds until a plan from the cache is read and validated."""
    return [
        Goal(5, f"{layer}: plan from the cache", "<= 50 ms", f"{own * 1e3:.1f} ms", own <= CACHE_SECONDS)
        for layer, own in seconds.items()
    ]


def best_goals(results: Sequence[Result]) -> list[Goal]:
    """On how many layers no other method computes less or is faster."""
    usable = [result for result in results if result.planned]
    verdicts = [beats(result) for result in usable]
    goals = []
    for place, (objective, what) in enumerate((("waste", "computes no more"), ("time", "is no slower"))):
        losing = [r.layer for r, v in zip(usable, verdicts, strict=True) if not v[place]]
        figure = f"{len(usable) - len(losing)} of {len(usable)}" + (
            f"; not on {', '.join(losing[:5])}" if losing else ""
        )
        goals.append(Goal(6, f"under {objective}, ours {what} than any method", "every layer", figure, not losing))
    return goals


def beats(result: Result) -> tuple[bool, bool]:
    """Whether no baseline computes less than our plan for waste, and none is faster than our plan for time."""
    computed = min(own.computed for own in result.baselines)
    fastest = min(own.predicted_us for own in result.baselines)
    few, fast = _plan(result.waste).computed, _plan(result.time).predicted_us
    return few <= computed, fast <= fastest * (1 + _SLACK)


def _plan(plan: Plan | None) -> Plan:
    assert plan is not None
    return plan

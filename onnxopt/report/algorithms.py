"""The choice of convolution algorithms as a document and as text: every layer beside its best alternative."""

from __future__ import annotations

from collections import Counter
from typing import Any

from onnxopt.algorithm_choice import AlgorithmPlan
from onnxopt.plan.algorithms.problem import Layer, Option

COLUMNS = ("layers", "choice", "layout", "us", "workspace", "instead of", "its us", "time")
TEXT_COLUMNS = ("choice", "layout", "instead of", "time")
"""Those that hold words."""

_DIGITS = 3


def algorithm_document(plan: AlgorithmPlan) -> dict[str, Any]:
    """The field ``conv_algorithms`` of ``onnxopt.inspect/1`` and ``onnxopt.plan/1``."""
    choice, chosen = plan.choice, _chosen(plan)
    name, single_us = plan.best_single
    return {
        "element": plan.element,
        "batch": plan.batch,
        "symbolic_batch": plan.symbolic,
        "budget_bytes": plan.settings.budget,
        "winograd": plan.settings.winograd,
        "workspace_bytes": max((o.workspace_bytes for o in chosen), default=0),
        "constant_bytes": sum(o.constant_bytes for o in chosen),
        "microseconds": round(choice.microseconds, _DIGITS),
        "bound_us": round(choice.bound_us, _DIGITS),
        "gap": round(choice.gap, 6),
        "solver": {"name": choice.solver, "status": choice.status, "nodes": choice.nodes},
        "conversions": conversions(plan),
        "kept_us": round(plan.kept_us, _DIGITS),
        "best_single": {"algorithm": name, "microseconds": round(single_us, _DIGITS)},
        "layers": [
            {"id": layer.id, **_option(own), "alternative": None if other is None else _option(other)}
            for layer, own, other in _rows(plan)
        ],
    }


def algorithm_cells(plan: AlgorithmPlan) -> list[list[str]]:
    """A row of :data:`COLUMNS` for layers that look alike."""
    rows = []
    for layers, own, other in _alike(plan):
        times = "measured" if own.measured else "predicted"
        instead = ["", ""] if other is None else [other.algorithm, f"{other.microseconds:.1f}"]
        cells = [str(layers), own.algorithm, own.layout, f"{own.microseconds:.1f}", _bytes(own.workspace_bytes)]
        rows.append([*cells, *instead, times])
    return rows


def summary(plan: AlgorithmPlan) -> list[str]:
    """What the choice takes as a whole, how it was found, and what simpler ones take."""
    choice, chosen = plan.choice, _chosen(plan)
    workspace, constants = max((o.workspace_bytes for o in chosen), default=0), sum(o.constant_bytes for o in chosen)
    budget = "no budget" if plan.settings.budget is None else f"a budget of {_bytes(plan.settings.budget)}"
    measured = sum(o.measured for o in chosen)
    name, single_us = plan.best_single
    counted = Counter(o.algorithm for o in chosen)
    return [
        f"{choice.microseconds:.1f} us in {plan.element} for a batch of {plan.batch}"
        + (", which stands for the model's symbolic one: " if plan.symbolic else ": ")
        + ", ".join(f"{count} x {algorithm}" for algorithm, count in counted.most_common())
        + f", {conversions(plan)} changes of layout",
        f"workspace: {_bytes(workspace)}, further constants: {_bytes(constants)}; {budget}",
        f"at least {choice.bound_us:.1f} us (gap {choice.gap:.2%}; {choice.solver}, {choice.status}, "
        f"{choice.nodes} nodes)",
        f"every dense layer kept: {plan.kept_us:.1f} us; the best algorithm alone, {name}: {single_us:.1f} us",
        f"{measured} of {len(chosen)} times are measured, the others are the model's"
        + ("; Winograd was allowed" if plan.settings.winograd else ""),
    ]


def conversions(plan: AlgorithmPlan) -> int:
    """How often a tensor changes its layout."""
    layouts, regions = plan.network.layouts(plan.choice.chosen), plan.choice.regions
    return sum(
        (c.plain and regions[c.region] != "first") or any(layouts[n] != regions[c.region] for n in c.layers)
        for c in plan.network.conversions
    )


def _rows(plan: AlgorithmPlan) -> list[tuple[Layer, Option, Option | None]]:
    """Every layer with its chosen option and the fastest of another algorithm."""
    rows = []
    for layer, own in zip(plan.network.layers, _chosen(plan), strict=True):
        others = [option for option in layer.options if option.algorithm != own.algorithm]
        rows.append((layer, own, min(others, key=lambda option: option.microseconds, default=None)))
    return rows


def _alike(plan: AlgorithmPlan) -> list[tuple[int, Option, Option | None]]:
    """How many layers have the same choice and the same alternative, in the order of the first of each."""
    counted = Counter((own, other) for _, own, other in _rows(plan))
    return [(count, own, other) for (own, other), count in counted.items()]


def _chosen(plan: AlgorithmPlan) -> list[Option]:
    return [layer.options[n] for layer, n in zip(plan.network.layers, plan.choice.chosen, strict=True)]


def _option(option: Option) -> dict[str, Any]:
    return {
        "algorithm": option.algorithm,
        "layout": option.layout,
        "us": round(option.microseconds, _DIGITS),
        "workspace_bytes": option.workspace_bytes,
        "constant_bytes": option.constant_bytes,
        "measured": option.measured,
    }


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count else "none"

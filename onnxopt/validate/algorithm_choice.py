"""Choices of algorithms checked without the code that makes them: their times added up again, and the best ones found
by other means, all combinations of a small network and a dynamic program over a large one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from onnxopt.plan.algorithms.problem import LAYOUTS, Choice, Layout, Network
from onnxopt.validate.failure import PlanError

_MOST_COMBINATIONS = 2_000_000
# Entries of the largest table of the dynamic program.
_MOST_ENTRIES = 1 << 22
_CLOSE = 1e-6


def validate_choice(network: Network, choice: Choice, budget: int | None) -> None:
    """Raise :class:`PlanError` where a choice names what there is not, breaks the budget, or says a wrong time."""
    if len(choice.chosen) != len(network.layers) or len(choice.regions) != network.regions:
        raise PlanError(
            f"the choice is for {len(choice.chosen)} layers and {len(choice.regions)} regions, "
            f"the network has {len(network.layers)} and {network.regions}"
        )
    for layer, number in zip(network.layers, choice.chosen, strict=True):
        if not 0 <= number < len(layer.options):
            raise PlanError(f"{layer.id}: option {number} of {len(layer.options)}")
    used = _bytes(network, choice.chosen)
    if budget is not None and used > budget:
        raise PlanError(f"the choice takes {used:,} bytes, {budget:,} are allowed")
    value = _time(network, choice.chosen, choice.regions)
    if abs(value - choice.microseconds) > _CLOSE * max(1.0, value):
        raise PlanError(f"the choice takes {value} us, not {choice.microseconds}")
    if choice.bound_us > value * (1 + _CLOSE):
        raise PlanError(f"its bound of {choice.bound_us} us is above its time of {value}")


def best_by_enumeration(network: Network, budget: int | None = None) -> float:
    """The least time of all combinations of options and layouts.

    Raises ValueError for a network with more than two million of them, and where none fits the budget.
    """
    sizes = [len(layer.options) for layer in network.layers]
    count = prod(sizes) * 2**network.regions
    if count > _MOST_COMBINATIONS:
        raise ValueError(f"{count:,} combinations; enumeration takes up to {_MOST_COMBINATIONS:,}")
    best = np.inf
    for chosen in product(*map(range, sizes)):
        if budget is None or _bytes(network, chosen) <= budget:
            best = min(best, *(_time(network, chosen, r) for r in product(LAYOUTS, repeat=network.regions)))
    if best == np.inf:
        raise ValueError("no combination fits the budget")
    return float(best)


@dataclass(frozen=True, eq=False)
class _Table:
    """Times by the values of some variables, one axis each; layers come first, then regions."""

    variables: tuple[int, ...]
    times: np.ndarray


def best_by_elimination(network: Network) -> float:
    """The least time of a network without a budget, by a dynamic program over its graph.

    Layers count by their layout only, since each takes the fastest option of its own. Variables are eliminated one
    after another, the one with the smallest table first: exact, and fast where the graph is made of chains and
    branches. Raises ValueError where a table becomes too large.
    """
    tables = [_fastest(network, number) for number in range(len(network.layers))]
    tables += [_converting(network, number) for number in range(len(network.conversions))]
    waiting = set(range(len(network.layers) + network.regions))
    while waiting:
        variable = min(waiting, key=lambda v: (len(_neighbours(tables, v)), v))
        waiting.discard(variable)
        touching = [table for table in tables if variable in table.variables]
        rest = [table for table in tables if variable not in table.variables]
        if touching:
            rest.append(_without(_joined(touching), variable))
        tables = rest
    return float(sum(float(table.times) for table in tables))


def windows(network: Network, layers: int) -> Iterator[Network]:
    """Every part of a network that has ``layers`` neighbouring layers, with the conversions that touch them only."""
    for first in range(len(network.layers) - layers + 1):
        inside = range(first, first + layers)
        kept = [c for c in network.conversions if any(n in inside for n in c.layers)]
        regions = sorted({c.region for c in kept})
        yield Network(
            network.layers[first : first + layers],
            len(regions),
            tuple(
                type(c)(
                    regions.index(c.region), c.microseconds, tuple(n - first for n in c.layers if n in inside), c.plain
                )
                for c in kept
            ),
        )


def _time(network: Network, chosen: Sequence[int], regions: Sequence[Layout]) -> float:
    options = [layer.options[number] for layer, number in zip(network.layers, chosen, strict=True)]
    total = 0.0
    for option in options:
        total += option.microseconds
    for conversion in network.conversions:
        wanted = {options[number].layout for number in conversion.layers} | ({"first"} if conversion.plain else set())
        if wanted - {regions[conversion.region]}:
            total += conversion.microseconds
    return total


def _bytes(network: Network, chosen: Sequence[int]) -> int:
    options = [layer.options[number] for layer, number in zip(network.layers, chosen, strict=True)]
    return max((o.workspace_bytes for o in options), default=0) + sum(o.constant_bytes for o in options)


def _fastest(network: Network, number: int) -> _Table:
    best: Mapping[Layout, float] = {
        layout: min((o.microseconds for o in network.layers[number].options if o.layout == layout), default=np.inf)
        for layout in LAYOUTS
    }
    return _Table((number,), np.array([best[layout] for layout in LAYOUTS]))


def _converting(network: Network, number: int) -> _Table:
    conversion = network.conversions[number]
    layers = tuple(dict.fromkeys(conversion.layers))
    variables = (*layers, len(network.layers) + conversion.region)
    times = np.zeros((2,) * len(variables))
    for values in product((0, 1), repeat=len(variables)):
        own = values[-1]
        if any(value != own for value in values[:-1]) or (conversion.plain and own == 1):
            times[values] = conversion.microseconds
    return _Table(variables, times)


def _neighbours(tables: Sequence[_Table], variable: int) -> set[int]:
    return {v for table in tables if variable in table.variables for v in table.variables} - {variable}


def _joined(tables: Sequence[_Table]) -> _Table:
    variables = tuple(sorted({v for table in tables for v in table.variables}))
    if 2 ** len(variables) > _MOST_ENTRIES:
        raise ValueError(f"{len(variables)} layouts depend on one another; the dynamic program takes up to 22")
    total = np.zeros((2,) * len(variables))
    for table in tables:
        order = np.argsort(table.variables)
        shape = [2 if v in table.variables else 1 for v in variables]
        total = total + table.times.transpose(order).reshape(shape)
    return _Table(variables, total)


def _without(table: _Table, variable: int) -> _Table:
    axis = table.variables.index(variable)
    return _Table(tuple(v for v in table.variables if v != variable), table.times.min(axis=axis))

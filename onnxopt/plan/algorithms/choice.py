"""The choice of an algorithm for every convolution of a network, as one integer program.

    x[l, o] = 1     layer l uses its option o; one of them
    z[r] = 1        region r lies channels last
    d[c] = 1        conversion c is made: at least |last(l) - z[r]| for each of its layers, and z[r] where it is plain
    B >= workspace of the chosen option of every layer;  B + constants of all chosen options <= budget
    minimise        sum of the chosen options' times + sum of the times of conversions that are made

with last(l) the sum of x over the options of l that compute channels last. Options that are no faster and need no less
memory than another one of their layout never enter. Without a budget that binds, the program's relaxation is nearly
always integral: its coupling is a cut between two layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pulp

from onnxopt.plan.algorithms.problem import LAYOUTS, Choice, Layout, Network, Option, check_network
from onnxopt.plan.solver import Outcome, solve

NODE_LIMIT = 20_000


def choose_algorithms(network: Network, budget: int | None = None, node_limit: int = NODE_LIMIT) -> Choice:
    """The fastest choice for a network, with the bound that the solver proved.

    ``budget`` limits the bytes of the largest workspace and all constants together. Raises InputError where none fits.
    """
    check_network(network, budget)
    if not network.layers:
        return Choice((), tuple("first" for _ in range(network.regions)), 0.0, 0.0, "optimal", "none", 0)
    start = _greedy(network, budget)
    program = _Program(network, budget)
    outcome = solve(program.problem, node_limit=node_limit, warm_start=program.values(*start))
    found = [start]
    if outcome.status != "none":
        found.append(program.read(outcome))
    # Solvers keep constraints up to a tolerance; the budget is kept to the byte.
    best = min((f for f in found if _fits(network, f[0], budget)), key=lambda pair: total_us(network, *pair))
    value = total_us(network, *best)
    bound = min(value, outcome.bound) if outcome.status != "none" else 0.0
    status = "optimal" if value - bound <= 1e-6 * max(1.0, value) else "feasible"
    return Choice(*best, value, bound, status, outcome.solver, outcome.nodes)


def total_us(network: Network, chosen: Sequence[int], regions: Sequence[Layout]) -> float:
    """Time of a choice: all layers, and every conversion that it needs."""
    layouts = network.layouts(chosen)
    total = sum(layer.options[n].microseconds for layer, n in zip(network.layers, chosen, strict=True))
    for conversion in network.conversions:
        own = regions[conversion.region]
        if (conversion.plain and own != "first") or any(layouts[n] != own for n in conversion.layers):
            total += conversion.microseconds
    return total


def useful_options(options: Sequence[Option]) -> list[int]:
    """Numbers of the options of a layer that no other of the same layout beats in time and in memory."""
    kept: list[int] = []
    for number in sorted(range(len(options)), key=lambda n: (_measures(options[n]), n)):
        if not any(_beats(options[other], options[number]) for other in kept):
            kept.append(number)
    return sorted(kept)


def _measures(option: Option) -> tuple[float, int, int]:
    return option.microseconds, option.workspace_bytes, option.constant_bytes


def _beats(one: Option, other: Option) -> bool:
    return one.layout == other.layout and all(a <= b for a, b in zip(_measures(one), _measures(other), strict=True))


def _fits(network: Network, chosen: Sequence[int], budget: int | None) -> bool:
    options = [layer.options[n] for layer, n in zip(network.layers, chosen, strict=True)]
    used = max(o.workspace_bytes for o in options) + sum(o.constant_bytes for o in options)
    return budget is None or used <= budget


def _greedy(network: Network, budget: int | None) -> tuple[tuple[int, ...], tuple[Layout, ...]]:
    """A choice to start from: under each limit of workspaces the fastest of one layout, or that with fewest constants.

    One of the latter fits every budget that any choice fits.
    """
    limits = sorted({option.workspace_bytes for layer in network.layers for option in layer.options})
    found: list[tuple[tuple[int, ...], tuple[Layout, ...]]] = []
    for limit, layout in product(limits if budget is not None else limits[-1:], LAYOUTS):
        allowed = [[n for n, o in enumerate(layer.options) if o.workspace_bytes <= limit] for layer in network.layers]
        if all(allowed):
            fast, lean = zip(
                *(_starts(layer.options, own, layout) for layer, own in zip(network.layers, allowed, strict=True)),
                strict=True,
            )
            found += [(c, (layout,) * network.regions) for c in (fast, lean) if _fits(network, c, budget)]
    return min(found, key=lambda pair: total_us(network, *pair))


def _starts(options: Sequence[Option], allowed: Sequence[int], layout: Layout) -> tuple[int, int]:
    """Of the allowed options of a layer the fastest, of the layout if there is one, and that with fewest constants."""
    own = [n for n in allowed if options[n].layout == layout] or allowed
    fast = min(own, key=lambda n: options[n].microseconds)
    return fast, min(allowed, key=lambda n: (options[n].constant_bytes, options[n].microseconds))


class _Program:
    def __init__(self, network: Network, budget: int | None) -> None:
        self.network = network
        self.problem = pulp.LpProblem("algorithms", pulp.LpMinimize)
        self.useful = [useful_options(layer.options) for layer in network.layers]
        self.x = [{n: self._binary(f"x_{layer}_{n}") for n in numbers} for layer, numbers in enumerate(self.useful)]
        self.z = [self._binary(f"z_{region}") for region in range(network.regions)]
        # A conversion is made or not by what it must cover; it needs no branching of its own.
        self.d = [self._variable(f"d_{n}", 1.0) for n in range(len(network.conversions))]
        choices = zip(network.layers, self.x, strict=True)
        times = [layer.options[n].microseconds * x for layer, own in choices for n, x in own.items()]
        times += [c.microseconds * d for c, d in zip(network.conversions, self.d, strict=True)]
        self.problem += pulp.lpSum(times)
        for layer, own in enumerate(self.x):
            self._add(pulp.lpSum(own.values()) == 1, f"one_{layer}")
        self._couple()
        self.unit = 1
        self.largest: pulp.LpVariable | None = None
        if budget is not None:
            self._limit(budget)

    def _couple(self) -> None:
        for number, (conversion, made) in enumerate(zip(self.network.conversions, self.d, strict=True)):
            region = self.z[conversion.region]
            if conversion.plain:
                self._add(made >= region, f"plain_{number}")
            for layer in conversion.layers:
                options = self.network.layers[layer].options
                last = pulp.lpSum([x for n, x in self.x[layer].items() if options[n].layout == "last"])
                self._add(made >= last - region, f"in_{number}_{layer}")
                self._add(made >= region - last, f"out_{number}_{layer}")

    def _limit(self, budget: int) -> None:
        # Whole units keep a solver's tolerance from mattering: what is needed is rounded up by a millionth at most.
        self.unit = max(1, budget >> 20)
        largest = self._variable("B", None)
        constants = []
        for layer, own in enumerate(self.x):
            options = self.network.layers[layer].options
            used = [-(-options[n].workspace_bytes // self.unit) * x for n, x in own.items()]
            self._add(largest >= pulp.lpSum(used), f"workspace_{layer}")
            constants += [-(-options[n].constant_bytes // self.unit) * x for n, x in own.items()]
        self._add(largest + pulp.lpSum(constants) <= budget // self.unit, "budget")
        self.largest = largest

    def _binary(self, name: str) -> pulp.LpVariable:
        return self.problem.add_variable(name, 0, 1, pulp.LpBinary)

    def _variable(self, name: str, high: float | None) -> pulp.LpVariable:
        return self.problem.add_variable(name, 0.0, high)

    def _add(self, constraint: pulp.LpConstraint, name: str) -> None:
        self.problem += constraint, name

    def values(self, chosen: Sequence[int], regions: Sequence[Layout]) -> Mapping[str, float]:
        """A choice as values of the variables; options that never enter are replaced by those that beat them."""
        result = {z.name: float(layout == "last") for z, layout in zip(self.z, regions, strict=True)}
        taken = []
        for layer, number in enumerate(chosen):
            options = self.network.layers[layer].options
            mine = (
                number
                if number in self.x[layer]
                else next(n for n in self.useful[layer] if _beats(options[n], options[number]))
            )
            taken.append(mine)
            result |= {x.name: float(n == mine) for n, x in self.x[layer].items()}
        layouts = self.network.layouts(taken)
        for conversion, made in zip(self.network.conversions, self.d, strict=True):
            own = regions[conversion.region]
            needed = (conversion.plain and own != "first") or any(layouts[n] != own for n in conversion.layers)
            result[made.name] = float(needed)
        if self.largest is not None:
            used = [layer.options[n].workspace_bytes for layer, n in zip(self.network.layers, taken, strict=True)]
            result[self.largest.name] = -(-max(used) // self.unit)
        return result

    def read(self, outcome: Outcome) -> tuple[tuple[int, ...], tuple[Layout, ...]]:
        """The choice in a solution."""
        chosen = tuple(max(own, key=lambda n: outcome.values[own[n].name]) for own in self.x)
        regions: tuple[Layout, ...] = tuple("last" if outcome.values[z.name] > 0.5 else "first" for z in self.z)
        return chosen, regions

"""The planner of parts: exact where structure allows it, by local search where there is none, proved in both cases."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.partition.assignment import assign, separate, split_class
from onnxopt.plan.partition.classes import Component, Unions, components, unions, without_dominated
from onnxopt.plan.partition.dual import dual_bound
from onnxopt.plan.partition.fill_bound import CASE_LIMIT, FIRST_CASES, FillSearch
from onnxopt.plan.partition.kinds import Kind, kinds_of
from onnxopt.plan.partition.merge import bundles, merge_groups, with_remainders
from onnxopt.plan.partition.pieces import split_outputs
from onnxopt.plan.partition.problem import CostFunction, CostTable, Part, Partition
from onnxopt.plan.partition.search import beginnings, improve
from onnxopt.plan.partition.share_bound import WORK_LIMIT, share_bound

# Beginnings that the local search starts from, and gaps below which nothing more is tried.
_STARTS = 2
_NEGLIGIBLE = 1e-6
_DUAL = "prices of sets of outputs, checked against every union"
_FILL = "prices of outputs and of rounding cuts, checked by filling every union, in"
_SHARE = "prices of outputs, checked by enumerating cheaper parts"
_SEARCHED_OUTPUTS = 1024


def partition(
    links: BoolArray,
    cost: CostFunction | CostTable,
    max_outputs: int,
    *,
    max_inputs: int | None = None,
    seed: int = 0,
    effort: float = 1.0,
    prove: bool = True,
) -> Partition:
    """Partition the outputs of ``links`` (outputs x inputs) into parts of ``max_outputs`` at most, at the least cost.

    ``cost`` gives the cost of parts by arrays of outputs and inputs and must fall in neither; or it is their table.
    A part's inputs are those that any of its outputs has; an output with more than ``max_inputs`` is cut into pieces
    that lie in several parts, each with some of its inputs. Outputs without inputs are in no part. ``effort`` scales
    the work of local search and of proofs; without ``prove`` no integer program is solved, and the bound is only what
    outputs cost by their own inputs.
    Raises ValueError for a cost that is not as described.
    """
    table = cost if isinstance(cost, CostTable) else CostTable.of(cost, min(max_outputs, len(links)), links.shape[1])
    found = [
        _Planner(rows, table, seed, effort, prove).run()
        for rows in ([links] if max_inputs is None else split_outputs(links, max_inputs))
        if rows.any()
    ]
    return _joined(found) if found else Partition((), 0.0, 0.0, "none", "optimal", 0, "there is nothing to compute")


def _joined(found: list[Partition]) -> Partition:
    """Partitions of different connections of the same outputs, side by side."""
    if len(found) == 1:
        return found[0]
    return Partition(
        tuple(part for each in found for part in each.parts),
        sum(each.value for each in found),
        sum(each.bound for each in found),
        ", ".join(dict.fromkeys(each.solver for each in found)),
        "optimal" if all(each.status == "optimal" for each in found) else "feasible",
        sum(each.nodes for each in found),
        f"{found[0].certificate}; among partitions that cut long outputs at these inputs",
        "; ".join(dict.fromkeys(each.note for each in found if each.note)),
    )


@dataclass
class _Planner:
    links: BoolArray
    table: CostTable
    seed: int
    effort: float
    prove: bool
    nodes: int = 0
    notes: list[str] = field(default_factory=list)
    solvers: dict[str, None] = field(default_factory=dict)

    def run(self) -> Partition:
        self.parts = components(self.links)
        self.families = [unions(component) for component in self.parts]
        if len(self.parts) == 1:
            self.families = [without_dominated(self.families[0], self.table)]
        self.kinds = kinds_of(self.parts, self.families)
        self.unstructured = not all(family.exact for family in self.families)
        fill = self._fill()
        bound, certificate = max((self._by_degree(), _SHARE), self._filled(fill, int(self.effort * FIRST_CASES)))
        groups = self._structured(bound)
        value = self._cost(groups)
        if value - bound > _NEGLIGIBLE * value:
            # Mostly the first few cases say it all; the others are worth it only where these leave a gap.
            more = self._filled(fill, int(self.effort * CASE_LIMIT), value)
            bound, certificate = max((bound, certificate), more)
        if self.prove and value - bound > _NEGLIGIBLE * value:
            bound, certificate = max((bound, certificate), self._dual(value))
        if value - bound > _NEGLIGIBLE * value:
            groups = self._searched(groups, bound)
            value = self._cost(groups)
            if self.prove and self.unstructured:
                bound, certificate = self._raised(value, bound, certificate)
        bound = min(bound, value)
        done = value - bound <= _NEGLIGIBLE * value
        parts = tuple(
            Part(np.sort(group), np.flatnonzero(self.links[group].any(axis=0)))
            for group in sorted(groups, key=lambda group: int(group.min()))
        )
        return Partition(
            parts,
            value,
            bound,
            ", ".join(self.solvers) or "exact",
            "optimal" if done else "feasible",
            self.nodes,
            certificate,
            "; ".join(dict.fromkeys(self.notes)),
        )

    def _cost(self, groups: list[IntArray]) -> float:
        return float(sum(self.table.of_part(len(group), int(self.links[group].any(axis=0).sum())) for group in groups))

    def _structured(self, bound: float) -> list[IntArray]:
        """The best of what follows from classes and components; nothing costs less than ``bound``."""
        options = [self._per_kind(bound)]
        step = self._step()
        if step > 1:
            options.append([g for component in self.parts for g in with_remainders(component, self.table, step)])
        options = [merge_groups(self.links, groups, self.table) for groups in options]
        live = np.flatnonzero(self.links.any(axis=1))
        options.append(split_class(live, int(self.links.any(axis=0).sum()), self.table))
        return min(options, key=self._cost)

    def _step(self) -> int:
        """The number of outputs that costs least for each of them, at most as many as are in a class."""
        most = max(int(component.sizes.max()) for component in self.parts)
        sizes = np.arange(1, min(most, self.table.max_outputs) + 1)
        rates = self.table.values[sizes, -1] / sizes
        return int(sizes[np.flatnonzero(rates <= rates.min() * (1 + 1e-9))[0]])

    def _per_kind(self, bound: float) -> list[IntArray]:
        """Components one by one, and whole ones in bundles where they are alike and that is cheaper."""
        groups: list[IntArray] = []
        for kind in self.kinds:
            alike = [
                (part, other)
                for part, other in zip(self.parts, self.families, strict=True)
                if _alike(kind, part, other)
            ]
            apart = [group for component, family in alike for group in self._one(component, family, bound)]
            together = bundles([part for part, _ in alike], self.table) if len(alike) > 1 else []
            groups += together if together and self._cost(together) < self._cost(apart) else apart
        return groups

    def _one(self, component: Component, family: Unions, bound: float) -> list[IntArray]:
        options = [separate(component, self.table)]
        if len(component.members) > 1 and self.prove:
            found = assign(component, family, self.table, bound if len(self.parts) == 1 else None)
            if found is not None:
                options.append(found.groups)
                if found.outcome is not None:
                    self.solvers[found.outcome.solver] = None
                    self.nodes += found.outcome.nodes
                    self.notes += [found.outcome.note] if found.outcome.note else []
        return min(options, key=self._cost)

    def _fill(self) -> FillSearch | None:
        """The search for a bound by classes, where no part can span components because there is only one."""
        if not self.prove or len(self.parts) > 1 or len(self.parts[0].members) == 1:
            return None
        return FillSearch(self.parts[0], self.families[0], self.table)

    def _filled(self, fill: FillSearch | None, cases: int, enough: float = np.inf) -> tuple[float, str]:
        if fill is None:
            return 0.0, ""
        result = fill.run(cases, enough)
        self.notes += [result.note] if result.note else []
        return result.value, f"{_FILL} {result.cases} case{'s' if result.cases > 1 else ''}"

    def _dual(self, value: float) -> tuple[float, str]:
        result = dual_bound(self.kinds, self.table, value)
        self.notes += [result.note] if result.note else []
        return result.value, f"{_DUAL} ({result.prices} prices)"

    def _by_degree(self) -> float:
        """What outputs cost at least with as many inputs as they have."""
        return share_bound(self.links[self.links.any(axis=1)], self.table, 0.0, 0)

    def _searched(self, groups: list[IntArray], bound: float) -> list[IntArray]:
        """Local search from what is known, and from greedy beginnings where structure is lacking."""
        live = np.flatnonzero(self.links.any(axis=1))
        if len(live) > _SEARCHED_OUTPUTS:
            return groups
        links = self.links[live]
        place = np.full(len(self.links), -1, np.int64)
        place[live] = np.arange(len(live))
        start = np.zeros(len(live), np.int64)
        for number, group in enumerate(groups):
            start[place[group]] = number
        starts = [start, *(beginnings(links, self.table) if self.unstructured else [])]
        starts = sorted(starts, key=lambda owner: self._cost(_groups(owner, live)))[:_STARTS]
        work = int(self.effort * (40_000_000 if self.unstructured else 10_000_000) / len(starts))
        best = groups
        for number, owner in enumerate(starts):
            found = _groups(improve(links, owner, self.table, self.seed + number, bound, work), live)
            if self._cost(found) < self._cost(best) * (1 - 1e-12):
                best = found
        return best

    def _raised(self, value: float, bound: float, certificate: str) -> tuple[float, str]:
        live = self.links[self.links.any(axis=1)]
        share = share_bound(live, self.table, value / len(live), int(self.effort * WORK_LIMIT))
        return (share, _SHARE) if share > bound else (bound, certificate)


def _alike(kind: Kind, component: Component, family: Unions) -> bool:
    other = kind.component
    return (
        np.array_equal(component.sizes, other.sizes)
        and np.array_equal(component.degrees, other.degrees)
        and np.array_equal(family.size, kind.unions.size)
        and np.array_equal(family.fits, kind.unions.fits)
    )


def _groups(owner: IntArray, live: IntArray) -> list[IntArray]:
    order = np.argsort(owner, kind="stable")
    cuts = np.flatnonzero(np.diff(owner[order])) + 1
    return [live[group] for group in np.split(order, cuts)]

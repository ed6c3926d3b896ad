"""What an engine may choose among for an operator: its schedule and the next best, each with a kernel of its own.

An engine that times kernels itself makes up for what a prediction missed. At least one tactic of an operator needs no
more shared memory than every launch may have, where there is such a kernel, because more is not promised to kernels
that an engine holds by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxopt.decide import AlgorithmSource, SiteReport
from onnxopt.errors import InputError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.source import KernelSource, with_others
from onnxopt.plan.roofline import SMALL_SHARED_BYTES
from onnxopt.site_kernels import KernelBuild, operator_sources
from onnxopt.site_reports import Planning
from onnxopt.tactic_candidates import Candidate, candidates, is_small, planned_shared, prove, second_operator

TACTICS = 3
"""Tactics of an operator unless another number is asked for, its own schedule included."""

MOST_TACTICS = 8
"""Tactics that may be asked for."""


@dataclass(frozen=True, eq=False)
class SiteTactic:
    """A schedule of a site and its kernel, compiled for the place that its tables have among those of all tactics."""

    candidate: Candidate
    compiled: CompiledKernel

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.compiled.report.dynamic_shared


@dataclass(frozen=True, eq=False)
class SiteTactics:
    """The tactics of a site's first operator, the one that is written first.

    ``note`` says why none of them is within the shared memory that every launch may have; it is empty where one is.
    """

    site: str
    tactics: tuple[SiteTactic, ...]
    note: str = ""

    def to_json(self) -> list[dict[str, Any]]:
        """The field ``tactics`` of a site in `plan.json`."""
        return [
            {
                "variants": list(tactic.candidate.variants),
                "predicted_us": round(tactic.candidate.predicted_us, 3),
                "shared_bytes": tactic.compiled.report.shared,
                "registers": tactic.compiled.report.registers,
            }
            for tactic in self.tactics
        ]


def check_tactics(count: int) -> None:
    """Raise InputError for a number of tactics that is not allowed."""
    if not 1 <= count <= MOST_TACTICS:
        raise InputError(f"--tactics is {count}; allowed: 1 to {MOST_TACTICS}")


def with_tactics(
    planning: Planning, reports: Sequence[SiteReport], build: KernelBuild, most: int = TACTICS
) -> tuple[list[SiteReport], dict[str, SiteTactics]]:
    """The reports of written sites with their tactics in ``planned``, and the tactics by site.

    A site has up to ``most`` (1 to :data:`MOST_TACTICS`), one of them small where there is one, even if that makes two
    of one. Steps of algorithms have no others: what is next best there is another choice for the whole network.
    """
    waiting = [_Site(report, planning, most) for report in reports if _has_tactics(report)]
    found: dict[str, SiteTactics] = {}
    while waiting:
        selected = [(site, site.selection()) for site in waiting]
        wanted = [source for _, chosen in selected if len(chosen) > 1 for source in _sources(chosen)]
        made = build.compiled(wanted)
        waiting = []
        for site, chosen in selected:
            outcome = site.judged(chosen, made)
            if outcome is None:
                waiting.append(site)
            else:
                found[outcome.site] = outcome
    return [_noted(report, found.get(report.id)) for report in reports], found


def _has_tactics(report: SiteReport) -> bool:
    source = report.plugin
    return report.rewrite is not None and source is not None and not isinstance(source, AlgorithmSource)


def _noted(report: SiteReport, tactics: SiteTactics | None) -> SiteReport:
    if tactics is None:
        return report
    planned = {**report.planned, "tactics": tactics.to_json()}
    return replace(report, planned={**planned, "tactics_note": tactics.note} if tactics.note else planned)


def _sources(chosen: Sequence[Candidate]) -> list[KernelSource]:
    """The sources of tactics, each for the place of its tables among those of all."""
    counts = [len(candidate.source.tables.arrays()) for candidate in chosen]
    return [
        with_others(_source(candidate), sum(counts[:number]), sum(counts[number + 1 :]))
        for number, candidate in enumerate(chosen)
    ]


def _source(candidate: Candidate) -> KernelSource:
    found = operator_sources(candidate.source)
    assert not isinstance(found, str)
    return found[0][1]


@dataclass
class _Site:
    """A site whose tactics are looked for; ``refused`` operators have no kernel that can be used.

    ``shared`` is what compiled kernels take, by operator; before they are compiled the planner's count stands for it.
    """

    report: SiteReport
    planning: Planning
    most: int
    refused: set[str] = field(default_factory=set)
    shared: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        source = self.report.plugin
        assert source is not None and not isinstance(source, AlgorithmSource)
        planned = self.report.planned
        self.own = Candidate(source, planned["predicted_us"], tuple(planned["variants"]))
        self.shared[self.own.operator] = self.report.kernels[0].compiled.report.dynamic_shared
        self._next = _Kept(candidates(self.planning, source))
        self._small = _Kept(candidates(self.planning, source, SMALL_SHARED_BYTES))

    def selection(self) -> list[Candidate]:
        """The schedule that is written and the next best, one of them small where there is one."""
        chosen, known = [self.own], {self.own.operator}
        if self.own.operator in self.refused:
            return chosen
        for candidate in self._next:
            if len(chosen) == self.most:
                break
            if self._fits(candidate, known):
                chosen.append(candidate)
                known.add(candidate.operator)
        if not any(map(self._is_small, chosen)):
            further = (c for kept in (self._next, self._small) for c in kept)
            small = next((c for c in further if self._fits(c, known) and self._is_small(c)), None)
            if small is not None:
                chosen = [*chosen[: max(self.most - 1, 1)], small]
        # What is written stays first, as its tables are those of the other forms.
        return [chosen[0], *sorted(chosen[1:], key=lambda c: c.predicted_us)]

    def judged(self, chosen: Sequence[Candidate], made: dict[KernelSource, CompiledKernel]) -> SiteTactics | None:
        """The tactics, or None where a kernel cannot be used or is larger than was counted, and others are chosen."""
        if len(chosen) == 1:
            return self._result(chosen, [self.report.kernels[0].compiled])
        kernels = [made.get(source) for source in _sources(chosen)]
        missing = [c.operator for c, kernel in zip(chosen, kernels, strict=True) if kernel is None]
        if missing:
            self.refused.update(missing)
            return None
        compiled = [kernel for kernel in kernels if kernel is not None]
        counted = any(map(self._is_small, chosen))
        self.shared |= {c.operator: k.report.dynamic_shared for c, k in zip(chosen, compiled, strict=True)}
        if counted and not any(map(self._is_small, chosen)):
            return None
        return self._result(chosen, compiled)

    def _result(self, chosen: Sequence[Candidate], compiled: Sequence[CompiledKernel]) -> SiteTactics:
        # The first is that of the written operator, which is proved where it is planned and from the file.
        for candidate in chosen[1:]:
            prove(self.report.id, candidate.source)
        tactics = tuple(SiteTactic(c, kernel) for c, kernel in zip(chosen, compiled, strict=True))
        least = min(tactic.shared_bytes for tactic in tactics)
        return SiteTactics(self.report.id, tactics, "" if is_small(least) else self._large(least))

    def _fits(self, candidate: Candidate, known: set[str]) -> bool:
        """Whether a schedule is another one for the same operands and outputs, and may have a kernel."""
        operator = candidate.operator
        return (
            operator not in known
            and operator not in self.refused
            and second_operator(candidate.source) == second_operator(self.own.source)
            and not isinstance(operator_sources(candidate.source), str)
        )

    def _large(self, least: int) -> str:
        alike = " with the same partial results" if second_operator(self.own.source) else ""
        return (
            f"no kernel for it{alike} is within the {SMALL_SHARED_BYTES:,} bytes of shared memory a block that an "
            f"engine is documented to grant a kernel of its own; the smallest needs {least:,}"
        )

    def _is_small(self, candidate: Candidate) -> bool:
        known = self.shared.get(candidate.operator)
        return is_small(planned_shared(candidate.source) if known is None else known)


class _Kept:
    """What an iterator gives, asked for once and only as far as it is needed."""

    def __init__(self, source: Iterator[Candidate]) -> None:
        self._source, self._known = source, list[Candidate]()

    def __iter__(self) -> Iterator[Candidate]:
        place = 0
        while True:
            if place == len(self._known):
                following = next(self._source, None)
                if following is None:
                    return
                self._known.append(following)
            yield self._known[place]
            place += 1

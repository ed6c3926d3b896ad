"""Which convolutions in a row are computed by one kernel: decided after each alone, where it is predicted to win."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from onnxopt.decide import PREDICTED_MARGIN, BlockSource, ConvSource, SiteReport
from onnxopt.discover.conv_site import ConvSite
from onnxopt.errors import InputError
from onnxopt.lower.block_plugin import BlockPluginWriter
from onnxopt.lower.convolution import site_weights
from onnxopt.measure.extract import extract_region
from onnxopt.model.graph import Graph, view
from onnxopt.plan.block import BlockWork, block_tables, block_work
from onnxopt.plan.block.chains import Link, chains, fused_links
from onnxopt.plan.block.tables import path_of
from onnxopt.plan.block.types import BlockSchedule
from onnxopt.plan.estimate import data_work, gpu_seconds
from onnxopt.plan.group_conv import SIZE_LIMIT
from onnxopt.plan.tables.fused import fused_work
from onnxopt.site_reports import SCHEDULES_TRIED, Planning, tensor_element
from onnxopt.target.variant import Element
from onnxopt.validate import PlanError
from onnxopt.validate.block_contents import validate_block_contents
from onnxopt.validate.block_launch import validate_block_launch

# A block must be this much faster than what its convolutions take one by one.
_SINGLES_MARGIN = 1.05

Compiled = Callable[[list[SiteReport], Callable[[SiteReport], Iterator[SiteReport]]], list[SiteReport]]
"""Reports with their kernels, where a compiler is at hand; a report whose kernels cannot be used is kept."""


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A chain that may become one kernel: its best schedules, and what its convolutions take otherwise."""

    chain: tuple[Link, ...]
    work: BlockWork
    schedules: list[BlockSchedule]
    engine_us: float
    singles_us: float

    @property
    def saved_us(self) -> float:
        """What the block is predicted to save."""
        return self.singles_us - self.schedules[0].predicted_us


def block_reports(
    planning: Planning,
    sites: Sequence[ConvSite],
    reports: Sequence[SiteReport],
    borders: frozenset[str],
    compiled: Compiled | None,
) -> list[SiteReport]:
    """The reports of a graph's convolutions in the plugin form, with blocks where these win.

    A block is written by the report of its first convolution; the others say where they are computed. Where its kernel
    cannot be compiled, or fewer of its blocks fit than planned, every convolution stays what it was alone.
    """
    element = _element(planning, sites)
    if planning.kernels is None or element is None:
        return list(reports)
    graph = planning.judge.graph
    links = fused_links(graph, sites, borders)
    chosen = _chosen(
        planning, [c for c in chains(graph, links, borders) if _is_free(c, links, reports)], reports, element
    )
    writer = BlockPluginWriter(graph)
    by_id = {reports[c.chain[0].number].id: c for c in chosen}

    def further(report: SiteReport) -> Iterator[SiteReport]:
        candidate = by_id[report.id]
        for schedule in candidate.schedules[1:]:
            if schedule.predicted_us * PREDICTED_MARGIN <= min(candidate.engine_us, candidate.singles_us):
                yield _written(writer, reports, candidate, schedule)

    made = [_written(writer, reports, candidate, candidate.schedules[0]) for candidate in chosen]
    if compiled is not None:
        made = compiled(made, further)
    result = list(reports)
    for candidate, report in zip(chosen, made, strict=True):
        if report.rewrite is None:
            continue
        numbers = [link.number for link in candidate.chain]
        result[numbers[0]] = report
        for number in numbers[1:]:
            result[number] = _computed_by(report.id, result[number])
    return result


def _computed_by(block: str, report: SiteReport) -> SiteReport:
    """The report of a block's further convolution: what was planned for it alone is not done."""
    reason = f"computed by the kernel of {block}, whose gain is that of all"
    return replace(
        report.kept(reason), decision="rewrite", predicted_gain=None, planned={"computed_by": block}, draw=None
    )


def chain_work(chain: Sequence[Link], graph: Graph) -> BlockWork:
    """What a chain computes. Raises InputError, :class:`NoTables` among them, where no kernel does."""
    stages = []
    for link in chain:
        site = link.site
        shape = graph.shape(site.input)
        names = [part.node.input[2] for part in site.parts if len(part.node.input) > 2 and part.node.input[2]]
        if shape is None or any(graph.constant(name) is None for name in names):
            raise InputError("a bias or a shape is not known")
        if site.out_channels * site.in_channels * prod(site.kernel) > SIZE_LIMIT:
            raise InputError("its weights are too large to be unpacked")
        if any(graph.constant(part.node.input[1]) is None for part in site.parts):
            raise InputError("its weights are no constants")
        stages.append(fused_work(site, link.fusion, *site_weights(site, graph), shape[2:]))
    return block_work(stages)


def _element(planning: Planning, sites: Sequence[ConvSite]) -> Element | None:
    """The type that all blocks compute in; None where it is none that they have."""
    kinds = {planning.dtype or tensor_element(planning.judge.graph, site.output) for site in sites}
    own = kinds.pop() if len(kinds) == 1 else None
    return own if own in ("fp16", "bf16") else None


def _is_free(chain: Sequence[Link], links: Sequence[Link], reports: Sequence[SiteReport]) -> bool:
    """Whether nothing that a chain takes is written by a convolution outside of it, or by another algorithm."""
    inside = {link.number for link in chain}
    if any("algorithm" in reports[number].planned for number in inside):
        return False
    taken = {
        node.output[0]
        for number, report in enumerate(reports)
        if number not in inside and report.rewrite is not None and isinstance(report.plugin, ConvSource)
        for node in report.plugin.fusion.nodes
    }
    own = {node.output[0] for link in chain for node in link.fusion.nodes}
    return not own & taken


def _chosen(
    planning: Planning, found: Sequence[tuple[Link, ...]], reports: Sequence[SiteReport], element: Element
) -> list[_Candidate]:
    """Chains without a common convolution that are predicted to win, those that save most first."""
    candidates = [c for chain in found if (c := _candidate(planning, chain, reports, element)) is not None]
    candidates.sort(key=lambda c: (-c.saved_us, c.chain[0].number))
    chosen, used = [], set[int]()
    for candidate in candidates:
        numbers = {link.number for link in candidate.chain}
        if not numbers & used:
            chosen.append(candidate)
            used |= numbers
    return sorted(chosen, key=lambda c: c.chain[0].number)


def _candidate(
    planning: Planning, chain: tuple[Link, ...], reports: Sequence[SiteReport], element: Element
) -> _Candidate | None:
    judge = planning.judge
    gpu = judge.target.need_gpu_profile()
    try:
        work = chain_work(chain, judge.graph)
        schedules = planning.blocks.best(work, gpu, element, judge.graph.batch, SCHEDULES_TRIED)
        engine = _engine_us(planning, _inputs(chain), chain[-1].fusion.target, element)
        singles = sum(_single_us(planning, link, reports[link.number], element) for link in chain)
    except InputError:
        return None
    best = schedules[0].predicted_us
    wins = best * PREDICTED_MARGIN <= engine and best * _SINGLES_MARGIN <= singles
    return _Candidate(chain, work, schedules, engine, singles) if wins else None


def _inputs(chain: Sequence[Link]) -> tuple[str, ...]:
    """The tensors that a chain reads."""
    residual = chain[-1].fusion.residual
    return tuple(dict.fromkeys(name for name in (chain[0].fusion.lead.source, residual) if name is not None))


def _single_us(planning: Planning, link: Link, report: SiteReport, element: Element) -> float:
    """What a convolution takes as it was decided alone: by its own kernel, or by the engine."""
    if report.rewrite is not None and isinstance(report.plugin, ConvSource):
        return float(report.planned["predicted_us"])
    return _engine_us(planning, link.fusion.inputs, link.fusion.target, element)


def _engine_us(planning: Planning, inputs: Sequence[str], target: str, element: Element) -> float:
    judge = planning.judge
    region = extract_region(judge.model, judge.graph, inputs, [target])
    stored = tensor_element(judge.graph, target) or "fp32"
    work = data_work(view(region, batch=judge.graph.batch))
    return gpu_seconds(work, judge.target.need_gpu_profile(), element, stored) * 1e6


def _written(
    writer: BlockPluginWriter, reports: Sequence[SiteReport], candidate: _Candidate, schedule: BlockSchedule
) -> SiteReport:
    """The report of a block's first convolution, which writes the whole block."""
    first, last = candidate.chain[0], candidate.chain[-1]
    report = reports[first.number]
    tables = block_tables(candidate.work, schedule)
    try:
        validate_block_launch(tables.kernel.to_json(), tables.arrays())
        validate_block_contents(candidate.work, tables)
    except PlanError as error:
        raise AssertionError(f"{report.id}: {error}") from error
    operands = (first.fusion.lead.source, last.fusion.residual, last.fusion.target)
    rewrite = writer.lower(report.id, operands, candidate.work, tables)
    gain = candidate.engine_us / schedule.predicted_us
    said = (
        f"one kernel in {schedule.element} for {len(candidate.chain)} convolutions is predicted {gain:.2f} times as "
        f"fast as the engine, and {candidate.singles_us / schedule.predicted_us:.2f} times as fast as a kernel for each"
    )
    source = BlockSource(candidate.work, tables, schedule.resident)
    planned = _planned([reports[link.number].id for link in candidate.chain], candidate, schedule, len(tables.jobs))
    return replace(
        report,
        decision="rewrite",
        reason=said,
        predicted_gain=gain,
        planned=planned,
        draw=None,
        rewrite=rewrite,
        plugin=source,
        kernels=(),
    )


def _planned(ids: list[str], candidate: _Candidate, schedule: BlockSchedule, jobs: int) -> dict[str, Any]:
    """The entry of `plan.json`."""
    work = candidate.work
    needed = sum(int(work.links(number).sum()) for number in range(len(work.stages)))
    computed = sum(
        len(part.outputs) * (1 if path_of(work, number) == "channelwise" else len(part.inputs))
        for bundle in schedule.bundles
        for number, parts in enumerate(bundle.stages)
        for part in parts
    )
    return {
        "block": ids,
        "dtype": schedule.element,
        "variants": [f"{jobs} x {schedule.shape.describe()}"],
        "rows": schedule.rows,
        "bundles": len(schedule.bundles),
        "resident_blocks": schedule.resident,
        "blocks": jobs,
        "needed": needed,
        "computed": computed,
        "waste": round(computed / max(1, needed), 4),
        "predicted_us": round(schedule.predicted_us, 3),
        "bound_us": round(schedule.bound_us, 3),
        "gap": 0.0,
        "solver": {"name": "enumeration", "status": "optimal", "nodes": schedule.compared},
        "certificate": "every shape, number of rows and number of components of a job that is tried was compared",
        "singles_us": round(candidate.singles_us, 3),
        "engine_us": round(candidate.engine_us, 3),
        "fused": [node.name for link in candidate.chain for node in link.fusion.nodes],
    }

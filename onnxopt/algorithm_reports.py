"""What convolutions become by the choice of algorithms: kept, or written by the chosen one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from onnxopt.algorithm_choice import AlgorithmPlan
from onnxopt.convolution_kernels import conv_choices, planned_for_kernel, written_conv
from onnxopt.decide import AlgorithmSource, ConvSource, SiteReport
from onnxopt.discover.conv_fusion import ConvFusion, ConvFusions
from onnxopt.discover.conv_site import ConvSite
from onnxopt.errors import InputError
from onnxopt.lower.algorithm_plugin import AlgorithmWriter, step_fusion
from onnxopt.lower.convolution import site_weights
from onnxopt.plan.algorithms.options import IMPLICIT_GEMM
from onnxopt.plan.algorithms.problem import KEEP, Layer, Option
from onnxopt.plan.algorithms.tables import algorithm_tables
from onnxopt.plan.tables.fused import adds_up, fused_work
from onnxopt.site_reports import Planning, tensor_element


def algorithm_reports(
    planning: Planning, sites: Sequence[tuple[ConvSite, SiteReport]], plan: AlgorithmPlan, writer: AlgorithmWriter
) -> list[SiteReport]:
    """The sites by the choice: those that it does not keep are written by their algorithm."""
    fusions = planning.fusions or ConvFusions(planning.judge.graph)
    chosen = plan.choice.options(plan.network)
    result = []
    for (site, report), layer in zip(sites, plan.network.layers, strict=True):
        option = chosen[report.id]
        if len({o.algorithm for o in layer.options}) == 1:
            result.append(report)
            continue
        decided = _decided(report, option, layer)
        if option.algorithm == KEEP:
            result.append(decided.kept("no algorithm of ours makes the whole network faster here"))
            continue
        fusion = fusions.fusion(site)
        assert fusion is not None
        result.append(_written(planning, site, fusion, decided, option, writer))
    return result


def further_algorithm_reports(
    planning: Planning, plan: AlgorithmPlan, writer: AlgorithmWriter, report: SiteReport
) -> Iterator[SiteReport]:
    """A layer by its next best algorithms, best first; all other layers stay as they were chosen.

    These are algorithms in the same layout that fit the budget beside the other layers and, where keeping the layer was
    open to the choice, take less time than that.
    """
    source = report.plugin
    assert isinstance(source, AlgorithmSource | ConvSource)
    layer = next(layer for layer in plan.network.layers if layer.id == report.id)
    for option in _further_options(plan, layer):
        written = _written(
            planning, source.site, source.fusion, _decided(report.kept(""), option, layer), option, writer
        )
        if written.rewrite is not None:
            yield written


def _further_options(plan: AlgorithmPlan, layer: Layer) -> list[Option]:
    chosen = plan.choice.options(plan.network)
    own, settings = chosen[layer.id], plan.settings
    others = [option for name, option in chosen.items() if name != layer.id]
    workspace = max((option.workspace_bytes for option in others), default=0)
    constants = sum(option.constant_bytes for option in others)
    limit = float("inf") if settings.among is not None else _kept_us(layer)

    def fits(option: Option) -> bool:
        used = max(workspace, option.workspace_bytes) + constants + option.constant_bytes
        open_to_it = settings.among is None or option.algorithm in settings.among
        return open_to_it and option.microseconds < limit and (settings.budget is None or used <= settings.budget)

    further = [o for o in layer.options if o.layout == own.layout and o.algorithm not in (own.algorithm, KEEP)]
    return sorted(filter(fits, further), key=lambda option: option.microseconds)


def _kept_us(layer: Layer) -> float:
    return min(option.microseconds for option in layer.options if option.algorithm == KEEP)


def _decided(report: SiteReport, option: Option, layer: Layer) -> SiteReport:
    """The site with the option's gain; rewritten by it unless it keeps the layer."""
    gain = _kept_us(layer) / option.microseconds if option.microseconds else None
    report = replace(report, predicted_gain=gain)
    if option.algorithm == KEEP:
        return report
    known = "measured" if option.measured else "predicted"
    reason = f"{option.algorithm} is chosen for the whole network, {known} {gain:.2f} times as fast here"
    return replace(report, decision="rewrite", reason=reason, planned={"algorithm": option.algorithm})


def _written(
    planning: Planning,
    site: ConvSite,
    fusion: ConvFusion,
    report: SiteReport,
    option: Option,
    writer: AlgorithmWriter,
) -> SiteReport:
    """The site by its option, with what is fused; kept, with the reason, where that cannot be written."""
    graph = planning.judge.graph
    try:
        if option.algorithm == IMPLICIT_GEMM:
            choice = next(c for c in conv_choices(planning, site, 2, fusion) if not adds_up(c.work))
            choice = replace(choice, work=replace(choice.work, layout=option.layout))
            planned = planned_for_kernel(report, choice)
            planned = replace(planned, planned={**report.planned, **planned.planned})
            written = written_conv(planning, planned, choice)
        else:
            fusion = step_fusion(graph, site, fusion)
            shape = graph.shape(site.input)
            assert shape is not None
            work = fused_work(site, fusion, *site_weights(site, graph), shape[2:])
            element = planning.dtype or tensor_element(graph, site.output) or "fp32"
            steps = algorithm_tables(option.algorithm, work, element)
            rewrite = writer.lower(report.id, fusion, work, option.algorithm, steps)
            fields = {**report.planned, "fused": [node.name for node in fusion.nodes]}
            source = AlgorithmSource(site, fusion, work, option.algorithm, steps)
            written = replace(report, planned=fields, rewrite=rewrite, plugin=source)
    except InputError as error:
        return report.kept(f"{option.algorithm} is chosen for it, but cannot be written: {error}")
    if written.rewrite is not None and planning.fusions is not None:
        planning.fusions.take(fusion)
    return written

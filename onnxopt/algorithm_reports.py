"""What convolutions become by the choice of algorithms: kept, or written by the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxopt.algorithm_choice import AlgorithmPlan
from onnxopt.convolution_kernels import conv_choices, planned_for_kernel, written_conv
from onnxopt.decide import AlgorithmSource, SiteReport
from onnxopt.discover.conv_fusion import ConvFusions
from onnxopt.discover.conv_site import ConvSite
from onnxopt.errors import InputError
from onnxopt.lower.algorithm_plugin import AlgorithmWriter, step_fusion
from onnxopt.lower.convolution import site_weights
from onnxopt.plan.algorithms.options import IMPLICIT_GEMM
from onnxopt.plan.algorithms.problem import KEEP, Option
from onnxopt.plan.algorithms.tables import algorithm_tables
from onnxopt.plan.tables.fused import adds_up, fused_work
from onnxopt.site_reports import Planning, tensor_element


def algorithm_reports(
    planning: Planning, sites: Sequence[tuple[ConvSite, SiteReport]], plan: AlgorithmPlan
) -> list[SiteReport]:
    """The sites by the choice: those that it does not keep are written by their algorithm."""
    writer = AlgorithmWriter(planning.judge.graph)
    chosen = plan.choice.options(plan.network)
    result = []
    for (site, report), layer in zip(sites, plan.network.layers, strict=True):
        option = chosen[report.id]
        if len({o.algorithm for o in layer.options}) == 1:
            result.append(report)
            continue
        before = min(o.microseconds for o in layer.options if o.algorithm == KEEP)
        gain = before / option.microseconds if option.microseconds else None
        report = replace(report, predicted_gain=gain)
        if option.algorithm == KEEP:
            result.append(report.kept("no algorithm of ours makes the whole network faster here"))
            continue
        known = "measured" if option.measured else "predicted"
        reason = f"{option.algorithm} is chosen for the whole network, {known} {gain:.2f} times as fast here"
        report = replace(report, decision="rewrite", reason=reason, planned={"algorithm": option.algorithm})
        result.append(_written(planning, site, report, option, writer))
    return result


def _written(
    planning: Planning, site: ConvSite, report: SiteReport, option: Option, writer: AlgorithmWriter
) -> SiteReport:
    """The site by its option, with what is fused; kept, with the reason, where that cannot be written."""
    graph = planning.judge.graph
    fusions = planning.fusions or ConvFusions(graph)
    fusion = fusions.fusion(site)
    assert fusion is not None
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
            source = AlgorithmSource(site, work, option.algorithm, steps)
            written = replace(report, planned=fields, rewrite=rewrite, plugin=source)
    except InputError as error:
        return report.kept(f"{option.algorithm} is chosen for it, but cannot be written: {error}")
    if written.rewrite is not None and planning.fusions is not None:
        planning.fusions.take(fusion)
    return written

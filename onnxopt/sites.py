"""Every site of a model with its plan and its decision: what `inspect` shows and `optimize` carries out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from onnx import ModelProto

from onnxopt.algorithm_choice import AlgorithmPlan, AlgorithmSettings, plan_algorithms
from onnxopt.algorithm_reports import algorithm_reports, further_algorithm_reports
from onnxopt.block_reports import block_reports
from onnxopt.convolution_kernels import further_conv_reports
from onnxopt.convolution_reports import convolution_reports
from onnxopt.decide import Judge, Progress, SiteReport
from onnxopt.discover.attention import find_attention
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.conv_fusion import ConvFusions
from onnxopt.discover.conv_site import ConvSite
from onnxopt.discover.convolution import find_convolutions
from onnxopt.discover.refusal import Refusal, node_name
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.lower.algorithm_plugin import AlgorithmWriter
from onnxopt.lower.conv_plugin import ConvPluginWriter
from onnxopt.lower.plugin import PluginWriter
from onnxopt.lower.plugin_nodes import has_plugin_nodes
from onnxopt.lower.rewrite import apply_rewrites, is_plugin_node
from onnxopt.measure.records import RecordStore
from onnxopt.measure.timing import PairTiming
from onnxopt.model.graph import Graph, nodes_within, symbolic_batch, view
from onnxopt.plan.convolution import ConvPlan, plan_convolutions
from onnxopt.plan.schedule import Objective
from onnxopt.site_kernels import KernelBuild, with_kernels
from onnxopt.site_reports import (
    Form,
    Planning,
    attention_reports,
    further_reports,
    reference_cpu,
)
from onnxopt.tactics import SiteTactics, with_tactics
from onnxopt.target import Target
from onnxopt.target.variant import Element


@dataclass(frozen=True)
class Findings:
    """What discovery found in a model."""

    graph: Graph
    attention: tuple[AttentionSite, ...]
    convolutions: tuple[ConvSite, ...]
    refusals: tuple[Refusal, ...]


def discover(model: ModelProto) -> Findings:
    """Find every site; a model with a symbolic batch is looked at with two batch elements."""
    graph = view(model, batch=2 if symbolic_batch(model) else 1)
    attention, refusals = find_attention(graph)
    convolutions, conv_refusals = find_convolutions(graph)
    found = (*refusals, *conv_refusals, *_not_searched(graph), *_written_before(graph))
    return Findings(graph, tuple(attention), tuple(convolutions), found)


def _written_before(graph: Graph) -> list[Refusal]:
    """A refusal for each operator of our own, which is final."""
    reason = "an operator of our own: an earlier run of onnxopt wrote this"
    own = [node for node in graph.nodes if is_plugin_node(node)]
    return [Refusal(node_name(node), node.op_type.partition("_")[0], reason) for node in own]


def _not_searched(graph: Graph) -> list[Refusal]:
    """A refusal for each control-flow node whose body holds what would be looked at outside of it."""
    refusals = []
    for node in graph.nodes:
        held = [inner for inner in nodes_within(node) if inner.op_type in ("Softmax", "Attention", "Conv")]
        if held:
            kinds = ", ".join(sorted({inner.op_type for inner in held}))
            reason = f"its subgraphs hold {len(held)} nodes of {kinds}; subgraphs are not searched"
            refusals.append(Refusal(node_name(node), node.op_type, reason))
    return refusals


_WRITTEN_BEFORE = "an earlier run of onnxopt wrote this model; optimise the original instead"
# A margin below what is worth building; measuring or the target's own prediction has the last word.
_CONV_MARGIN = 0.9


def judge_sites(
    model: ModelProto,
    findings: Findings,
    target: Target,
    *,
    forms: Sequence[Form],
    records: Path | None,
    measure: bool,
    objective: Objective = "time",
    dtype: Element | None = None,
    build: KernelBuild | None = None,
    progress: Progress = lambda _: None,
) -> dict[Form, list[SiteReport]]:
    """The reports of :func:`judge_network` without a choice of algorithms."""
    return judge_network(
        model,
        findings,
        target,
        forms=forms,
        records=records,
        measure=measure,
        objective=objective,
        dtype=dtype,
        build=build,
        progress=progress,
    ).reports


@dataclass(frozen=True)
class Judged:
    """The decided sites for each form, and the choice of convolution algorithms where one was made.

    ``tactics`` are the schedules among which an engine may choose, by site, where they were asked for.
    """

    reports: dict[Form, list[SiteReport]]
    algorithms: AlgorithmPlan | None = None
    tactics: Mapping[str, SiteTactics] = field(default_factory=dict)


def judge_network(
    model: ModelProto,
    findings: Findings,
    target: Target,
    *,
    forms: Sequence[Form],
    records: Path | None,
    measure: bool,
    objective: Objective = "time",
    dtype: Element | None = None,
    build: KernelBuild | None = None,
    algorithms: AlgorithmSettings | None = None,
    tactics: int = 0,
    progress: Progress = lambda _: None,
) -> Judged:
    """Plan every site once and decide it for each form, in the order attention, convolution.

    ``records`` is the file of tuning records (None: there are none), beside which plans are kept. ``dtype`` is the type
    that kernels compute in, by default that of a site's own tensors. Only the portable form on a CPU is measured. With
    ``build`` the kernels of the plugin form are compiled, and a site whose kernel cannot be used is kept. With
    ``algorithms`` the plugin form has every dense convolution by the algorithm that is best for the whole network. With
    ``tactics``, the number that an engine is to choose among, and ``build`` the next best schedules are compiled too.
    """
    judge = whole_judge(model, findings, target, records=records, measure=measure, progress=progress)
    planning = Planning(judge, objective, dtype=dtype)
    if "plugin" in forms or target.gpu is not None:
        folder = records.parent if records is not None else None
        kernels = KernelPlanner.at(target.need_gpu_profile(), objective, folder)
        planning = replace(
            planning,
            kernels=kernels,
            writer=PluginWriter(findings.graph),
            fusions=ConvFusions(findings.graph, _borders(findings)),
            conv_writer=ConvPluginWriter(findings.graph),
        )
    progress("planning")
    judged = [attention_reports(planning, site, forms) for site in findings.attention]
    plans = _conv_plans(findings, target)
    for number, plan in enumerate(plans):
        judged.append(convolution_reports(planning, f"conv-{number}", plan, forms))
    reports = {form: [decided[form] for decided in judged] for form in forms}
    if has_plugin_nodes(model):
        # Names of new nodes could be those of the earlier run, whose sites are no longer there to be counted.
        return Judged({form: [r.kept(_WRITTEN_BEFORE) for r in found] for form, found in reports.items()})
    chosen, steps = None, AlgorithmWriter(findings.graph)
    if algorithms is not None and "plugin" in reports:
        progress("choosing algorithms")
        first = len(findings.attention)
        sites = [(plan.site, report) for plan, report in zip(plans, reports["plugin"][first:], strict=True)]
        chosen = plan_algorithms(planning, sites, algorithms, records.parent if records is not None else None)
        reports["plugin"][first:] = algorithm_reports(planning, sites, chosen, steps)
    if "plugin" in reports and planning.kernels is not None:
        first = len(findings.attention)
        single = reports["plugin"][first:]
        made = None if build is None else partial(with_kernels, build=build)
        reports["plugin"][first:] = block_reports(
            planning,
            [plan.site for plan in plans],
            single,
            _borders(findings),
            None if made is None else lambda own, further: made(own, further=further),
        )
    if build is not None and "plugin" in reports:
        reports["plugin"] = with_kernels(reports["plugin"], build, partial(_further_reports, planning, chosen, steps))
    found: dict[str, SiteTactics] = {}
    if tactics and build is not None and "plugin" in reports:
        progress("choosing tactics")
        reports["plugin"], found = with_tactics(planning, reports["plugin"], build, tactics)
    return Judged(reports, chosen, found)


def _further_reports(
    planning: Planning, chosen: AlgorithmPlan | None, steps: AlgorithmWriter, report: SiteReport
) -> Iterator[SiteReport]:
    if "block" in report.planned:
        # Its convolutions have been decided together; another way to group them is another choice.
        return iter(())
    if "algorithm" in report.planned:
        assert chosen is not None
        return further_algorithm_reports(planning, chosen, steps, report)
    further = further_conv_reports if report.kind == "conv" else further_reports
    return further(planning, report)


def _borders(findings: Findings) -> frozenset[str]:
    """The tensors between which attention is rewritten."""
    return frozenset(name for site in findings.attention for name in (*site.inputs, site.output))


def whole_judge(
    model: ModelProto,
    findings: Findings,
    target: Target,
    *,
    records: Path | None,
    measure: bool,
    progress: Progress = lambda _: None,
) -> Judge:
    """What judges candidates of a model; only the portable form on a CPU is measured."""
    store = RecordStore(records) if records is not None and target.is_cpu else None
    return Judge(model, findings.graph, target, store, measure and target.is_cpu, progress)


@dataclass(frozen=True)
class Rewritten:
    """A model with its rewrites, the sites as they turned out, and the model's timing beside the original if known."""

    model: ModelProto
    reports: list[SiteReport]
    timing: PairTiming | None = None


def carry_out(model: ModelProto, reports: list[SiteReport], judge: Judge) -> Rewritten:
    """Carry out every decided rewrite, and judge the model as a whole.

    Where the whole model does not get faster, first the convolutions and then everything stays as it was: pieces that
    gain alone can lose together, when a layout that spans them breaks.
    """
    for attempt in ("all", "attention", "none"):
        reports = [_without(r, attempt) for r in reports]
        rewrites = [r.rewrite for r in reports if r.rewrite is not None]
        candidate = apply_rewrites(model, rewrites)
        if not rewrites or not judge.target.is_cpu:
            return Rewritten(candidate, reports)
        timing = judge.whole(candidate)
        if timing is None or timing.ratio >= 1.0:
            return Rewritten(candidate, reports, timing)
    raise AssertionError("the last attempt has no rewrites")


def _without(report: SiteReport, attempt: str) -> SiteReport:
    dropped = report.rewrite is not None and (attempt == "none" or (attempt == "attention" and report.kind == "conv"))
    return report.kept(f"{report.reason}, but the whole model is not faster with it") if dropped else report


def _conv_plans(findings: Findings, target: Target) -> list[ConvPlan]:
    if target.cpu is not None:
        return plan_convolutions(findings.convolutions, findings.graph, target.cpu, margin=_CONV_MARGIN)
    # On a GPU every plan that saves connections is a candidate; the GPU's own prediction decides.
    return plan_convolutions(findings.convolutions, findings.graph, reference_cpu(), forms=("direct",), margin=0.0)

"""Every site of a model with its plan and its decision: what `inspect` shows and `optimize` carries out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto

from onnxopt.decide import (
    PREDICTED_MARGIN,
    Judge,
    Progress,
    SiteReport,
    every_pair,
    found_attention,
    loses_digits,
    own_nodes,
)
from onnxopt.discover.attention import find_attention
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.conv_site import ConvSite
from onnxopt.discover.convolution import find_convolutions
from onnxopt.discover.movement import walk_back
from onnxopt.discover.refusal import Refusal, node_name
from onnxopt.lower.attention import lower_attention
from onnxopt.lower.convolution import lower_convolution
from onnxopt.lower.rewrite import apply_rewrites
from onnxopt.measure.extract import extract_region
from onnxopt.measure.records import RecordStore
from onnxopt.measure.timing import PairTiming
from onnxopt.model.graph import Graph, nodes_within, symbolic_batch, view
from onnxopt.plan.attention import AttentionPlan, filled_rows, plan_attention
from onnxopt.plan.conv_cost import bound_seconds
from onnxopt.plan.conv_roofline import roofline_gain
from onnxopt.plan.convolution import ConvPlan, plan_convolutions
from onnxopt.plan.estimate import data_work, gpu_seconds, kernel_seconds
from onnxopt.plan.rates import CpuRates
from onnxopt.plan.schedule import Objective
from onnxopt.target import CpuProfile, Target, load_target
from onnxopt.validate import (
    validate_attention_plan,
    validate_attention_tables,
    validate_conv_plan,
    validate_conv_weights,
)


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
    return Findings(graph, tuple(attention), tuple(convolutions), (*refusals, *conv_refusals, *_not_searched(graph)))


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


Form = Literal["plugin", "portable"]
# A margin below what is worth building; measuring or the target's own prediction has the last word.
_CONV_MARGIN = 0.9
_OWN = "its nodes are named onnxopt/...: a schedule that an earlier run wrote"


def judge_sites(
    model: ModelProto,
    findings: Findings,
    target: Target,
    *,
    form: Form,
    records: Path | None,
    measure: bool,
    objective: Objective = "time",
    progress: Progress = lambda _: None,
) -> list[SiteReport]:
    """Plan and decide every site for one target and form, in the order attention, convolution.

    ``records`` is the file of tuning records (None: there are none). Only the portable form on a CPU is measured.
    """
    judge = whole_judge(model, findings, target, records=records, measure=measure, progress=progress)
    reports = [_attention(judge, site, form, objective) for site in findings.attention]
    for number, plan in enumerate(_conv_plans(findings, target)):
        reports.append(_convolution(judge, f"conv-{number}", plan, form))
    return reports


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


def _attention(judge: Judge, site: AttentionSite, form: Form, objective: Objective) -> SiteReport:
    report = SiteReport(site.id, "attention", found_attention(site), "keep", "")
    if own_nodes(judge.graph, site.nodes):
        return report.kept(_OWN)
    if site.runtime:
        _, inputs = walk_back(judge.graph, site.runtime, judge.graph.data_inputs)
        named = ", ".join(f"'{name}'" for name in inputs)
        return report.kept(f"its mask depends on the model's input {named}, so its pattern is not fixed")
    if not len(filled_rows(site)):
        return report.kept("no query has a key: all its results are zeros")
    if every_pair(site):
        return report.kept("dense: every query needs every key")
    if form == "plugin":
        return _attention_plugin(judge, site, report)
    if loses_digits(site):
        return report.kept(
            "rows without keys carry a large constant and a bias, and float32 sums them in one order only"
        )
    plan = plan_attention(site, CpuRates.of(reference_cpu()), objective)
    report = replace(report, planned=_planned_attention(plan))
    if plan.computed >= site.heads * site.rows * len(site.key_tokens):
        return report.kept("its pattern leaves no schedule that is cheaper than computing every pair")
    rewrite = lower_attention(site, plan, judge.graph)
    validate_attention_plan(site, plan)
    validate_attention_tables(site, rewrite, judge.graph)
    return judge.judge(report, site.inputs, rewrite)


def _attention_plugin(judge: Judge, site: AttentionSite, report: SiteReport) -> SiteReport:
    gpu = judge.target.need_gpu_profile()
    region = extract_region(judge.model, judge.graph, site.inputs, [site.output])
    before = gpu_seconds(data_work(view(region, batch=judge.graph.batch)), gpu)
    gain = before / kernel_seconds(site, gpu)
    return _by_one_kernel(report, gain)


def _by_one_kernel(report: SiteReport, gain: float) -> SiteReport:
    """The decision for the plugin form: one kernel in place of the site's nodes."""
    report = replace(report, predicted_gain=gain)
    if gain < PREDICTED_MARGIN:
        return report.kept(f"one kernel is predicted {gain:.2f} times as fast, under {PREDICTED_MARGIN}")
    return replace(report, decision="rewrite", reason=f"one kernel is predicted {gain:.2f} times as fast")


def _convolution(judge: Judge, site_id: str, plan: ConvPlan, form: Form) -> SiteReport:
    site = plan.site
    report = SiteReport(site_id, "conv", site.to_json(), "keep", "")
    del report.found["kind"]
    if own_nodes(judge.graph, site.nodes):
        return report.kept(_OWN)
    if site.pattern == "dense":
        return report.kept("dense: every output uses every input")
    if form == "plugin":
        return _by_one_kernel(report, roofline_gain(site, judge.graph, judge.target.need_gpu_profile()))
    if plan.decision == "keep":
        return replace(report, predicted_gain=plan.predicted_gain).kept(plan.reason)
    report = replace(report, planned=_planned_convolution(plan, judge.graph))
    rewrite = lower_convolution(site_id, plan, judge.graph)
    validate_conv_plan(plan)
    validate_conv_weights(plan, rewrite, judge.graph)
    return judge.judge(report, plan.inputs, rewrite)


def _planned_convolution(plan: ConvPlan, graph: Graph) -> dict[str, Any]:
    site = plan.site
    batch, _, *positions = graph.shape(site.output) or (1, 1)
    seconds = bound_seconds(plan.needed, prod(site.kernel), batch * prod(positions), reference_cpu())
    return {
        "variants": [plan.form],
        "needed": plan.needed,
        "computed": plan.computed,
        "waste": round(plan.waste, 4),
        "predicted_us": round(plan.seconds[1] * 1e6, 3),
        "bound_us": round(seconds * 1e6, 3),
        "gap": 0.0,
        "solver": {"name": "enumeration", "status": "optimal", "nodes": plan.compared},
        "certificate": "every grouping of the outputs by equal input sets was compared, in every form allowed",
    }


def _conv_plans(findings: Findings, target: Target) -> list[ConvPlan]:
    if target.cpu is not None:
        return plan_convolutions(findings.convolutions, findings.graph, target.cpu, margin=_CONV_MARGIN)
    # On a GPU every plan that saves connections is a candidate; the GPU's own prediction decides.
    return plan_convolutions(findings.convolutions, findings.graph, reference_cpu(), forms=("direct",), margin=0.0)


def reference_cpu() -> CpuProfile:
    """The CPU by whose rates schedules are ranked, for whatever target."""
    cpu = load_target("cpu").cpu
    assert cpu is not None
    return cpu


def _planned_attention(plan: AttentionPlan) -> dict[str, Any]:
    return {
        "reorder": sorted({part.order for part in plan.parts}),
        "variants": [
            {"heads": len(p.heads), "strips": len(b.strips), "rows": b.rows, "keys": b.keys}
            for p in plan.parts
            for b in p.buckets
        ],
        "needed": plan.needed,
        "computed": plan.computed,
        "waste": round(plan.waste, 4),
        "predicted_us": round(plan.cost_us, 3),
        "bound_us": round(plan.bound_us, 3),
        "gap": 0.0,
        "solver": {"name": "enumeration", "status": "optimal", "nodes": plan.candidates},
        "certificate": "every order and cut was compared; the buckets of each are a shortest path",
    }

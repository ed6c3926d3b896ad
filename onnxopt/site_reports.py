"""What is planned and decided for one site: its plans, its decision with a reason, and what to draw."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Literal

from onnxopt.decide import (
    PREDICTED_MARGIN,
    Drawing,
    Judge,
    SiteReport,
    every_pair,
    found_attention,
    loses_digits,
    own_nodes,
)
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.movement import walk_back
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner, described
from onnxopt.lower.attention import lower_attention
from onnxopt.lower.convolution import lower_convolution
from onnxopt.measure.extract import extract_region
from onnxopt.model.graph import Graph, view
from onnxopt.plan.attention import AttentionPlan, filled_rows, plan_attention
from onnxopt.plan.conv_cost import bound_seconds
from onnxopt.plan.conv_roofline import original_seconds
from onnxopt.plan.convolution import ConvPlan
from onnxopt.plan.estimate import data_work, gpu_seconds
from onnxopt.plan.rates import CpuRates, GpuRates
from onnxopt.plan.schedule import AttentionSchedule, ConvSchedule, Objective
from onnxopt.report.pictures import attention_pictures, conv_pictures, layout_pictures, portable_pictures
from onnxopt.target import CpuProfile, Target, load_target
from onnxopt.validate import (
    validate_attention_plan,
    validate_attention_tables,
    validate_conv_plan,
    validate_conv_weights,
)

Form = Literal["plugin", "portable"]
_OWN = "its nodes are named onnxopt/...: a schedule that an earlier run wrote"
_DENSE = "dense: every query needs every key"


def attention_report(
    judge: Judge, site: AttentionSite, form: Form, objective: Objective, kernels: KernelPlanner | None
) -> SiteReport:
    """Plan one attention and decide; ``kernels`` plans for kernels of our own where the target is a GPU."""
    report = SiteReport(site.id, "attention", found_attention(site), "keep", "")
    if own_nodes(judge.graph, site.nodes):
        return report.kept(_OWN)
    if not len(filled_rows(site)):
        return report.kept("no query has a key: all its results are zeros")
    schedule, refusal = None, ""
    if kernels is not None:
        try:
            schedule = kernels.attention(site)[0]
            report = replace(report, planned=described(schedule), draw=partial(attention_pictures, site, schedule))
        except InputError as error:
            refusal = str(error)
    if site.runtime:
        _, inputs = walk_back(judge.graph, site.runtime, judge.graph.data_inputs)
        named = ", ".join(f"'{name}'" for name in inputs)
        return report.kept(f"its mask depends on the model's input {named}, so its pattern is not fixed")
    if form == "plugin":
        if schedule is None:
            return report.kept(f"it cannot be planned for a kernel: {refusal}")
        return _attention_by_kernel(judge, site, report, schedule)
    if every_pair(site):
        return report.kept(_DENSE)
    if loses_digits(site):
        return report.kept(
            "rows without keys carry a large constant and a bias, and float32 sums them in one order only"
        )
    plan = plan_attention(site, _rates(judge.target), objective)
    report = _with_written(report, _planned_attention(plan), partial(portable_pictures, site, plan))
    if plan.computed >= site.heads * site.rows * len(site.key_tokens):
        return report.kept("its pattern leaves no schedule that is cheaper than computing every pair")
    rewrite = lower_attention(site, plan, judge.graph)
    validate_attention_plan(site, plan)
    validate_attention_tables(site, rewrite, judge.graph)
    return judge.judge(report, site.inputs, rewrite)


def _attention_by_kernel(
    judge: Judge, site: AttentionSite, report: SiteReport, schedule: AttentionSchedule
) -> SiteReport:
    region = extract_region(judge.model, judge.graph, site.inputs, [site.output])
    gpu = judge.target.need_gpu_profile()
    before = gpu_seconds(data_work(view(region, batch=judge.graph.batch)), gpu)
    if every_pair(site) and not schedule.forecast.measured:
        return report.kept(f"{_DENSE}; a kernel takes its place only where measured tile times say that it wins")
    return _by_one_kernel(report, before, schedule)


def _by_one_kernel(report: SiteReport, before: float, schedule: AttentionSchedule | ConvSchedule) -> SiteReport:
    """The decision for the plugin form: one kernel in place of nodes that take ``before`` seconds."""
    gain = before * 1e6 / schedule.forecast.predicted_us
    report = replace(report, predicted_gain=gain)
    if gain < PREDICTED_MARGIN:
        return report.kept(f"one kernel is predicted {gain:.2f} times as fast, under {PREDICTED_MARGIN}")
    return replace(report, decision="rewrite", reason=f"one kernel is predicted {gain:.2f} times as fast")


def convolution_report(
    judge: Judge, site_id: str, plan: ConvPlan, form: Form, kernels: KernelPlanner | None
) -> SiteReport:
    """Decide for one convolution, ``plan`` being its portable form."""
    site = plan.site
    report = SiteReport(site_id, "conv", site.to_json(), "keep", "")
    del report.found["kind"]
    if own_nodes(judge.graph, site.nodes):
        return report.kept(_OWN)
    if site.pattern == "dense":
        return report.kept("dense: every output uses every input")
    if kernels is not None and site.connections:
        try:
            schedule = kernels.convolution(site, judge.graph)[0]
        except InputError as error:
            return report.kept(f"it cannot be planned for a kernel: {error}")
        report = replace(report, planned=described(schedule), draw=partial(conv_pictures, site, schedule))
        if form == "plugin":
            before = original_seconds(site, judge.graph, judge.target.need_gpu_profile())
            return _by_one_kernel(report, before, schedule)
    if plan.decision == "keep":
        return replace(report, predicted_gain=plan.predicted_gain).kept(plan.reason)
    report = _with_written(report, _planned_convolution(plan, judge.graph), partial(layout_pictures, site, plan))
    rewrite = lower_convolution(site_id, plan, judge.graph)
    validate_conv_plan(plan)
    validate_conv_weights(plan, rewrite, judge.graph)
    return judge.judge(report, plan.inputs, rewrite)


def _with_written(report: SiteReport, planned: dict[str, Any], draw: Drawing) -> SiteReport:
    """The report with the schedule of the portable form; beside a kernel's plan it has a field of its own."""
    if report.planned:
        return replace(report, planned={**report.planned, "portable": planned})
    return replace(report, planned=planned, draw=draw)


def _rates(target: Target) -> CpuRates | GpuRates:
    return CpuRates.of(reference_cpu()) if target.gpu is None else GpuRates.of(target.gpu)


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

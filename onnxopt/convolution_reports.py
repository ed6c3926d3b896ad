"""What is planned and decided for one convolution: its plans, its decision with a reason, and what to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from onnxopt.convolution_kernels import conv_choices, conv_plugin_report, planned_for_kernel
from onnxopt.decide import SiteReport, own_nodes
from onnxopt.errors import InputError
from onnxopt.lower.convolution import lower_convolution
from onnxopt.model.graph import Graph
from onnxopt.plan.conv_cost import bound_seconds
from onnxopt.plan.convolution import ConvPlan
from onnxopt.report.pictures import layout_pictures
from onnxopt.site_reports import WRITTEN_BEFORE, Form, Planning, reference_cpu, tensor_element, with_written
from onnxopt.validate import validate_conv_plan, validate_conv_weights


def convolution_reports(
    planning: Planning, site_id: str, plan: ConvPlan, forms: Sequence[Form]
) -> dict[Form, SiteReport]:
    """Decide for one convolution in each form, ``plan`` being its portable one."""
    judge, site = planning.judge, plan.site
    report = SiteReport(site_id, "conv", site.to_json(), "keep", "")
    del report.found["kind"]
    if own_nodes(judge.graph, site.nodes):
        return {form: report.kept(WRITTEN_BEFORE) for form in forms}
    if site.pattern == "dense":
        return {form: report.kept("dense: every output uses every input") for form in forms}
    choice, refusal = None, "all its weights are zero"
    if planning.kernels is not None and site.connections:
        try:
            choice = conv_choices(planning, site)[0]
            report = planned_for_kernel(report, choice)
        except InputError as error:
            refusal = str(error)
    decided: dict[Form, SiteReport] = {}
    for form in forms:
        if form == "portable":
            decided[form] = _portable_report(planning, report, plan)
        elif choice is None:
            decided[form] = report.kept(f"it cannot be planned for a kernel: {refusal}")
        else:
            decided[form] = conv_plugin_report(planning, report, choice)
            if decided[form].rewrite is not None and planning.fusions is not None:
                planning.fusions.take(choice.fusion)
    return decided


def _portable_report(planning: Planning, report: SiteReport, plan: ConvPlan) -> SiteReport:
    judge, site = planning.judge, plan.site
    if plan.decision == "keep":
        return replace(report, predicted_gain=plan.predicted_gain).kept(plan.reason)
    report = with_written(report, _planned_convolution(plan, judge.graph), partial(layout_pictures, site, plan))
    rewrite = lower_convolution(report.id, plan, judge.graph)
    validate_conv_plan(plan)
    validate_conv_weights(plan, rewrite, judge.graph)
    return judge.judge(report, plan.inputs, rewrite, tensor_element(judge.graph, site.output) or "fp32")


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

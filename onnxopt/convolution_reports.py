"""What is planned and decided for one convolution: its plans, its decision with a reason, and what to draw."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from onnxopt.decide import SiteReport, own_nodes
from onnxopt.errors import InputError
from onnxopt.kernel_plans import described
from onnxopt.lower.convolution import lower_convolution
from onnxopt.model.graph import Graph
from onnxopt.plan.conv_cost import bound_seconds
from onnxopt.plan.convolution import ConvPlan
from onnxopt.report.pictures import conv_pictures, layout_pictures
from onnxopt.site_reports import WRITTEN_BEFORE, Form, Planning, reference_cpu, tensor_element, with_written
from onnxopt.validate import validate_conv_plan, validate_conv_weights

_NO_CONV_KERNEL = "there are no kernels for convolutions in this version, so the plugin form has the portable one's"


def convolution_reports(
    planning: Planning, site_id: str, plan: ConvPlan, forms: Sequence[Form]
) -> dict[Form, SiteReport]:
    """Decide for one convolution, ``plan`` being its portable form.

    It has no kernel of its own in this version: what holds for the portable form holds for both.
    """
    report = _convolution_report(planning, site_id, plan)
    decided: dict[Form, SiteReport] = {}
    for form in forms:
        judged = form == "plugin" and report.predicted_gain is not None
        decided[form] = replace(report, reason=f"{report.reason}; {_NO_CONV_KERNEL}") if judged else report
    return decided


def _convolution_report(planning: Planning, site_id: str, plan: ConvPlan) -> SiteReport:
    judge, site = planning.judge, plan.site
    report = SiteReport(site_id, "conv", site.to_json(), "keep", "")
    del report.found["kind"]
    if own_nodes(judge.graph, site.nodes):
        return report.kept(WRITTEN_BEFORE)
    if site.pattern == "dense":
        return report.kept("dense: every output uses every input")
    if planning.kernels is not None and site.connections:
        # What a kernel would take is told; nothing that is written needs it.
        with suppress(InputError):
            kernels = planning.kernels_for(site.output) or planning.kernels
            schedule = kernels.convolution(site, judge.graph)[0]
            report = replace(report, planned=described(schedule), draw=partial(conv_pictures, site, schedule))
    if plan.decision == "keep":
        return replace(report, predicted_gain=plan.predicted_gain).kept(plan.reason)
    report = with_written(report, _planned_convolution(plan, judge.graph), partial(layout_pictures, site, plan))
    rewrite = lower_convolution(site_id, plan, judge.graph)
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

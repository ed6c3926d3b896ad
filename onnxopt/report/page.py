"""The report as one HTML page that needs nothing else: no server, no network, no script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxopt.plan_document import PlanDocument, PlanSite, Refused
from onnxopt.report.algorithm_page import algorithm_section
from onnxopt.report.figures import Figures
from onnxopt.report.markup import (
    count,
    factor,
    factors,
    facts,
    listed,
    microseconds,
    numbered,
    percent,
    plural,
    table,
    text,
)
from onnxopt.report.section import for_kernel, section
from onnxopt.report.style import STYLE

# Even a name that got past the escaping could load and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_PER_SITE = ("id", "nodes", "group", "decision", "reason", "predicted_gain", "measured_gain", "forms")
_SHOWN_NODES = 12
_SUMMARY = (
    ("site", False),
    ("decision", False),
    ("gain", True),
    ("needed", True),
    ("computed", True),
    ("waste", True),
    ("predicted", True),
    ("bound", True),
    ("gap", True),
)


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one plan and one set of pictures, in the order of the model."""

    sites: tuple[PlanSite, ...]
    pictures: tuple[int, ...]


def render(plan: PlanDocument, figures: Figures, versions: Mapping[str, str]) -> str:
    """The page. Raises InputError for a plan whose fields are not what they should be."""
    groups = group_planned(plan.sites, figures)
    body = [_header(plan, versions)]
    if groups:
        body.append(_summary(groups))
    else:
        body.append("<section><h2>Schedules</h2><p>No schedule was made for any site of this model.</p></section>\n")
    for number, group in enumerate(groups):
        pictures = [figures.pictures[index] for index in group.pictures]
        body.append(section(f"plan-{number}", group.sites, pictures))
    body.append(algorithm_section(plan.algorithms))
    body.append(_kept([site for site in plan.sites if not site.planned]))
    body.append(_refusals(plan.refusals))
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(plan.model)} · onnxopt</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def group_planned(sites: Sequence[PlanSite], figures: Figures) -> list[SiteGroup]:
    """The sites with a schedule; those that differ in their place in the model only are one group."""
    groups: dict[str, list[PlanSite]] = {}
    for site in sites:
        if site.planned:
            common = {name: value for name, value in site.fields.items() if name not in _PER_SITE}
            # Biases make operators differ whose kernels are alike.
            for name in ("compiled_kernel", "merge_kernel", "sum_kernel"):
                if isinstance(kernel := common.get(name), dict):
                    common[name] = {key: value for key, value in kernel.items() if key != "operator"}
            key = json.dumps([figures.sites.get(site.id, ()), common], sort_keys=True)
            groups.setdefault(key, []).append(site)
    return [SiteGroup(tuple(members), figures.sites.get(members[0].id, ())) for members in groups.values()]


def _header(plan: PlanDocument, versions: Mapping[str, str]) -> str:
    rewritten = sum(site.decision == "rewrite" for site in plan.sites)
    kinds = [
        plural(found, name, many)
        for kind, name, many in (("attention", "attention", "attention"), ("conv", "convolution", ""))
        if (found := sum(site.kind == kind for site in plan.sites))
    ]
    total = plural(len(plan.sites), "site")
    what = f" ({', '.join(kinds)})" if kinds else ""
    decided = f"{count(rewritten)} rewritten, {count(len(plan.sites) - rewritten)} kept"
    refused = f"{plural(len(plan.refusals), 'node')} refused"
    built = ", ".join(f"{text(name.replace('_', '-'))} {text(version)}" for name, version in versions.items())
    rows = [
        ("target", text(plan.target)),
        ("form", text(plan.form)),
        ("model", f"{count(plan.nodes)} nodes, opset {plan.opset}"),
        *([("converted to", text(plan.dtype))] if plan.dtype else []),
        ("written by", built or "unknown versions"),
    ]
    return (
        f'<header><p class="eyebrow">onnxopt report</p>\n<h1>{text(plan.model)}</h1>\n'
        f'<p class="lead">{total}{what}: {decided}; {refused}.</p>\n{facts(rows)}</header>\n'
    )


def _summary(groups: Sequence[SiteGroup]) -> str:
    rows = []
    for number, group in enumerate(groups):
        first = group.sites[0]
        decisions = sorted({site.decision for site in group.sites}, reverse=True)
        rows.append(
            (
                f'<a href="#plan-{number}">{text(numbered([site.id for site in group.sites]))}</a>',
                ", ".join(decisions),
                gain(group.sites),
                count(first.number("needed")),
                count(first.number("computed")),
                factor(first.number("waste")),
                microseconds(first.number("predicted_us")),
                microseconds(first.number("bound_us")),
                percent(first.number("gap")),
            )
        )
    note = (
        "Gain: time of the original over that of the new form, measured where it was, else predicted (~). Needed and "
        "computed: pairs of queries and keys over all heads, or connections of outputs and inputs. Waste: computed "
        "over needed. Bound: what the needed work takes at peak rates. Gap: how far the plan may be from the best one "
        "that the planner can express."
    )
    if any(for_kernel(site) for group in groups for site in group.sites):
        note += (
            " The figures are those of a schedule for a kernel of its own; decision and gain are about the form that "
            "was written."
        )
    return f'<section><h2>Schedules</h2>\n{table(_SUMMARY, rows)}<p class="what">{note}</p></section>\n'


def gain(sites: Sequence[PlanSite]) -> str:
    """The measured gains of some sites, else the predicted ones with a ``~``; HTML."""
    measured = [site.number("measured_gain") for site in sites]
    if any(value is not None for value in measured):
        return factors(measured)
    predicted = factors([site.number("predicted_gain") for site in sites])
    return f"~{predicted}" if predicted[0].isdigit() else predicted


def _kept(sites: Sequence[PlanSite]) -> str:
    if not sites:
        return ""
    reasons: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        reasons.setdefault((site.decision, site.reason), []).append(site.id)
    rows = [
        (text(numbered(names)), count(len(names)), text(decision), text(reason))
        for (decision, reason), names in reasons.items()
    ]
    columns = (("sites", False), ("count", True), ("decision", False), ("reason", False))
    return f"<section><h2>Sites without a schedule</h2>\n{table(columns, rows)}</section>\n"


def _refusals(refusals: Sequence[Refused]) -> str:
    if not refusals:
        return ""
    reasons: dict[tuple[str, str], list[str]] = {}
    for refused in refusals:
        reasons.setdefault((refused.op, refused.reason), []).append(refused.node)
    rows = [
        (f"<code>{text(op)}</code>", count(len(nodes)), text(reason), listed(nodes, _SHOWN_NODES))
        for (op, reason), nodes in reasons.items()
    ]
    columns = (("operator", False), ("count", True), ("reason", False), ("nodes", False))
    return f"<section><h2>Refused nodes</h2>\n{table(columns, rows)}</section>\n"

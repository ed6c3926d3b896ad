"""The section of sites that share a schedule: pictures, figures, reasons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeGuard

from onnxopt.plan_document import PlanSite
from onnxopt.report.figure import figure, legend
from onnxopt.report.markup import (
    count,
    factor,
    facts,
    listed,
    microseconds,
    numbered,
    percent,
    plural,
    table,
    text,
)
from onnxopt.report.picture import Picture

_SHOWN_VARIANTS = 8
_SHOWN_NODES = 24
_SHOWN_SITES = 200


def section(anchor: str, sites: Sequence[PlanSite], pictures: Sequence[Picture]) -> str:
    """A section for sites that have the same plan and pictures."""
    first = sites[0]
    decisions = sorted({site.decision for site in sites}, reverse=True)
    badges = "".join(f'<span class="badge {name}">{name}</span>' for name in decisions)
    head = f'<div class="head"><h2>{text(numbered([site.id for site in sites]))}</h2>{badges}</div>\n'
    parts = [f'<section id="{anchor}">{head}<p class="what">{_describe(first)}</p>\n', _reasons(sites)]
    parts.append(_pictures(first, pictures))
    parts.append(_nodes(sites))
    return "".join(parts) + "</section>\n"


def _describe(site: PlanSite) -> str:
    if site.kind == "attention":
        queries, keys = site.number("queries") or 0, site.number("keys") or 0
        parts = [f"Attention of {plural(queries, 'query', 'queries')} × {plural(keys, 'key')}"]
        heads, width = site.number("heads"), site.number("head_dim")
        if heads is not None and width is not None:
            parts.append(f"{plural(heads, 'head')} of {count(width)} channels")
        bias = {"shared": "a bias that all heads share", "per_head": "a bias for each head"}.get(site.text("bias"))
        if bias:
            parts.append(bias)
    else:
        inputs, outputs = count(site.number("in_channels")), count(site.number("out_channels"))
        parts = [f"Convolution of {inputs} input × {outputs} output channels"]
        kernel = site.fields.get("kernel")
        if isinstance(kernel, list):
            parts.append(f"kernel {text(' × '.join(str(size) for size in kernel))}")
        parts.append(text(site.text("pattern")))
    return ", ".join(part for part in parts if part) + f"; {percent(site.number('density'))} of it is needed."


def _reasons(sites: Sequence[PlanSite]) -> str:
    if any(len(site.forms) > 1 for site in sites):
        return _verdicts(sites)
    if len(sites) == 1:
        return f"<p>{text(_sentence(sites[0].reason))}</p>\n"
    equal = f"<p>These {len(sites):,} sites have the same pattern and the same schedule.</p>\n"
    if len({site.reason for site in sites}) == 1:
        return f"{equal}<p>{text(_sentence(sites[0].reason))}</p>\n"
    rows = [
        (text(site.id), site.decision, _gain(site, "predicted_gain"), _gain(site, "measured_gain"), text(site.reason))
        for site in sites[:_SHOWN_SITES]
    ]
    columns = (
        ("site", False),
        ("decision", False),
        ("predicted gain", True),
        ("measured gain", True),
        ("reason", False),
    )
    return equal + table(columns, rows)


def _verdicts(sites: Sequence[PlanSite]) -> str:
    """What was decided for each form, where several were written."""
    rows = [
        (text(site.id), text(v.form), v.decision, factor(v.predicted_gain), text(v.reason))
        for site in sites[:_SHOWN_SITES]
        for v in site.forms
    ]
    columns = (("site", False), ("form", False), ("decision", False), ("predicted gain", True), ("reason", False))
    equal = f"<p>These {len(sites):,} sites have the same pattern and the same schedule.</p>\n"
    return (equal if len(sites) > 1 else "") + table(columns, rows)


def _gain(site: PlanSite, name: str) -> str:
    return factor(site.number(name))


def _sentence(reason: str) -> str:
    if not reason:
        return ""
    # A name, such as implicit_gemm, stays as it is written everywhere else.
    first = reason if "_" in reason.split()[0] else f"{reason[:1].upper()}{reason[1:]}"
    return f"{first}."


def _pictures(site: PlanSite, pictures: Sequence[Picture]) -> str:
    """The pictures of each pattern two by two, and the figures of the plan beside the last one of the first."""
    heading = "The schedule for a kernel of its own" if for_kernel(site) else "The schedule"
    figures = f"<div><h3>{heading}</h3>{facts(_plan_facts(site))}</div>\n"
    if not pictures:
        return f'<p class="what">There are no pictures of this site.</p><div class="pictures">{figures}</div>\n'
    patterns = [(name, list(members)) for name, members in groupby(pictures, key=lambda picture: picture.pattern)]
    parts = [legend(pictures)]
    for number, (name, members) in enumerate(patterns):
        if name:
            of = f"Pattern {number + 1} of {len(patterns)}: " if len(patterns) > 1 else ""
            heading = of + name if of else name[:1].upper() + name[1:]
            parts.append(f"<h3>{text(heading)}</h3>\n")
        shown = "".join(figure(picture) for picture in members)
        parts.append(f'<div class="pictures">{shown}{figures if number == 0 else ""}</div>\n')
    masks = site.number("distinct_masks") if site.kind == "attention" else None
    if masks is not None and masks > len(patterns):
        parts.append(f'<p class="what">Its heads have {count(masks)} patterns; {len(patterns)} are shown.</p>\n')
    return "".join(parts)


def _plan_facts(site: PlanSite) -> list[tuple[str, str]]:
    unit = "pairs" if site.kind == "attention" else "connections"
    rows = [
        (f"needed {unit}", count(site.number("needed"))),
        (f"computed {unit}", count(site.number("computed"))),
        ("waste", factor(site.number("waste"))),
        ("predicted time", microseconds(site.number("predicted_us"))),
        ("bound of the time", microseconds(site.number("bound_us"))),
        ("gap", percent(site.number("gap"))),
        ("gain of the form written" if for_kernel(site) else "predicted gain", factor(site.number("predicted_gain"))),
    ]
    if site.number("measured_gain") is not None:
        rows.append(("measured gain", factor(site.number("measured_gain"))))
    if for_kernel(site):
        rows += [
            ("uncertainty", percent(site.number("uncertainty"))),
            ("blocks", count(site.number("blocks"))),
            ("of these on a multiprocessor", count(site.number("resident_blocks"))),
        ]
    rows += [
        ("type", text(site.text("dtype"))),
        ("compiled kernel", _kernel(site.fields.get("compiled_kernel"))),
        ("tactics of an engine", _tactics(site)),
        ("order of rows", _entries(site.fields.get("reorder"))),
        ("variants", _entries(site.fields.get("variants"))),
        ("solver", _solver(site.fields.get("solver"))),
        ("certificate", text(site.text("certificate"))),
    ]
    return [(name, value) for name, value in rows if value]


def for_kernel(site: PlanSite) -> bool:
    """Whether the schedule is one for a kernel of its own, beside which the form that was written may have another."""
    return site.number("resident_blocks") is not None


def _kernel(found: Any) -> str:
    """What a block of the compiled kernel takes; empty where none was compiled."""
    if not isinstance(found, dict):
        return ""
    architecture = found.get("architecture")
    figures = (("registers", "register"), ("threads", "thread"), ("shared_bytes", "byte of shared memory"))
    parts = [text(architecture)] if isinstance(architecture, str) else []
    for name, noun in figures:
        if _is_count(found.get(name)):
            parts.append(plural(found[name], noun, "bytes of shared memory" if name == "shared_bytes" else ""))
    return ", ".join(parts)


def _tactics(site: PlanSite) -> str:
    """The schedules that an engine chooses among, a line each; empty where it has no choice."""
    found = site.fields.get("tactics")
    tactics = found[:_SHOWN_VARIANTS] if isinstance(found, list) and len(found) > 1 else []
    lines = [f"{_predicted(tactic)}{_kernel(tactic)}" for tactic in tactics if isinstance(tactic, dict)]
    note = site.text("tactics_note")
    return "<br>".join([*lines, text(note)] if note else lines)


def _predicted(tactic: dict[str, Any]) -> str:
    found = tactic.get("predicted_us")
    return f"{microseconds(found)}: " if isinstance(found, float) else ""


def _solver(found: Any) -> str:
    if not isinstance(found, dict):
        return ""
    name, status, nodes = found.get("name"), found.get("status"), found.get("nodes")
    parts = [value for value in (name, status) if isinstance(value, str)]
    compared = f", {count(nodes)} compared" if _is_count(nodes) else ""
    return text(", ".join(parts)) + compared


def _entries(found: Any) -> str:
    """Names, or objects of short values, one a line."""
    entries = found if isinstance(found, list) else [found] if isinstance(found, str | dict) else []
    lines = [_entry(entry) for entry in entries[:_SHOWN_VARIANTS]]
    if len(entries) > _SHOWN_VARIANTS:
        lines.append(f"and {len(entries) - _SHOWN_VARIANTS:,} more")
    return "<br>".join(line for line in lines if line)


def _entry(entry: Any) -> str:
    if not isinstance(entry, dict):
        return text(str(entry))
    rows, keys, strips = entry.get("rows"), entry.get("keys"), entry.get("strips")
    if _is_count(rows) and _is_count(keys) and _is_count(strips):
        rest = {name: value for name, value in entry.items() if name not in ("rows", "keys", "strips", "heads")}
        other = "".join(f", {name} {value}" for name, value in rest.items())
        heads = entry.get("heads")
        each = f" for each of {plural(heads, 'head')}" if _is_count(heads) and heads > 1 else ""
        return f"{plural(strips, 'strip')} of {count(rows)} × {count(keys)}{each}{text(other)}"
    return text(", ".join(f"{name} {value}" for name, value in entry.items()))


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _nodes(sites: Sequence[PlanSite]) -> str:
    total = sum(len(site.nodes) for site in sites)
    rows = [(text(site.id), listed(site.nodes, _SHOWN_NODES)) for site in sites[:_SHOWN_SITES]]
    columns = (("site", False), ("nodes", False))
    return f"<details><summary>{plural(total, 'node')} of the model</summary>{table(columns, rows)}</details>\n"

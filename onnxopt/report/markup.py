"""Pieces of an HTML page: text from a model made harmless, numbers with their units, tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from onnxopt.report.console import printable

_MAX_TEXT = 600
_NUMBERED = re.compile(r"(.*[^0-9])([0-9]{1,9})", re.DOTALL)
NOTHING = '<span class="none">–</span>'


def text(value: str) -> str:
    """Any text as HTML text or attribute value: escaped, without control characters, and of bounded length."""
    shown = printable(value).replace("\n", " ")
    return html.escape(shown if len(shown) <= _MAX_TEXT else shown[: _MAX_TEXT - 1] + "…", quote=True)


def count(value: float | None) -> str:
    """``4,096``."""
    return NOTHING if value is None else f"{value:,.0f}"


def plural(number: float, noun: str, many: str = "") -> str:
    """``1 head``, ``3 heads``; ``many`` where an s is not enough."""
    return f"{count(number)} {noun if number == 1 else many or noun + 's'}"


def factor(value: float | None, digits: int = 2) -> str:
    """``1.48×``."""
    return NOTHING if value is None else f"{value:,.{digits}f}<i>×</i>"


def factors(values: Sequence[float | None]) -> str:
    """``1.48×``, or the range ``1.20–1.48×`` of what several sites have."""
    shown = sorted({round(value, 2) for value in values if value is not None})
    if not shown:
        return NOTHING
    return factor(shown[0]) if len(shown) == 1 else f"{shown[0]:,.2f}–{factor(shown[-1])}"


def percent(value: float | None) -> str:
    """``12 %``, with one more digit below ten and two more below one."""
    if value is None:
        return NOTHING
    digits = 0 if value >= 0.0995 or value == 0 else 1 if value >= 0.00995 else 2
    return f"{value * 100:.{digits}f}<i> %</i>"


def microseconds(value: float | None) -> str:
    """``12.3 µs``, ``1,234 µs``: at least three digits."""
    if value is None:
        return NOTHING
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2
    return f"{value:,.{digits}f}<i> µs</i>"


def numbered(names: Sequence[str]) -> str:
    """``attention-0, 2 to 5``: names that differ in their last number only, in one go; not yet HTML."""
    runs: list[tuple[str, int, int]] = []
    for name in names:
        match = _NUMBERED.fullmatch(name)
        # A name of another form is a run of its own, marked by -1.
        stem, number = (match[1], int(match[2])) if match else (name, -1)
        if runs and number > 0 and runs[-1][0] == stem and number == runs[-1][2] + 1:
            runs[-1] = (stem, runs[-1][1], number)
        else:
            runs.append((stem, number, number))
    parts = []
    for place, (stem, first, last) in enumerate(runs):
        shown = stem if place == 0 or runs[place - 1][0] != stem or first < 0 else ""
        digits = "" if first < 0 else str(first)
        joint = "" if last == first else f", {last}" if last == first + 1 else f" to {last}"
        parts.append(f"{shown}{digits}{joint}")
    return ", ".join(parts)


def table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; ``columns`` are titles with whether they hold numbers, which stand to the right."""
    head = "".join(f'<th scope="col"{_numeric(right)}>{title}</th>' for title, right in columns)
    body = []
    for row in rows:
        cells = "".join(f"<td{_numeric(right)}>{cell}</td>" for cell, (_, right) in zip(row, columns, strict=True))
        body.append(f"<tr>{cells}</tr>\n")
    content = f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(body)}</tbody>"
    return f'<div class="wide"><table>\n{content}</table></div>\n'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names beside their values, both HTML."""
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f'<dl class="facts">{body}</dl>\n'


def listed(values: Sequence[str], limit: int) -> str:
    """Names as code, separated by commas, with a count of those beyond the limit."""
    shown = ", ".join(f"<code>{text(value)}</code>" for value in values[:limit])
    return shown + (f" and {len(values) - limit:,} more" if len(values) > limit else "")


def _numeric(right: bool) -> str:
    return ' class="n"' if right else ""

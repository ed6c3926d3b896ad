"""Sites that a reader cannot tell apart, as one row: what they have in common, and the range of what differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxopt.decide import SiteReport

_ATTENTION_FIELDS = ("queries", "keys", "pairs", "heads", "head_dim", "bias", "phantom_pairs", "empty_rows")
_CONVOLUTION_FIELDS = ("in_channels", "out_channels", "kernel", "groups", "pattern", "connections")
_VARYING = re.compile(r"\d+\.\d+|\b(?:attention|conv)-\d+")
"""What differs between reasons that are one: numbers, and the sites that they name."""

_NAMED = 3
"""So many sites are named before the rest is counted."""


@dataclass(frozen=True)
class SiteGroup:
    """Equal sites, in the order of the model; ``reason`` numbers the reasons of a report from 1."""

    sites: tuple[SiteReport, ...]
    reason: int

    @property
    def first(self) -> SiteReport:
        """Any of them: what is shown of it holds for all."""
        return self.sites[0]

    @property
    def gain(self) -> str:
        """The measured gains; where nothing was measured the predicted ones, marked with ``~``."""
        measured = span([s.measured_gain for s in self.sites])
        predicted = span([s.predicted_gain for s in self.sites])
        return measured or (f"~{predicted}" if predicted else "")


@dataclass(frozen=True)
class Grouped:
    """The groups of a report's sites, and the reasons that they refer to."""

    groups: tuple[SiteGroup, ...]
    reasons: tuple[str, ...]

    def of(self, kind: str) -> list[SiteGroup]:
        """The groups of one kind of site."""
        return [group for group in self.groups if group.first.kind == kind]


def group_sites(sites: Sequence[SiteReport]) -> Grouped:
    """Group sites that look alike; reasons that differ in numbers or named sites only are one reason."""
    reasons: dict[str, list[str]] = {}
    groups: dict[tuple[object, ...], list[SiteReport]] = {}
    for site in sites:
        template = _VARYING.sub("\0", site.reason)
        reasons.setdefault(template, []).append(site.reason)
        groups.setdefault((*_appearance(site), template), []).append(site)
    numbers = {template: number for number, template in enumerate(reasons, 1)}
    return Grouped(
        tuple(SiteGroup(tuple(members), numbers[str(key[-1])]) for key, members in groups.items()),
        tuple(_merged(template, texts) for template, texts in reasons.items()),
    )


def span(values: Iterable[float | None], digits: int = 2) -> str:
    """``1.24``, ``1.15-2.62``, or nothing where there is no value."""
    shown = sorted({round(value, digits) for value in values if value is not None})
    if not shown:
        return ""
    low, high = f"{shown[0]:.{digits}f}", f"{shown[-1]:.{digits}f}"
    return low if low == high else f"{low}-{high}"


def _appearance(site: SiteReport) -> tuple[object, ...]:
    found = site.found
    names = _ATTENTION_FIELDS if site.kind == "attention" else _CONVOLUTION_FIELDS
    return (site.kind, *(str(found[name]) for name in names), site.decision)


def _merged(template: str, texts: Sequence[str]) -> str:
    """One text for reasons that differ in their numbers and in the sites that they name."""
    columns = zip(*(_VARYING.findall(text) for text in texts), strict=True)
    ranges = [_names(column) if "-" in column[0] else _range(column) for column in columns]
    parts = template.split("\0")
    return parts[0] + "".join(found + part for found, part in zip(ranges, parts[1:], strict=True))


def _names(sites: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(sites))
    shown, more = ", ".join(distinct[:_NAMED]), len(distinct) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _range(numbers: Sequence[str]) -> str:
    low, high = min(numbers, key=float), max(numbers, key=float)
    return low if float(low) == float(high) else f"{low} to {high}"

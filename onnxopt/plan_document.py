"""``plan.json`` of a package, read back: it may come from anyone, so every field is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.documents import read_document
from onnxopt.errors import InputError, shown

SCHEMA = "onnxopt.plan/1"

_MAX_BYTES = 64 << 20
_MAX_ENTRIES = 100_000
_KINDS = ("attention", "conv")
_DECISIONS = ("rewrite", "keep")
_FORMS = ("plugin", "portable")


@dataclass(frozen=True)
class Verdict:
    """What was decided for a site in one form."""

    form: str
    decision: str
    reason: str
    predicted_gain: float | None


@dataclass(frozen=True)
class PlanSite:
    """One site; ``fields`` are all the fields of its entry, of which numbers are finite and texts are texts."""

    id: str
    kind: str
    decision: str
    reason: str
    nodes: tuple[str, ...]
    fields: Mapping[str, Any]
    forms: tuple[Verdict, ...] = ()

    @property
    def planned(self) -> bool:
        """Whether a schedule was made for it."""
        return "computed" in self.fields

    def number(self, name: str) -> float | None:
        """A field that holds a number, or None where it is missing or null; InputError for anything else."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise InputError(f"site '{self.id[:80]}' has {shown(value)} in the field '{name}'; allowed: a number")
        return float(value)

    def text(self, name: str) -> str:
        """A field that holds a text, empty where it is missing; InputError for anything else."""
        value = self.fields.get(name, "")
        if not isinstance(value, str):
            raise InputError(f"site '{self.id[:80]}' has {shown(value)} in the field '{name}'; allowed: a text")
        return value


@dataclass(frozen=True)
class Refused:
    """A node that could not be understood, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class PlanDocument:
    """What ``plan.json`` says about a model; ``algorithms`` is its field ``conv_algorithms`` as it is.

    ``dtype`` is the type that the model was converted to, empty where it keeps its own.
    """

    model: str
    opset: int
    nodes: int
    target: str
    form: str
    sites: tuple[PlanSite, ...]
    refusals: tuple[Refused, ...]
    algorithms: Any = None
    dtype: str = ""


def read_plan(path: Path) -> PlanDocument:
    """Read ``plan.json``; raises InputError naming the file and the field for anything but a plan of this version."""
    return read_document(path, _MAX_BYTES, parse_plan)


def parse_plan(document: Any) -> PlanDocument:
    """The plan in a document; raises InputError naming the field, the value and what is allowed."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else document
        raise InputError(f"field 'schema' is {shown(found)}; this version reads '{SCHEMA}'")
    model = document.get("model")
    if not isinstance(model, dict):
        raise InputError(f"field 'model' is {shown(model)}; allowed: an object")
    sites = tuple(_site(entry, number) for number, entry in enumerate(_list(document, "sites")))
    if len({site.id for site in sites}) < len(sites):
        raise InputError("field 'sites' has two sites of the same id")
    return PlanDocument(
        _text(model, "path", "model"),
        _size(model, "opset"),
        _size(model, "nodes"),
        _text(document, "target", "plan"),
        _text(document, "form", "plan"),
        sites,
        tuple(_refused(entry, number) for number, entry in enumerate(_list(document, "refusals"))),
        document.get("conv_algorithms"),
        _text(model, "dtype", "model") if "dtype" in model else "",
    )


def _site(entry: Any, number: int) -> PlanSite:
    where = f"sites[{number}]"
    if not isinstance(entry, dict):
        raise InputError(f"field '{where}' is {shown(entry)}; a site is an object")
    for name, allowed in (("kind", _KINDS), ("decision", _DECISIONS)):
        if entry.get(name) not in allowed:
            raise InputError(f"field '{where}.{name}' is {shown(entry.get(name))}; allowed: {', '.join(allowed)}")
    nodes = entry.get("nodes")
    if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
        raise InputError(f"field '{where}.nodes' is {shown(nodes)}; allowed: a list of names")
    texts = [_text(entry, name, where) for name in ("id", "kind", "decision", "reason")]
    return PlanSite(texts[0], texts[1], texts[2], texts[3], tuple(nodes), entry, _verdicts(entry, where))


def _verdicts(entry: Mapping[str, Any], where: str) -> tuple[Verdict, ...]:
    """The decisions for each form that was written; a plan of an older version has none."""
    found = entry.get("forms", {})
    if not isinstance(found, dict) or not set(found) <= set(_FORMS):
        raise InputError(f"field '{where}.forms' is {shown(found)}; allowed: an object with {' and '.join(_FORMS)}")
    verdicts = []
    for form, verdict in found.items():
        place = f"{where}.forms.{form}"
        if not isinstance(verdict, dict) or verdict.get("decision") not in _DECISIONS:
            raise InputError(f"field '{place}' is {shown(verdict)}; allowed: an object with a decision")
        gain = verdict.get("predicted_gain")
        number = isinstance(gain, int | float) and not isinstance(gain, bool) and _is_finite(gain)
        if gain is not None and not number:
            raise InputError(f"field '{place}.predicted_gain' is {shown(gain)}; allowed: a number")
        verdicts.append(Verdict(form, verdict["decision"], _text(verdict, "reason", place), gain))
    return tuple(verdicts)


def _refused(entry: Any, number: int) -> Refused:
    where = f"refusals[{number}]"
    if not isinstance(entry, dict):
        raise InputError(f"field '{where}' is {shown(entry)}; a refusal is an object")
    return Refused(_text(entry, "node", where), _text(entry, "op", where), _text(entry, "reason", where))


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    found = document.get(name)
    if not isinstance(found, list) or len(found) > _MAX_ENTRIES:
        raise InputError(f"field '{name}' is {shown(found)}; allowed: a list of up to {_MAX_ENTRIES:,} entries")
    return found


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise InputError(f"field '{where}.{name}' is {shown(value)}; allowed: a text")
    return value


def _size(model: Mapping[str, Any], name: str) -> int:
    value = model.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise InputError(f"field 'model.{name}' is {shown(value)}; allowed: a whole number")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False

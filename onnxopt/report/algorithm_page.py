"""The choice of convolution algorithms in the HTML report, from ``plan.json``, every field checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnxopt.errors import InputError, shown
from onnxopt.report.markup import NOTHING, count, facts, microseconds, numbered, percent, table, text

_MOST_LAYERS = 100_000
_COLUMNS = (
    ("layers", False),
    ("algorithm", False),
    ("layout", False),
    ("time", True),
    ("", False),
    ("workspace", True),
    ("constants", True),
    ("best other", False),
    ("its time", True),
)


def algorithm_section(found: Any) -> str:
    """The section for the field ``conv_algorithms``; empty where there is none. Raises InputError for another one."""
    if found is None:
        return ""
    fields = _object(found, "conv_algorithms")
    layers = fields.get("layers")
    if not isinstance(layers, list) or len(layers) > _MOST_LAYERS:
        raise InputError(f"field 'conv_algorithms.layers' is {shown(layers)}; allowed: a list of layers")
    single = _object(fields.get("best_single"), "conv_algorithms.best_single")
    solver = _object(fields.get("solver"), "conv_algorithms.solver")
    budget = None if fields.get("budget_bytes") is None else _number(fields, "budget_bytes")
    said = (_word(solver, "name"), _word(solver, "status"))
    alone = f"{text(_word(single, 'algorithm'))}, {microseconds(_number(single, 'microseconds'))}"
    open_batch = ", which stands for the model's symbolic one" if fields.get("symbolic_batch") is True else ""
    rows = [
        ("predicted or measured", microseconds(_number(fields, "microseconds"))),
        ("at least", f"{microseconds(_number(fields, 'bound_us'))} (gap {percent(_number(fields, 'gap'))})"),
        ("solver", text(", ".join(said)) + f", {count(_number(solver, 'nodes'))} nodes"),
        ("every dense layer kept", microseconds(_number(fields, "kept_us"))),
        ("best algorithm alone", alone),
        ("changes of layout", count(_number(fields, "conversions"))),
        ("workspace", _bytes(_number(fields, "workspace_bytes"))),
        ("further constants", _bytes(_number(fields, "constant_bytes"))),
        ("budget", "none" if budget is None else _bytes(budget)),
        ("computed in", f"{text(_word(fields, 'element'))}, batch {count(_number(fields, 'batch'))}{open_batch}"),
    ]
    note = (
        "One choice for the whole network: the time of all layers and of all changes of layout between them. The best "
        "other algorithm is the fastest for the layer by itself. Times that are not marked as measured are the model's."
    )
    if fields.get("winograd") is True:
        note += " Winograd's algorithms were allowed: their error has a bound of its own."
    head = f"<section><h2>Convolution algorithms</h2>\n{facts(rows)}"
    return f'{head}{table(_COLUMNS, _rows(layers))}<p class="what">{note}</p></section>\n'


def _rows(layers: list[Any]) -> list[tuple[str, ...]]:
    """A row for layers that have the same choice and the same alternative."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for number, entry in enumerate(layers):
        layer = _object(entry, f"conv_algorithms.layers[{number}]")
        alternative = layer.get("alternative")
        other: tuple[str, ...] = (NOTHING, NOTHING)
        if alternative is not None:
            fields = _object(alternative, f"conv_algorithms.layers[{number}].alternative")
            other = (text(_word(fields, "algorithm")), microseconds(_number(fields, "us")))
        cells = (
            text(_word(layer, "algorithm")),
            text(_word(layer, "layout")),
            microseconds(_number(layer, "us")),
            "measured" if layer.get("measured") is True else "predicted",
            _bytes(_number(layer, "workspace_bytes")),
            _bytes(_number(layer, "constant_bytes")),
            *other,
        )
        alike.setdefault(cells, []).append(_word(layer, "id"))
    return [(text(numbered(names)), *cells) for cells, names in alike.items()]


def _object(found: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise InputError(f"field '{where}' is {shown(found)}; allowed: an object")
    return found


def _word(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InputError(f"the choice of algorithms has {shown(value)} in the field '{name}'; allowed: a text")
    return value


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"the choice of algorithms has {shown(value)} in the field '{name}'; allowed: a number")
    return float(value)


def _bytes(number: float) -> str:
    return NOTHING if number == 0 else f"{number / 1e6:,.1f}<i> MB</i>"

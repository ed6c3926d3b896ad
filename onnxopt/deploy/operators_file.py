"""``operators.json``: the operators of a package as engines see them, written and strictly read.

The file may come from anyone. What follows from an operator's configuration (its name, grid, tables and sizes) is held
against it, so that nothing launches a kernel otherwise than its configuration says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from onnxopt.deploy.aot_model import operator_of
from onnxopt.deploy.engine_operators import EngineOperator, Grid, Output, Port, Tactic, TensorType
from onnxopt.deploy.operator_specs import element_counts, grid_of, parameters_of, tactic_of
from onnxopt.documents import read_document
from onnxopt.errors import InputError, shown
from onnxopt.kernels.compilation import check_architecture
from onnxopt.kernels.operator_source import operator_source
from onnxopt.kernels.report import ResourceReport
from onnxopt.lower.plugin_nodes import OPERATORS
from onnxopt.model.files import atomic_write
from onnxopt.plan.tables.types import VERSION

OPERATORS_FILE = "operators.json"
SCHEMA = "onnxopt.operators/1"

_MOST_BYTES = 64 << 20
_MOST_OPERATORS, _MOST_TACTICS, _MOST_TABLES, _MOST_RANK = 10_000, 8, 32, 8
_MOST_THREADS, _MOST_SHARED, _MOST_RESIDENT = 1024, 4 << 20, 32
_LARGEST = 2**31 - 1
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_TYPES: tuple[TensorType, ...] = get_args(TensorType)


@dataclass(frozen=True)
class PackageOperators:
    """The operators of a package, and what their kernels are compiled for, such as ``sm_90a``."""

    architecture: str
    operators: tuple[EngineOperator, ...]


def write_operators(folder: Path, operators: Sequence[EngineOperator], architecture: str) -> Path:
    """Write the file into a package's folder; the same operators give the same bytes."""
    document = {
        "schema": SCHEMA,
        "architecture": architecture,
        "operators": [_operator_json(operator) for operator in operators],
    }
    place = folder / OPERATORS_FILE
    atomic_write(place, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    return place


def read_operators(path: Path) -> PackageOperators:
    """Read the file; raises InputError with the place, what was found and what is allowed."""
    return read_document(path, _MOST_BYTES, parse_operators)


def parse_operators(document: Any) -> PackageOperators:
    """The operators in a document; raises InputError as :func:`read_operators` does."""
    fields = _fields(document, "the document", {"schema", "architecture", "operators"})
    if fields["schema"] != SCHEMA:
        raise InputError(f"field 'schema' is {shown(fields['schema'])}; this version reads '{SCHEMA}'")
    if not isinstance(fields["architecture"], str):
        raise InputError(f"field 'architecture' is {shown(fields['architecture'])}; allowed: a text such as 'sm_89'")
    check_architecture(fields["architecture"])
    operators = tuple(_operator(entry) for entry in _list(fields["operators"], "operators", 0, _MOST_OPERATORS))
    names = [operator.name for operator in operators]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"operator '{twice}' is listed twice; allowed: once")
    return PackageOperators(fields["architecture"], operators)


def _operator_json(operator: EngineOperator) -> dict[str, Any]:
    return {
        "name": operator.name,
        "operands": [_port_json(port) for port in operator.operands],
        "tables": [_port_json(port) for port in operator.tables],
        "outputs": [{**_port_json(output), "elements": output.elements} for output in operator.outputs],
        "batch_elements": operator.batch_elements,
        "tactics": [
            {
                "configuration": tactic.configuration,
                "resident": tactic.resident,
                "first_table": tactic.first_table,
                "tables": tactic.tables,
                "entry": tactic.entry,
                "grid": [tactic.grid.factor, tactic.grid.count, tactic.grid.size],
                "threads": tactic.threads,
                "shared_bytes": tactic.shared_bytes,
                "predicted_us": tactic.predicted_us,
            }
            for tactic in operator.tactics
        ],
    }


def _port_json(port: Port | Output) -> dict[str, Any]:
    return {"name": port.name, "type": port.type, "shape": list(port.shape)}


def _operator(entry: Any) -> EngineOperator:
    fields = _fields(entry, "an operator", {"name", "operands", "tables", "outputs", "batch_elements", "tactics"})
    name = _name(fields["name"], "an operator's name")
    what = f"operator '{name}'"
    tactics = tuple(_tactic(each, what) for each in _list(fields["tactics"], f"{what}: tactics", 1, _MOST_TACTICS))
    operands = tuple(_port(each, what) for each in _list(fields["operands"], f"{what}: operands", 1, 8))
    tables = tuple(
        _port(each, what) for each in _list(fields["tables"], f"{what}: tables", 0, _MOST_TABLES * _MOST_TACTICS)
    )
    outputs = tuple(_output(each, what) for each in _list(fields["outputs"], f"{what}: outputs", 1, 2))
    elements = _whole(fields["batch_elements"], f"{what}: batch_elements", 1, _LARGEST)
    operator = EngineOperator(name, operands, tables, outputs, elements, tactics)
    _check_operator(operator)
    return operator


def _check_operator(operator: EngineOperator) -> None:
    """Hold an operator against the configurations of its tactics; InputError for the first thing that differs."""
    what = f"operator '{operator.name}'"
    first = operator.tactics[0].configuration
    elements, outputs = element_counts(first)
    facts: list[tuple[str, Any, Any]] = [
        ("its name", operator.name, operator_of([tactic.configuration for tactic in operator.tactics])),
        ("'elements' of its outputs", tuple(output.elements for output in operator.outputs), outputs),
        ("'batch_elements'", operator.batch_elements, elements),
    ]
    operands, made = ([port.name for port in ports] for ports in (operator.operands, operator.outputs))
    place = 0
    for number, tactic in enumerate(operator.tactics):
        own = tactic.configuration
        ports = operator.tables[place : place + len(own["shapes"])]
        names = (*operands, *(port.name for port in ports), "batch", *made)
        report = ResourceReport(0, 0, tactic.shared_bytes, 0, 0, 0, tactic.threads)
        entry = operator_source(own, tactic.resident).entry
        wanted = tactic_of(own, tactic.resident, entry, report, tactic.predicted_us)
        label = f"of tactic {number}"
        facts += [
            (f"tensors {label}", names, parameters_of(own)),
            (f"shapes {label}", {p.name: list(p.shape) for p in ports}, own["shapes"]),
            (f"sizes {label}", element_counts(own), (elements, outputs)),
            (f"launch {label}", tactic, replace(wanted, first_table=place)),
        ]
        place += len(own["shapes"])
    facts.append(("the number of its tables", len(operator.tables), place))
    for field, found, wanted_fact in facts:
        if found != wanted_fact:
            raise InputError(f"{what}: {field}: {shown(found)}; its configuration says {shown(wanted_fact)}")


def _tactic(entry: Any, what: str) -> Tactic:
    what = f"{what}, a tactic"
    names = {"configuration", "resident", "first_table", "tables", "entry", "grid", "threads", "shared_bytes"}
    fields = _fields(entry, what, {*names, "predicted_us"})
    factor, count, size = (
        _whole(number, f"{what}: grid", 1, _LARGEST) for number in _list(fields["grid"], f"{what}: grid", 3, 3)
    )
    resident = _whole(fields["resident"], f"{what}: resident", 1, _MOST_RESIDENT)
    return Tactic(
        configuration=_configuration(fields["configuration"], resident, what),
        resident=resident,
        first_table=_whole(fields["first_table"], f"{what}: first_table", 0, _MOST_TABLES * _MOST_TACTICS),
        tables=_whole(fields["tables"], f"{what}: tables", 0, _MOST_TABLES),
        entry=_name(fields["entry"], f"{what}: entry"),
        grid=Grid(factor, count, size),
        threads=_whole(fields["threads"], f"{what}: threads", 1, _MOST_THREADS),
        shared_bytes=_whole(fields["shared_bytes"], f"{what}: shared_bytes", 0, _MOST_SHARED),
        predicted_us=_time(fields["predicted_us"], what),
    )


def _configuration(entry: Any, resident: int, what: str) -> dict[str, Any]:
    """A configuration that kernels are written for: its operator and its ``kernel`` are checked by their source."""
    fields = _fields(entry, f"{what}: configuration", {"operator", "version", "kernel", "shapes", "tables"})
    if fields["operator"] not in OPERATORS or not isinstance(fields["kernel"], dict):
        raise InputError(
            f"{what}: its configuration is of the operator {shown(fields['operator'])}; allowed: one of "
            f"{', '.join(OPERATORS)}, with an object 'kernel'"
        )
    if fields["version"] is True or fields["version"] != VERSION:
        raise InputError(f"{what}: its configuration has the version {shown(fields['version'])}; allowed: {VERSION}")
    shapes = fields["shapes"]
    if not isinstance(shapes, dict) or len(shapes) > _MOST_TABLES:
        raise InputError(f"{what}: 'shapes' is {shown(shapes)}; allowed: an object of up to {_MOST_TABLES} tables")
    for name, shape in shapes.items():
        _name(name, f"{what}: a table")
        for number in _list(shape, f"{what}: shape of '{name}'", 1, _MOST_RANK):
            _whole(number, f"{what}: shape of '{name}'", 1, _LARGEST)
    if not isinstance(fields["tables"], str) or not re.fullmatch(r"[0-9a-f]{64}", fields["tables"]):
        raise InputError(f"{what}: 'tables' is {shown(fields['tables'])}; allowed: a SHA-256 in hex")
    try:
        operator_source(fields, resident)
        grid_of(fields)
        element_counts(fields)
        parameters_of(fields)
    except (KeyError, TypeError, IndexError, ValueError, ArithmeticError) as error:
        raise InputError(f"{what}: its configuration lacks what its operator needs ({error!r:.80})") from None
    return fields


def _port(entry: Any, what: str) -> Port:
    fields = _fields(entry, f"{what}, a tensor", {"name", "type", "shape"})
    return Port(*_tensor(fields, what))


def _output(entry: Any, what: str) -> Output:
    fields = _fields(entry, f"{what}, an output", {"name", "type", "shape", "elements"})
    name, kind, shape = _tensor(fields, what)
    if shape.count(None) > 1:
        raise InputError(f"{what}: several sizes of '{name}' are open; allowed: one")
    return Output(name, kind, shape, _whole(fields["elements"], f"{what}: elements", 1, _LARGEST))


def _tensor(fields: Mapping[str, Any], what: str) -> tuple[str, TensorType, tuple[int | None, ...]]:
    name = _name(fields["name"], f"{what}: a tensor's name")
    if fields["type"] not in _TYPES:
        raise InputError(f"{what}: '{name}' is of type {shown(fields['type'])}; allowed: {', '.join(_TYPES)}")
    sizes = _list(fields["shape"], f"{what}: shape of '{name}'", 0, _MOST_RANK)
    shape = tuple(None if size is None else _whole(size, f"{what}: shape of '{name}'", 1, _LARGEST) for size in sizes)
    return name, cast(TensorType, fields["type"]), shape


def _fields(entry: Any, what: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(entry, dict) or set(entry) != names:
        found = sorted(map(str, entry)) if isinstance(entry, dict) else entry
        raise InputError(f"{what} is {shown(found)}; allowed: an object with exactly {', '.join(sorted(names))}")
    return entry


def _list(value: Any, what: str, least: int, most: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise InputError(f"{what}: {shown(value)}; allowed: a list of {least} to {most:,}")
    return value


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{what} is {shown(value)}; allowed: {least:,} to {most:,}")
    return value


def _time(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        raise InputError(f"{what}: predicted_us is {shown(value)}; allowed: null, or a number from 0 to {_LARGEST:,}")
    return float(value)


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(f"{what} is {shown(value)}; allowed: up to 100 letters, digits and _, a letter first")
    return value

"""``model.aot.onnx``: the plugin form for TensorRT's parser, each operator with the tables of all its tactics.

The parser takes a function's body where there is one and skips the plugin, so there are none of our own here; functions
of the model itself stay, which it inlines. The attributes of a node are those by which it finds a quickly deployable
plugin (``plugin_namespace`` and ``plugin_version``) and is told to take its kernel into the engine (``aot``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxopt.deploy.engine_operators import EngineOperator, Port, Tactic
from onnxopt.deploy.operator_specs import element_counts, table_ports, tactic_of
from onnxopt.errors import InputError
from onnxopt.lower.operator_nodes import ATTRIBUTES
from onnxopt.lower.plugin_nodes import OPERATORS, PluginNode, plugin_nodes, site_of
from onnxopt.lower.rewrite import DOMAIN, copy_of, is_plugin_node, table
from onnxopt.plan.tables.types import configuration_of, operator_name
from onnxopt.tactics import SiteTactics

AOT_MODEL = "model.aot.onnx"
AOT = "aot"


@dataclass(frozen=True, eq=False)
class AotModel:
    """The model and its operators, each once, in the order of the graph."""

    model: ModelProto
    operators: tuple[EngineOperator, ...]


def aot_model(plugin: ModelProto, operators: Sequence[EngineOperator], tactics: Mapping[str, SiteTactics]) -> AotModel:
    """The model for TensorRT from the one in the plugin form, which stays as it is.

    ``operators`` are those of the plugin form, ``tactics`` those of sites that have several. Raises InputError where
    they do not belong together.
    """
    single = {operator.name: operator for operator in operators}
    model = copy_of(plugin)
    nodes = {node.name: node for node in plugin_nodes(plugin, OPERATORS)}
    made: dict[str, EngineOperator] = {}
    added: dict[str, TensorProto] = {}
    for proto in model.graph.node:
        if not is_plugin_node(proto):
            continue
        node = nodes[proto.name]
        operator, arrays = single[node.operator], list[np.ndarray[Any, Any]]()
        chosen = tactics.get(site_of(node))
        if chosen is not None and len(chosen.tactics) > 1 and _is_first(node, chosen):
            operator, arrays = _with_tactics(operator, node, chosen)
        tensors = [table(array) for array in arrays]
        inputs = [*proto.input, *(tensor.name for tensor in tensors)]
        added |= {tensor.name: tensor for tensor in tensors}
        made.setdefault(operator.name, operator)
        proto.CopyFrom(_node(proto, operator.name, inputs))
    known = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(tensor for name, tensor in added.items() if name not in known)
    _drop_bodies(model)
    result = AotModel(model, tuple(made.values()))
    check_aot(result, plugin)
    return result


def operator_of(configurations: Sequence[Mapping[str, Any]]) -> str:
    """The name of an operator with these tactics: with one its own, else a hash of all their configurations."""
    if len(configurations) == 1:
        return operator_name(configurations[0])
    text = json.dumps(list(configurations), sort_keys=True, separators=(",", ":"))
    return f"{configurations[0]['operator']}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_aot(aot: AotModel, plugin: ModelProto) -> None:
    """Hold a model against the one in the plugin form: each node with one of its tactics is the plugin's operator.

    The first tactic of all, with the bodies put back, has to be the plugin form itself; the tables of the others have
    to be those that their configurations are named after. Raises InputError with the node where it is not so.
    """
    by_name = {operator.name: operator for operator in aot.operators}
    constants = {tensor.name: tensor for tensor in aot.model.graph.initializer}
    before = {tensor.name: tensor for tensor in plugin.graph.initializer}
    if len(aot.model.graph.node) != len(plugin.graph.node):
        raise InputError(
            f"the model for TensorRT has {len(aot.model.graph.node)} nodes, its plugin form {len(plugin.graph.node)}"
        )
    for own, wanted in zip(aot.model.graph.node, plugin.graph.node, strict=True):
        if not is_plugin_node(own):
            _check_same(own, wanted)
            continue
        operator = by_name.get(own.op_type)
        if operator is None:
            raise InputError(f"node '{own.name}': nothing is known of its operator '{own.op_type[:80]}'")
        check_node(own, operator, constants)
        first = operator.tactics[0]
        given = [*own.input[: len(operator.operands)], *_tables_of(own, operator, first)]
        _check_same(_node(own, operator_name(first.configuration), given, aot=False), wanted)
    for name, tensor in before.items():
        if name not in constants or constants[name] != tensor:
            raise InputError(f"the constant '{name}' is not that of the plugin form")
    for part in ("input", "output", "value_info"):
        if list(getattr(aot.model.graph, part)) != list(getattr(plugin.graph, part)):
            raise InputError(f"the graph's '{part}' is not that of the plugin form")


def check_node(node: NodeProto, operator: EngineOperator, constants: Mapping[str, TensorProto]) -> None:
    """Hold a node's attributes and tables against its operator; raises InputError for what does not agree."""
    wanted = {**ATTRIBUTES, AOT: 1}
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    found = {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}
    if found != wanted:
        raise InputError(f"node '{node.name}': its attributes are {found}; expected {wanted}")
    if (len(node.input), len(node.output)) != (len(operator.inputs), len(operator.outputs)):
        raise InputError(
            f"node '{node.name}': {len(node.input)} inputs and {len(node.output)} outputs; expected "
            f"{len(operator.inputs)} and {len(operator.outputs)}"
        )
    for tactic in operator.tactics:
        names = _tables_of(node, operator, tactic)
        ports = operator.tables[tactic.first_table : tactic.first_table + tactic.tables]
        missing = next((name for name in names if name not in constants), None)
        if missing is not None:
            raise InputError(f"node '{node.name}': its table '{missing[:80]}' is no constant of the model")
        arrays = {p.name: numpy_helper.to_array(constants[n]) for p, n in zip(ports, names, strict=True)}
        configuration = tactic.configuration
        rebuilt = configuration_of(configuration["operator"], configuration["kernel"], arrays)
        if rebuilt != configuration:
            raise InputError(f"node '{node.name}': the tables of a tactic are not those that it is named after")


def _is_first(node: PluginNode, chosen: SiteTactics) -> bool:
    """Whether a node is what the tactics of its site are of, and not what works on with its results."""
    return node.operator == chosen.tactics[0].candidate.operator


def _with_tactics(
    operator: EngineOperator, node: PluginNode, chosen: SiteTactics
) -> tuple[EngineOperator, list[np.ndarray[Any, Any]]]:
    """An operator with all its tactics, and the tables of those behind the first."""
    tactics: list[Tactic] = []
    ports: list[Port] = []
    arrays: list[np.ndarray[Any, Any]] = []
    for number, tactic in enumerate(chosen.tactics):
        source = tactic.candidate.source
        tables = source.tables.arrays()
        own = replace(node, configuration=source.tables.configuration(), tables=tables, resident=source.resident)
        made = tactic_of(
            own.configuration,
            own.resident,
            tactic.compiled.source.entry,
            tactic.compiled.report,
            tactic.candidate.predicted_us,
        )
        if element_counts(own.configuration) != element_counts(node.configuration):
            raise InputError(f"node '{node.name}': a tactic has operands or outputs of another size")
        tactics.append(replace(made, first_table=len(ports)))
        ports += table_ports(own)
        arrays += [] if number == 0 else tables.values()
    name = operator_of([tactic.configuration for tactic in tactics])
    return replace(operator, name=name, tables=tuple(ports), tactics=tuple(tactics)), arrays


def _tables_of(node: NodeProto, operator: EngineOperator, tactic: Tactic) -> list[str]:
    first = len(operator.operands) + tactic.first_table
    return list(node.input[first : first + tactic.tables])


def _node(proto: NodeProto, operator: str, inputs: Sequence[str], aot: bool = True) -> NodeProto:
    """A node with another operator and other inputs."""
    attributes: dict[str, Any] = {**ATTRIBUTES, **({AOT: 1} if aot else {})}
    return helper.make_node(operator, inputs, list(proto.output), name=proto.name, domain=DOMAIN, **attributes)


def _check_same(own: NodeProto, wanted: NodeProto) -> None:
    if own != wanted:
        raise InputError(
            f"node '{own.name or own.op_type}' is not '{wanted.name or wanted.op_type}' of the plugin form"
        )


def _drop_bodies(model: ModelProto) -> None:
    """Remove the bodies of operators of our own."""
    kept = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)

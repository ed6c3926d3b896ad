"""Reading the operators of our own back from a model: what each is specialised for, and its tables.

A model carries all of it, so kernels can be compiled, checked and run from the file alone. The file may come from
anyone: a node that is not what its name says is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnxopt.errors import InputError
from onnxopt.lower.rewrite import DOMAIN, NODE_PREFIX, is_plugin_node
from onnxopt.plan.tables.types import configuration_of, operator_name

_ATTENTION, _MERGE = "SparseAttention", "MergeAttention"
_OPERANDS = {_ATTENTION: ("q", "k", "v"), _MERGE: ("partial", "lse")}
_OPTIMIZE = "optimize the original model again"


@dataclass(frozen=True, eq=False)
class PluginNode:
    """A node of the domain ``onnxopt``: its operator, configuration, tables, and the tensors around it.

    ``operands`` are the model's tensors by the name of the operator's input; ``tables`` have the operator's order.
    """

    name: str
    operator: str
    configuration: Mapping[str, Any]
    operands: Mapping[str, str]
    tables: Mapping[str, np.ndarray] = field(repr=False)
    outputs: tuple[str, ...]

    @property
    def kernel(self) -> Mapping[str, Any]:
        """What the kernel's source is specialised for."""
        found: Mapping[str, Any] = self.configuration["kernel"]
        return found


@dataclass(frozen=True, eq=False)
class PluginSite:
    """One attention of a model in the plugin form; ``merge`` is there where its key lists are split."""

    site: str
    attention: PluginNode
    merge: PluginNode | None


def has_plugin_nodes(model: ModelProto) -> bool:
    """Whether the main graph holds operators of our own."""
    return any(is_plugin_node(node) for node in model.graph.node)


def plugin_sites(model: ModelProto) -> tuple[PluginSite, ...]:
    """The attention sites in the plugin form, in the order of the graph.

    Raises InputError for a node without a body, one whose configuration or tables are not those that it is named
    after, and a merge without its first half.
    """
    functions = {f.name: f for f in model.functions if f.domain == DOMAIN}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [_read(node, functions, constants) for node in model.graph.node if is_plugin_node(node)]
    merges = {node.operands["partial"]: node for node in nodes if node.configuration["operator"] == _MERGE}
    sites = []
    for node in nodes:
        if node.configuration["operator"] == _MERGE:
            continue
        merge = merges.pop(node.outputs[0], None)
        if bool(node.kernel.get("split")) != (merge is not None):
            raise InputError(f"node '{node.name}': a merge belongs to split keys and to nothing else; {_OPTIMIZE}")
        sites.append(PluginSite(node.name.removeprefix(NODE_PREFIX).rpartition("/")[0], node, merge))
    if merges:
        raise InputError(f"node '{next(iter(merges.values())).name}': nothing makes its partial results; {_OPTIMIZE}")
    return tuple(sites)


def _read(node: NodeProto, functions: Mapping[str, FunctionProto], constants: Mapping[str, TensorProto]) -> PluginNode:
    label = f"node '{node.name or (node.output[0] if node.output else '')}' ({node.op_type})"
    function = functions.get(node.op_type)
    if function is None:
        raise InputError(f"{label}: the model has no body of this operator; {_OPTIMIZE}")
    configuration = _configuration(label, function)
    names, outputs = _OPERANDS[configuration["operator"]], 1 + bool(configuration["kernel"].get("split"))
    if len(node.input) != len(function.input) or tuple(function.input[: len(names)]) != names:
        raise InputError(f"{label}: its inputs are not those of its body; {_OPTIMIZE}")
    if len(node.output) != (outputs if configuration["operator"] == _ATTENTION else 1):
        raise InputError(f"{label}: it has {len(node.output)} outputs, expected {outputs}; {_OPTIMIZE}")
    given = dict(zip(function.input, node.input, strict=True))
    tables = {}
    for name in list(function.input)[len(names) :]:
        tensor = constants.get(given[name])
        if tensor is None:
            raise InputError(f"{label}: its table '{name}' is no constant of the model; {_OPTIMIZE}")
        tables[name] = numpy_helper.to_array(tensor)
    rebuilt = configuration_of(configuration["operator"], configuration["kernel"], tables)
    if rebuilt != configuration or operator_name(rebuilt) != node.op_type:
        raise InputError(f"{label}: its tables or its configuration are not those that it is named after; {_OPTIMIZE}")
    operands = {name: given[name] for name in names}
    return PluginNode(node.name, node.op_type, configuration, operands, tables, tuple(node.output))


def _configuration(label: str, function: FunctionProto) -> dict[str, Any]:
    try:
        found = json.loads(function.doc_string)
    except (ValueError, RecursionError):
        found = None
    if (
        not isinstance(found, dict)
        or found.get("operator") not in _OPERANDS
        or not isinstance(found.get("kernel"), dict)
    ):
        raise InputError(f"{label}: the text of its body is no configuration of an operator; {_OPTIMIZE}")
    return found

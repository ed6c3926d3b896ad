"""Reading the operators of our own back from a model: what each is specialised for, and its tables.

A model carries all of it, so kernels can be compiled, checked and run from the file alone. The file may come from
anyone: a node that is not what its name says is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnxopt.errors import InputError
from onnxopt.lower.rewrite import DOMAIN, NODE_PREFIX, is_plugin_node
from onnxopt.plan.tables.types import configuration_of, operator_name

_ATTENTION, MERGE_ATTENTION = "SparseAttention", "MergeAttention"
GROUP_CONV, SUM_CONV, SLICES = "GroupConv", "SumConv", "ConvSlices"
CONV_BLOCK = "ConvBlock"
# What the steps of convolution algorithms start from.
FIRST_OPERANDS: Mapping[str, str] = {
    "ConvScalar": "x",
    "ConvUnfold": "x",
    "ConvProduct": "columns",
    "ConvShiftAdd": "products",
    "ConvDirect": "x",
    SLICES: "x",
    "WinogradInput": "x",
    "WinogradOutput": "products",
    SUM_CONV: "partial",
}
_OPERANDS = {
    _ATTENTION: ("q", "k", "v"),
    MERGE_ATTENTION: ("partial", "lse"),
    GROUP_CONV: ("x",),
    CONV_BLOCK: ("x",),
    **{operator: (name,) for operator, name in FIRST_OPERANDS.items()},
}
WEIGHT, RESIDUAL = "weight", "residual"
OPERATORS = tuple(_OPERANDS)
_RESIDENT = "onnxopt.resident_blocks."
# No multiprocessor holds more blocks.
_BLOCKS = tuple(map(str, range(1, 33)))
_OPTIMIZE = "optimize the original model again"


@dataclass(frozen=True, eq=False)
class PluginNode:
    """A node of the domain ``onnxopt``: its operator, configuration, tables, and the tensors around it.

    ``operands`` are the model's tensors by the name of the operator's input, run-time weights of keys among them. Both
    they and ``tables`` have the operator's order. ``resident`` is how many blocks its plan counts on for each
    multiprocessor.
    """

    name: str
    operator: str
    configuration: Mapping[str, Any]
    operands: Mapping[str, str]
    tables: Mapping[str, np.ndarray] = field(repr=False)
    outputs: tuple[str, ...]
    resident: int = 1

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
    nodes = plugin_nodes(model, (_ATTENTION, MERGE_ATTENTION))
    merges = {node.operands["partial"]: node for node in nodes if node.configuration["operator"] == MERGE_ATTENTION}
    sites = []
    for node in nodes:
        if node.configuration["operator"] == MERGE_ATTENTION:
            continue
        merge = merges.pop(node.outputs[0], None)
        if bool(node.kernel.get("split")) != (merge is not None):
            raise InputError(f"node '{node.name}': a merge belongs to split keys and to nothing else; {_OPTIMIZE}")
        sites.append(PluginSite(site_of(node), node, merge))
    if merges:
        raise InputError(f"node '{next(iter(merges.values())).name}': nothing makes its partial results; {_OPTIMIZE}")
    return tuple(sites)


def plugin_nodes(model: ModelProto, operators: Sequence[str]) -> list[PluginNode]:
    """The nodes of some operators (without their hash), in the order of the graph; InputError for any that is bad."""
    functions = {f.name: f for f in model.functions if f.domain == DOMAIN}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    resident = _resident_blocks(model)
    nodes = (_read(node, functions, constants, resident) for node in model.graph.node if is_plugin_node(node))
    return [node for node in nodes if node.configuration["operator"] in operators]


def site_of(node: PluginNode) -> str:
    """The site that a node was written for."""
    return node.name.removeprefix(NODE_PREFIX).rpartition("/")[0]


def note_resident_blocks(model: ModelProto, blocks: Mapping[str, int]) -> None:
    """Write beside a model's operators how many of their blocks share a multiprocessor, for who compiles its kernels.

    It belongs to no configuration: what an operator computes does not depend on it.
    """
    known = _resident_blocks(model)
    for operator in sorted(set(blocks) - set(known)):
        model.metadata_props.add(key=f"{_RESIDENT}{operator}", value=str(blocks[operator]))


def _resident_blocks(model: ModelProto) -> dict[str, int]:
    noted = {p.key.removeprefix(_RESIDENT): p.value for p in model.metadata_props if p.key.startswith(_RESIDENT)}
    wrong = next((value for value in noted.values() if value not in _BLOCKS), None)
    if wrong is not None:
        raise InputError(
            f"the model says that {wrong[:20]!r} blocks of an operator share a multiprocessor; allowed: 1 to "
            f"{len(_BLOCKS)}; {_OPTIMIZE}"
        )
    return {operator: int(value) for operator, value in noted.items()}


def _read(
    node: NodeProto,
    functions: Mapping[str, FunctionProto],
    constants: Mapping[str, TensorProto],
    resident: Mapping[str, int],
) -> PluginNode:
    label = f"node '{node.name or (node.output[0] if node.output else '')}' ({node.op_type})"
    function = functions.get(node.op_type)
    if function is None:
        raise InputError(f"{label}: the model has no body of this operator; {_OPTIMIZE}")
    configuration = _configuration(label, function)
    names, outputs = _operands(configuration), 1 + bool(configuration["kernel"].get("split"))
    tabled = [name for name in function.input if name not in names]
    if len(node.input) != len(function.input) or [*names, *tabled] != list(function.input):
        raise InputError(f"{label}: its inputs are not those of its body; {_OPTIMIZE}")
    if len(node.output) != (outputs if configuration["operator"] == _ATTENTION else 1):
        raise InputError(f"{label}: it has {len(node.output)} outputs, expected {outputs}; {_OPTIMIZE}")
    given = dict(zip(function.input, node.input, strict=True))
    tables = {}
    for name in tabled:
        tensor = constants.get(given[name])
        if tensor is None:
            raise InputError(f"{label}: its table '{name}' is no constant of the model; {_OPTIMIZE}")
        tables[name] = numpy_helper.to_array(tensor)
    rebuilt = configuration_of(configuration["operator"], configuration["kernel"], tables)
    if rebuilt != configuration or operator_name(rebuilt) != node.op_type:
        raise InputError(f"{label}: its tables or its configuration are not those that it is named after; {_OPTIMIZE}")
    operands = {name: given[name] for name in names}
    blocks = resident.get(node.op_type, 1)
    return PluginNode(node.name, node.op_type, configuration, operands, tables, tuple(node.output), blocks)


def _operands(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    operator, kernel = configuration["operator"], configuration["kernel"]
    names = _OPERANDS[operator]
    if operator == _ATTENTION and kernel.get("weights"):
        return (*names, WEIGHT)
    # Of a convolution in two halves the second adds the residual.
    added = kernel.get("residual") and (
        operator in FIRST_OPERANDS or (operator in (GROUP_CONV, CONV_BLOCK) and not kernel.get("split"))
    )
    return (*names, RESIDUAL) if added else names


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

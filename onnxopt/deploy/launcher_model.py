"""The model for the launcher library: operators of our own as nodes of its one plugin, which hold their kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxopt.deploy.engine_operators import TENSOR_BYTES, EngineOperator, Tactic
from onnxopt.deploy.launcher_fields import (
    PLUGIN_NAME,
    ArgumentKind,
    Field,
    LauncherInput,
    LauncherKernel,
    LauncherProgram,
    launcher_fields,
)
from onnxopt.errors import InputError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.lower.operator_nodes import ATTRIBUTES
from onnxopt.lower.plugin_nodes import OPERATORS, PluginNode, plugin_nodes, plugin_sites
from onnxopt.lower.rewrite import DOMAIN
from onnxopt.model.graph import Graph, view
from onnxopt.model.write import write_model

LAUNCHER_MODEL = "model.launcher.onnx"

Kernels = Mapping[str, Sequence[CompiledKernel]]
"""The first tactic of each operator, compiled for each architecture."""

Arguments = tuple[tuple[ArgumentKind, int], ...]

_OPTIMIZE = "optimize the original model again"
# The size of a tensor is asked for at this batch; any other would do.
_BATCH = 2


def write_launcher_model(
    folder: Path, plugin_model: ModelProto, operators: Sequence[EngineOperator], kernels: Kernels
) -> Path:
    """Write ``model.launcher.onnx`` into a package; see :func:`launcher_model`. Returns where it lies."""
    place = folder / LAUNCHER_MODEL
    write_model(launcher_model(plugin_model, operators, kernels), place)
    return place


def launcher_model(plugin_model: ModelProto, operators: Sequence[EngineOperator], kernels: Kernels) -> ModelProto:
    """A model in the plugin form with every operator of our own as a node ``OnnxoptKernel``, without bodies.

    A node keeps its operands, its tables, its outputs and its name; its attributes are the fields of
    :func:`onnxopt.deploy.launcher_fields.launcher_fields`, made of the operator's first tactic. Attention whose keys
    are split and its merge become one node. Raises InputError for an operator without a description or a kernel, and
    for one whose first tactic does not read the tables that its nodes have.
    """
    known = {operator.name: operator for operator in operators}
    graph = view(plugin_model, batch=_BATCH)
    merges = {site.attention.outputs[0]: site.merge for site in plugin_sites(plugin_model) if site.merge is not None}
    merged = {merge.outputs[0] for merge in merges.values()}
    # A node by its first output: what it becomes, None where another node computes it.
    changed: dict[str, NodeProto | None] = dict.fromkeys(merged)
    # What does not leave a node any more.
    inner: set[str] = set()
    written = {node.output[0]: node for node in plugin_model.graph.node if node.domain == DOMAIN}
    for node in plugin_nodes(plugin_model, OPERATORS):
        if node.outputs[0] in merged:
            continue
        merge = merges.get(node.outputs[0])
        parts = (node,) if merge is None else (node, merge)
        _check_inner(parts, plugin_model)
        inner |= set(node.outputs) if merge is not None else set()
        program = _program(parts, [_operator(part, known) for part in parts], kernels, graph)
        changed[node.outputs[0]] = _node(parts, [written[part.outputs[0]] for part in parts], launcher_fields(program))
    return _with_nodes(plugin_model, changed, inner)


def _with_nodes(model: ModelProto, changed: Mapping[str, NodeProto | None], inner: set[str]) -> ModelProto:
    found = ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:], found.graph.value_info[:], found.functions[:]
    for node in model.graph.node:
        replaced = changed[node.output[0]] if node.domain == DOMAIN else node
        if replaced is not None:
            found.graph.node.append(replaced)
    found.graph.value_info.extend(value for value in model.graph.value_info if value.name not in inner)
    found.functions.extend(function for function in model.functions if function.domain != DOMAIN)
    return found


def _node(parts: Sequence[PluginNode], written: Sequence[NodeProto], fields: Mapping[str, Field]) -> NodeProto:
    first, last = parts[0], parts[-1]
    inputs = [*first.operands.values(), *_table_names(parts, written)]
    node = helper.make_node(PLUGIN_NAME, inputs, list(last.outputs), first.name, domain=DOMAIN)
    for name, value in {**ATTRIBUTES, **fields}.items():
        node.attribute.append(helper.make_attribute(name, _attribute_value(name, value)))
    return node


def _attribute_value(name: str, field: Field) -> list[int] | str | TensorProto:
    if isinstance(field, bytes):
        return helper.make_tensor(name, TensorProto.INT8, [len(field)], field, raw=True)
    return field if isinstance(field, str) else list(field)


def _table_names(parts: Sequence[PluginNode], written: Sequence[NodeProto]) -> Iterable[str]:
    """Tables stand behind the operands of each node."""
    for part, node in zip(parts, written, strict=True):
        yield from node.input[len(part.operands) :]


def _program(
    parts: Sequence[PluginNode], operators: Sequence[EngineOperator], kernels: Kernels, graph: Graph
) -> LauncherProgram:
    """``parts`` are a node, or the two of split attention, of which the first makes what the second starts from."""
    first, operands = operators[0], len(parts[0].operands)
    batch = _elements(parts[0], graph, next(iter(parts[0].operands.values()))) // first.batch_elements
    inputs = [
        LauncherInput(port.type, False, _elements(parts[0], graph, tensor) // batch)
        for port, tensor in zip(first.operands, parts[0].operands.values(), strict=True)
    ]
    launched, tables = [], operands
    for number, (part, operator) in enumerate(zip(parts, operators, strict=True)):
        given = operator.tables[: operator.tactics[0].tables]
        inputs += [LauncherInput(port.type, True, prod(_whole(part, port.shape))) for port in given]
        last = number + 1 == len(parts)
        sources: Arguments = _many("workspace", len(part.operands)) if number else _many("input", operands)
        results = _many("output" if last else "workspace", len(operator.outputs))
        compiled = kernels.get(operator.name, ())
        own = _many("input", len(given), tables)
        launched.append(_kernel(operator.tactics[0], compiled, (sources, own, results)))
        tables += len(given)
    middle = operators[0].outputs if len(parts) == 2 else ()
    workspace = tuple(output.elements * TENSOR_BYTES[output.type] for output in middle)
    return LauncherProgram(first.name, tuple(inputs), operators[-1].outputs, workspace, tuple(launched))


def _kernel(
    tactic: Tactic, compiled: Sequence[CompiledKernel], arguments: tuple[Arguments, Arguments, Arguments]
) -> LauncherKernel:
    """A kernel that was compiled to be called with other kernels' tables too gets null pointers for them."""
    operands, tables, outputs = arguments
    counts = {(_others(kernel, "BEFORE"), _others(kernel, "AFTER")) for kernel in compiled}
    if len(counts) > 1:
        raise InputError(f"the kernels of {tactic.entry} do not take the same arguments; compile them again")
    before, after = next(iter(counts), (0, 0))
    return LauncherKernel(
        entry=tactic.entry,
        grid=tactic.grid,
        threads=tactic.threads,
        shared_bytes=tactic.shared_bytes,
        arguments=(*operands, *_unused(before), *tables, *_unused(after), ("batch", 0), *outputs),
        compiled=tuple(compiled),
    )


def _others(kernel: CompiledKernel, side: str) -> int:
    return int(kernel.source.define(f"OTHERS_{side}") or 0)


def _unused(count: int) -> Arguments:
    return (("unused", 0),) * count


def _many(kind: ArgumentKind, count: int, first: int = 0) -> Arguments:
    return tuple((kind, first + index) for index in range(count))


def _operator(node: PluginNode, known: Mapping[str, EngineOperator]) -> EngineOperator:
    operator = known.get(node.operator)
    if operator is None:
        raise InputError(f"node '{node.name}': nothing describes its operator {node.operator}; {_OPTIMIZE}")
    tactic = operator.tactics[0]
    if tactic.configuration != node.configuration or (tactic.first_table, tactic.tables) != (0, len(node.tables)):
        raise InputError(f"node '{node.name}': the first kernel of {node.operator} reads other tables; {_OPTIMIZE}")
    return operator


def _check_inner(parts: Sequence[PluginNode], model: ModelProto) -> None:
    """What a node hands to its second half has to stay between them."""
    if len(parts) == 1:
        return
    inner = set(parts[0].outputs)
    readers = [node for node in model.graph.node if inner & set(node.input)]
    given = inner & {output.name for output in model.graph.output}
    if given or len(readers) != 1:
        raise InputError(f"node '{parts[0].name}': something beside its merge reads its partial results; {_OPTIMIZE}")


def _elements(node: PluginNode, graph: Graph, tensor: str) -> int:
    return prod(_whole(node, graph.shape(tensor)))


def _whole(node: PluginNode, shape: Sequence[int | None] | None) -> list[int]:
    sizes = [] if shape is None else [size for size in shape if size is not None]
    if shape is None or len(sizes) != len(shape):
        raise InputError(f"node '{node.name}': the size of one of its tensors is not known; {_OPTIMIZE}")
    return sizes

"""The operators of a model in the plugin form as an engine sees them, from the model and its compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxopt.deploy.engine_operators import ONNX_TYPES, EngineOperator, Grid, Output, Port, Tactic, TensorType
from onnxopt.deploy.manifest import checked_file, read_manifest
from onnxopt.deploy.packaged_kernels import packaged_architecture, packaged_kernel
from onnxopt.errors import InputError
from onnxopt.kernels.algorithm_launch import algorithm_jobs, algorithm_launch, algorithm_parameters, algorithm_sizes
from onnxopt.kernels.arguments import Launch
from onnxopt.kernels.block_source import conv_block_launch, conv_block_parameters
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.conv_launch import SUM_THREADS, group_conv_launch, group_conv_parameters, sum_conv_launch
from onnxopt.kernels.cubin import CubinError
from onnxopt.kernels.launch import MERGE_PARAMETERS, MERGE_WARPS, attention_launch, merge_launch, parameter_names
from onnxopt.kernels.operator_source import operator_source
from onnxopt.kernels.report import ReportError, ResourceReport
from onnxopt.kernels.source import KernelSource
from onnxopt.lower.plugin_nodes import (
    CONV_BLOCK,
    FIRST_OPERANDS,
    GROUP_CONV,
    MERGE_ATTENTION,
    OPERATORS,
    SUM_CONV,
    PluginNode,
    plugin_nodes,
)
from onnxopt.model.graph import Graph, view
from onnxopt.model.read import read_model
from onnxopt.package import PLUGIN

_TYPES: Mapping[int, TensorType] = {number: name for name, number in ONNX_TYPES.items()}
_TABLE_TYPES: Mapping[str, TensorType] = {
    helper.tensor_dtype_to_np_dtype(number).name: name for number, name in _TYPES.items()
}
# Sizes that differ between two batches follow the batch.
_BATCHES = (2, 3)
_OPTIMIZE = "optimize the original model again"


def engine_operators(model: ModelProto, reports: Mapping[str, ResourceReport]) -> tuple[EngineOperator, ...]:
    """The operators of a model in the plugin form, each once and with a single tactic, in the order of the graph.

    ``reports`` has what each operator's compiled kernel takes. Shapes of operands are those of the first node that uses
    an operator. Raises InputError for an operator without a kernel, a kernel that is not one of its configuration, a
    tensor of a type that no kernel reads, and sizes that do not belong to a batch of the configuration.
    """
    graphs = tuple(view(model, batch=batch) for batch in _BATCHES)
    found: dict[str, EngineOperator] = {}
    for node in plugin_nodes(model, OPERATORS):
        known = found.get(node.operator)
        if known is None:
            found[node.operator] = _operator(node, graphs, _of(reports, node.operator))
        elif [port.type for port in known.operands] != [_type(node, graphs[0], t) for t in node.operands.values()]:
            raise InputError(f"node '{node.name}': the types of its operands are not those of {known.name} elsewhere")
        else:
            _check_batch(node, graphs)
    return tuple(found.values())


def package_kernels(folder: Path, model: ModelProto) -> dict[str, CompiledKernel]:
    """The kernels of a model's operators as its package has them, by operator.

    Raises InputError where a file is not what the manifest says, or holds no kernel of its operator.
    """
    listed = {entry.path for entry in read_manifest(folder).files}
    kernels: dict[str, CompiledKernel] = {}
    for node in plugin_nodes(model, OPERATORS):
        if node.operator in kernels:
            continue
        architecture = packaged_architecture(folder, listed, node.operator)
        try:
            kernels[node.operator] = packaged_kernel(folder, node.operator, _source(node), architecture)
        except (CubinError, ReportError) as error:
            raise InputError(f"{folder}: the kernel of {node.operator} cannot be used: {error}; {_OPTIMIZE}") from None
    return kernels


def package_operators(folder: Path) -> tuple[EngineOperator, ...]:
    """The operators of a package's plugin form, each with its own kernel alone.

    Raises InputError as :func:`engine_operators` and :func:`package_kernels` do, and for a folder that is no package.
    """
    model = read_model(checked_file(folder, PLUGIN))
    kernels = package_kernels(folder, model)
    return engine_operators(model, {operator: kernel.report for operator, kernel in kernels.items()})


def tactic_of(
    configuration: Mapping[str, Any],
    resident: int,
    entry: str,
    report: ResourceReport,
    predicted_us: float | None = None,
) -> Tactic:
    """A kernel with its own tables, as the only tactic of an operator.

    Raises InputError where the compiled kernel is not one of the configuration.
    """
    launch = _launch(configuration, report)
    return Tactic(
        configuration=configuration,
        resident=resident,
        first_table=0,
        tables=len(configuration["shapes"]),
        entry=entry,
        grid=grid_of(configuration),
        threads=launch.block,
        shared_bytes=launch.shared_bytes,
        predicted_us=predicted_us,
    )


def grid_of(configuration: Mapping[str, Any]) -> Grid:
    """How many blocks an operator's launch has, as ``docs/tables.md`` says."""
    operator, kernel, shapes = configuration["operator"], configuration["kernel"], configuration["shapes"]
    if operator == MERGE_ATTENTION:
        return Grid(1, shapes["merges"][0], MERGE_WARPS)
    if operator == SUM_CONV:
        return Grid(1, kernel["output_channels"] * prod(kernel["output_size"]), SUM_THREADS)
    if operator in FIRST_OPERANDS:
        return Grid(algorithm_jobs(operator, kernel), 1, 1)
    return Grid(shapes["jobs"][0], 1, kernel["images"] if operator == GROUP_CONV else 1)


def element_counts(configuration: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Elements that a batch element has of the operator's first operand, and of each of its outputs."""
    operator, kernel = configuration["operator"], configuration["kernel"]
    if operator == MERGE_ATTENTION:
        return kernel["slots"] * kernel["value_width"], (kernel["y"][0],)
    if operator == CONV_BLOCK:
        first, last = kernel["stages"][0], kernel["stages"][-1]
        y = kernel["output_channels"] * prod(last["output_size"])
        return kernel["input_channels"] * prod(first["input_size"]), (y,)
    if operator in (GROUP_CONV, SUM_CONV):
        size = prod(kernel["output_size"])
        partial, y = kernel["slots"] * size, kernel["output_channels"] * size
        if operator == SUM_CONV:
            return partial, (y,)
        return kernel["input_channels"] * prod(kernel["input_size"]), (partial if kernel["split"] else y,)
    if operator in FIRST_OPERANDS:
        sizes, names = algorithm_sizes(operator, kernel), algorithm_parameters(operator, kernel)
        return sizes[names[0]], (sizes[names[-1]],)
    outputs = (kernel["slots"] * kernel["value_width"], kernel["slots"]) if kernel["split"] else (kernel["y"][0],)
    return kernel["q"][0], outputs


def output_names(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """What ``docs/tables.md`` calls the outputs of an operator."""
    names = parameters_of(configuration)
    return names[names.index("batch") + 1 :]


def parameters_of(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of an operator's kernel with its own tables alone: its inputs, ``batch``, its outputs."""
    operator, kernel = configuration["operator"], configuration["kernel"]
    if operator == MERGE_ATTENTION:
        return MERGE_PARAMETERS
    if operator in FIRST_OPERANDS:
        return algorithm_parameters(operator, kernel)
    named = {GROUP_CONV: group_conv_parameters, CONV_BLOCK: conv_block_parameters}.get(operator, parameter_names)
    return named(kernel)


def table_ports(node: PluginNode) -> tuple[Port, ...]:
    """A node's tables as inputs of its operator."""
    return tuple(Port(name, _table_type(node, table), table.shape) for name, table in node.tables.items())


def _operator(node: PluginNode, graphs: tuple[Graph, ...], report: ResourceReport) -> EngineOperator:
    first, outputs = element_counts(node.configuration)
    _check_batch(node, graphs)
    return EngineOperator(
        name=node.operator,
        operands=tuple(
            Port(name, _type(node, graphs[0], tensor), _shape(node, graphs, tensor))
            for name, tensor in node.operands.items()
        ),
        tables=table_ports(node),
        outputs=tuple(
            Output(name, _type(node, graphs[0], tensor), _output_shape(node, graphs, tensor), elements)
            for name, tensor, elements in zip(output_names(node.configuration), node.outputs, outputs, strict=True)
        ),
        batch_elements=first,
        tactics=(tactic_of(node.configuration, node.resident, _source(node).entry, report),),
    )


def _launch(configuration: Mapping[str, Any], report: ResourceReport) -> Launch:
    operator, kernel, shapes = configuration["operator"], configuration["kernel"], configuration["shapes"]
    if operator == MERGE_ATTENTION:
        return merge_launch(shapes["merges"][0], 1)
    if operator == SUM_CONV:
        return sum_conv_launch(kernel, 1)
    if operator in FIRST_OPERANDS:
        return algorithm_launch(operator, kernel, 1, report)
    launch = {GROUP_CONV: group_conv_launch, CONV_BLOCK: conv_block_launch}.get(operator, attention_launch)
    return launch(kernel, shapes["jobs"][0], 1, report)


def _source(node: PluginNode) -> KernelSource:
    return operator_source(node.configuration, node.resident)


def _of(reports: Mapping[str, ResourceReport], operator: str) -> ResourceReport:
    if operator not in reports:
        raise InputError(f"operator {operator}: it has no compiled kernel; {_OPTIMIZE}")
    return reports[operator]


def _check_batch(node: PluginNode, graphs: tuple[Graph, ...]) -> None:
    """Every tensor of a node has to be of the batch that its first operand has."""
    first, outputs = element_counts(node.configuration)
    given = next(iter(node.operands.values()))
    for graph in graphs:
        batch, rest = divmod(prod(_known(node, graph, given)), first)
        for tensor, elements in zip((given, *node.outputs), (first, *outputs), strict=True):
            found = prod(_known(node, graph, tensor))
            if rest or not batch or found != batch * elements:
                raise InputError(
                    f"node '{node.name}': '{tensor}' has {found:,} elements; allowed: {elements:,} for each batch "
                    f"element; {_OPTIMIZE}"
                )


def _output_shape(node: PluginNode, graphs: tuple[Graph, ...], tensor: str) -> tuple[int | None, ...]:
    shape = _shape(node, graphs, tensor)
    if shape.count(None) > 1:
        raise InputError(f"node '{node.name}': several sizes of '{tensor}' follow the batch; allowed: one; {_OPTIMIZE}")
    return shape


def _shape(node: PluginNode, graphs: tuple[Graph, ...], tensor: str) -> tuple[int | None, ...]:
    first, *others = (_known(node, graph, tensor) for graph in graphs)
    if any(len(other) != len(first) for other in others):
        raise InputError(f"node '{node.name}': how many sizes '{tensor}' has follows the batch; {_OPTIMIZE}")
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(first, *others, strict=True))


def _known(node: PluginNode, graph: Graph, tensor: str) -> tuple[int, ...]:
    shape = graph.shape(tensor)
    if shape is None:
        raise InputError(f"node '{node.name}': the shape of '{tensor}' is not known; {_OPTIMIZE}")
    return shape


def _type(node: PluginNode, graph: Graph, tensor: str) -> TensorType:
    kind = graph.element_type(tensor)
    if kind not in _TYPES:
        raise InputError(
            f"node '{node.name}': '{tensor}' is of ONNX's type {TensorProto.DataType.Name(kind)}; allowed: float16, "
            f"bfloat16, float, int32; {_OPTIMIZE}"
        )
    return _TYPES[kind]


def _table_type(node: PluginNode, table: np.ndarray[Any, Any]) -> TensorType:
    if table.dtype.name not in _TABLE_TYPES:
        raise InputError(
            f"node '{node.name}': a table is of the type {table.dtype}; allowed: {', '.join(_TABLE_TYPES)}; {_OPTIMIZE}"
        )
    return _TABLE_TYPES[table.dtype.name]

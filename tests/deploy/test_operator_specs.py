"""Operators as an engine sees them: tensors, grids and launches are those of the operators' own definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import onnx
import pytest

from onnxopt import api
from onnxopt.deploy.engine_operators import EngineOperator
from onnxopt.deploy.operator_specs import engine_operators, package_operators
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.errors import InputError
from onnxopt.kernels.algorithm_launch import algorithm_launch
from onnxopt.kernels.arguments import Launch
from onnxopt.kernels.block_source import conv_block_launch
from onnxopt.kernels.conv_launch import group_conv_launch, sum_conv_launch
from onnxopt.kernels.conv_source import conv_variants
from onnxopt.kernels.launch import attention_launch, merge_launch
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import attention_variants
from onnxopt.lower.plugin_nodes import FIRST_OPERANDS, OPERATORS, PluginNode, plugin_nodes
from onnxopt.model.graph import view
from onnxopt.plan.algorithms.steps import ALGORITHMS
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.target.variant import AttentionVariant, ConvVariant
from samples import build as sample
from samples.builder import GraphBuilder
from samples.convolution import conv
from tests.lower import conv_plugin_models, plugin_models
from tests.lower.algorithm_models import in_steps, two_layers
from tests.lower.test_block_plugin import judged, network, written
from tests.plan.conv_schedules import MMA
from tests.plan.schedules import scheduled

SHARED = 12_288
BATCHES = (1, 2, 3, 8, 33)


def split_attention() -> onnx.ModelProto:
    def cut(site: AttentionSite) -> AttentionSchedule:
        return scheduled(site, (AttentionVariant("mma", 16, 16, 1, 2),), seed=1, split_keys=19, element="fp16")

    return plugin_models.in_plugin_form(sample("regionvit_masked", batch=None).model, cut)


def attention() -> onnx.ModelProto:
    def cut(site: AttentionSite) -> AttentionSchedule:
        return scheduled(site, (AttentionVariant("mma", 16, 16, 1, 2),), seed=1, element="bf16")

    return plugin_models.in_plugin_form(sample("swin_padded", batch=2).model, cut)


def split_convolution() -> onnx.ModelProto:
    g = GraphBuilder("split", seed=0, batch=None)
    x = g.input("x", 32, 5, 4)
    g.output("y", g.op("Relu", g.op("Add", conv(g, x, 32, 32, (1, 1), groups=2)[0], x)), 32, 5, 4)
    variants = (ConvVariant("mma", 16, 16, 64, 2, 2),)
    return conv_plugin_models.in_plugin_form(g.model(), variants=variants, seed=1, pieces=2)[0]


def folded_convolutions() -> onnx.ModelProto:
    variants = (MMA, replace(MMA, outputs=64, inputs=32, pixels=32, stages=3))
    model = sample("resnext", batch=6).model
    return conv_plugin_models.in_plugin_form(model, images=3, variants=variants, seed=3)[0]


def blocks() -> onnx.ModelProto:
    model = network(None)
    return written(model, judged(model))


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "attention": attention,
    "split attention": split_attention,
    "split convolution": split_convolution,
    "folded convolutions": folded_convolutions,
    "blocks": blocks,
    **{f"steps of {name}": lambda name=name: in_steps(two_layers(None), name)[0] for name in ALGORITHMS},  # type: ignore[misc]
}


def report_of(node: PluginNode) -> ResourceReport:
    """What a compiler would say of a node's kernel, with shared memory that no launch makes up by itself."""
    operator, kernel = node.configuration["operator"], node.kernel
    threads = {
        "MergeAttention": lambda: 128,
        "SumConv": lambda: 256,
        "ConvBlock": lambda: 32 * kernel["shape"]["warps"],
        "GroupConv": lambda: conv_variants(kernel)[0].threads,
        "SparseAttention": lambda: attention_variants(kernel)[0].threads,
        "ConvProduct": lambda: 32 * kernel["warps"],
    }.get(operator, lambda: kernel.get("threads") or _direct_threads(node))()
    return ResourceReport(32, 0, SHARED, 0, 0, 0, int(threads))


def _direct_threads(node: PluginNode) -> int:
    kernel = node.kernel
    return int(32 * kernel["block_outputs"] // kernel["own_outputs"] * kernel["position_warps"])


def launched(node: PluginNode, batch: int) -> Launch:
    """The launch as the CPU runner and the profiler make it."""
    operator, kernel, tables, report = node.configuration["operator"], node.kernel, node.tables, report_of(node)
    if operator == "MergeAttention":
        return merge_launch(len(tables["merges"]), batch)
    if operator == "SumConv":
        return sum_conv_launch(kernel, batch)
    if operator in FIRST_OPERANDS:
        return algorithm_launch(operator, kernel, batch, report)
    launch = {"GroupConv": group_conv_launch, "ConvBlock": conv_block_launch}.get(operator, attention_launch)
    return launch(kernel, len(tables["jobs"]), batch, report)


def operators_of(model: onnx.ModelProto) -> tuple[EngineOperator, ...]:
    return engine_operators(model, {node.operator: report_of(node) for node in plugin_nodes(model, OPERATORS)})


@pytest.mark.parametrize("name", MODELS)
def test_launches_are_those_of_the_kernels(name: str) -> None:
    model = MODELS[name]()
    nodes = {node.operator: node for node in plugin_nodes(model, OPERATORS)}
    operators = operators_of(model)
    assert [operator.name for operator in operators] == list(nodes)
    for operator in operators:
        (tactic,), node = operator.tactics, nodes[operator.name]
        for batch in BATCHES:
            launch = launched(node, batch)
            assert tactic.grid.blocks(batch) == launch.grid
            assert (tactic.threads, tactic.shared_bytes) == (launch.block, launch.shared_bytes)
        assert tactic.configuration == node.configuration
        assert (tactic.first_table, tactic.tables) == (0, len(operator.tables))


@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_those_of_the_model(name: str) -> None:
    model = MODELS[name]()
    operators = {operator.name: operator for operator in operators_of(model)}
    functions = {function.name: function for function in model.functions}
    for node in (node for node in model.graph.node if node.domain == "onnxopt"):
        operator = operators[node.op_type]
        assert [port.name for port in operator.inputs] == list(functions[node.op_type].input)
        assert [output.name for output in operator.outputs] == list(functions[node.op_type].output)
        for batch in (2, 5):
            graph = view(model, batch=batch)
            first = graph.shape(node.input[0])
            assert first is not None
            held = operator.batch(first)
            for port, tensor in zip(operator.inputs, node.input, strict=True):
                shape = graph.shape(tensor)
                assert shape is not None and prod(shape[1:]) == prod(size or 1 for size in port.shape[1:])
            for output, tensor in zip(operator.outputs, node.output, strict=True):
                shape = graph.shape(tensor)
                assert shape is not None
                if len(shape) == len(output.shape) and None in output.shape:
                    assert output.sizes(held) == shape
                assert prod(output.sizes(held)) == prod(shape) == held * output.elements


def test_sizes_that_follow_the_batch_are_open() -> None:
    attention_half, merge = (
        next(o for o in operators_of(split_attention()) if o.name.startswith(name))
        for name in ("SparseAttention", "MergeAttention")
    )
    assert [output.name for output in attention_half.outputs] == ["partial", "lse"]
    assert [output.type for output in attention_half.outputs] == ["float32", "float32"]
    for port in (*attention_half.operands, *merge.operands, *attention_half.outputs, *merge.outputs):
        assert port.shape[0] is None and None not in port.shape[1:]
    for operator in operators_of(attention()):
        assert {size for port in (*operator.inputs, *operator.outputs) for size in port.shape} & {None} == set()
        assert {port.type for port in operator.operands} == {"bf16"}


def test_an_operator_without_a_kernel_is_refused() -> None:
    model = split_convolution()
    reports = {node.operator: report_of(node) for node in plugin_nodes(model, OPERATORS)}
    name = reports.popitem()[0]
    with pytest.raises(InputError, match=f"{name}: it has no compiled kernel"):
        engine_operators(model, reports)


def test_a_kernel_of_another_shape_is_refused() -> None:
    model = attention()
    reports = {node.operator: replace(report_of(node), threads=96) for node in plugin_nodes(model, OPERATORS)}
    with pytest.raises(InputError, match="96"):
        engine_operators(model, reports)


def test_a_tensor_that_no_batch_has_is_refused() -> None:
    model = split_convolution()
    reports = {node.operator: report_of(node) for node in plugin_nodes(model, OPERATORS)}
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 33
    del model.graph.value_info[:]
    with pytest.raises(InputError, match="elements; allowed"):
        engine_operators(model, reports)


def test_a_package_has_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sample("neighbourhood").to_bytes())
    package = tmp_path / "package"
    api.optimize(path, package, target="sm_80", form="plugin", kernel_dtype="fp16", verify=False)
    operators = package_operators(package)
    assert operators
    for operator in operators:
        (tactic,) = operator.tactics
        ptx = (package / "kernels" / f"{operator.name}.ptx").read_text()
        assert f".entry {tactic.entry}(" in ptx
        # The PTX has a parameter for every input, for the batch, and for every output.
        parameters = ptx.partition(f".entry {tactic.entry}(")[2].partition(")")[0].count(".param")
        assert parameters == len(operator.inputs) + 1 + len(operator.outputs)
        assert f".maxntid {tactic.threads}" in ptx

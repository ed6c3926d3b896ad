"""Rewritten convolutions equal the original ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from onnxopt.discover.convolution import find_convolutions
from onnxopt.lower.convolution import lower_convolution, packed_weights
from onnxopt.lower.rewrite import apply_rewrites
from onnxopt.model.graph import symbolic_batch, view
from onnxopt.plan.conv_parts import Layout
from onnxopt.plan.conv_time import Form
from onnxopt.plan.convolution import MARGIN, plan_convolutions
from onnxopt.target import load_target
from samples import convolution_grouped as grouped
from samples import convolution_pruned as pruned
from samples.builder import GraphBuilder
from samples.truth import Sample

FORMS: list[tuple[Form, ...]] = [("direct",), ("transposed",)]

SAMPLES = [
    grouped.shufflenet_v1(),
    grouped.shufflenet_v1(shuffle_last=True, spelling="matmul", batch=None).named("shufflenet_v1-late-dynamic"),
    grouped.shufflenet_v2(),
    grouped.resnext(),
    *(grouped.grouped_nd(rank=rank) for rank in (1, 2, 3)),
    grouped.depthwise_multiplier(),
    grouped.split_convolutions(batch=None),
    pruned.condensenet_train(batch=None),
    pruned.condensenet_converted(batch=None),
    pruned.condensenet_v2(batch=None),
    pruned.pruned_random(),
    pruned.pruned_random(groups=4, kernel=3).named("pruned_random-grouped"),
]


def optimised(
    model: onnx.ModelProto, forms: tuple[Form, ...] = ("direct",), margin: float = 0.0
) -> tuple[onnx.ModelProto, int]:
    """The model with every convolution rewritten that can be, and how many those were."""
    graph = view(model, batch=2 if symbolic_batch(model) else 1)
    cpu = load_target("cpu").cpu
    assert cpu is not None
    plans = plan_convolutions(find_convolutions(graph)[0], graph, cpu, forms, margin)
    rewrites = [
        lower_convolution(f"conv-{i}", plan, graph) for i, plan in enumerate(plans) if plan.decision == "rewrite"
    ]
    return apply_rewrites(model, rewrites), len(rewrites)


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def assert_equal(model: onnx.ModelProto, other: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    onnx.checker.check_model(other, full_check=True)
    expected, actual = outputs(model, feeds), outputs(other, feeds)
    scale = float(np.abs(expected).max())
    assert np.abs(expected - actual).max() <= 1e-5 * scale
    assert np.sqrt(np.mean((expected - actual) ** 2)) <= 1e-6 * scale


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_samples_stay_equal(sample: Sample, forms: tuple[Form, ...]) -> None:
    result, _ = optimised(sample.model, forms)
    assert_equal(sample.model, result, sample.draw(seed=3, batch=3))
    assert [i.name for i in result.graph.input] == [i.name for i in sample.model.graph.input]


def test_movement_disappears_and_new_nodes_carry_the_site() -> None:
    sample = pruned.condensenet_converted(layers=1)
    result, rewrites = optimised(sample.model)
    kinds = [node.op_type for node in result.graph.node]
    assert rewrites == 2
    assert "Transpose" not in kinds
    assert any(node.name.startswith("onnxopt/conv-0/") for node in result.graph.node)


def test_rewriting_twice_changes_nothing_more() -> None:
    once, _ = optimised(pruned.condensenet_converted(batch=None).model)
    again, rewrites = optimised(once)
    assert rewrites == 0
    assert again is once


def test_scatter_matrix_is_folded_into_the_weights() -> None:
    result, _ = optimised(pruned.condensenet_v2().model)
    assert "MatMul" not in [node.op_type for node in result.graph.node]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_weights_keep_their_type(kind: int) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(grouped.grouped_nd(rank=2).model)
    # The first version of Conv that takes bfloat16.
    model.opset_import[0].version = 22
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array(values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)), tensor.name)
            )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    del model.graph.value_info[:]
    result, rewrites = optimised(model)
    onnx.checker.check_model(result, full_check=True)
    assert rewrites > 0
    new = {t.name: t.data_type for t in result.graph.initializer if t.name.startswith("onnxopt_table_")}
    assert set(new.values()) <= {kind, TensorProto.INT64}
    if kind == TensorProto.FLOAT16:
        x = np.random.default_rng(0).standard_normal((1, 16, 6, 6)).astype(np.float16)
        expected, actual = outputs(model, {"x": x}), outputs(result, {"x": x})
        np.testing.assert_allclose(actual, expected, atol=4e-3 * float(np.abs(expected).max()))


def test_geometry_is_kept() -> None:
    """Stride, uneven padding and dilation in the direct form; padding and dilation in the transposed one."""
    for forms, strides in ((("direct",), [2, 1]), (("transposed",), [1, 1])):
        g = GraphBuilder("geometry", seed=2)
        x = g.input("x", 8, 9, 7)
        moved = g.op("Gather", x, g.constant(np.array([7, 5, 3, 1, 0, 2, 4, 6], np.int64)), axis=1)
        pads = [0, 1, 2, 3]
        y = g.op(
            *("Conv", moved, g.weight(4, 2, 3, 3), g.weight(4)),
            group=4,
            pads=pads,
            dilations=[1, 2],
            strides=strides,
        )
        high, wide = (9 + 2 - 3) // strides[0] + 1, (7 + 4 - 5) // strides[1] + 1
        g.output("y", y, 4, high, wide)
        model = g.model()
        result, rewrites = optimised(model, forms)
        assert rewrites == 1
        assert_equal(model, result, {"x": np.random.default_rng(0).standard_normal((1, 8, 9, 7)).astype(np.float32)})


def test_packed_weights_leave_padding_zero() -> None:
    weight = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4, 1)
    layout = Layout(np.array([[2, 0], [1, -1]]), np.array([[1, 3], [0, -1]]))
    packed, bias = packed_weights(weight, np.array([1.0, 2.0, 3.0], np.float32), layout)
    assert packed[:, :, 0].tolist() == [[10, 12], [2, 4], [5, 0], [0, 0]]
    assert bias is not None
    assert bias.tolist() == [3, 1, 2, 0]


@st.composite
def hidden_blocks(draw: st.DrawFn) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray, np.ndarray | None]:
    """A 1x1 convolution whose parts are hidden by permutations, behind a Gather that repeats and skips."""
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    sizes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5))
    dead_outputs, dead_inputs = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    total_out = sum(o for o, _ in sizes) + dead_outputs
    total_in = sum(i for _, i in sizes) + dead_inputs
    links = np.zeros((total_out, total_in), bool)
    row = column = 0
    for o, i in sizes:
        links[row : row + o, column : column + i] = True
        row, column = row + o, column + i
    links = links[rng.permutation(total_out)][:, rng.permutation(total_in)]
    weight = np.where(links, rng.uniform(0.5, 1.5, links.shape), 0.0).astype(np.float32)
    g = GraphBuilder("hidden", seed=seed, batch=draw(st.sampled_from([1, None])))
    channels = draw(st.integers(1, 12))
    x = g.input("x", channels, 4, 3)
    index = rng.integers(0, channels, total_in)
    tensor = g.op("Gather", g.op("Relu", x), g.constant(index.astype(np.int64)), axis=1)
    inputs = [tensor, g.constant(weight[:, :, None, None])]
    bias = rng.standard_normal(total_out).astype(np.float32) if draw(st.booleans()) else None
    if bias is not None:
        inputs.append(g.constant(bias))
    tensor = g.op("Conv", *inputs)
    if draw(st.booleans()):
        order = rng.integers(0, total_out, total_out)
        tensor = g.op("Gather", tensor, g.constant(order.astype(np.int64)), axis=1)
        weight, bias = weight[order], None if bias is None else bias[order]
        links = links[order]
    if draw(st.booleans()):
        tensor = g.op("Relu", g.op("Mul", tensor, g.constant(np.ones((total_out, 1, 1), np.float32))))
    g.output("y", tensor, total_out, 4, 3)
    return g.model(), weight, index, bias


@settings(max_examples=80, deadline=None, derandomize=True)
@given(hidden_blocks())
def test_hidden_blocks_are_found_and_stay_equal(
    case: tuple[onnx.ModelProto, np.ndarray, np.ndarray, np.ndarray | None],
) -> None:
    model, weight, index, bias = case
    result, _ = optimised(model)
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    batch = 3 if symbolic_batch(model) else 1
    x = np.random.default_rng(1).standard_normal((batch, channels, 4, 3)).astype(np.float32)
    assert_equal(model, result, {"x": x})
    expected = np.einsum("oi,bihw->bohw", weight.astype(np.float64), np.maximum(x, 0)[:, index].astype(np.float64))
    expected = expected if bias is None else expected + bias[:, None, None]
    actual = outputs(result, {"x": x})
    if any(node.op_type == "Mul" for node in model.graph.node):
        expected = np.maximum(expected, 0)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.corpus
@pytest.mark.parametrize(
    "tag",
    [
        "condensenet_c10_g4_train.legacy.op17",
        "condensenet_c10_g4_conv.dynamo.op18.dyn",
        "cdnv2a_conv.dynamo.op18",
    ],
)
def test_corpus_stays_equal(
    tag: str, corpus_model: Callable[[str], Path], corpus_feeds: Callable[..., dict[str, Any]]
) -> None:
    _check_corpus(tag, corpus_model, corpus_feeds)


@pytest.mark.corpus_all
def test_whole_corpus_stays_equal(
    corpus_model: Callable[[str], Path],
    corpus_feeds: Callable[..., dict[str, Any]],
    corpus_manifest: dict[str, Any],
) -> None:
    for tag, entry in corpus_manifest.items():
        if entry.get("conv_sites", {}).get("sites"):
            _check_corpus(tag, corpus_model, corpus_feeds)


def _check_corpus(tag: str, corpus_model: Callable[[str], Path], corpus_feeds: Callable[..., dict[str, Any]]) -> None:
    model = onnx.load(corpus_model(tag))
    result, rewrites = optimised(model, ("direct", "transposed"), MARGIN)
    if rewrites:
        assert_equal(model, result, corpus_feeds(tag, seed=1))

"""Col2Im without overlap becomes Reshape and Transpose, and nothing else changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.lower.compat import lower_for_parsers


def _model(
    image: tuple[int, ...],
    block: tuple[int, ...],
    *,
    batch: int | str = 2,
    channels: int = 3,
    constants: str = "initializer",
    **attributes: list[int],
) -> onnx.ModelProto:
    rank = len(image)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * (2 * rank))
    patches = 1
    for k in range(rank):
        reach = dilations[k] * (block[k] - 1) + 1
        patches *= (image[k] + pads[k] + pads[k + rank] - reach) // strides[k] + 1
    size = [batch, channels * int(np.prod(block)), patches]
    vectors = {"image": np.array(image, np.int64), "block": np.array(block, np.int64)}
    nodes, initializers = [], []
    for name, vector in vectors.items():
        if constants == "initializer":
            initializers.append(numpy_helper.from_array(vector, name))
        else:
            nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(vector)))
    nodes.append(helper.make_node("Col2Im", ["x", "image", "block"], ["folded"], name="fold", **attributes))
    nodes.append(helper.make_node("Neg", ["folded"], ["y"], name="after"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, *image])],
        initializer=initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def _input(model: onnx.ModelProto, batch: int | None = None) -> dict[str, np.ndarray]:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    sizes = [d.dim_value or batch or 1 for d in dims]
    return {"x": np.random.default_rng(0).standard_normal(sizes).astype(np.float32)}


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def _lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    assert lower_for_parsers(copy) == (1, [])
    onnx.checker.check_model(copy, full_check=True)
    return copy


@pytest.mark.parametrize("constants", ["initializer", "node"])
def test_a_tiling_becomes_movement_and_keeps_names(constants: str) -> None:
    model = _model((6, 8), (3, 2), strides=[3, 2], constants=constants)
    lowered = _lowered(model)
    assert _operators(lowered) == ["Reshape", "Transpose", "Reshape", "Neg"]
    assert [n.name for n in lowered.graph.node] == [
        "fold.split_patches",
        "fold.weave",
        "fold.join_patches",
        "after",
    ]
    assert list(lowered.graph.node[2].output) == ["folded"]
    assert {t.name for t in lowered.graph.initializer} == {"fold.patches_shape", "fold.image_shape"}
    feeds = _input(model)
    np.testing.assert_array_equal(_run(lowered, feeds)[0], _run(model, feeds)[0])


def test_a_dynamic_batch_stays_dynamic() -> None:
    model = _model((4, 4), (2, 2), strides=[2, 2], batch="n")
    lowered = _lowered(model)
    for batch in (1, 5):
        feeds = _input(model, batch)
        np.testing.assert_array_equal(_run(lowered, feeds)[0], _run(model, feeds)[0])


def test_padding_is_sliced_off() -> None:
    model = _model((5, 6), (3, 4), strides=[3, 4], pads=[0, 1, 1, 1])
    lowered = _lowered(model)
    assert _operators(lowered) == ["Reshape", "Transpose", "Reshape", "Slice", "Neg"]
    feeds = _input(model)
    np.testing.assert_array_equal(_run(lowered, feeds)[0], _run(model, feeds)[0])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_tiling_is_equal(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 2))
    block, image, before, after = [], [], [], []
    for _ in range(rank):
        size = data.draw(st.integers(1, 4))
        covered = size * data.draw(st.integers(1, 4))
        first = data.draw(st.integers(0, min(size, covered) - 1))
        last = data.draw(st.integers(0, covered - first - 1))
        block.append(size)
        image.append(covered - first - last)
        before.append(first)
        after.append(last)
    model = _model(tuple(image), tuple(block), strides=block, pads=before + after)
    feeds = _input(model)
    evaluator = onnx.reference.ReferenceEvaluator(model)
    np.testing.assert_array_equal(_run(_lowered(model), feeds)[0], evaluator.run(None, feeds)[0])


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"strides": [1, 1]}, "its patches overlap"),
        ({"strides": [2, 3]}, "its patches leave gaps"),
        ({"strides": [2, 2], "dilations": [2, 1]}, "its dilations are [2, 1]"),
    ],
)
def test_what_is_no_tiling_stays(attributes: dict[str, list[int]], reason: str) -> None:
    model = _model((6, 6), (2, 2), **attributes)
    before = model.SerializeToString()
    count, kept = lower_for_parsers(model)
    assert count == 0
    assert len(kept) == 1
    assert "'fold'" in kept[0]
    assert reason in kept[0]
    assert model.SerializeToString() == before


def test_an_uncovered_border_stays() -> None:
    model = _model((5, 4), (2, 2), strides=[2, 2])
    count, kept = lower_for_parsers(model)
    assert count == 0
    assert "do not reach the end of the image" in kept[0]


def test_an_image_shape_from_the_graph_is_inferred() -> None:
    """The image's shape is the shape of another tensor, as exporters write it for a fixed input size."""
    model = _model((4, 4), (2, 2), strides=[2, 2])
    graph = model.graph
    graph.initializer.remove(graph.initializer[0])
    graph.input.append(helper.make_tensor_value_info("like", TensorProto.FLOAT, [1, 3, 4, 4]))
    graph.node.insert(0, helper.make_node("Shape", ["like"], ["image"], start=2))
    lowered = _lowered(model)
    assert "Col2Im" not in _operators(lowered)
    feeds = _input(model) | {"like": np.zeros((1, 3, 4, 4), np.float32)}
    np.testing.assert_array_equal(_run(lowered, feeds)[0], _run(model, feeds)[0])


def test_an_image_shape_that_depends_on_the_batch_is_not_frozen() -> None:
    model = _model((4, 4), (2, 2), strides=[2, 2])
    graph = model.graph
    graph.initializer.remove(graph.initializer[0])
    graph.input.append(helper.make_tensor_value_info("like", TensorProto.FLOAT, ["n", 4]))
    graph.node.insert(0, helper.make_node("Shape", ["like"], ["image"]))
    count, kept = lower_for_parsers(model)
    assert count == 0
    assert "image_shape is computed at run time" in kept[0]


def test_a_block_shape_that_is_an_input_is_not_frozen() -> None:
    model = _model((4, 4), (2, 2), strides=[2, 2])
    model.graph.initializer.remove(model.graph.initializer[1])
    model.graph.input.append(helper.make_tensor_value_info("block", TensorProto.INT64, [2]))
    count, kept = lower_for_parsers(model)
    assert count == 0
    assert "block_shape is computed at run time" in kept[0]


def test_shared_constants_and_taken_names_are_kept() -> None:
    model = _model((4, 4), (2, 2), strides=[2, 2])
    model.graph.node.append(helper.make_node("Identity", ["image"], ["fold.weave"], name="fold.weave"))
    model.graph.output.append(helper.make_tensor_value_info("fold.weave", TensorProto.INT64, [2]))
    lowered = _lowered(model)
    assert "image" in {t.name for t in lowered.graph.initializer}
    names = [node.name for node in lowered.graph.node]
    assert len(set(names)) == len(names)
    outputs = [name for node in lowered.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)


def test_twice_changes_nothing_and_is_deterministic() -> None:
    first, second = (_lowered(_model((6, 4), (3, 2), strides=[3, 2])) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    assert lower_for_parsers(second) == (0, [])
    assert first.SerializeToString() == second.SerializeToString()


def test_other_domains_and_other_operators_are_not_touched() -> None:
    model = _model((4, 4), (2, 2), strides=[2, 2])
    model.graph.node[0].domain = "com.example"
    before = model.SerializeToString()
    assert lower_for_parsers(model) == (0, [])
    assert model.SerializeToString() == before


@pytest.mark.corpus
@pytest.mark.parametrize("tag", ["regionvit_tiny_224.dynamo.op18.dyn", "regionvit_tiny_224_intfold.legacy.op18"])
def test_exported_models_stay_equal(
    tag: str, corpus_model: Callable[[str], Path], corpus_feeds: Callable[..., dict[str, Any]]
) -> None:
    model = onnx.load(corpus_model(tag))
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    count, kept = lower_for_parsers(lowered)
    assert (count, kept) == (3, [])
    assert "Col2Im" not in _operators(lowered)
    assert {n.name for n in model.graph.node if n.op_type not in ("Col2Im", "Constant")} <= {
        n.name for n in lowered.graph.node
    }
    feeds = corpus_feeds(tag)
    for before, after in itertools.zip_longest(_run(model, feeds), _run(lowered, feeds)):
        np.testing.assert_array_equal(after, before)

"""Rewrites replace what they name, drop what only that needed, and touch nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxopt.lower.rewrite import Rewrite, apply_rewrites, copy_of, rewritten_part, table
from onnxopt.model.graph import view


def model() -> ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Add", ["a", "one"], ["b"], name="b"),
        helper.make_node("Mul", ["b", "two"], ["c"], name="c"),
        helper.make_node("Neg", ["a"], ["kept"], name="kept"),
        helper.make_node("Add", ["c", "kept"], ["y"], name="y"),
        helper.make_node("Abs", ["x"], ["unused"], name="unused"),
    ]
    tensors = [numpy_helper.from_array(np.array([v], np.float32), n) for n, v in (("one", 1), ("two", 2), ("idle", 3))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def rewrite(*, extra: tuple[TensorProto, ...] = ()) -> Rewrite:
    return Rewrite("site", ("c",), (helper.make_node("Exp", ["a"], ["c"], name="onnxopt/site/0"),), extra)


def test_only_what_the_old_nodes_alone_needed_disappears() -> None:
    original = model()
    before = original.SerializeToString()
    result = apply_rewrites(original, [rewrite()])
    assert [n.name for n in result.graph.node] == ["a", "onnxopt/site/0", "kept", "y", "unused"]
    assert [t.name for t in result.graph.initializer] == ["idle"]
    assert original.SerializeToString() == before


def test_equal_tables_are_stored_once_under_the_name_of_their_content() -> None:
    first, again = table(np.arange(3)), table(np.arange(3))
    assert first.name == again.name != table(np.arange(3).astype(np.int32)).name
    assert table(np.arange(4).reshape(2, 2)).name != table(np.arange(4)).name
    result = apply_rewrites(model(), [rewrite(extra=(first, again))])
    assert [t.name for t in result.graph.initializer].count(first.name) == 1


def test_a_scalar_table_stays_a_scalar() -> None:
    assert list(table(np.array(2.0)).dims) == []


def test_no_rewrite_is_the_same_model_and_a_copy_is_equal() -> None:
    original = model()
    assert apply_rewrites(original, []) is original
    assert copy_of(original).SerializeToString() == original.SerializeToString()


def test_a_node_of_which_only_one_output_has_a_rewrite_is_refused() -> None:
    split = helper.make_node("Split", ["x"], ["c", "d"], name="split", num_outputs=2)
    graph = helper.make_graph(
        [split],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])],
    )
    with pytest.raises(ValueError, match="split"):
        apply_rewrites(helper.make_model(graph), [rewrite()])


def test_large_tensors_are_copied_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.lower.rewrite._COPIED_AS_MESSAGE", 0)
    original = model()
    copied = {t.name: t for t in copy_of(original).graph.initializer}
    for tensor in original.graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(copied[tensor.name]))
        assert list(copied[tensor.name].dims) == list(tensor.dims)


def test_the_part_of_a_rewrite_holds_only_what_its_nodes_read() -> None:
    original = model()
    node = helper.make_node("Mul", ["a", "two"], ["c"], name="onnxopt/site/0")
    part = rewritten_part(original, view(original), Rewrite("site", ("c",), (node,), ()))
    assert [n.name for n in part.graph.node] == ["onnxopt/site/0"]
    assert [t.name for t in part.graph.initializer] == ["two"]

"""Channel paths, against the values of the model itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.discover.channels import ChannelWalker
from onnxopt.model.graph import view
from samples.builder import GraphBuilder


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@st.composite
def movements(draw: st.DrawFn) -> tuple[GraphBuilder, str, str, int]:
    """A random chain of movements of 12 channels; returns source, end and channels."""
    batch = draw(st.sampled_from([2, None]))
    g = GraphBuilder("moves", seed=draw(st.integers(0, 99)), batch=batch)
    x = g.input("x", 12, 3, 2)
    tensor, channels = x, 12
    for kind in draw(st.lists(st.sampled_from(["shuffle", "gather", "halves", "sum", "einsum"]), max_size=4)):
        if kind == "shuffle":
            groups = draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))
            split = g.reshape(tensor, g.rows(1), groups, channels // groups, 3, 2)
            tensor = g.reshape(g.transpose(split, 0, 2, 1, 3, 4), g.rows(1), channels, 3, 2)
        elif kind == "gather":
            index = draw(st.lists(st.integers(-channels, channels - 1), min_size=1, max_size=15))
            tensor = g.op("Gather", tensor, g.constant(np.array(index, np.int64)), axis=1)
            channels = len(index)
        elif kind == "halves" and channels > 1:
            cut = draw(st.integers(1, channels - 1))
            tensor = g.concat(1, g.slice(tensor, 1, cut), g.slice(tensor, 1, 0, cut))
        else:
            made = draw(st.integers(1, 9))
            matrix = (g.rng.random((channels, made)) < 0.3).astype(np.float32)
            if kind == "einsum":
                tensor = g.op("Einsum", tensor, g.constant(matrix), equation="bchw,cd->bdhw")
            else:
                rows = g.transpose(g.reshape(tensor, g.rows(1), channels, 6), 0, 2, 1)
                rows = g.op("MatMul", rows, g.constant(matrix))
                tensor = g.reshape(g.transpose(rows, 0, 2, 1), g.rows(1), made, 3, 2)
            channels = made
    g.output("y", tensor, channels, 3, 2)
    return g, x, tensor, channels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(movements())
def test_movement_is_its_matrix(case: tuple[GraphBuilder, str, str, int]) -> None:
    g, source, end, _ = case
    model = g.model()
    path = ChannelWalker(view(model, batch=2)).back(end)
    x = np.random.default_rng(0).integers(-8, 9, (2, 12, 3, 2)).astype(np.float32)
    assert path.source == source
    np.testing.assert_array_equal(_run(model, x), np.einsum("oi,bihw->bohw", path.matrix(), x))


def test_channelwise_operations_keep_their_constants_behind_a_gather() -> None:
    g = GraphBuilder("steps", seed=1)
    x = g.input("x", 6, 2, 2)
    shifted = g.op("Add", x, g.weight(6, 1, 1))
    moved = g.op("Gather", shifted, g.constant(np.array([4, 4, 0], np.int64)), axis=1)
    gate = g.op("Sigmoid", moved)
    end = g.op("Mul", moved, gate)
    g.output("y", end, 3, 2, 2)
    path = ChannelWalker(view(g.model())).back(end)
    assert path.origin.tolist() == [4, 4, 0]
    assert [step.node.op_type for step in path.steps] == ["Add", "Sigmoid", "Mul"]
    assert path.steps[0].rows.tolist() == [4, 4, 0]


@pytest.mark.parametrize("kind", ["residual", "spatial", "softmax"])
def test_walk_stops_at_what_is_no_movement_of_channels(kind: str) -> None:
    g = GraphBuilder("stop", seed=1)
    x = g.input("x", 4, 2, 2)
    order = g.constant(np.array([1, 0, 3, 2], np.int64))
    if kind == "residual":
        end = g.op("Add", x, g.op("Gather", x, order, axis=1))
    elif kind == "spatial":
        end = g.transpose(x, 0, 1, 3, 2)
    else:
        end = g.op("Softmax", x, axis=1)
    g.output("y", end, 4, 2, 2)
    path = ChannelWalker(view(g.model())).back(end)
    assert path.source == end
    assert path.is_identity


def test_padded_channels_come_from_nowhere() -> None:
    g = GraphBuilder("pad", seed=1)
    end = g.pad(g.input("x", 4, 2, 2), [0, 1, 0, 0], [0, 2, 0, 0])
    g.output("y", end, 7, 2, 2)
    path = ChannelWalker(view(g.model())).back(end)
    assert path.origin.tolist() == [-1, 0, 1, 2, 3, -1, -1]


def test_forward_path_ends_where_something_else_reads() -> None:
    g = GraphBuilder("forward", seed=1)
    x = g.input("x", 4, 2, 2)
    moved = g.op("Gather", g.op("Relu", x), g.constant(np.array([3, 2, 1, 0], np.int64)), axis=1)
    active = g.op("Tanh", moved)
    g.output("y", active, 4, 2, 2)
    g.output("z", active, 4, 2, 2)
    walker = ChannelWalker(view(g.model()))
    assert walker.forward(x).target == moved
    assert walker.forward(x, beyond=True).target == active
    assert walker.forward(x).origin.tolist() == [3, 2, 1, 0]

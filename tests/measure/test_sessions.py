"""Feeds for timing, and errors of sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.errors import InputError
from onnxopt.measure.sessions import draw_feeds, open_session, prepare_run, time_models, time_regions
from onnxopt.measure.timing import TimingLimits

QUICK = TimingLimits(pairs=3, max_rounds=1, sample_seconds=0)


def model_of(
    kind: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = (2, 3), op: str = "Identity"
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_floats_are_normal_and_seeded() -> None:
    model = model_of(shape=("n", 1000))
    feeds = draw_feeds(model, seed=7, batch=4)
    assert feeds["x"].shape == (4, 1000)
    assert feeds["x"].dtype == np.float32
    assert abs(float(feeds["x"].std()) - 1) < 0.1
    np.testing.assert_array_equal(feeds["x"], draw_feeds(model, seed=7, batch=4)["x"])
    assert not np.array_equal(feeds["x"], draw_feeds(model, seed=8, batch=4)["x"])


def test_integers_are_zero_and_booleans_true() -> None:
    assert not draw_feeds(model_of(TensorProto.INT64))["x"].any()
    assert draw_feeds(model_of(TensorProto.BOOL))["x"].all()


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (TensorProto.STRING, (2,), "'x' is no tensor of numbers"),
        (TensorProto.FLOAT, (2, "width"), "'x' has no fixed size in dimension 1"),
        (TensorProto.FLOAT, (2, 1 << 40), "'x' of shape .* is larger than 8 GiB"),
    ],
)
def test_inputs_that_cannot_be_drawn(kind: int, shape: tuple[int | str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_feeds(model_of(kind, shape))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT32])
def test_runs_of_every_type_return_the_input(kind: int) -> None:
    model = model_of(kind)
    outputs = prepare_run(open_session(model), draw_feeds(model))()
    assert outputs[0].shape() == [2, 3]  # type: ignore[index]


def test_extra_feeds_are_left_out_and_missing_ones_named() -> None:
    session = open_session(model_of())
    prepare_run(session, {"x": np.zeros((2, 3), np.float32), "more": np.zeros(1)})()
    with pytest.raises(InputError, match="no value for the input 'x'"):
        prepare_run(session, {"more": np.zeros(1)})


def test_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match=r"cannot load the candidate \(.*broken.onnx\)"):
        time_models(model_of(), path, draw_feeds(model_of()), limits=QUICK)


def test_model_that_fails_while_running() -> None:
    model = model_of()
    with pytest.raises(InputError, match="fails while it is timed"):
        time_models(model, model, {"x": np.zeros((9, 9), np.float32)}, limits=QUICK)


def test_times_parts_with_different_inputs() -> None:
    timing = time_regions(model_of(), model_of(op="Relu"), threads=1, limits=QUICK)
    assert timing.pairs == 3
    assert timing.original_us > 0

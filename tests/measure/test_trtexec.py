"""The command lines for trtexec."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper

from onnxopt.errors import InputError
from onnxopt.measure.trtexec import Exports, InputShape, Timing, input_shapes, trtexec_command
from onnxopt.measure.trtexec_options import chosen_options


def _model(*shapes: list[int | str]) -> ModelProto:
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    nodes = [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in range(len(shapes))]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs))


def test_a_model_is_built_strongly_typed_and_timed_by_the_flags_of_every_version() -> None:
    exports = Exports(Path("t.json"), Path("p.json"), Path("l.json"))
    line = trtexec_command(
        "/opt/trtexec", onnx="m.onnx", save_engine="m.engine", plugins=["a.so"], timing_cache="c", exports=exports
    )
    assert line == [
        "/opt/trtexec",
        "--onnx=m.onnx",
        "--stronglyTyped",
        "--profilingVerbosity=detailed",
        "--saveEngine=m.engine",
        "--timingCacheFile=c",
        "--staticPlugins=a.so",
        "--warmUp=500",
        "--duration=10",
        "--iterations=100",
        "--avgRuns=100",
        "--percentile=50,90,95,99",
        "--useCudaGraph",
        "--useSpinWait",
        "--noDataTransfers",
        "--dumpProfile",
        "--separateProfileRun",
        "--exportTimes=t.json",
        "--exportProfile=p.json",
        "--exportLayerInfo=l.json",
    ]


def test_a_loaded_engine_has_no_options_of_building() -> None:
    shapes = (InputShape("x", (1, 3), (4, 3), (8, 3)),)
    line = trtexec_command(engine="m.engine", plugins=["a.so"], shapes=shapes, timing_cache="c")
    assert line[:4] == ["trtexec", "--loadEngine=m.engine", "--staticPlugins=a.so", "--shapes=x:4x3"]
    assert not [part for part in line if part.startswith(("--onnx", "--minShapes", "--timingCache", "--profilingV"))]


def test_a_symbolic_batch_has_its_range_for_each_input() -> None:
    shapes = input_shapes(_model(["n", 3, 8, 8], [2, 5], ["n"]), batch=4, most=16)
    line = trtexec_command(onnx="m.onnx", shapes=shapes)
    assert "--minShapes=x0:1x3x8x8,x2:1" in line
    assert "--optShapes=x0:4x3x8x8,x2:4" in line
    assert "--maxShapes=x0:16x3x8x8,x2:16" in line
    assert "--shapes=x0:4x3x8x8,x2:4" in line


def test_a_fixed_model_names_no_shapes() -> None:
    assert input_shapes(_model([1, 3, 8, 8])) == ()
    assert not [part for part in trtexec_command(onnx="m.onnx") if "hapes" in part]


@pytest.mark.parametrize(("batch", "most"), [(0, None), (4, 2), (1, 1 << 21)])
def test_batches_out_of_range_are_refused(batch: int, most: int | None) -> None:
    with pytest.raises(InputError, match="allowed: 1 to the largest"):
        input_shapes(_model(["n", 3]), batch=batch, most=most)


def test_another_symbolic_axis_is_refused_by_the_inputs_name() -> None:
    with pytest.raises(InputError, match="the input 'x0' has other symbolic axes than the batch"):
        input_shapes(_model(["n", 3, "height"]))


@pytest.mark.parametrize("name", ["", "a,b", "it's"])
def test_a_name_that_trtexec_would_split_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be named in trtexec's --shapes"):
        InputShape(name, (1,), (1,), (1,))


def test_shapes_out_of_order_are_refused() -> None:
    with pytest.raises(InputError, match="from the smallest to the largest"):
        InputShape("x", (2, 3), (1, 3), (4, 3))
    with pytest.raises(InputError, match="the same number of axes"):
        InputShape("x", (2,), (2, 3), (4, 3))


def test_a_model_or_an_engine_but_not_both() -> None:
    for files in ({}, {"onnx": "m.onnx", "engine": "m.engine"}):
        with pytest.raises(InputError, match="either a model or an engine"):
            trtexec_command(**files)
    with pytest.raises(InputError, match="is not saved again"):
        trtexec_command(engine="m.engine", save_engine="n.engine")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warm_up": -1}, "the warm-up in milliseconds is -1"),
        ({"duration": 10_000_000}, "the duration in seconds is 10000000"),
        ({"iterations": 0}, "the number of iterations is 0; allowed: 1"),
        ({"percentiles": "50,101"}, "the percentile 101.0 is not allowed"),
        ({"percentiles": "50,nan"}, "the percentile nan is not allowed"),
        ({"percentiles": "half"}, "the percentiles are 'half'"),
        ({"percentiles": ",".join(["9"] * 17)}, "17 percentiles; allowed: 1 to 16"),
        ({"timeout": 0.0}, "the timeout is 0.0 s"),
    ],
)
def test_bad_choices_are_refused_before_anything_runs(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen_options(values)


def test_choices_reach_the_command_line() -> None:
    options = chosen_options({"duration": 3, "warm_up": 7, "iterations": 9, "percentiles": "99.9,50", "batch": 2})
    assert options.batch == 2
    assert options.timing == Timing(7, 3, 9, 100, (99.9, 50))
    line = trtexec_command(onnx="m.onnx", timing=options.timing)
    assert {"--warmUp=7", "--duration=3", "--iterations=9", "--percentile=99.9,50"} <= set(line)

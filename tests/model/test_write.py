"""Writing: what is read back is what was written, in one file or two, and failures leave nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import InputError
from onnxopt.model import write
from onnxopt.model.read import read_model
from onnxopt.model.write import model_bytes, write_model

MakeModel = Callable[..., onnx.ModelProto]


def weighty_model(as_raw: bool = True) -> onnx.ModelProto:
    """y = If(x > 0) then x + w1 + w2 else x + w3, with weights of 4 KB in all places for them."""
    values = np.arange(1000, dtype=np.float32)

    def weight(name: str) -> TensorProto:
        if as_raw:
            return numpy_helper.from_array(values, name)
        return helper.make_tensor(name, TensorProto.FLOAT, [1000], values)

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1000])

    def constant(name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=weight(name))

    add_w1 = helper.make_function(
        "my",
        "AddW1",
        ["a"],
        ["b"],
        [constant("w1"), helper.make_node("Add", ["a", "w1"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    then = helper.make_graph(
        [
            helper.make_node("AddW1", ["x"], ["t"], domain="my"),
            constant("w2"),
            helper.make_node("Add", ["t", "w2"], ["y1"]),
        ],
        "then",
        [],
        [value("y1")],
    )
    other = helper.make_graph([helper.make_node("Add", ["x", "w3"], ["y2"])], "else", [], [value("y2")], [weight("w3")])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["y0"], then_branch=then, else_branch=other),
        helper.make_node("Add", ["y0", "w0"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "weighty", [value("x")], [value("y")], [weight("w0")])
    graph.initializer[0].doc_string = "a weight"
    graph.initializer[0].metadata_props.add(key="origin", value="test")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[add_w1], ir_version=10)


@pytest.mark.parametrize("element_type", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_small_model_is_one_file(make_model: MakeModel, tmp_path: Path, element_type: int) -> None:
    model = make_model(element_type=element_type)
    write_model(model, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == model.SerializeToString(deterministic=True)
    assert read_model(tmp_path / "model.onnx") == model


def test_a_large_model_is_two_files_and_reads_back_the_same(tmp_path: Path) -> None:
    model = weighty_model()
    before = model.SerializeToString(deterministic=True)
    write_model(model, tmp_path / "model.onnx", inline_limit=1000)
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx").stat().st_size < 4000
    assert model.SerializeToString(deterministic=True) == before
    assert read_model(tmp_path / "model.onnx").SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("as_raw", [True, False])
def test_runtimes_read_the_two_files(tmp_path: Path, as_raw: bool) -> None:
    path = tmp_path / "model.onnx"
    write_model(weighty_model(as_raw), path, inline_limit=0)
    session = onnxruntime.InferenceSession(str(path))
    ramp = np.arange(1000, dtype=np.float32)
    for x, weights in ((1, 3), (0, 2)):
        (result,) = session.run(None, {"x": np.full((2, 1000), x, np.float32)})
        np.testing.assert_array_equal(result, np.broadcast_to(x + weights * ramp, (2, 1000)))


def test_small_tensors_and_strings_stay_in_the_model(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [200], [b"a text"] * 200))
    model.graph.initializer.append(helper.make_tensor("i4", TensorProto.INT4, [4000], [1] * 4000))
    write_model(model, tmp_path / "model.onnx", inline_limit=0)
    assert (tmp_path / "model.onnx.data").read_bytes() == b""
    assert read_model(tmp_path / "model.onnx") == model


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_model(weighty_model(), tmp_path / name / "model.onnx", inline_limit=0)
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_size_is_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weighty_model()
    write_model(model, tmp_path / "model.onnx")
    assert model_bytes(model) == (tmp_path / "model.onnx").stat().st_size
    monkeypatch.setattr(write, "INLINE_LIMIT", 0)
    assert model_bytes(model) == pytest.approx((tmp_path / "model.onnx").stat().st_size, rel=0.1)


@pytest.mark.parametrize("inline_limit", [write.INLINE_LIMIT, 0])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, inline_limit: int
) -> None:
    path = tmp_path / "model.onnx"
    write_model(weighty_model(), path, inline_limit=0)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    changed = weighty_model()
    changed.graph.initializer[0].raw_data = bytes(4000)

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        write_model(changed, path, inline_limit=inline_limit)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_place_that_cannot_be_written_is_reported(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent/model.onnx: there is no folder"):
        write_model(make_model(), tmp_path / "absent" / "model.onnx")
    with pytest.raises(InputError, match="is a folder"):
        write_model(make_model(), tmp_path)


@pytest.mark.slow
def test_a_model_over_2_gb_is_read_written_and_read(make_model: MakeModel, tmp_path: Path) -> None:
    """The weights are a sparse file of zeros, 2.4 GB in three tensors, so that little of the disk is used."""
    model = make_model()
    for index in range(3):
        tensor = model.graph.initializer.add(name=f"large{index}", data_type=TensorProto.FLOAT, dims=[200_000_000])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "zeros.bin"), ("offset", str(800_000_000 * index))):
            tensor.external_data.add(key=key, value=value)
    source = tmp_path / "source.onnx"
    source.write_bytes(model.SerializeToString())
    with (tmp_path / "zeros.bin").open("wb") as zeros:
        zeros.truncate(2_400_000_000)

    read = read_model(source)
    assert model_bytes(read) > 2_400_000_000
    write_model(read, tmp_path / "copy.onnx")
    del read
    assert (tmp_path / "copy.onnx.data").stat().st_size >= 2_400_000_000
    again = read_model(tmp_path / "copy.onnx")
    assert [tensor.name for tensor in again.graph.initializer] == ["w", "large0", "large1", "large2"]
    assert len(again.graph.initializer[3].raw_data) == 800_000_000

"""External data: read where it is what it says, refused where anything about it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import InputError
from onnxopt.model.read import read_model

MakeModel = Callable[..., onnx.ModelProto]
WEIGHTS = np.arange(32, dtype=np.float32).tobytes()


def make_external(tensor: TensorProto, **entries: str | int) -> None:
    """Drops the tensor's values and says instead where they lie."""
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def read_external(model: onnx.ModelProto, folder: Path, **entries: str | int) -> onnx.ModelProto:
    make_external(model.graph.initializer[0], **entries)
    return read_back(model, folder)


def read_back(model: onnx.ModelProto, folder: Path, max_bytes: int | None = None) -> onnx.ModelProto:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return read_model(path, max_bytes=max_bytes)


@pytest.mark.parametrize("element_type", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_data_of_every_precision_is_read(make_model: MakeModel, tmp_path: Path, element_type: int) -> None:
    model = make_model(element_type=element_type)
    data = model.graph.initializer[0].raw_data
    (tmp_path / "w.bin").write_bytes(b"head" + data)
    assert read_external(model, tmp_path, location="w.bin", offset=4, length=len(data)) == make_model(
        element_type=element_type
    )


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "w.bin"},
        {"location": "./w.bin", "offset": 0},
        {"location": "sub/deep/w.bin", "length": 128, "checksum": "ignored"},
        {"location": "sub//deep/./w.bin"},
    ],
)
def test_optional_entries_may_be_missing(make_model: MakeModel, tmp_path: Path, entries: dict[str, str | int]) -> None:
    (tmp_path / "sub/deep").mkdir(parents=True)
    for place in ("w.bin", "sub/deep/w.bin"):
        (tmp_path / place).write_bytes(WEIGHTS)
    assert read_external(make_model(), tmp_path, **entries) == make_model()


def test_a_file_saved_by_onnx_is_read(make_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make_model(), path, save_as_external_data=True, size_threshold=0, location="weights")
    assert (tmp_path / "weights").is_file()
    assert read_model(path) == make_model()


def test_the_models_folder_may_be_reached_through_a_link(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/w.bin").write_bytes(WEIGHTS)
    assert read_external(make_model(), tmp_path / "link", location="w.bin") == make_model()


def test_tensors_in_attributes_subgraphs_and_functions_are_read(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS)
    values = numpy_helper.from_array(np.arange(32, dtype=np.float32), "values")
    constant = helper.make_node("Constant", [], ["c"], value=values)
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [32])])
    flag = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True)))
    choice = helper.make_node("If", ["flag"], ["chosen"], then_branch=branch, else_branch=branch)
    model = make_model()
    model.graph.node.extend([flag, choice])
    model.functions.append(helper.make_function("my", "Fixed", [], ["c"], [constant], [helper.make_opsetid("", 17)]))
    expected = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in (
        model.functions[0].node[0].attribute[0].t,
        *(attribute.g.node[0].attribute[0].t for attribute in model.graph.node[-1].attribute),
    ):
        make_external(tensor, location="w.bin")
    assert read_back(model, tmp_path) == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../w.bin"}, "relative path below"),
        ({"location": "sub/../../w.bin"}, "relative path below"),
        ({"location": "/etc/hostname"}, "relative path below"),
        ({"location": "..\\w.bin"}, "relative path below"),
        ({"location": ""}, "relative path below"),
        ({"location": "."}, "relative path below"),
        ({"location": "a\0b"}, "relative path below"),
        ({}, "without a location"),
        ({"location": "absent.bin"}, "does not exist"),
        ({"location": "w.bin/below"}, "cannot read"),
        ({"location": "folder"}, "is a folder"),
        ({"location": "pipe"}, "is a device, pipe or socket"),
        ({"location": "w.bin", "offset": 1}, "needs bytes 1 to 129 of .*, which has 128"),
        ({"location": "w.bin", "offset": (1 << 63) - 1}, "which has 128"),
        ({"location": "w.bin", "offset": 1 << 63}, "external data offset '9223372036854775808'"),
        ({"location": "w.bin", "offset": -1}, "external data offset '-1'"),
        ({"location": "w.bin", "offset": "1e1"}, "external data offset '1e1'"),
        ({"location": "w.bin", "offset": " 0"}, "external data offset ' 0'"),
        ({"location": "w.bin", "offset": "٣"}, "external data offset"),
        ({"location": "w.bin", "length": 127}, r"127 bytes of external data, .* \[4, 8\] needs 128"),
        ({"location": "w.bin", "length": "-"}, "external data length '-'"),
        ({"location": "w.bin", "__class__": "x"}, "external data key '__class__'; allowed are location"),
    ],
)
def test_wrong_entries_are_refused(
    make_model: MakeModel, tmp_path: Path, entries: dict[str, str | int], message: str
) -> None:
    (tmp_path / "model" / "folder").mkdir(parents=True)
    os.mkfifo(tmp_path / "model" / "pipe")
    (tmp_path / "w.bin").write_bytes(WEIGHTS)
    (tmp_path / "model" / "w.bin").write_bytes(WEIGHTS)
    with pytest.raises(InputError, match=message) as caught:
        read_external(make_model(), tmp_path / "model", **entries)
    assert str(tmp_path) in str(caught.value)
    assert "initializer 'w'" in str(caught.value)


def test_a_link_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(WEIGHTS)
    (tmp_path / "w.bin").symlink_to("real.bin")
    with pytest.raises(InputError, match="symbolic link"):
        read_external(make_model(), tmp_path, location="w.bin")


def test_a_linked_folder_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/w.bin").write_bytes(WEIGHTS)
    (tmp_path / "sub").symlink_to("real")
    with pytest.raises(InputError, match="symbolic link"):
        read_external(make_model(), tmp_path, location="sub/w.bin")


def test_a_hard_link_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(WEIGHTS)
    (tmp_path / "w.bin").hardlink_to(tmp_path / "real.bin")
    with pytest.raises(InputError, match="hard link, one of 2 names"):
        read_external(make_model(), tmp_path, location="w.bin")


def test_a_repeated_key_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    make_external(model.graph.initializer[0], location="w.bin")
    model.graph.initializer[0].external_data.add(key="location", value="other.bin")
    with pytest.raises(InputError, match="'location' twice"):
        read_back(model, tmp_path)


def test_values_in_both_places_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    make_external(model.graph.initializer[0], location="w.bin")
    model.graph.initializer[0].raw_data = WEIGHTS
    with pytest.raises(InputError, match="in the model and external data too"):
        read_back(model, tmp_path)


def test_external_strings_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.graph.initializer[0].data_type = TensorProto.STRING
    with pytest.raises(InputError, match="strings in external data"):
        read_external(model, tmp_path, location="w.bin")


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([-4, -8], "negative dimension"),
        ([1 << 62, 1 << 62], "at most .* are allowed"),
        ([1 << 40], "at most .* are allowed"),
        ([1] * 33, "33 dimensions"),
    ],
)
def test_impossible_sizes_are_refused_before_reading(
    make_model: MakeModel, tmp_path: Path, dims: list[int], message: str
) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS)
    model = make_model()
    model.graph.initializer[0].dims[:] = dims
    with pytest.raises(InputError, match=message):
        read_external(model, tmp_path, location="w.bin")


def test_the_limit_holds_for_all_tensors_together(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS)
    model = make_model()
    make_external(model.graph.initializer[0], location="w.bin")
    for index in range(50):
        model.graph.initializer.append(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"w{index}"
    with pytest.raises(InputError, match="at most 6,000 are allowed"):
        read_back(model, tmp_path, max_bytes=6000)


def test_left_over_entries_of_an_inline_tensor_are_ignored(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.graph.initializer[0].external_data.add(key="location", value="../../secret")
    assert read_back(model, tmp_path) == make_model()

"""Reading: good models come back as they are, anything else is one InputError that names the file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import InputError
from onnxopt.model.read import read_model

MakeModel = Callable[..., onnx.ModelProto]
Spoil = Callable[[onnx.ModelProto], object]


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("element_type", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("opset", [13, 23])
def test_a_good_model_is_read_unchanged(make_model: MakeModel, tmp_path: Path, element_type: int, opset: int) -> None:
    model = make_model(opset, element_type)
    assert read_model(save(model, tmp_path)) == model


def test_a_path_may_be_text(make_model: MakeModel, tmp_path: Path) -> None:
    assert read_model(str(save(make_model(), tmp_path))) == make_model()


def test_the_model_itself_may_be_a_link(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(save(make_model(), tmp_path))
    assert read_model(tmp_path / "link.onnx") == make_model()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"This is a plain text file.\n" * 9, "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"\x08\x08", "no graph"),
        (b"\x08\x08\x3a\xff\xff\x03ab", "truncated"),
        (b"\x3a\xff\xff", "not an ONNX model"),
    ],
)
def test_content_that_is_no_model_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_model(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_model(tmp_path / "absent.onnx")


def test_a_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(InputError, match="null"):
        read_model("a\0b.onnx")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_model(tmp_path)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(InputError, match="pipe"):
        read_model(tmp_path / "pipe.onnx")


def test_a_file_over_the_limit_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 100 are allowed"):
        read_model(save(make_model(), tmp_path), max_bytes=100)


def _set_opset(version: int) -> Spoil:
    def spoil(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return spoil


def _set_input_shape(*shape: int | str | None) -> Spoil:
    def spoil(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))

    return spoil


def _set_input_type(type_proto: onnx.TypeProto) -> Spoil:
    def spoil(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.CopyFrom(type_proto)

    return spoil


def _set_ir_version(version: int) -> Spoil:
    def spoil(model: onnx.ModelProto) -> None:
        model.ir_version = version

    return spoil


def _import_two_versions(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx", 18))


def _make_the_input_an_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 4, 8), np.float32), "x"))


def _list_the_output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def _add_old_function(model: onnx.ModelProto) -> None:
    relu = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("my", "Old", ["a"], ["b"], [relu], [helper.make_opsetid("", 12)]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_set_ir_version(2), "ir_version 2; supported are 3 to 13"),
        (_set_ir_version(99), "ir_version 99"),
        (_set_opset(12), "opset 12; supported are 13 to 23"),
        (_set_opset(24), "opset 24"),
        (_import_two_versions, r"several versions of the standard operators: \[17, 18\]"),
        (lambda model: model.ClearField("opset_import"), "no version of the standard operators"),
        (_add_old_function, "function 'Old' uses opset 12"),
        (lambda model: model.graph.ClearField("input"), "no inputs"),
        (_make_the_input_an_initializer, "no inputs"),
        (lambda model: model.graph.ClearField("output"), "no outputs"),
        (_list_the_output_twice, "lists an output twice"),
        (_set_input_type(onnx.TypeProto()), "'x' has no element type and no shape"),
        (_set_input_type(helper.make_tensor_type_proto(0, [1])), "'x' has no element type"),
        (_set_input_type(helper.make_tensor_type_proto(1, None)), "'x' has no shape"),
        (_set_input_type(helper.make_tensor_type_proto(99, [1])), "unsupported element type 99"),
        (
            _set_input_type(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1]))),
            "'x' is a sequence",
        ),
        (_set_input_shape("N", 4, "L"), r"shape \[N, 4, L\]; export it again with static shapes"),
        (_set_input_shape("N", None, 8), r"shape \[N, \?, 8\]"),
        (_set_input_shape(-1, 4, 8), r"shape \[-1, 4, 8\]"),
        (_set_input_shape(1, 0, 8), r"shape \[1, 0, 8\]"),
        (_set_input_shape(*[1] * 40), "40 dimensions"),
        (_set_input_shape("N", 1 << 62, 1 << 62), "more than the .* bytes allowed"),
    ],
)
def test_an_unsupported_model_is_refused(make_model: MakeModel, tmp_path: Path, spoil: Spoil, message: str) -> None:
    model = make_model()
    spoil(model)
    path = save(model, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_model(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("shape", [(None, 4, 8), (1, 4, 8), ("batch", 4, 8)])
def test_only_the_first_dimension_may_be_open(
    make_model: MakeModel, tmp_path: Path, shape: tuple[int | str | None, ...]
) -> None:
    model = make_model()
    _set_input_shape(*shape)(model)
    assert read_model(save(model, tmp_path)) == model


def test_an_input_with_an_initializer_needs_no_shape(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.graph.input.append(onnx.ValueInfoProto(name="w"))
    assert read_model(save(model, tmp_path)) == model


def test_custom_operators_are_accepted_untouched(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.graph.node[1].domain = "com.example"
    model.graph.node[1].op_type = "Mystery"
    model.opset_import.append(helper.make_opsetid("com.example", 7))
    assert read_model(save(model, tmp_path)) == model


@pytest.mark.parametrize("text", [b"relu", b"sum", b"tiny", b"Add", b"N"])
def test_text_that_is_not_utf8_is_refused(make_model: MakeModel, tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "model.onnx"
    content = make_model().SerializeToString()
    assert text in content
    path.write_bytes(content.replace(text, b"\xff" * len(text)))
    with pytest.raises(InputError, match="not UTF-8"):
        read_model(path)


def test_deep_nesting_is_refused_without_exhausting_the_stack(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    inner = b""
    for _ in range(3000):
        # GraphProto in AttributeProto.g in NodeProto.attribute in GraphProto.node, written by hand:
        # the Python API could not nest messages this deep.
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            inner = tag + _varint(len(inner)) + inner
    path = tmp_path / "deep.onnx"
    path.write_bytes(model.SerializeToString() + b"\x3a" + _varint(len(inner)) + inner)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_model(path)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(make_model: MakeModel, data: st.DataObject) -> None:
    content = bytearray(make_model().SerializeToString())
    end = data.draw(st.integers(0, len(content)), "length")
    del content[end:]
    bits = st.integers(0, max(0, 8 * len(content) - 1))
    for bit in data.draw(st.lists(bits, max_size=4), "flipped bits") if content else []:
        content[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        try:
            model = read_model(path, max_bytes=1 << 20)
        except InputError as error:
            assert str(path) in str(error)
        else:
            assert model.HasField("graph")


@pytest.mark.corpus
@pytest.mark.parametrize("tag", ["shufflenet2_1x.legacy.op17", "swin_tiny_224.legacy.op18.dyn"])
def test_a_model_of_the_corpus_is_read_unchanged(corpus_model: Callable[[str], Path], tag: str) -> None:
    path = corpus_model(tag)
    assert read_model(path).SerializeToString() == path.read_bytes()


@pytest.mark.corpus_all
def test_every_model_of_the_corpus_is_read(
    corpus_manifest: dict[str, object], corpus_model: Callable[[str], Path]
) -> None:
    for tag in corpus_manifest:
        assert read_model(corpus_model(tag)).graph.node


def test_the_supported_ir_versions_run(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    feeds = {"x": np.ones((2, 4, 8), np.float32)}
    for version in (3, 13):
        model.ir_version = version
        if version < 4:
            weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 8])
            model.graph.input.append(weight)
        read = read_model(save(model, tmp_path))
        (result,) = onnxruntime.InferenceSession(read.SerializeToString()).run(None, feeds)
        np.testing.assert_array_equal(result, np.ones((2, 1, 1)) + np.arange(32).reshape(4, 8))


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        (helper.make_node("Split", ["x"], ["p", "q"], name="halves", num_outputs=3), "num_outputs is 3, but it has 2"),
        (helper.make_node("GatherND", ["x", "i"], ["p"], name="pick", batch_dims=-1), "batch_dims is -1; allowed: 0"),
    ],
)
def test_nodes_that_would_end_the_process_are_refused_by_name(
    make_model: MakeModel, tmp_path: Path, node: onnx.NodeProto, fault: str
) -> None:
    model = make_model()
    branch = helper.make_graph([node], "branch", [], [])
    for nodes in ([node], [helper.make_node("If", ["c"], ["z"], name="if", then_branch=branch)]):
        spoiled = onnx.ModelProto()
        spoiled.CopyFrom(model)
        spoiled.graph.node.extend(nodes)
        with pytest.raises(InputError, match=f"{node.op_type} node {node.name!r}: {fault}"):
            read_model(save(spoiled, tmp_path))

"""Stored tensors: their sizes, and values that do not fit the declared shape."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import InputError
from onnxopt.model.tensors import StoredTensor, check_inline, node_label, raw_values, tensor_bytes

SUPPORTED = [
    *range(TensorProto.FLOAT, TensorProto.STRING),
    *range(TensorProto.BOOL, TensorProto.FLOAT4E2M1 + 1),
    TensorProto.FLOAT8E8M0,
    TensorProto.UINT2,
    TensorProto.INT2,
]


@pytest.mark.parametrize("element_type", SUPPORTED)
@pytest.mark.parametrize("raw", [False, True])
def test_every_element_type_passes_in_both_forms(element_type: int, raw: bool) -> None:
    tensor = helper.make_tensor("t", element_type, [5], [1, 0, 1, 1, 0])
    if raw:
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), "t")
        assert len(tensor.raw_data) == tensor_bytes(StoredTensor(tensor, "tensor"))
    check_inline(StoredTensor(tensor, "tensor"))


def test_strings_pass() -> None:
    check_inline(StoredTensor(helper.make_tensor("t", TensorProto.STRING, [2], [b"a", b"b"]), "tensor"))


def test_an_empty_tensor_needs_no_values() -> None:
    check_inline(StoredTensor(TensorProto(data_type=TensorProto.FLOAT, dims=[0, 3]), "tensor"))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            TensorProto(data_type=1, dims=[2], raw_data=b"1234567"),
            r"7 bytes, but .* \[2\] of FLOAT needs 8",
        ),
        (TensorProto(data_type=1, dims=[2], float_data=[1.0]), "1 values, but"),
        (TensorProto(data_type=1, dims=[2]), "0 values, but"),
        (TensorProto(data_type=8, dims=[2], string_data=[b"a"]), "1 values, but"),
        (TensorProto(data_type=7, dims=[1], float_data=[1.0]), "in float_data, not in int64_data"),
        (TensorProto(data_type=1, dims=[1], raw_data=b"1234", float_data=[1.0]), "raw_data and elsewhere"),
        (TensorProto(data_type=8, dims=[1], raw_data=b"1"), "raw_data and elsewhere"),
        (TensorProto(data_type=0, dims=[1], raw_data=b"1"), "element type 0"),
        (TensorProto(data_type=99, dims=[1], raw_data=b"1"), "element type 99"),
        (TensorProto(data_type=1, dims=[-1], raw_data=b"1"), "negative dimension"),
        (TensorProto(data_type=1, dims=[1 << 62] * 9, raw_data=b"1"), "holds 1 bytes"),
        (TensorProto(data_type=1, dims=[1] * 33, raw_data=b"1234"), "33 dimensions"),
        (TensorProto(data_type=1, dims=[1], segment=TensorProto.Segment(begin=0, end=1)), "segments"),
    ],
)
def test_values_that_do_not_fit_are_refused(tensor: TensorProto, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_inline(StoredTensor(tensor, "initializer 't'"))


def test_typed_values_become_raw() -> None:
    values = np.array([1.5, -2.0], np.float32)
    assert raw_values(helper.make_tensor("t", TensorProto.FLOAT, [2], values)) == values.tobytes()
    assert raw_values(helper.make_tensor("t", TensorProto.STRING, [1], [b"a"])) is None


def test_a_node_without_a_name_is_called_by_its_output() -> None:
    assert node_label(helper.make_node("Relu", ["x"], ["y"], name="r")) == "Relu node 'r'"
    assert node_label(helper.make_node("Relu", ["x"], ["y"])) == "Relu node that makes 'y'"
    assert node_label(helper.make_node("Relu", ["x"], [])) == "Relu node without a name"

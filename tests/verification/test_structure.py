"""The checker's verdict decides, except on faults that the original has as well."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.errors import VerificationError
from onnxopt.verification.structure import check_structure


def saved(path: Path, kind: str, shape: list[int]) -> Path:
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"], name="n", domain="" if kind in ("Relu", "MatMul") else "vendor")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("vendor", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def test_a_valid_model_passes_also_with_unknown_operators(tmp_path: Path) -> None:
    for kind in ("Relu", "Sparkle"):
        model = saved(tmp_path / f"{kind}.onnx", kind, [2, 3])
        assert check_structure(model, model) == ""


def test_a_wrong_shape_is_a_fault_of_the_candidate_alone(tmp_path: Path) -> None:
    good, bad = saved(tmp_path / "good.onnx", "Relu", [2, 3]), saved(tmp_path / "bad.onnx", "Relu", [2, 4])
    with pytest.raises(VerificationError, match="not valid ONNX"):
        check_structure(bad, good)
    assert "no valid ONNX" in check_structure(bad, bad)

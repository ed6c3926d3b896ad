"""Whether a written model is a valid ONNX model, by the library's own checker with full shape inference."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.shape_inference import InferenceError

from onnxopt.errors import VerificationError


def check_structure(candidate: Path, original: Path) -> str:
    """Check a model file; returns a note (empty where there is nothing to say).

    Raises :class:`VerificationError` where ``candidate`` is invalid and ``original`` is not: what an exporter got
    wrong is not the rewrite's fault, and is reported instead.
    """
    fault = _fault(candidate)
    if not fault:
        return ""
    if _fault(original):
        return f"the original is no valid ONNX model ({fault}), and so the result is none either"
    raise VerificationError(
        f"the rewritten model is not valid ONNX: {fault}; nothing was written. "
        "This is a defect of onnxopt: please report it with the model's structure"
    )


def _fault(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, InferenceError, ValueError) as error:
        return " ".join(str(error).split())[:300]
    return ""

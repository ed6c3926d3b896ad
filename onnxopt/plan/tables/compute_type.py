"""The NumPy types of tensors that kernels read, and conversion to them. Needs nothing but NumPy, and bf16 ml_dtypes."""

from __future__ import annotations

import numpy as np

from onnxopt.target.variant import Element


def compute_type(element: Element) -> np.dtype:
    """The NumPy type of what tensors and biases hold."""
    if element == "bf16":
        import ml_dtypes

        kind: np.dtype = np.dtype(ml_dtypes.bfloat16)
        return kind
    return np.dtype(np.float16 if element == "fp16" else np.float32)


def in_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert, keeping finite values finite: float16 has no 1e5."""
    if dtype == np.float32:
        return values.astype(np.float32)
    limit = 65504.0 if dtype == np.float16 else 3.38e38
    return np.asarray(np.clip(values, -limit, limit), dtype)

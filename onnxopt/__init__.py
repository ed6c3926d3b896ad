"""Finds sparse attention and grouped or pruned convolution in ONNX models and rewrites them into less work.

The public functions are loaded on first use, so that `import onnxopt` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxopt.errors import InputError, MissingError, OnnxOptError, VerificationError

if TYPE_CHECKING:
    from onnxopt.api import build, inspect, optimize, verify

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "MissingError",
    "OnnxOptError",
    "VerificationError",
    "__version__",
    "build",
    "inspect",
    "optimize",
    "verify",
]

_FROM_API = ("build", "inspect", "optimize", "verify")


def __getattr__(name: str) -> Any:
    if name in _FROM_API:
        return getattr(import_module("onnxopt.api"), name)
    raise AttributeError(f"module 'onnxopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Comparing two models by the numeric rule: inputs as the model expects them, both runs, and what differs
where.
"""

from onnxopt.verification.compare import (
    FP32_RULE,
    AbsoluteRule,
    BaselineRule,
    OutputReport,
    baseline_rule,
    compare_outputs,
)
from onnxopt.verification.inputs import draw_inputs, load_inputs
from onnxopt.verification.models import verify_models
from onnxopt.verification.outcome import DrawReport, SiteReport, VerifyReport
from onnxopt.verification.reduced import verify_rewritten

__all__ = [
    "FP32_RULE",
    "AbsoluteRule",
    "BaselineRule",
    "DrawReport",
    "OutputReport",
    "SiteReport",
    "VerifyReport",
    "baseline_rule",
    "compare_outputs",
    "draw_inputs",
    "load_inputs",
    "verify_models",
    "verify_rewritten",
]

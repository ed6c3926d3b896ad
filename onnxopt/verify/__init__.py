"""Comparing two models by the numeric rule: inputs as the model expects them, both runs, and what differs
where.
"""

from onnxopt.verify.compare import (
    FP32_RULE,
    AbsoluteRule,
    BaselineRule,
    OutputReport,
    baseline_rule,
    compare_outputs,
)
from onnxopt.verify.inputs import draw_inputs, load_inputs
from onnxopt.verify.models import verify_models
from onnxopt.verify.outcome import DrawReport, SiteReport, VerifyReport

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
]

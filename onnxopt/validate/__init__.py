"""Proofs that a plan, and what was written from it, compute exactly their site.

They read the contract (the site) and the data to be judged, and share no code with what made that data.
"""

from onnxopt.validate.attention import validate_attention_plan
from onnxopt.validate.attention_tables import validate_attention_tables
from onnxopt.validate.convolution import validate_conv_plan
from onnxopt.validate.convolution_weights import validate_conv_weights
from onnxopt.validate.failure import PlanError

__all__ = [
    "PlanError",
    "validate_attention_plan",
    "validate_attention_tables",
    "validate_conv_plan",
    "validate_conv_weights",
]

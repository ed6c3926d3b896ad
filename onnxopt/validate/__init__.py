"""Proofs that a plan, and what was written from it, compute exactly their site.

They read the contract (the site) and the data to be judged, and share no code with what made that data.
"""

from onnxopt.validate.attention import validate_attention_plan
from onnxopt.validate.attention_contents import validate_attention_contents
from onnxopt.validate.attention_launch import validate_attention_launch
from onnxopt.validate.attention_schedule import validate_attention_schedule
from onnxopt.validate.attention_tables import validate_attention_tables
from onnxopt.validate.conv_contents import validate_conv_contents
from onnxopt.validate.conv_launch import validate_conv_launch
from onnxopt.validate.conv_schedule import validate_conv_schedule
from onnxopt.validate.convolution import validate_conv_plan
from onnxopt.validate.convolution_weights import validate_conv_weights
from onnxopt.validate.failure import PlanError

__all__ = [
    "PlanError",
    "validate_attention_contents",
    "validate_attention_launch",
    "validate_attention_plan",
    "validate_attention_schedule",
    "validate_attention_tables",
    "validate_conv_contents",
    "validate_conv_launch",
    "validate_conv_plan",
    "validate_conv_schedule",
    "validate_conv_weights",
]

"""The source of an operator's kernel from what a model says of the operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxopt.kernels.algorithm_source import ALGORITHM_FILES, algorithm_source
from onnxopt.kernels.block_source import conv_block_source
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.kernels.source import KernelSource, attention_source, merge_source

_RESIDENT = {"SparseAttention": attention_source, "GroupConv": group_conv_source, "ConvBlock": conv_block_source}
_SECOND = {"MergeAttention": merge_source, "SumConv": sum_conv_source}


def operator_source(configuration: Mapping[str, Any], resident: int) -> KernelSource:
    """The source of an operator's kernel from its configuration in the plugin form.

    ``resident`` is the number of blocks that its plan counts on for each multiprocessor; kernels that are not planned
    by it do not read it. The operator is one of those that the plugin form has. Raises InputError for a configuration
    that its kernel is not written for.
    """
    operator, kernel = configuration["operator"], configuration["kernel"]
    if operator in ALGORITHM_FILES:
        return algorithm_source(operator, kernel)
    return _SECOND[operator](kernel) if operator in _SECOND else _RESIDENT[operator](kernel, resident)

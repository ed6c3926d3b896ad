"""Which operator an entry of a job has."""

from __future__ import annotations

from onnxopt.measure.job.algorithm_operator import AlgorithmOperator
from onnxopt.measure.job.attention_operator import AttentionOperator
from onnxopt.measure.job.content import Entry
from onnxopt.measure.job.conv_operator import ConvOperator
from onnxopt.measure.job.operator import Operator


def operator_of(entry: Entry) -> Operator:
    """What a job does with an entry's operator."""
    if entry.kind == "algorithm":
        return AlgorithmOperator()
    return ConvOperator() if entry.kind == "conv" else AttentionOperator()

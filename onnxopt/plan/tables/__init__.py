"""The tables that kernels read: ``docs/tables.md`` says what every entry means."""

from onnxopt.plan.tables.attention import attention_tables
from onnxopt.plan.tables.conv import conv_tables
from onnxopt.plan.tables.conv_types import ConvTables, SumTables
from onnxopt.plan.tables.pieces import NoTables
from onnxopt.plan.tables.types import (
    AttentionTables,
    MergeTables,
    RuntimeWeights,
)
from onnxopt.plan.tables.work import ConvWork, conv_work

__all__ = [
    "AttentionTables",
    "ConvTables",
    "ConvWork",
    "MergeTables",
    "NoTables",
    "RuntimeWeights",
    "SumTables",
    "attention_tables",
    "conv_tables",
    "conv_work",
]

"""Partitioning the outputs of a connectivity into parts, with a proven bound on what any partition costs."""

from onnxopt.plan.partition.partition import partition
from onnxopt.plan.partition.problem import CostFunction, CostTable, Part, Partition

__all__ = ["CostFunction", "CostTable", "Part", "Partition", "partition"]

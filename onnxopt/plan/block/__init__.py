"""Blocks of convolutions that one kernel computes: what they are, how they are cut into jobs, and their tables."""

from onnxopt.plan.block.tables import block_tables
from onnxopt.plan.block.types import BlockKernel, BlockShape, BlockTables
from onnxopt.plan.block.work import BlockWork, block_work

__all__ = ["BlockKernel", "BlockShape", "BlockTables", "BlockWork", "block_tables", "block_work"]

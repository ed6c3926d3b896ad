"""What an engine has to know of an operator of our own: its tensors, and for each tactic its kernel and its launch.

Generated plugin modules, the launcher library and the checks of both are made from this one description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from onnx import TensorProto

TensorType = Literal["fp16", "bf16", "float32", "int32"]

ONNX_TYPES: Mapping[TensorType, int] = {
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
}
"""The ``TensorProto.DataType`` of each type."""

TENSOR_BYTES: Mapping[TensorType, int] = {"fp16": 2, "bf16": 2, "float32": 4, "int32": 4}


@dataclass(frozen=True)
class Port:
    """A tensor that goes into an operator: its name there, its type, and its sizes, None where one follows the batch.

    Every tensor lies densely in row-major order.
    """

    name: str
    type: TensorType
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Output:
    """A tensor that an operator makes; of a batch element it has ``elements``, and at most one of its sizes is None."""

    name: str
    type: TensorType
    shape: tuple[int | None, ...]
    elements: int

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Its sizes for a batch: the one that is left open holds what the others do not."""
        known = prod(size for size in self.shape if size is not None)
        return tuple(batch * self.elements // known if size is None else size for size in self.shape)


@dataclass(frozen=True)
class Grid:
    """How many blocks a launch has: ``factor`` for every ``size`` of the ``count`` things that a batch element has.

    That is factor * ceil(batch * count / size); factor are the jobs of attention and convolutions, whose blocks may
    take ``size`` images together, while merges and sums have ``count`` lines or elements, ``size`` to a block.
    """

    factor: int
    count: int
    size: int

    def blocks(self, batch: int) -> int:
        """Blocks for a batch."""
        return self.factor * -(-batch * self.count // self.size)


@dataclass(frozen=True)
class Tactic:
    """One way to compute an operator: a kernel with tables of its own, and how it is launched.

    ``configuration`` is that of the operator in the plugin form whose tables it reads, ``resident`` how many of its
    blocks its plan counts on for each multiprocessor. ``first_table`` is where its tables begin among those of all
    tactics, ``tables`` how many there are. The kernel is called with the operands, the tables of *all* tactics, the
    batch as int32, and the outputs, and reads those tables that are its own.
    """

    configuration: Mapping[str, Any]
    resident: int
    first_table: int
    tables: int
    entry: str
    grid: Grid
    threads: int
    shared_bytes: int
    predicted_us: float | None = None


@dataclass(frozen=True)
class EngineOperator:
    """An operator as an engine sees it: inputs are its ``operands``, then the ``tables`` of each tactic in turn.

    ``batch_elements`` are the elements that the first operand has for a batch element, so that the batch is their
    number divided by it. The first tactic is the one that is predicted to be the fastest.
    """

    name: str
    operands: tuple[Port, ...]
    tables: tuple[Port, ...]
    outputs: tuple[Output, ...]
    batch_elements: int
    tactics: tuple[Tactic, ...]

    @property
    def inputs(self) -> tuple[Port, ...]:
        """All inputs in their order."""
        return (*self.operands, *self.tables)

    def batch(self, sizes: Sequence[int]) -> int:
        """The batch, from the sizes of the first operand."""
        return prod(sizes) // self.batch_elements

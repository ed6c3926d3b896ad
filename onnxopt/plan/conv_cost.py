"""What convolutions and the movement around them cost on a CPU in ONNX Runtime, from a profile's rates.

ONNX Runtime runs a convolution in blocks of channels where its channels allow that, and otherwise as a matrix product
for each group over a copied-out matrix of input patches. The fractions below relate both to the profile's rate for a
large matrix product; they were fitted to single nodes of DenseNet-like models with ONNX Runtime 1.31 on two AVX-512
cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from onnxopt.target.figures import CpuProfile

# Channels of a block with 512-bit vectors; a multiple of those of narrower ones.
BLOCK = 16
_BLOCKED_RATE = 1.0
_GROUP_RATE = 0.6
# The rates at which patches are copied out, and scattered back by a single thread, as fractions of the memory's.
_PATCH_RATE = 1.0
_SCATTER_RATE = 0.35
_PASS_RATE = 1.6
# Waking the second thread and leaving it again, for one operator on a tensor that is worth splitting.
_OPERATOR_SECONDS = 8e-6
# A row of output positions costs about as much as one that is this much longer, because its ends are done singly.
_ROW_OVERHEAD = 3.0


@dataclass(frozen=True)
class ConvShape:
    """The size of one convolution; ``positions`` are output positions over the whole batch, ``row`` those of a row."""

    groups: int
    group_inputs: int
    group_outputs: int
    taps: int
    positions: int
    row: int
    element_bytes: int = 4

    @property
    def products(self) -> int:
        """Multiply-adds, zeros that are computed included."""
        return self.groups * self.group_inputs * self.group_outputs * self.taps * self.positions

    @property
    def blocked(self) -> bool:
        """Whether ONNX Runtime runs it in blocks of channels."""
        if self.groups == 1:
            return self.group_inputs % 4 == 0
        if self.group_inputs == 1 and self.group_outputs == 1:
            return True
        return self.group_inputs % BLOCK == 0 and self.group_outputs % BLOCK == 0


def conv_seconds(shape: ConvShape, cpu: CpuProfile) -> float:
    """The time of the convolution alone, its input and output in the layout that it wants."""
    product_rate = cpu.fp32_flops / 2
    if shape.blocked:
        outputs = -(-shape.group_outputs // BLOCK) * BLOCK if shape.group_inputs > 1 else shape.group_outputs
        products = shape.products / shape.group_outputs * outputs
        ends = 1.0 if shape.taps == 1 else (shape.row + _ROW_OVERHEAD) / shape.row
        return _OPERATOR_SECONDS + products * ends / (product_rate * _BLOCKED_RATE)
    patches = shape.groups * shape.group_inputs * shape.taps * shape.positions * shape.element_bytes
    copied = patches / (cpu.memory_bytes_per_second * _PATCH_RATE)
    return _OPERATOR_SECONDS + shape.products / (product_rate * _GROUP_RATE) + copied


def transposed_seconds(shape: ConvShape, cpu: CpuProfile) -> float:
    """The time of the same convolution as a transposed one: products first, then patches of the *output* summed."""
    patches = shape.groups * shape.group_outputs * shape.taps * shape.positions * shape.element_bytes
    scattered = patches / (cpu.memory_bytes_per_second * _SCATTER_RATE)
    return _OPERATOR_SECONDS + shape.products / (cpu.fp32_flops / 2 * _GROUP_RATE) + scattered


def pass_seconds(dims: tuple[int, ...], cpu: CpuProfile, element_bytes: int = 4) -> float:
    """The time of one operator that reads and writes a tensor of ``dims`` once (Gather, Relu, a change of layout)."""
    return _OPERATOR_SECONDS + 2 * prod(dims) * element_bytes / (cpu.memory_bytes_per_second * _PASS_RATE)


def bound_seconds(connections: int, taps: int, positions: int, cpu: CpuProfile) -> float:
    """The least time that ``connections`` live pairs can take: their arithmetic at the CPU's peak rate."""
    return 2.0 * connections * taps * positions / cpu.fp32_flops

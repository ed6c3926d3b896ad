"""What the steps of a convolution algorithm compute, in standard operators.

A function computes in float32 from constants of its own. Unfolding, shifting and transforming tiles are linear and the
same at every position, so each is one grouped ``Conv`` with constant weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from onnx import FunctionProto, TensorProto

from onnxopt.lower.operator_body import wide_name, widened_function
from onnxopt.lower.operator_nodes import OperatorNodes
from onnxopt.lower.plugin_nodes import FIRST_OPERANDS, RESIDUAL
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph
from onnxopt.plan.algorithms.packing import packed_weights
from onnxopt.plan.algorithms.tables import StepTables, work_geometry
from onnxopt.plan.tables import ConvWork

_SITE = "body"
# Lavin and Gray, 2016, points 0, 1, -1, (2, -2,) infinity: B^T and A^T of F(2, 3) and F(4, 3).
_INPUT: Mapping[int, Sequence[Sequence[int]]] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_OUTPUT: Mapping[int, Sequence[Sequence[int]]] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}


def algorithm_bodies(
    name: str, work: ConvWork, steps: Sequence[StepTables], kind: int, graph: Graph
) -> tuple[FunctionProto, ...]:
    """One function for each step of the algorithm ``name``; ``kind`` is the ONNX type of the operators' operands."""
    return tuple(_function(name, work, steps, step, kind, graph) for step in steps)


def _function(
    name: str, work: ConvWork, steps: Sequence[StepTables], step: StepTables, kind: int, graph: Graph
) -> FunctionProto:
    # Products and partial planes are float32 whatever the operands are.
    read = TensorProto.FLOAT if FIRST_OPERANDS[step.step.operator] in ("products", "partial") else kind
    body = _Body(name, work, steps, step, read, kind, OperatorNodes(_SITE, graph, TensorProto.FLOAT, None))
    output = body.build()
    operands = [FIRST_OPERANDS[step.step.operator], *([RESIDUAL] if RESIDUAL in step.step.inputs else [])]
    rewrite = Rewrite(_SITE, (), tuple(body.nodes.nodes), tuple(body.nodes.tables.values()))
    names = [*operands, *step.tables]
    return widened_function(step.operator(), names, [output], rewrite, kind, graph.opset, step.configuration())


@dataclass
class _Body:
    """The nodes of one function."""

    name: str
    work: ConvWork
    steps: Sequence[StepTables]
    own: StepTables
    read: int
    kind: int
    nodes: OperatorNodes
    kernel: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.kernel = self.own.step.kernel

    def build(self) -> str:
        """Make the output, and its name."""
        makers = {
            "ConvScalar": self._convolved,
            "ConvDirect": self._convolved,
            "ConvSlices": self._slices,
            "ConvUnfold": self._unfold,
            "ConvProduct": self._product,
            "ConvShiftAdd": self._shift_add,
            "SumConv": self._sum,
            "WinogradInput": self._winograd_input,
            "WinogradOutput": self._winograd_output,
        }
        made = makers[self.own.step.operator]()
        (output,) = self.own.step.outputs
        if output == "y":
            made = self._finished(made)
        narrow = TensorProto.FLOAT if self.own.step.output_type == "float32" else self.kind
        self.nodes.nodes[-1].output[0] = wide_name(output, narrow)
        return output

    @property
    def _first(self) -> str:
        return wide_name(FIRST_OPERANDS[self.own.step.operator], self.read)

    @property
    def _outputs(self) -> int:
        return len(self.work.weights)

    def _finished(self, tensor: str) -> str:
        """Bias, residual and activation behind sums, whatever the shape of their positions; then the layer's shape."""
        outputs, positions = self._outputs, prod(self.work.output_size)
        tensor = self._reshape(tensor, [-1, outputs, positions], "sums")
        tensor = self._node("Add", [tensor, self._constant(self.own.tables["b"].reshape(-1, 1))], "bias")
        if self.own.step.kernel["residual"]:
            added = self._reshape(wide_name(RESIDUAL, self.kind), [-1, outputs, positions], "residual")
            tensor = self._node("Add", [tensor, added], "sum")
        tensor = self._activated(tensor, self.own.step.kernel["activation"])
        return self._reshape(tensor, [-1, outputs, *self.work.output_size], "shape")

    def _activated(self, tensor: str, kind: str) -> str:
        if kind == "none":
            return tensor
        if kind == "relu":
            return self._node("Relu", [tensor], "relu")
        if kind == "silu":
            gate = self._node("Sigmoid", [tensor], "gate")
        else:
            gate = self._node("HardSigmoid", [tensor], "gate", alpha=1 / 6, beta=0.5)
        return self._node("Mul", [tensor, gate], kind)

    def _planes(self) -> str:
        """x as this layer has it: another layer of the same operator may have other axes of size 1."""
        return self._reshape(self._first, [-1, self.work.channels, *self.work.size], "x")

    def _convolved(self) -> str:
        return self._conv(self._planes(), self.work.weights, self.work.channels // self.work.weights.shape[1])

    def _slices(self) -> str:
        if not self.kernel["raw"]:
            return self._convolved()
        weights, slices = self.work.weights, self.kernel["slices"]
        outputs, inputs = weights.shape[:2]
        cuts = [number * inputs // slices for number in range(slices + 1)]
        if inputs % slices == 0:
            rows = np.concatenate([weights[:, a:b] for a, b in pairwise(cuts)])
            made = self._conv(self._planes(), rows, slices)
        else:
            rows = np.zeros((slices, *weights.shape), weights.dtype)
            for number, (begin, end) in enumerate(pairwise(cuts)):
                rows[number, :, begin:end] = weights[:, begin:end]
            made = self._conv(self._planes(), rows.reshape(slices * outputs, *weights.shape[1:]), 1)
        return self._reshape(made, [-1, slices * outputs, prod(self.work.output_size)], "partial")

    def _sum(self) -> str:
        begins, rows = self.own.tables["sum_begin"].tolist(), self.own.tables["sum_rows"]
        counts = np.zeros((self._outputs, self.kernel["slots"]))
        for channel, (begin, end) in enumerate(pairwise(begins)):
            np.add.at(counts[channel], rows[begin:end], 1)
        return self._node("MatMul", [self._constant(counts), self._first], "planes")

    def _unfold(self) -> str:
        """Output i * taps + t of the convolution is what tap t of input i meets."""
        taps, inputs = prod(self.kernel["kernel"]), self.work.channels
        shape = self.work.weights.shape[2:]
        one_each = np.tile(np.eye(taps).reshape(taps, 1, *shape), (inputs, *[1] * (1 + len(shape))))
        made = self._conv(self._planes(), one_each, inputs)
        made = self._reshape(made, [-1, inputs * taps, prod(self.work.output_size)], "rows")
        return self._widened(made, prod(self.work.output_size))

    def _product(self) -> str:
        kernel = self.kernel
        matrices, rows, depth, positions = (kernel[n] for n in ("matrices", "rows", "depth", "positions"))
        columns = self._reshape(self._first, [-1, matrices, depth, kernel["pitch"]], "columns")
        if kernel["pitch"] > positions:
            columns = self._cut(columns, [positions], [3], "positions")
        geometry = work_geometry(self.work)
        steps = [own.step for own in self.steps]
        packed = packed_weights(self.name, geometry, "fp32", steps, self.work.weights)["w"]
        weights = packed.reshape(matrices, rows, -1)[..., :depth]
        made = self._node("MatMul", [self._constant(weights), columns], "product")
        return made if kernel["raw"] else self._reshape(made, [-1, rows, positions], "rows")

    def _shift_add(self) -> str:
        """A convolution of each output's own products, in which tap t reads those of tap t alone."""
        taps, outputs = prod(self.kernel["kernel"]), self._outputs
        tensor = self._reshape(self._first, [-1, taps, outputs, prod(self.work.size)], "taps")
        tensor = self._node("Transpose", [tensor], "outputs", perm=[0, 2, 1, 3])
        tensor = self._reshape(tensor, [-1, outputs * taps, *self.work.size], "planes")
        one_each = np.eye(taps).reshape(1, taps, *self.work.weights.shape[2:])
        return self._conv(tensor, np.repeat(one_each, outputs, axis=0), outputs)

    def _winograd_input(self) -> str:
        """A convolution of each input with the transform of every entry, a tile's distance apart."""
        size, (_, height, width) = self.kernel["tile"], self.kernel["input_size"]
        down, across = self._tiles()
        top, left = self.kernel["pads"][1:]
        transform, inputs = np.array(_INPUT[size], np.float64), self.work.channels
        side = size + 2
        entries = np.einsum("ai,bj->abij", transform, transform).reshape(side * side, 1, side, side)
        pads = [top, left, down * size + 2 - height - top, across * size + 2 - width - left]
        x = self._reshape(self._first, [-1, inputs, height, width], "plane")
        weights = self._constant(np.tile(entries, (inputs, 1, 1, 1)))
        made = self._node("Conv", [x, weights], "transform", group=inputs, strides=[size, size], pads=pads)
        made = self._reshape(made, [-1, inputs, side * side, down * across], "entries")
        return self._widened(self._node("Transpose", [made], "inputs", perm=[0, 2, 1, 3]), down * across)

    def _winograd_output(self) -> str:
        size, (_, height, width) = self.kernel["tile"], self.kernel["output_size"]
        down, across = self._tiles()
        transform = np.array(_OUTPUT[size], np.float64)
        tensor = self._node("Transpose", [self._first], "outputs", perm=[0, 2, 1, 3])
        tensor = self._node("MatMul", [self._constant(np.kron(transform, transform)), tensor], "transform")
        tensor = self._reshape(tensor, [-1, self._outputs, size, size, down, across], "tiles")
        tensor = self._node("Transpose", [tensor], "places", perm=[0, 1, 4, 2, 5, 3])
        tensor = self._reshape(tensor, [-1, self._outputs, down * size, across * size], "plane")
        return self._cut(tensor, [height, width], [2, 3], "inside")

    def _tiles(self) -> tuple[int, int]:
        down, across = (-(-n // self.kernel["tile"]) for n in self.kernel["output_size"][1:])
        return down, across

    def _conv(self, tensor: str, weights: np.ndarray, groups: int) -> str:
        work = self.work
        geometry: dict[str, Any] = {"strides": work.strides, "dilations": work.dilations, "pads": work.pads}
        return self._node("Conv", [tensor, self._constant(weights)], "convolution", group=groups, **geometry)

    def _widened(self, rows: str, count: int) -> str:
        """Rows of ``count`` padded with zeros to the pitch."""
        pitch, rank = self.kernel["pitch"], len(self.own.step.output_shape) + 1
        if pitch == count:
            return rows
        widths = np.zeros(2 * rank, np.int64)
        widths[-1] = pitch - count
        return self._node("Pad", [rows, self.nodes.table(widths)], "pitch")

    def _cut(self, tensor: str, ends: Sequence[int], axes: Sequence[int], label: str) -> str:
        given = (np.zeros(len(ends)), np.array(ends), np.array(axes))
        return self._node("Slice", [tensor, *(self.nodes.table(n.astype(np.int64)) for n in given)], label)

    def _reshape(self, tensor: str, shape: Sequence[int], label: str) -> str:
        return self._node("Reshape", [tensor, self.nodes.table(np.array(shape, np.int64))], f"{label}/shape")

    def _node(self, kind: str, inputs: Sequence[str], label: str, **attributes: Any) -> str:
        return self.nodes.node(kind, inputs, label, **attributes)

    def _constant(self, values: np.ndarray) -> str:
        return self.nodes.table(values.astype(np.float32))

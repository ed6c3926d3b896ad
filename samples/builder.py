"""A thin layer over `onnx.helper` that lets a model builder read like the network it describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from samples.truth import Projection

END = 2**63 - 1
"""How exporters write "to the end" in a Slice."""

BATCH = "batch"


def divided(total: int, parts: int, names: str) -> int:
    """`total / parts`; raises ValueError where that is no whole number. `names` says what the two are."""
    if parts < 1 or total % parts:
        raise ValueError(f"{names}: {total} does not divide by {parts}")
    return total // parts


def require(holds: bool, message: str) -> None:
    """Raises ValueError with `message` unless `holds`."""
    if not holds:
        raise ValueError(message)


class GraphBuilder:
    """Collects nodes and initializers; every method that adds a node returns the name of its output.

    `batch` is the first dimension of the inputs, or None for the symbolic dimension 'batch'. Weights come
    from one generator seeded with `seed`, so equal calls give equal bytes. `traced` writes some idioms as the
    older, tracing exporter does: shapes computed at run time, Split for an unbind, the bias as first operand.
    """

    def __init__(self, name: str, *, seed: int, batch: int | None = 1, opset: int = 18, traced: bool = False) -> None:
        self.name = name
        self.batch = batch
        self.opset = opset
        self.traced = traced
        self.rng = np.random.default_rng(seed)
        self.arrays: dict[str, NDArray[Any]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._counts: dict[str, int] = {}

    def rows(self, per_element: int) -> int:
        """The leading dimension of a tensor that folds the batch with `per_element` parts, for a Reshape."""
        return -1 if self.batch is None else self.batch * per_element

    def _unique(self, stem: str) -> str:
        count = self._counts.get(stem, 0)
        self._counts[stem] = count + 1
        return f"{stem}_{count}" if count else stem

    def _value(self, name: str, shape: Sequence[int], kind: int) -> onnx.ValueInfoProto:
        dims: list[int | str] = [BATCH if self.batch is None else self.batch, *shape]
        return helper.make_tensor_value_info(name, kind, dims)

    def input(self, name: str, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        """Declares a graph input whose shape behind the batch dimension is `shape`."""
        self._inputs.append(self._value(name, shape, kind))
        return name

    def output(self, name: str, value: str, *shape: int) -> None:
        """Declares `value` as the graph output `name`, with `shape` behind the batch dimension."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=self._unique("output")))
        self._outputs.append(self._value(name, shape, TensorProto.FLOAT))

    def constant(self, value: ArrayLike, stem: str = "constant") -> str:
        """An initializer; Python floats become float32 and integers int64."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = self._unique(stem)
        self.arrays[name] = array
        return name

    def weight(self, *shape: int, stem: str = "weight", scale: float = 1.0) -> str:
        """A random float32 initializer of standard deviation `scale`."""
        return self.constant(self.rng.standard_normal(shape) * scale, stem)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and returns that output's name."""
        return self.split_op(kind, *inputs, outputs=1, **attributes)[0]

    def split_op(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Adds a node with several outputs and returns their names."""
        name = self._unique(kind.lower())
        results = tuple(f"{name}:{i}" for i in range(outputs))
        self._nodes.append(helper.make_node(kind, list(inputs), results, name=name, **attributes))
        return results

    @property
    def last_node(self) -> str:
        """The name of the node added last, for the ground truth."""
        return str(self._nodes[-1].name)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64), "shape"))

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", x, perm=list(perm))

    def concat(self, axis: int, *parts: str) -> str:
        return self.op("Concat", *parts, axis=axis)

    def slice(self, x: str, axis: int, start: int, stop: int = END) -> str:
        bounds = [self.constant(np.array([v], np.int64), "slice") for v in (start, stop, axis)]
        return self.op("Slice", x, *bounds)

    def select(self, x: str, index: int, axis: int = 0) -> str:
        """One index of an axis, by a Gather with a scalar, as exporters write `x[index]`."""
        return self.op("Gather", x, self.constant(index, "index"), axis=axis)

    def unbind(self, x: str, count: int) -> tuple[str, ...]:
        """All indices of the first axis: Slice and Squeeze, or Split and Squeeze where traced."""
        if self.traced:
            sizes = self.constant(np.ones(count, np.int64), "sizes")
            parts = self.split_op("Split", x, sizes, outputs=count, axis=0)
        else:
            parts = tuple(self.slice(x, 0, index, index + 1) for index in range(count))
        return tuple(self.squeeze(part, 0) for part in parts)

    def reshape_keeping_last(self, x: str, *shape: int) -> str:
        """A Reshape that leaves the last axis alone; a tracer reads its length from x at run time."""
        if not self.traced:
            return self.reshape(x, *shape)
        last = self.op("Gather", self.op("Shape", x), self.constant(-1, "index"), axis=0)
        start = self.constant(np.array(shape[:-1], np.int64), "shape")
        return self.op("Reshape", x, self.concat(0, start, self.unsqueeze(last, 0)))

    def squeeze(self, x: str, *axes: int) -> str:
        return self.op("Squeeze", x, self.constant(np.array(axes, np.int64), "axes"))

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.op("Unsqueeze", x, self.constant(np.array(axes, np.int64), "axes"))

    def roll(self, x: str, axis: int, shift: int, size: int) -> str:
        """`numpy.roll` along one axis of length `size`, by two Slices and a Concat."""
        cut = -shift % size
        return self.concat(axis, self.slice(x, axis, cut, size), self.slice(x, axis, 0, cut))

    def pad(self, x: str, before: Sequence[int], after: Sequence[int]) -> str:
        return self.op("Pad", x, self.constant(np.array([*before, *after], np.int64), "pads"), mode="constant")

    def expand_batch(self, x: str, like: str, rank: int) -> str:
        """Repeats a tensor of `rank` dimensions, the first of length 1, to the batch size of `like`."""
        ones = [1] * (rank - 1)
        if self.batch is None:
            size = self.op("Shape", like, start=0, end=1)
            target = self.concat(0, size, self.constant(np.array(ones, np.int64), "ones"))
        else:
            target = self.constant(np.array([self.batch, *ones], np.int64), "shape")
        return self.op("Expand", x, target)

    def scaled(self, x: str, factor: float) -> str:
        return self.op("Mul", x, self.constant(np.float32(factor), "factor"))

    def linear(self, x: str, inputs: int, outputs: int) -> tuple[str, Projection]:
        """MatMul and Add with fresh weights; also says where these are."""
        projection = self.linear_weights(inputs, outputs)
        return self.apply(x, projection), projection

    def linear_weights(self, inputs: int, outputs: int) -> Projection:
        weight = self.weight(inputs, outputs, scale=inputs**-0.5)
        bias = self.weight(outputs, stem="bias", scale=0.2)
        return Projection(weight, bias, 0, outputs)

    def apply(self, x: str, projection: Projection) -> str:
        product = self.op("MatMul", x, projection.weight)
        operands = (projection.bias, product) if self.traced else (product, projection.bias)
        return self.op("Add", *operands)

    def layer_norm(self, x: str, channels: int) -> str:
        gain = self.constant(1.0 + 0.1 * self.rng.standard_normal(channels), "gain")
        return self.op("LayerNormalization", x, gain, self.weight(channels, stem="bias", scale=0.1), axis=-1)

    def gelu(self, x: str) -> str:
        """The error-function form, as it is written out below opset 20."""
        inner = self.op("Erf", self.op("Div", x, self.constant(np.float32(2**0.5), "root")))
        half = self.op("Mul", self.constant(np.float32(0.5), "half"), self.op("Add", inner, self.constant(1.0)))
        return self.op("Mul", x, half)

    def stable_softmax(self, x: str) -> str:
        """A Softmax behind the subtraction of the row maximum, as some published code spells it."""
        axis = self.constant(np.array([-1], np.int64), "axes")
        return self.op("Softmax", self.op("Sub", x, self.op("ReduceMax", x, axis, keepdims=1)), axis=-1)

    def model(self) -> onnx.ModelProto:
        """The finished model, checked with full shape inference."""
        initializers = [numpy_helper.from_array(array, name) for name, array in self.arrays.items()]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)
        ir_version = 11 if self.opset >= 23 else 10
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=ir_version,
            producer_name="onnxopt samples",
        )
        onnx.checker.check_model(model, full_check=True)
        return model

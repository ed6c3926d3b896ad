"""Small models with attention under any mask, for tests that need to draw the pattern freely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Pattern:
    """``live`` says which keys each query needs, 1 or heads x queries x keys; ``bias`` has the same shape or is None.

    ``keys_of`` maps key columns to tokens, so that tokens repeat or are left out. ``mask_value`` is added to a score
    that is not needed, or put in its place if ``replace``; ``guard`` turns NaN rows into zeros.
    """

    live: NDArray[np.bool_]
    heads: int
    keys_of: NDArray[np.int64]
    tokens: int
    bias: NDArray[np.float32] | None = None
    mask_value: float = -np.inf
    replace: bool = False
    guard: bool = False


class _Parts:
    """The nodes and constants of a graph while it is written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, value: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.tensors)}"))
        return self.tensors[-1].name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def model(self, name: str, batch: int | None, given: list[int], made: list[int]) -> onnx.ModelProto:
        """The model with input ``x`` (batch x ``given``) and output ``y`` (its first size, then ``made``)."""
        first: int | str = "batch" if batch is None else batch
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [first, *given])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, *made])],
            self.tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def masked_attention(pattern: Pattern, *, width: int = 4, batch: int | None = 1, seed: int = 0) -> onnx.ModelProto:
    """Separate projections of queries and of keys with values; input ``x`` is batch x tokens x channels."""
    rng = np.random.default_rng(seed)
    heads, channels = pattern.heads, pattern.heads * width
    queries = pattern.live.shape[1]
    parts = _Parts()
    constant, op = parts.constant, parts.op

    def split_heads(x: str, rows: int, perm: list[int]) -> str:
        shaped = op("Reshape", x, constant(np.array([-1, rows, heads, width])))
        return op("Transpose", shaped, perm=perm)

    def projection(x: str) -> str:
        weight = rng.standard_normal((channels, channels)).astype(np.float32) / channels**0.5
        return op(
            "Add",
            op("MatMul", x, constant(weight)),
            constant(rng.standard_normal(channels).astype(np.float32)),
        )

    normed = op("LayerNormalization", "x", constant(np.ones(channels, np.float32)), axis=-1)
    picked = op(
        "Slice",
        projection(normed),
        constant(np.array([0])),
        constant(np.array([queries])),
        constant(np.array([1])),
    )
    q = split_heads(picked, queries, [0, 2, 1, 3])
    columns = len(pattern.keys_of)
    taken = [op("Gather", projection(normed), constant(pattern.keys_of), axis=1) for _ in range(2)]
    scores = op("MatMul", q, split_heads(taken[0], columns, [0, 2, 3, 1]))
    scores = op("Mul", scores, constant(np.float32(width**-0.5)))
    if pattern.bias is not None:
        scores = op("Add", scores, constant(pattern.bias))
    value = np.float32(pattern.mask_value)
    if pattern.replace:
        scores = op("Where", constant(pattern.live), scores, constant(value))
    else:
        scores = op("Add", scores, constant(np.where(pattern.live, np.float32(0), value)))
    weights = op("Softmax", scores, axis=-1)
    if pattern.guard:
        weights = op("Where", op("IsNaN", weights), constant(np.float32(0)), weights)
    mixed = op("MatMul", weights, split_heads(taken[1], columns, [0, 2, 1, 3]))
    joined = op("Reshape", op("Transpose", mixed, perm=[0, 2, 1, 3]), constant(np.array([-1, queries, channels])))
    parts.nodes[-1].output[0] = joined = "attended"
    parts.nodes.append(
        helper.make_node("MatMul", [joined, constant(np.eye(channels, dtype=np.float32))], ["y"], name="out")
    )
    return parts.model("masked_attention", batch, [pattern.tokens, channels], [queries, channels])


def windowed_convolutions(*, read_by: str, batch: int | None = 1, seed: int = 0) -> onnx.ModelProto:
    """Windows of 4 x 4 positions that pointwise convolutions project: the first axis holds windows beside the batch.

    ``read_by`` is the operator that reads the attention's result, MatMul or Conv.
    """
    rng = np.random.default_rng(seed)
    channels, side, positions = 8, 4, 16
    parts = _Parts()
    constant, op = parts.constant, parts.op

    def pointwise(x: str) -> str:
        return op("Conv", x, constant(rng.standard_normal((channels, channels, 1, 1)).astype(np.float32) / 3))

    cut = op("Reshape", op("Relu", "x"), constant(np.array([-1, channels, 2, side, 2, side])))
    windows = op(
        "Reshape", op("Transpose", cut, perm=[0, 2, 4, 1, 3, 5]), constant(np.array([-1, channels, side, side]))
    )
    heads = [op("Reshape", pointwise(windows), constant(np.array([-1, 2, channels // 2, positions]))) for _ in range(3)]
    q, v = (op("Transpose", heads[i], perm=[0, 1, 3, 2]) for i in (0, 2))
    mask = np.where(np.kron(np.eye(2), np.ones((8, 8))) > 0, 0, -np.inf).astype(np.float32)
    weights = op("Softmax", op("Add", op("MatMul", q, heads[1]), constant(mask)), axis=-1)
    mixed = op("MatMul", weights, v)
    if read_by == "Conv":
        pointwise(
            op("Reshape", op("Transpose", mixed, perm=[0, 1, 3, 2]), constant(np.array([-1, channels, side, side])))
        )
    else:
        rows = op("Reshape", op("Transpose", mixed, perm=[0, 2, 1, 3]), constant(np.array([-1, positions, channels])))
        op("MatMul", rows, constant(np.eye(channels, dtype=np.float32)))
    parts.nodes[-1].output[0] = "y"
    rest = [channels, side, side] if read_by == "Conv" else [positions, channels]
    return parts.model("windowed_convolutions", batch, [channels, 2 * side, 2 * side], rest)

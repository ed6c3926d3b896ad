"""A product of two data tensors (MatMul, Einsum) as labelled axes, so that both spellings are read alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph, Shape, attribute


@dataclass(frozen=True)
class Contraction:
    """``output[out] = sum over what out lacks of left[left_axes] * right[right_axes]``; one letter an axis."""

    node: NodeProto
    left: str
    right: str
    left_axes: str
    right_axes: str
    out_axes: str

    @property
    def summed(self) -> str:
        """The axes that both operands have and the output lacks."""
        return "".join(a for a in self.left_axes if a in self.right_axes and a not in self.out_axes)

    @property
    def output(self) -> str:
        """The tensor that the product makes."""
        return self.node.output[0]


def is_product(graph: Graph, node: NodeProto) -> bool:
    """Whether a node multiplies two tensors that both depend on the input."""
    return node.op_type in ("MatMul", "Einsum") and len(graph.data_inputs(node)) == 2 and len(node.input) == 2


def contraction(graph: Graph, node: NodeProto) -> Contraction:
    """The labelled axes of a product.

    Raises :class:`NotASite` for repeated or one-sided summed axes, ellipses and vectors.
    """
    left, right = node.input
    if node.op_type == "MatMul":
        axes = _matmul_axes(graph.shape(left), graph.shape(right))
    else:
        axes = _einsum_axes(str(attribute(node, "equation", "")))
    result = Contraction(node, left, right, *axes)
    if not result.summed:
        raise NotASite(f"{node.op_type} {node.name!r} sums over no axis")
    one_sided = set(result.left_axes) ^ set(result.right_axes)
    if one_sided - set(result.out_axes):
        raise NotASite(f"{node.op_type} {node.name!r} sums over an axis of one operand alone")
    return result


def align(values: np.ndarray, axes: str, target: str) -> np.ndarray:
    """``values`` (one axis a letter of ``axes``) with its axes in the order of ``target``, length 1 where it has none.

    Letters of ``axes`` that ``target`` lacks must have been reduced to length 1 before.
    """
    kept = [a for a in axes if a in target]
    dropped = tuple(i for i, a in enumerate(axes) if a not in target)
    values = values.squeeze(dropped) if dropped else values
    order = sorted(range(len(kept)), key=lambda i: target.index(kept[i]))
    values = values.transpose(order)
    shape = [values.shape[sorted(kept, key=target.index).index(a)] if a in kept else 1 for a in target]
    return values.reshape(shape)


def _matmul_axes(left: Shape | None, right: Shape | None) -> tuple[str, str, str]:
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        raise NotASite("a MatMul of vectors or of tensors of unknown shape")
    rank = max(len(left), len(right))
    if rank > 20:
        raise NotASite(f"a MatMul of rank {rank}; at most 20 is read")
    batch = "abcdefghijklmnopqrst"[: rank - 2]
    left_batch = batch[rank - len(left) :]
    right_batch = batch[rank - len(right) :]
    return left_batch + "xz", right_batch + "zy", batch + "xy"


def _einsum_axes(equation: str) -> tuple[str, str, str]:
    text = equation.replace(" ", "")
    if "->" not in text or "." in text or text.count(",") != 1:
        raise NotASite(f"an Einsum with the equation {equation!r}; two operands, an arrow and no ellipsis are read")
    operands, out = text.split("->")
    left, right = operands.split(",")
    if any(len(set(axes)) != len(axes) for axes in (left, right, out)):
        raise NotASite(f"an Einsum that repeats an axis: {equation!r}")
    return left, right, out

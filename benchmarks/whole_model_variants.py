"""Other versions of a whole-model program to measure ours beside: without its attention, and with PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from benchmarks.whole_model_backends import NumpyBackend
from benchmarks.whole_model_operators import OPERATORS
from benchmarks.whole_model_program import Array, Node, Program, pruned

_AFFINE = ("Add", "Sub", "Mul", "Div", "Reshape", "Identity")
Shapes = Callable[[str], Sequence[int] | None]

# Between the two scores, 0 and 1, that show factor and mask: whether the chain is affine.
_PROBE = 0.5
_LARGEST_BIAS = 200.0


@dataclass(frozen=True)
class Attention:
    """Where an attention stands in a model: its softmax's node, all tensors that it reads, its result and that's shape.

    ``value`` is a tensor with vectors of v.
    """

    softmax: str
    operands: tuple[str, ...]
    output: str
    shape: tuple[int, ...]
    value: str
    value_shape: tuple[int, ...]


def without_attention(program: Program, sites: Sequence[Attention]) -> Program:
    """The program with each site's result replaced by the first elements of its v tensor, in the result's shape.

    What makes q, k and v is still computed, all between them and the result is not. A v tensor that is smaller than the
    result is repeated, which costs a copy; otherwise nothing is launched in the attention's place.
    """
    by_output = {site.output: site for site in sites}
    nodes = [_borrowed(by_output[n.outputs[0]]) if n.outputs[0] in by_output else n for n in program.nodes]
    kept = [name for site in sites for name in site.operands]
    return pruned(replace(program, nodes=tuple(nodes)), kept)


def _borrowed(site: Attention) -> Node:
    elements = prod(site.shape)
    attributes = {"elements": elements, "shape": site.shape, "repeat": -(-elements // prod(site.value_shape))}
    return Node("Borrow", f"{site.output}/borrowed", (site.value,), (site.output,), attributes)


def with_fused_attention(program: Program, sites: Sequence[Attention], shape: Shapes) -> tuple[Program, int]:
    """The program with scaled_dot_product_attention in place of plain masked attentions, and how many there were.

    Plain is a site whose softmax stands between two products and whose scores are scaled by one number and masked or
    biased by a constant. ``shape`` knows the shapes of the model's tensors.
    """
    constants = dict(program.constants)
    replaced: dict[str, Node] = {}
    for site in sites:
        found = _fused(program, site, shape)
        if found is not None:
            node, mask = found
            replaced[node.outputs[0]] = node
            constants[node.inputs[3]] = mask
    nodes = tuple(replaced.get(node.outputs[0], node) for node in program.nodes)
    return pruned(replace(program, nodes=nodes, constants=constants)), len(replaced)


def _fused(program: Program, site: Attention, shape: Shapes) -> tuple[Node, Array] | None:
    softmax = next((node for node in program.nodes if node.op == "Softmax" and node.name == site.softmax), None)
    if softmax is None:
        return None
    readers = [node for node in program.nodes if softmax.outputs[0] in node.inputs]
    if len(readers) != 1 or readers[0].op != "MatMul" or readers[0].inputs[0] != softmax.outputs[0]:
        return None
    chain, product = _scores(program, softmax.inputs[0])
    if product is None:
        return None
    scores = shape(product.outputs[0])
    found = None if scores is None else _scale_and_mask(program, chain, product.outputs[0], scores)
    if found is None:
        return None
    scale, mask = found
    name = f"{site.output}/fused"
    query, key = product.inputs
    swapped = Node("Attention", name, (query, key, readers[0].inputs[1], f"{name}/mask"), readers[0].outputs)
    return replace(swapped, attributes={"scale": scale}), mask


def _scores(program: Program, tensor: str) -> tuple[list[Node], Node | None]:
    """The nodes between the product of q and k and the softmax, from the product on; None where there is no such."""
    chain: list[Node] = []
    while True:
        node = program.node_of(tensor)
        if node is None:
            return chain, None
        data = [name for name in node.inputs if name and name not in program.constants]
        if node.op == "MatMul":
            return chain[::-1], node if len(data) == 2 else None
        if node.op not in _AFFINE or len(data) != 1 or (node.op == "Div" and data[0] != node.inputs[0]):
            return chain, None
        chain.append(node)
        tensor = data[0]


def _scale_and_mask(
    program: Program, chain: Sequence[Node], start: str, shape: Sequence[int]
) -> tuple[float, Array] | None:
    """What a chain of operators does to scores, found by running it: one factor, and what is added to each.

    None where it does anything else.
    """
    mask, ones, other = (_through(program, chain, start, value, shape) for value in (0.0, 1.0, _PROBE))
    if mask.shape != tuple(shape):
        return None
    # Beside a large constant float32 does not show the factor.
    finite = np.isfinite(mask) & (np.abs(mask) < _LARGEST_BIAS)
    factors = ones[finite] - mask[finite]
    if not factors.size or np.ptp(factors) > 1e-3 * abs(float(factors.flat[0])):
        return None
    scale = float(np.median(factors))
    expected = _PROBE * scale + mask
    return (scale, mask) if np.allclose(other[finite], expected[finite], rtol=1e-5, atol=1e-5) else None


def _through(program: Program, chain: Sequence[Node], start: str, value: float, shape: Sequence[int]) -> Array:
    backend = NumpyBackend("fp32")
    known: dict[str, Any] = {start: np.full(tuple(shape), value, np.float32)}
    for node in chain:
        values = [known[n] if n in known else backend.tensor(program.constants[n]) for n in node.inputs]
        with np.errstate(all="ignore"):
            known[node.outputs[0]] = OPERATORS[node.op](backend, node.attributes, *values)
    result: Array = np.asarray(known[chain[-1].outputs[0]] if chain else known[start])
    return result

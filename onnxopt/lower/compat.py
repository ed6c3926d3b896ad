"""Spell operators that engine parsers lack, but that only move data, with Reshape, Transpose and Slice.

TensorRT-RTX's parser has no Col2Im. Where its patches do not overlap, Col2Im adds nothing up: it is a permutation of
the input (the inverse of cutting an image into patches), which is what is written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxopt.model.graph import Graph, view

_STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class _Fold:
    """One Col2Im without overlap: the sizes per image dimension, in elements."""

    image: tuple[int, ...]
    block: tuple[int, ...]
    patches: tuple[int, ...]
    pads_before: tuple[int, ...]

    @property
    def covered(self) -> tuple[int, ...]:
        """The size of the padded image that the patches tile."""
        return tuple(n * b for n, b in zip(self.patches, self.block, strict=True))

    @property
    def cropped(self) -> bool:
        """Whether the patches tile more than the image, so that padding has to be cut off."""
        return self.covered != self.image


def lower_for_parsers(model: onnx.ModelProto) -> tuple[int, list[str]]:
    """Replace, in place, operators of the main graph that only move data and that TensorRT-RTX cannot parse.

    Col2Im whose patches do not overlap (stride equal to the block, dilation 1) becomes Reshape, Transpose, Reshape and,
    where it has padding, Slice. The batch and the channels may be dynamic. Output names do not change; the new nodes
    are named after the one they replace.

    Returns how many nodes were replaced, and a sentence for each that had to stay, with its name and reason.
    """
    graph = model.graph
    if not any(_is_col2im(node) for node in graph.node):
        return 0, []
    constants = _Constants(model)
    names = _Names(graph)
    nodes: list[onnx.NodeProto] = []
    replaced: list[onnx.NodeProto] = []
    kept: list[str] = []
    for node in graph.node:
        fold = _fold_of(node, constants) if _is_col2im(node) else None
        if isinstance(fold, _Fold):
            nodes += _lowered(node, fold, names)
            replaced.append(node)
        else:
            nodes.append(node)
            if fold is not None:
                kept.append(f"node '{node.name or node.output[0]}' (Col2Im) stays as it is: {fold}")
    if not replaced:
        return 0, kept
    spent = {name for node in replaced for name in node.input[1:]}
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(names.initializers)
    _drop_unused(graph, spent)
    return len(replaced), kept


def _is_col2im(node: onnx.NodeProto) -> bool:
    return node.op_type == "Col2Im" and node.domain in _STANDARD_DOMAINS and len(node.input) == 3


def _fold_of(node: onnx.NodeProto, constants: _Constants) -> _Fold | str:
    """The sizes of a Col2Im without overlap, or why it is not one."""
    block = constants.ints(node.input[2])
    image = constants.ints(node.input[1])
    if block is None:
        return "its block_shape is computed at run time"
    if image is None:
        return "its image_shape is computed at run time"
    rank = len(block)
    if not rank or len(image) != rank or min(image + block) < 1:
        return f"image_shape {list(image)} and block_shape {list(block)} do not describe an image"
    attributes = {a.name: tuple(helper.get_attribute_value(a)) for a in node.attribute}
    strides = attributes.get("strides", (1,) * rank)
    dilations = attributes.get("dilations", (1,) * rank)
    pads = attributes.get("pads", (0,) * (2 * rank))
    if (len(strides), len(dilations), len(pads)) != (rank, rank, 2 * rank) or min(pads) < 0:
        return (
            f"strides {list(strides)}, dilations {list(dilations)} or pads {list(pads)} "
            f"do not fit an image of {rank} dimensions"
        )
    if any(d != 1 and b != 1 for d, b in zip(dilations, block, strict=True)):
        return f"its dilations are {list(dilations)}; only 1 is a plain tiling"
    if strides != block:
        relation = "overlap" if any(s < b for s, b in zip(strides, block, strict=True)) else "leave gaps"
        return f"its patches {relation} (strides {list(strides)}, block_shape {list(block)})"
    padded = [i + pads[k] + pads[k + rank] for k, i in enumerate(image)]
    patches = tuple(p // b for p, b in zip(padded, block, strict=True))
    fold = _Fold(image, block, patches, pads[:rank])
    if any(c < p + i for c, p, i in zip(fold.covered, fold.pads_before, image, strict=True)):
        return f"its patches of {list(block)} do not reach the end of the image {list(image)}; the rest is zero"
    return fold


def _lowered(node: onnx.NodeProto, fold: _Fold, names: _Names) -> list[onnx.NodeProto]:
    """The nodes that compute the same as ``node``.

    Col2Im reads N x (C * block) x patches, with the channel outermost and both lists row-major. A size of 0 copies the
    batch, -1 finds the channels, so neither needs to be known.
    """
    rank = len(fold.block)
    stem = node.name or node.output[0]
    output = node.output[0]
    unrolled = names.tensor(f"{stem}.patches")
    woven = names.tensor(f"{stem}.woven")
    tiled = names.tensor(f"{stem}.tiled") if fold.cropped else output
    permutation = [0, 1] + [axis for k in range(rank) for axis in (2 + rank + k, 2 + k)]
    nodes = [
        helper.make_node(
            "Reshape",
            [node.input[0], names.ints(f"{stem}.patches_shape", (0, -1, *fold.block, *fold.patches))],
            [unrolled],
            name=names.node(f"{stem}.split_patches"),
        ),
        helper.make_node("Transpose", [unrolled], [woven], name=names.node(f"{stem}.weave"), perm=permutation),
        helper.make_node(
            "Reshape",
            [woven, names.ints(f"{stem}.image_shape", (0, -1, *fold.covered))],
            [tiled],
            name=names.node(f"{stem}.join_patches"),
        ),
    ]
    if fold.cropped:
        ends = tuple(p + i for p, i in zip(fold.pads_before, fold.image, strict=True))
        crop = [
            names.ints(f"{stem}.crop_starts", fold.pads_before),
            names.ints(f"{stem}.crop_ends", ends),
            names.ints(f"{stem}.crop_axes", tuple(range(2, 2 + rank))),
        ]
        nodes.append(helper.make_node("Slice", [tiled, *crop], [output], name=names.node(f"{stem}.crop")))
    return nodes


class _Constants:
    """Integer constants of a graph by name; what the graph computes is evaluated only when asked for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._tensors = {t.name: t for t in model.graph.initializer}
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._views: list[Graph] = []

    def ints(self, name: str) -> tuple[int, ...] | None:
        """The values of a vector of integers that is the same for every input; None for any other tensor."""
        tensor = self._tensors.get(name)
        node = self._producers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        if tensor is not None and tensor.data_location != onnx.TensorProto.EXTERNAL:
            return _as_ints(numpy_helper.to_array(tensor))
        # A shape may be computed from the batch: what differs between two batch sizes is no constant.
        self._views = self._views or [view(self._model, batch=batch) for batch in (2, 3)]
        first, second = (_as_ints(graph.constant(name)) for graph in self._views)
        return first if first == second else None


def _as_ints(array: np.ndarray | None) -> tuple[int, ...] | None:
    if array is None or array.ndim != 1 or array.dtype.kind != "i":
        return None
    return tuple(int(i) for i in array)


class _Names:
    """Fresh names in a graph, and the integer vectors made for it, each stored once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {t for n in graph.node for t in (*n.input, *n.output)}
        self._tensors |= {v.name for v in (*graph.input, *graph.output, *graph.value_info)}
        self._tensors |= {t.name for t in graph.initializer}
        self._nodes = {n.name for n in graph.node}
        self._vectors: dict[tuple[int, ...], str] = {}
        self.initializers: list[onnx.TensorProto] = []

    def tensor(self, wanted: str) -> str:
        return _fresh(wanted, self._tensors)

    def node(self, wanted: str) -> str:
        return _fresh(wanted, self._nodes)

    def ints(self, wanted: str, values: tuple[int, ...]) -> str:
        """The name of an int64 vector with these values, made if there is none yet."""
        if values not in self._vectors:
            self._vectors[values] = self.tensor(wanted)
            array = np.array(values, dtype=np.int64)
            self.initializers.append(numpy_helper.from_array(array, self._vectors[values]))
        return self._vectors[values]


def _fresh(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    taken.add(name)
    return name


def _drop_unused(graph: onnx.GraphProto, candidates: set[str]) -> None:
    """Remove those of the named constants that nothing reads any more."""
    used = set(_read_names(graph)) | {v.name for v in (*graph.input, *graph.output)}
    gone = candidates - used
    for tensor in [t for t in graph.initializer if t.name in gone]:
        graph.initializer.remove(tensor)
    for node in [n for n in graph.node if n.op_type == "Constant" and set(n.output) <= gone]:
        graph.node.remove(node)


def _read_names(graph: onnx.GraphProto) -> Iterable[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            subgraphs: list[onnx.GraphProto] = [attribute.g, *attribute.graphs]
            for subgraph in subgraphs:
                yield from _read_names(subgraph)
                yield from (output.name for output in subgraph.output)

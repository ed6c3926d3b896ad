"""A model that was converted to fp16 or bf16, beside the float32 original.

ONNX Runtime has no bfloat16 kernels for the CPU, and runs float16 in float32 from one node to the next, so that what
leaves the range of float16 in between never shows. Both are therefore run as float32 models in which every tensor of
the narrow type is rounded where it is made: what an engine does that computes node by node with float32 accumulators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxopt.errors import VerificationError
from onnxopt.model.convert import Precision, convert, converted_to
from onnxopt.model.graph import nested_names, symbolic_batch, view
from onnxopt.model.tensors import node_label
from onnxopt.verification.compare import Array, is_float
from onnxopt.verification.inputs import draw_inputs
from onnxopt.verification.sessions import opened, with_outputs
from onnxopt.verification.widen import widen

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT, *_NARROW)
_THREADS = 2
_FLAGS = ("IsNaN", "IsInf")


def converted_original(original: ModelProto, candidate: ModelProto) -> ModelProto | None:
    """The original converted as the candidate says that it was; None where it was not, or both were.

    Raises InputError where the original cannot be converted.
    """
    said = converted_to(candidate)
    if said is None or converted_to(original) is not None:
        return None
    precision, convert_io = said
    return convert(original, precision, convert_io=convert_io)


def rounding(model: ModelProto) -> ModelProto:
    """The model in float32, with every tensor of the main graph that is narrower in it rounded to its own type."""
    graph = view(model, batch=2 if symbolic_batch(model) else 1)
    wide = widen(model, TensorProto.FLOAT)
    nodes: list[NodeProto] = []
    renamed: dict[str, str] = {}
    for name in (n for n in graph.inputs if graph.element_type(n) in _NARROW):
        renamed[name] = f"{name}/taken"
        nodes += round_trip(name, renamed[name], graph.element_type(name), label="stored")
    for node in wide.graph.node:
        copy = NodeProto.FromString(node.SerializeToString())
        for place, name in enumerate(copy.input):
            copy.input[place] = renamed.get(name, name)
        nodes.append(copy)
        for place, name in enumerate(node.output):
            kind = graph.element_type(name) if name else 0
            if kind in _NARROW:
                copy.output[place] = f"{name}/computed"
                nodes += round_trip(copy.output[place], name, kind, label="stored")
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return wide


def round_trip(
    source: str, target: str, narrow: int, wide: int = TensorProto.FLOAT, label: str = "narrow"
) -> list[NodeProto]:
    """Casts of a tensor to a narrower type and back; ``label`` is part of the name of what lies between."""
    between = f"{target}/{label}"
    return [
        helper.make_node("Cast", [source], [between], to=narrow),
        helper.make_node("Cast", [between], [target], to=wide),
    ]


def check_range(original: ModelProto, converted: ModelProto, precision: Precision) -> None:
    """Run both on random inputs; raises VerificationError where only the converted model gives NaN or infinity.

    The message names the node in which that first happens on the way to the output.
    """
    feed = draw_inputs(original, seed=0, batch=1)
    narrow = rounding(converted)
    with opened(original, threads=_THREADS) as runner:
        expected = runner.run(feed)
    with opened(narrow, threads=_THREADS) as runner:
        found = runner.run(feed)
    off = next((name for name, array in found.items() if is_float(array) and _leaves(array, expected[name])), None)
    if off is None:
        return
    node = _first_off(original, narrow, converted, feed, off)
    bf16 = "--dtype bf16, which has the range of float32, or leave out --dtype"
    raise VerificationError(
        f"--dtype {precision}: output '{off}' is NaN or infinite where that of the original is not; it first happens "
        f"in {node}, whose result leaves the range of {precision}. Take "
        f"{bf16 if precision == 'fp16' else 'another type: leave out --dtype'}"
    )


def _leaves(found: Array, expected: Array) -> bool:
    return bool(np.any(~np.isfinite(found.astype(np.float64)) & np.isfinite(expected.astype(np.float64))))


def _first_off(
    original: ModelProto, narrow: ModelProto, converted: ModelProto, feed: Mapping[str, Array], output: str
) -> str:
    """From an output back along tensors that are off while the original's are not, to where none is any more."""
    makers = {name: node for node in converted.graph.node for name in node.output}
    own = _flags(narrow, makers, converted, feed)
    first = {name: node for node in original.graph.node for name in node.output}
    known = _flags(original, first, original, feed)
    off = {
        name: tuple(a and not b for a, b in zip(f, known.get(name, (False, False)), strict=True))
        for name, f in own.items()
    }
    name = output
    while True:
        inputs = [n for n in nested_names(makers[name]) if n in makers and any(off.get(n, ()))]
        if not inputs:
            return node_label(makers[name])
        # A mask may well be infinite and nothing wrong with it; a NaN never is.
        name = max(inputs, key=lambda n: off[n][0])


def _flags(
    model: ModelProto, names: Mapping[str, NodeProto], typed: ModelProto, feed: Mapping[str, Array]
) -> dict[str, tuple[bool, bool]]:
    """For every float tensor that a node of the main graph makes: whether it holds NaN, and infinity."""
    graph = view(typed, batch=2 if symbolic_batch(typed) else 1)
    floats = [name for name in names if name and graph.element_type(name) in _FLOATS]
    watched = ModelProto()
    watched.CopyFrom(model)
    _count(watched.graph, floats)
    outputs = [f"{name}/{kind}" for name in floats for kind in _FLAGS]
    with opened(with_outputs(watched, outputs), threads=_THREADS) as runner:
        found = runner.run(feed, outputs)
    return {name: (bool(np.any(found[f"{name}/IsNaN"])), bool(np.any(found[f"{name}/IsInf"]))) for name in floats}


def _count(graph: GraphProto, names: Sequence[str]) -> None:
    """Append nodes that count what is NaN, and what infinite, in each tensor."""
    for name in names:
        for kind in _FLAGS:
            at, number = f"{name}/{kind}/at", f"{name}/{kind}/number"
            graph.node.append(helper.make_node(kind, [name], [at]))
            graph.node.append(helper.make_node("Cast", [at], [number], to=TensorProto.FLOAT))
            graph.node.append(helper.make_node("ReduceSum", [number], [f"{name}/{kind}"], keepdims=0))

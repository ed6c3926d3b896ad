"""A float32 model as a whole in fp16 or bf16, for engines that compute in the types that a model has.

What is cast where is decided by ONNX Runtime's converter (:mod:`onnxruntime.transformers.float16`). This module
prepares a model for it, tells it what has to stay in float32, and puts right what it leaves: constants that are read in
both types, roundings between two nodes that stay in float32, casts behind the nodes that read them. The converter knows
float16 only; :mod:`onnxopt.model.bfloat16` makes bfloat16 of what it wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Literal

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.shape_inference import InferenceError

from onnxopt.errors import InputError
from onnxopt.model.bfloat16 import as_bfloat16, raised_opset
from onnxopt.model.graph import runtime_inputs
from onnxopt.model.order import check_and_sort
from onnxopt.model.types import constant_tensor
from onnxopt.model.wide_nodes import WIDE_SUFFIX, wide_nodes
from onnxopt.model.write import INLINE_LIMIT, model_bytes

Precision = Literal["fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16")
DTYPE_KEY = "onnxopt.dtype"
CONVERTED_IO_KEY = "onnxopt.convert_io"

_FLOAT = TensorProto.FLOAT
_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def element_of(precision: Precision) -> int:
    """The ``TensorProto.DataType`` of a precision."""
    return TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16


def converted_to(model: ModelProto) -> tuple[Precision, bool] | None:
    """The precision that a model says it was converted to, and whether its inputs and outputs were; None if to none."""
    said = {entry.key: entry.value for entry in model.metadata_props}
    found = next((p for p in PRECISIONS if said.get(DTYPE_KEY) == p), None)
    return None if found is None else (found, said.get(CONVERTED_IO_KEY) == "1")


def convert(model: ModelProto, precision: Precision, *, convert_io: bool = False) -> ModelProto:
    """The model with float32 tensors in ``precision``, and a note of that in its metadata; ``model`` stays as it is.

    Inputs and outputs keep names and types, with casts behind and in front of them; with ``convert_io`` they keep
    names only. Finite constants beyond the type's range become its largest number, and what would become 0 its
    smallest, so that a mask stays a mask and no division by an epsilon one by 0. What :func:`wide_nodes` names stays in
    float32, with casts around it. bf16 needs opset 22, to which a model is raised.

    Raises InputError for a model that holds narrower floats already, has no float32, has functions, is over 2 GB, or
    has an operator whose result's type is not known; and where the result is no valid ONNX model.
    """
    _check(model, precision)
    prepared = _inlined_constants(model)
    if precision == "bf16":
        prepared = raised_opset(prepared)
    _compute_constant_outputs(prepared.graph)
    passed = [] if convert_io else _take_out_passed_inputs(prepared.graph)
    names = [node.name for node in prepared.graph.node]
    # The converter is told by name what stays, and exporters leave nodes without one.
    for number, node in enumerate(prepared.graph.node):
        node.name = str(number)
    wide = wide_nodes(prepared, element_of(precision))
    _separate_constants(prepared.graph, wide)
    narrow = _converted(prepared, sorted(wide), convert_io)
    for number, name in enumerate(names):
        narrow.graph.node[number].name = name
    _tidy(narrow, prepared)
    if precision == "bf16":
        as_bfloat16(narrow, prepared)
    _put_back(narrow.graph, passed)
    check_and_sort(narrow)
    helper.set_model_props(
        narrow,
        {e.key: e.value for e in narrow.metadata_props}
        | {DTYPE_KEY: precision}
        | ({CONVERTED_IO_KEY: "1"} if convert_io else {}),
    )
    _check_result(narrow, model, precision)
    return narrow


def _check(model: ModelProto, precision: Precision) -> None:
    refused = f"--dtype {precision} cannot convert this model"
    if model.functions:
        raise InputError(
            f"{refused}: it holds the function '{model.functions[0].name}'; inline functions, or optimise the original "
            "where an earlier run of onnxopt wrote it"
        )
    size = model_bytes(model)
    if size > INLINE_LIMIT:
        raise InputError(
            f"{refused}: it has {size:,} bytes, and the converter takes up to {INLINE_LIMIT:,}; leave out --dtype"
        )
    types = set(_types(model.graph))
    narrow = sorted(TensorProto.DataType.Name(t).lower() for t in types.intersection(_NARROW))
    if narrow:
        raise InputError(f"{refused}: it holds {narrow[0]} already; it takes float32 models: leave out --dtype")
    if _FLOAT not in types:
        raise InputError(f"{refused}: it holds no float32; leave out --dtype")


def _types(graph: GraphProto) -> Iterator[int]:
    """The types of inputs, outputs and constants, and those that nodes name."""
    yield from (tensor.data_type for tensor in graph.initializer)
    yield from (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("t"):
                yield item.t.data_type
            elif item.name in ("to", "dtype"):
                yield item.i
            elif item.HasField("g"):
                yield from _types(item.g)


def _inlined_constants(model: ModelProto) -> ModelProto:
    """A copy whose float Constant nodes are initializers: the converter keeps those exact where float32 nodes read."""
    copy = ModelProto()
    copy.CopyFrom(model)
    kept: list[NodeProto] = []
    for node in copy.graph.node:
        tensor = constant_tensor(node)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            kept.append(NodeProto.FromString(node.SerializeToString()))
            continue
        stored = copy.graph.initializer.add()
        stored.CopyFrom(tensor)
        stored.name = node.output[0]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _compute_constant_outputs(graph: GraphProto) -> None:
    """Let nodes make those outputs that are constants: the converter casts what nodes make."""
    outputs = {value.name for value in graph.output}
    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    made = []
    for tensor in graph.initializer:
        if tensor.name in outputs and tensor.data_type == TensorProto.FLOAT:
            own = next(name for name in (f"{tensor.name}/{n}" for n in count()) if name not in taken)
            made.append(helper.make_node("Identity", [own], [tensor.name]))
            tensor.name = own
    if made:
        nodes = [*made, *(NodeProto.FromString(node.SerializeToString()) for node in graph.node)]
        del graph.node[:]
        graph.node.extend(nodes)


def _take_out_passed_inputs(graph: GraphProto) -> list[tuple[int, ValueInfoProto]]:
    """Take out outputs that are inputs, of which the converter would make a second tensor; gives their places too."""
    inputs = {value.name for value in graph.input}
    passed = [(place, value) for place, value in enumerate(_outputs(graph)) if value.name in inputs]
    for place, _ in reversed(passed):
        del graph.output[place]
    return passed


def _put_back(graph: GraphProto, passed: Sequence[tuple[int, ValueInfoProto]]) -> None:
    values = _outputs(graph)
    for place, value in passed:
        values.insert(place, value)
    del graph.output[:]
    graph.output.extend(values)


def _outputs(graph: GraphProto) -> list[ValueInfoProto]:
    return [ValueInfoProto.FromString(value.SerializeToString()) for value in graph.output]


def _separate_constants(graph: GraphProto, wide: set[str]) -> None:
    """Give nodes that stay in float32 constants of their own where others read the same."""
    shared = {name for node in graph.node if node.name not in wide for name in node.input}
    shared |= {value.name for value in graph.output}
    stored = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT and t.name in shared}
    added: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            if node.name not in wide or name not in stored:
                continue
            own = f"{name}{WIDE_SUFFIX}"
            node.input[place] = own
            if own not in added:
                added.add(own)
                copy = graph.initializer.add()
                copy.CopyFrom(stored[name])
                copy.name = own


def _converted(model: ModelProto, wide: list[str], convert_io: bool) -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    inferred = onnx.shape_inference.infer_shapes(model)
    known = {v.name for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph.node:
        unknown = [name for name in node.output if name and name not in known]
        if node.name in wide and unknown:
            raise InputError(
                f"the type of '{unknown[0]}', which {node.op_type} makes and which stays in float32, is not known, so "
                "the model cannot be converted: add its value_info to the model, or leave out --dtype"
            )
    with np.errstate(over="ignore", under="ignore"):
        narrow: ModelProto = convert_float_to_float16(
            inferred,
            keep_io_types=not convert_io,
            disable_shape_infer=True,
            op_block_list=[],
            node_block_list=wide,
        )
    return narrow


def _tidy(narrow: ModelProto, prepared: ModelProto) -> None:
    """Take out roundings of what is float32 for whom reads it in float32, casts that are there twice, inferred types.

    The converter appends its casts, each from or to float32, behind the nodes of the model.
    """
    graph = narrow.graph
    first, outputs = len(prepared.graph.node), {value.name for value in graph.output}
    casts = {node.output[0]: node for node in graph.node[first:]}
    wide = {name for node in graph.node[:first] for name in node.output} | {value.name for value in graph.input}
    exact = {name: cast.input[0] for name, cast in casts.items() if cast.input[0] in wide and _to(cast) != _FLOAT}
    renamed = {}
    for name, cast in casts.items():
        if _to(cast) == _FLOAT and cast.input[0] in exact and name not in outputs:
            renamed[name] = exact[cast.input[0]]
    own = graph.node[:first]
    for node in own:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    read = {name for node in own for name in _read(node)} | outputs
    read |= {cast.input[0] for name, cast in casts.items() if name in read}
    added = [cast for name, cast in casts.items() if name in read and name not in renamed]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in _in_place(own, added)]
    del graph.node[:]
    graph.node.extend(nodes)
    declared = {value.name for value in prepared.graph.value_info}
    values = {value.name: value for value in graph.value_info if value.name in declared}
    stored = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values.values()]
    del graph.value_info[:]
    graph.value_info.extend(stored)


def _to(cast: NodeProto) -> int:
    return next(item.i for item in cast.attribute if item.name == "to")


def _in_place(nodes: Sequence[NodeProto], casts: Sequence[NodeProto]) -> list[NodeProto]:
    """Every cast behind the node that makes what it reads, so that the order of the others stays; else in front."""
    behind: dict[str, list[NodeProto]] = {}
    for cast in casts:
        behind.setdefault(cast.input[0], []).append(cast)
    made = {name for node in (*nodes, *casts) for name in node.output}
    waiting = [*reversed(nodes), *(cast for cast in reversed(casts) if cast.input[0] not in made)]
    placed = []
    while waiting:
        node = waiting.pop()
        placed.append(node)
        waiting += [cast for name in reversed(node.output) for cast in reversed(behind.get(name, ()))]
    return placed


def _read(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for item in node.attribute:
        for graph in [item.g] if item.HasField("g") else item.graphs:
            for inner in graph.node:
                yield from _read(inner)
            yield from (value.name for value in graph.output)


def _check_result(narrow: ModelProto, model: ModelProto, precision: Precision) -> None:
    """Raise InputError where the types of the result contradict each other, and those of the model do not."""
    fault = _fault(narrow)
    if fault and not _fault(model):
        raise InputError(
            f"--dtype {precision} cannot convert this model: the result is no valid ONNX ({fault}); "
            "leave out --dtype, or convert the model by another tool"
        )
    wanted = [value.name for value in runtime_inputs(model.graph)]
    if [value.name for value in runtime_inputs(narrow.graph)] != wanted:
        raise InputError(f"--dtype {precision} cannot convert this model: its inputs change; leave out --dtype")


def _fault(model: ModelProto) -> str:
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (InferenceError, ValueError) as error:
        return " ".join(str(error).split())[:300]
    return ""

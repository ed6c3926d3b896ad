"""Which models are supported: the versions they may use, and the inputs and outputs they must declare."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
from google.protobuf.message import Message
from onnx import NodeProto, TensorProto, TensorShapeProto, ValueInfoProto

from onnxopt.errors import InputError
from onnxopt.model.graph import attribute, breaks_inference, nodes_within
from onnxopt.model.tensors import MAX_RANK, node_label, type_bits

MIN_OPSET, MAX_OPSET = 13, 23
MIN_IR, MAX_IR = 3, 13
# The domain of our own operators, and the version of it that is written and read.
OWN_DOMAIN, OWN_VERSION = "onnxopt", 1
_STATIC = "export it again with static shapes; only the first dimension, the batch, may stay symbolic"


def check_text(model: onnx.ModelProto) -> None:
    """Raises InputError where a text is not UTF-8; the parser hands out bytes in its place."""
    pending: list[Message] = [model]
    while pending:
        message = pending.pop()
        if isinstance(message, TensorProto):
            # Listing all fields would copy the values.
            texts: list[object] = [message.name, message.doc_string]
            pending += (*message.external_data, *message.metadata_props)
        else:
            texts = []
            for field, value in message.ListFields():
                if field.message_type is not None:
                    pending += [value] if isinstance(value, Message) else value
                elif field.type == field.TYPE_STRING:
                    texts += [value] if isinstance(value, str | bytes) else value
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"the model has a text that is not UTF-8, {text!r:.60}; export it again")


def check_versions(model: onnx.ModelProto) -> None:
    """Raises InputError unless the IR version and the default operator set are supported."""
    if not MIN_IR <= model.ir_version <= MAX_IR:
        raise InputError(
            f"the model has ir_version {model.ir_version}; supported are {MIN_IR} to {MAX_IR}: "
            "export it again with a current exporter"
        )
    _check_opset("the model", model.opset_import, required=True)
    for function in model.functions:
        _check_opset(f"function {function.name!r}", function.opset_import, required=False)
    newest = max((entry.version for entry in model.opset_import if entry.domain == OWN_DOMAIN), default=OWN_VERSION)
    if newest > OWN_VERSION:
        raise InputError(
            f"the model was optimised by a newer version of onnxopt: it uses version {newest} of the domain "
            f"'{OWN_DOMAIN}', and this one knows version {OWN_VERSION}; upgrade with `pip install --upgrade onnxopt`"
        )


def check_nodes(model: onnx.ModelProto) -> None:
    """Raises InputError for a node that would end the process inside the libraries that read the model later."""
    outer: list[NodeProto] = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in (each for top in outer for each in (top, *nodes_within(top))):
        if not breaks_inference(node):
            continue
        if node.op_type == "Split":
            stated = attribute(node, "num_outputs", None)
            fault = f"num_outputs is {stated}, but it has {len(node.output)} outputs"
        else:
            fault = f"batch_dims is {attribute(node, 'batch_dims', 0)}; allowed: 0 or more"
        raise InputError(f"{node_label(node)}: {fault}; export the model again")


def _check_opset(owner: str, imports: Iterable[onnx.OperatorSetIdProto], *, required: bool) -> None:
    versions = {entry.version for entry in imports if entry.domain in ("", "ai.onnx")}
    if not versions and not required:
        return
    allowed = f"supported are {MIN_OPSET} to {MAX_OPSET}"
    if not versions:
        raise InputError(f"{owner} names no version of the standard operators (truncated file?); {allowed}")
    if len(versions) > 1:
        raise InputError(f"{owner} names several versions of the standard operators: {sorted(versions)}; {allowed}")
    (version,) = versions
    if not MIN_OPSET <= version <= MAX_OPSET:
        raise InputError(
            f"{owner} uses opset {version}; {allowed}: export it again with opset_version=18, "
            "or convert it with onnx.version_converter"
        )


def check_interface(model: onnx.ModelProto, max_bytes: int) -> None:
    """Raises InputError unless the graph has inputs and outputs and every input is a tensor of known shape.

    Only the first dimension may be symbolic. An input that has an initializer is not fed and needs no shape.
    `max_bytes` bounds a single input, its batch aside.
    """
    graph = model.graph
    initialized = {tensor.name for tensor in graph.initializer}
    initialized |= {sparse.values.name for sparse in graph.sparse_initializer}
    fed = [value for value in graph.input if value.name not in initialized]
    if not fed:
        raise InputError("the graph has no inputs, so there is nothing to optimise; export the model with its inputs")
    if not graph.output:
        raise InputError("the graph has no outputs; export the model with its outputs")
    for value in fed:
        _check_input(value, max_bytes)
    names = [value.name for value in graph.output]
    if len(set(names)) != len(names):
        raise InputError(f"the graph lists an output twice among {names[:8]}; export the model again")


def _check_input(value: ValueInfoProto, max_bytes: int) -> None:
    kind = value.type.WhichOneof("value")
    if kind is None:
        raise InputError(f"input {value.name!r} has no element type and no shape; {_STATIC}")
    if kind != "tensor_type":
        raise InputError(f"input {value.name!r} is a {kind.removesuffix('_type')}; only dense tensors are supported")
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise InputError(f"input {value.name!r} has no element type; {_STATIC}")
    if not tensor.HasField("shape"):
        raise InputError(f"input {value.name!r} has no shape; {_STATIC}")
    sizes = [_size(dim) for dim in tensor.shape.dim]
    shape = f"[{', '.join(map(str, sizes))}]"
    if len(sizes) > MAX_RANK:
        raise InputError(f"input {value.name!r} has {len(sizes)} dimensions; at most {MAX_RANK} are supported")
    if 0 in sizes:
        raise InputError(
            f"input {value.name!r} has the shape {shape}, which holds nothing; export it with sizes of 1 or more"
        )
    if any(isinstance(size, str) for size in sizes[1:]) or any(isinstance(size, int) and size < 1 for size in sizes):
        raise InputError(f"input {value.name!r} has the shape {shape}; {_STATIC}")
    elements = math.prod(size for size in sizes if isinstance(size, int))
    if elements * type_bits(tensor.elem_type, f"input {value.name!r}") > max_bytes * 8:
        raise InputError(f"input {value.name!r} has the shape {shape}, more than the {max_bytes:,} bytes allowed")


def _size(dim: TensorShapeProto.Dimension) -> int | str:
    """A size, the name of a symbolic one, or "?"."""
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"

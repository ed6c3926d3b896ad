"""Index tracing: run the part of a graph that only moves data on index numbers instead of data.

Every element that comes out then says which element it came from, whatever mixture of reshapes, rolls,
gathers and concatenations an exporter wrote. Index 0 stands for a zero that the graph itself put there
(padding). Two more traces go through the same nodes: ``SCALE`` (ones in, constants multiplied, nothing added:
the factor on each element) and ``CONSTANT`` (zeros in, everything as it is: what the graph adds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper

from onnxopt.discover.movement import AFFINE, MOVED, folding, guarded_input
from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph

# ONNX Runtime has no integer kernels for these; float64 is exact up to 2**53.
_FLOAT_ONLY = {"DepthToSpace", "SpaceToDepth"}
_TENSOR_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.bool_): TensorProto.BOOL,
}


def counting(first: int, size: int) -> np.ndarray:
    """The numbers ``first``, ``first + 1`` ... for an ``INDEX`` trace, in the smallest type that traces
    handle.
    """
    last = first + size
    return np.arange(first, last, dtype=np.int32 if last <= np.iinfo(np.int32).max else np.int64)


class Trace(Enum):
    """What runs through the nodes; see the module's description."""

    INDEX = "index"
    SCALE = "scale"
    CONSTANT = "constant"


def run_traced(
    graph: Graph,
    nodes: Sequence[NodeProto],
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    trace: Trace,
    *,
    merge: str | None = None,
    through_masks: bool = False,
) -> dict[str, np.ndarray]:
    """Run movement and affine nodes on ``feeds`` and return ``outputs``.

    All feeds have one type: integers for ``INDEX``, float64 or float32 otherwise. ``merge`` ("Max" or "Min")
    says what an Add of two traced tensors does with their indices; without it such an Add is a plain sum.
    ``through_masks`` lets the one traced branch of a Where pass everywhere.
    """
    plan = _Substitution(graph, feeds, trace, merge, through_masks)
    for node in nodes:
        if any(output in feeds for output in node.output):
            continue
        plan.add(node)
    return plan.run(outputs)


class _Substitution:
    """Collects the traced form of each node; a node that would copy its input becomes an alias and costs
    nothing.
    """

    def __init__(
        self,
        graph: Graph,
        feeds: Mapping[str, np.ndarray],
        trace: Trace,
        merge: str | None,
        through_masks: bool,
    ) -> None:
        self.graph, self.trace, self.merge, self.through_masks = graph, trace, merge, through_masks
        self.feeds = dict(feeds)
        self.alias: dict[str, str] = {}
        self.nodes: list[NodeProto] = []
        self.made: set[str] = set()
        self.dtype = next(iter(feeds.values())).dtype

    def add(self, node: NodeProto) -> None:
        if node.op_type == "IsNaN":
            return
        guarded = guarded_input(self.graph, node)
        if guarded is not None or node.op_type in ("Cast", "Identity", "Dropout"):
            self._alias(node.output[0], guarded or node.input[0])
            return
        if node.op_type in AFFINE:
            self._affine(node)
            return
        if node.op_type == "Where":
            self._where(node)
            return
        if node.op_type == "Col2Im":
            self._fold(node)
            return
        inputs = []
        positions = MOVED.get(node.op_type, (0,))
        for position, name in enumerate(node.input):
            moved = positions is None or position in positions
            inputs.append(self._operand(name) if moved else self._parameter(name))
        while inputs and not inputs[-1]:
            inputs.pop()
        self._emit(node, inputs, list(node.output))

    def run(self, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        wanted = [self._resolve(name) for name in outputs]
        computed = [name for name in dict.fromkeys(wanted) if name in self.made]
        values = _run(self.nodes, self.feeds, computed, self.graph) if computed else {}
        missing = [name for name in wanted if name not in values and name not in self.feeds]
        if missing:
            raise NotASite(f"tensor {missing[0]!r} does not follow from the traced tensors by movement alone")
        return {name: values.get(t, self.feeds.get(t)) for name, t in zip(outputs, wanted, strict=True)}  # type: ignore[misc]

    def _known(self, name: str) -> bool:
        resolved = self._resolve(name)
        return resolved in self.feeds or resolved in self.made

    def _affine(self, node: NodeProto) -> None:
        left, right = node.input[0], node.input[1]
        traced = [name for name in (left, right) if self._known(name)]
        if len(traced) == 2:
            kind = self.merge if self.merge and node.op_type == "Add" else node.op_type
            self._emit(helper.make_node(kind, [], []), [self._resolve(left), self._resolve(right)], [node.output[0]])
            return
        multiplies = node.op_type in ("Mul", "Div")
        if self.trace is Trace.CONSTANT or (self.trace is Trace.SCALE and multiplies):
            operands = [self._resolve(n) if self._known(n) else self._constant(n, real=True) for n in (left, right)]
            self._emit(node, operands, [node.output[0]])
            return
        source = traced[0]
        if self.trace is Trace.SCALE and node.op_type == "Sub" and source == right:
            negated = node.output[0] + "/negated"
            self._emit(helper.make_node("Neg", [], []), [self._resolve(source)], [negated])
            source = negated
        self._expand(node.output[0], source)

    def _where(self, node: NodeProto) -> None:
        traced = [name for name in node.input[1:] if self._known(name)]
        if self.graph.is_data(node.input[0]) or (self.through_masks and len(traced) == 1):
            # A mask known only at run time: what passes when it lets everything through.
            self._expand(node.output[0], traced[0])
            return
        self._emit(
            node,
            [self._parameter(node.input[0]), *(self._operand(n) for n in node.input[1:])],
            [node.output[0]],
        )

    def _fold(self, node: NodeProto) -> None:
        """A Col2Im without overlap as the movement that it is."""
        folded, shape = folding(self.graph, node), self.graph.shape(node.input[0])
        if folded is None or shape is None:
            raise NotASite(f"Col2Im {node.name!r} adds up overlapping blocks")
        image, block = folded
        rank, name = len(block), node.output[0]
        counts = [i // b for i, b in zip(image, block, strict=True)]
        lead = [shape[0], shape[1] // int(np.prod(block))]
        order = [0, 1, *(axis for i in range(rank) for axis in (2 + rank + i, 2 + i))]
        self.feeds[f"{name}/parts"] = np.array([*lead, *block, *counts], np.int64)
        self.feeds[f"{name}/image"] = np.array([*lead, *image], np.int64)
        reshape = helper.make_node("Reshape", [], [])
        self._emit(reshape, [self._operand(node.input[0]), f"{name}/parts"], [f"{name}/parted"])
        self._emit(helper.make_node("Transpose", [], [], perm=order), [f"{name}/parted"], [f"{name}/ordered"])
        self._emit(reshape, [f"{name}/ordered", f"{name}/image"], [name])

    def _expand(self, output: str, source: str) -> None:
        """``output`` is ``source``, broadcast where the node would have broadcast it."""
        shape = self.graph.shape(output)
        resolved = self._resolve(source)
        known = self.feeds[resolved].shape if resolved in self.feeds else self.graph.shape(source)
        # A feed of ones in every dimension stands for a whole tensor and may stay small.
        if shape is None or known == shape or (known is not None and set(known) <= {1}):
            self._alias(output, source)
            return
        target = output + "/shape"
        self.feeds[target] = np.array(shape, np.int64)
        self._emit(helper.make_node("Expand", [], []), [resolved, target], [output])

    def _operand(self, name: str) -> str:
        if not name or self._known(name):
            return self._resolve(name)
        return self._constant(name, real=self.trace is Trace.CONSTANT)

    def _constant(self, name: str, *, real: bool) -> str:
        """A constant operand as the trace sees it: its value, or nothing at all."""
        value = self.graph.constant(name)
        if value is None:
            raise NotASite(f"the value of {name!r} is neither constant nor traced")
        key = f"{name}/{'value' if real else 'nothing'}"
        if key not in self.feeds:
            self.feeds[key] = np.asarray(value).astype(self.dtype) if real else np.zeros(value.shape, self.dtype)
        return key

    def _parameter(self, name: str) -> str:
        if not name:
            return ""
        value = self.graph.constant(name)
        if value is None:
            raise NotASite(f"{name!r}, which says how data moves, depends on the input")
        self.feeds.setdefault(name, np.asarray(value))
        return name

    def _alias(self, output: str, source: str) -> None:
        self.alias[output] = self._resolve(source)

    def _resolve(self, name: str) -> str:
        return self.alias.get(name, name)

    def _emit(self, node: NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        del copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        copy.name = outputs[0]
        self.nodes.append(copy)
        self.made.update(outputs)


def _run(
    nodes: Sequence[NodeProto], feeds: Mapping[str, np.ndarray], outputs: Sequence[str], graph: Graph
) -> dict[str, np.ndarray]:
    read = {name for node in nodes for name in node.input}
    used = {name: np.asarray(value, order="C") for name, value in feeds.items() if name in read}
    if any(node.op_type in _FLOAT_ONLY for node in nodes):
        index = {n for n, v in used.items() if v.dtype in (np.int32, np.int64) and _is_moved(nodes, n)}
        used = {n: v.astype(np.float64) if n in index else v for n, v in used.items()}
    model = helper.make_model(
        helper.make_graph(
            list(nodes),
            "trace",
            [helper.make_tensor_value_info(n, _TENSOR_TYPES[v.dtype], v.shape) for n, v in used.items()],
            [helper.make_empty_tensor_value_info(o) for o in outputs],
        ),
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=8,
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(list(outputs), used)
    except Exception as error:  # ONNX Runtime raises kinds of its own; whatever it is, nothing is proved
        # What went wrong comes last, after the runtime's own codes and source files.
        reason = str(error).splitlines()[0].split(" : ")[-1][-200:]
        raise NotASite(f"the movement around it could not be traced: {reason}") from error
    return {
        name: value.astype(np.int64)
        if value.dtype == np.float64 and any(n.op_type in _FLOAT_ONLY for n in nodes)
        else value
        for name, value in zip(outputs, results, strict=True)
    }


def _is_moved(nodes: Sequence[NodeProto], name: str) -> bool:
    """Whether a feed is data to some node (rather than a shape, an index or an axis)."""
    for node in nodes:
        positions = MOVED.get(node.op_type, (0, 1))
        if any(n == name and (positions is None or i in positions) for i, n in enumerate(node.input)):
            return True
    return False

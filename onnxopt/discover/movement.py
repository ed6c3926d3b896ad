"""Index tracing: run the part of a graph that only moves data on index numbers instead of data.

Every element that comes out then says which element it came from, whatever mixture of reshapes, rolls, gathers and
concatenations an exporter wrote. Index 0 stands for a zero that the graph itself put there (padding). Two more traces
go through the same nodes: ``SCALE`` (ones in, constants multiplied, nothing added: the factor on each element) and
``CONSTANT`` (zeros in, everything as it is: what the graph adds).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper

from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph, attribute

# Which inputs of an operator are moved; the others say how. None: all of them.
_MOVED: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "Col2Im": (0,),
    "Concat": None,
    "DepthToSpace": (0,),
    "Dropout": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Identity": (0,),
    "Pad": (0, 2),
    "Reshape": (0,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
_AFFINE = {"Add", "Sub", "Mul", "Div"}
# ONNX Runtime has no int64 kernels for these; float64 is exact up to 2**53.
_FLOAT_ONLY = {"DepthToSpace", "SpaceToDepth", "Col2Im"}
_TENSOR_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.bool_): TensorProto.BOOL,
}


class Trace(Enum):
    """What runs through the nodes; see the module's description."""

    INDEX = "index"
    SCALE = "scale"
    CONSTANT = "constant"


def moved_inputs(graph: Graph, node: NodeProto) -> list[str] | None:
    """The tensors that a movement node moves, or None if the node does more than move data.

    Constants among them are included unless they are all zero, so that a walk stops at them like at any other source.
    """
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Einsum":
        return [node.input[0]] if _is_transposing_einsum(node) else None
    if node.op_type not in _MOVED:
        return None
    positions = _MOVED[node.op_type]
    moved = [n for i, n in enumerate(node.input) if n and (positions is None or i in positions)]
    if any(n and graph.is_data(n) and n not in moved for n in node.input):
        return None
    if node.op_type in ("ScatterND", "ScatterElements") and attribute(node, "reduction", "none") != "none":
        return None
    if node.op_type == "Pad" and attribute(node, "mode", "constant") != "constant":
        return None
    return [name for name in moved if graph.is_data(name) or not _is_zero(graph, name)]


def affine_input(graph: Graph, node: NodeProto) -> str | None:
    """The data operand of an Add, Sub, Mul or Div whose other operand is constant, or None."""
    if node.op_type not in _AFFINE or node.domain not in ("", "ai.onnx"):
        return None
    data = graph.data_inputs(node)
    if len(data) != 1 or (node.op_type == "Div" and node.input[1] == data[0]):
        return None
    return data[0]


def scaling_input(graph: Graph, node: NodeProto) -> str | None:
    """The data operand of a multiplication or division by a constant, or None."""
    return affine_input(graph, node) if node.op_type in ("Mul", "Div") else None


def guarded_input(graph: Graph, node: NodeProto) -> str | None:
    """``x`` of ``Where(IsNaN(x), 0, x)``, by which exporters turn a row without keys into zeros."""
    if node.op_type != "Where" or len(node.input) != 3:
        return None
    check = graph.node_of(node.input[0])
    if check is None or check.op_type != "IsNaN" or check.input[0] != node.input[2]:
        return None
    return node.input[2] if _is_zero(graph, node.input[1]) else None


def walk_back(
    graph: Graph, targets: Sequence[str], follow: Callable[[NodeProto], Sequence[str] | None]
) -> tuple[list[NodeProto], list[str]]:
    """The nodes behind ``targets`` as long as ``follow`` names inputs to go on to, and the tensors it stopped at.

    Nodes come in topological order; the stops in the order in which the graph makes them.
    """
    seen: set[str] = set()
    nodes: list[NodeProto] = []
    stops: list[str] = []
    stack = list(targets)
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        node = graph.node_of(name)
        onward = follow(node) if node is not None and graph.is_data(name) else None
        if node is None or onward is None:
            stops.append(name)
            continue
        nodes.append(node)
        stack.extend(onward)
    stops.sort(key=lambda name: (graph.producer.get(name, -1), name))
    return graph.ordered(nodes), stops


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

    All feeds have one type: int64 for ``INDEX``, float64 or float32 otherwise. ``merge`` ("Max" or "Min") says what an
    Add of two traced tensors does with their indices; without it such an Add is a plain sum. ``through_masks`` lets the
    one traced branch of a Where pass everywhere.
    """
    plan = _Substitution(graph, feeds, trace, merge, through_masks)
    for node in nodes:
        if any(output in feeds for output in node.output):
            continue
        plan.add(node)
    return plan.run(outputs)


class _Substitution:
    """Collects the traced form of each node; a node that would copy its input becomes an alias and costs nothing."""

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
        if node.op_type in _AFFINE:
            self._affine(node)
            return
        if node.op_type == "Where":
            self._where(node)
            return
        inputs = []
        positions = _MOVED.get(node.op_type, (0,))
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
            self._emit(
                helper.make_node(kind, [], []), [self._resolve(left), self._resolve(right)], [node.output[0]]
            )
            return
        multiplies = node.op_type in ("Mul", "Div")
        if self.trace is Trace.CONSTANT or (self.trace is Trace.SCALE and multiplies):
            operands = [
                self._resolve(n) if self._known(n) else self._constant(n, real=True) for n in (left, right)
            ]
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
            self.feeds[key] = (
                np.asarray(value).astype(self.dtype) if real else np.zeros(value.shape, self.dtype)
            )
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
        index = {n for n, v in used.items() if v.dtype == np.int64 and _is_moved(nodes, n)}
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
    except (
        Exception
    ) as error:  # ONNX Runtime raises its own kinds; whatever it is, this is not a site that we can prove
        raise NotASite(
            f"the movement around it could not be traced: {str(error).splitlines()[0][:200]}"
        ) from error
    return {
        name: value.astype(np.int64)
        if value.dtype == np.float64 and any(n.op_type in _FLOAT_ONLY for n in nodes)
        else value
        for name, value in zip(outputs, results, strict=True)
    }


def _is_moved(nodes: Sequence[NodeProto], name: str) -> bool:
    """Whether a feed is data to some node (rather than a shape, an index or an axis)."""
    for node in nodes:
        positions = _MOVED.get(node.op_type, (0, 1))
        if any(n == name and (positions is None or i in positions) for i, n in enumerate(node.input)):
            return True
    return False


def _is_zero(graph: Graph, name: str) -> bool:
    value = graph.constant(name)
    return value is not None and not np.any(np.asarray(value))


def _is_transposing_einsum(node: NodeProto) -> bool:
    """An Einsum of one operand that only permutes its axes."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    if len(node.input) != 1 or "->" not in equation or "." in equation:
        return False
    source, target = equation.split("->")
    return sorted(source) == sorted(target) and len(set(source)) == len(source)

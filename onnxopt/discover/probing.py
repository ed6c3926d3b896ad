"""Run a part of a graph as it is on chosen values, and find the tensors that a part depends on through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, helper, numpy_helper

from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph, Shape, nested_names


class GraphPart:
    """The nodes that compute ``outputs`` from ``inputs``, with their constants, at the view's batch size.

    Raises :class:`NotASite` where they read another tensor that depends on the model's inputs.
    """

    def __init__(self, graph: Graph, nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.graph = graph
        wanted = _needed(graph, nodes, inputs, outputs)
        made = {name for node in wanted for name in node.output}
        read = [name for name in dict.fromkeys(n for node in wanted for n in nested_names(node)) if name not in made]
        read += [name for name in outputs if name not in made and name not in read]
        self.inputs = [name for name in inputs if name in read]
        constants = [numpy_helper.from_array(_constant(graph, n), n) for n in read if n not in inputs]
        model = helper.make_model(
            helper.make_graph(
                [_unnamed(node) for node in wanted],
                "part",
                [helper.make_tensor_value_info(n, graph.element_type(n), graph.shape(n)) for n in self.inputs],
                [helper.make_empty_tensor_value_info(name) for name in outputs],
                constants,
            ),
            opset_imports=[helper.make_opsetid("", graph.opset)],
            ir_version=8,
        )
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises kinds of its own; whatever it is, nothing is proved
            raise NotASite(f"the part around it cannot be run: {_reason(error)}") from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs for values of the inputs, which are given the inputs' types and shapes."""
        given = {name: np.asarray(feeds[name]).astype(self.dtype(name)) for name in self.inputs}
        given = {name: np.ascontiguousarray(value).reshape(self.shape(name)) for name, value in given.items()}
        try:
            return list(self._session.run(None, given))
        except Exception as error:  # as above
            raise NotASite(f"the part around it cannot be run: {_reason(error)}") from error

    def dtype(self, name: str) -> np.dtype:
        """The NumPy type of a tensor."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.graph.element_type(name)))

    def shape(self, name: str) -> Shape:
        """The shape of a tensor at the view's batch size."""
        found = self.graph.shape(name)
        if found is None:
            raise NotASite(f"the shape of {name!r} is not known")
        return found


def passages(graph: Graph, targets: Sequence[str], most_nodes: int) -> Iterator[tuple[str, list[NodeProto]]]:
    """Tensors through which all that ``targets`` depend on passes, the nearest first, each with the nodes between.

    Ends at the inputs of the model or after ``most_nodes`` nodes.
    """
    pending = {name for name in targets if graph.is_data(name)}
    nodes: list[NodeProto] = []
    while pending:
        if len(pending) == 1:
            yield next(iter(pending)), graph.ordered(nodes)
        node = graph.node_of(max(pending, key=lambda name: (graph.producer.get(name, -1), name)))
        if node is None or len(nodes) == most_nodes:
            return
        nodes.append(node)
        pending -= set(node.output)
        pending |= {name for name in nested_names(node) if graph.is_data(name)}


def _needed(graph: Graph, nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str]) -> list[NodeProto]:
    """Those of the nodes that the outputs need, in topological order."""
    by_output = {name: node for node in nodes for name in node.output if name}
    wanted: dict[str, NodeProto] = {}
    stack = list(outputs)
    while stack:
        name = stack.pop()
        node = by_output.get(name)
        if name in inputs or node is None or node.output[0] in wanted:
            continue
        wanted[node.output[0]] = node
        stack.extend(nested_names(node))
    return graph.ordered(wanted.values())


def _unnamed(node: NodeProto) -> NodeProto:
    """A copy without a name, which the nodes of an operator that was written out have in common."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    return copy


def _constant(graph: Graph, name: str) -> np.ndarray:
    value = graph.constant(name)
    if value is None:
        raise NotASite(f"{name!r} has a part in it, which depends on the input in another way")
    return np.asarray(value)


def _reason(error: Exception) -> str:
    # What went wrong comes last, after the runtime's own codes and source files.
    return str(error).splitlines()[0].split(" : ")[-1][-200:]

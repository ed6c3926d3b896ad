"""A model on its way into a whole-model program, and its parameters: those that must not depend on the inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from benchmarks.whole_model_program import Array
from onnxopt.errors import InputError
from onnxopt.model.graph import Graph, attribute


@dataclass
class Translation:
    """One model on its way into a program at one batch size."""

    graph: Graph
    constants: dict[str, Array] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a tensor; raises InputError where it has none."""
        shape = self.graph.shape(name)
        if shape is None or not all(isinstance(size, int) for size in shape):
            raise InputError(f"tensor '{name}' has no static shape; give a model whose shapes follow from its inputs'")
        return tuple(int(size) for size in shape)

    def value(self, node: NodeProto, place: int) -> Array | None:
        """A parameter of a node, which must not depend on the model's inputs; None where it is not given."""
        name = node.input[place] if len(node.input) > place else ""
        if not name:
            return None
        value = self.graph.constant(name)
        if value is None:
            raise InputError(f"{label(node)}: its parameter '{name}' is computed from the model's inputs")
        return value

    def axis(self, node: NodeProto, default: int) -> int:
        """The attribute ``axis``, counted from the front."""
        return counted(int_attribute(node, "axis", default), len(self.shape(node.input[0])))

    def new_constant(self, wanted: str, value: Array) -> str:
        """The name of a constant of the program's own."""
        self.constants[wanted] = value
        return wanted

    def read(self, name: str, node: NodeProto) -> None:
        """Remember a tensor that a node reads, where it is a constant."""
        if name and name not in self.graph.data and name not in self.constants:
            value = self.graph.constant(name)
            if value is None:
                raise InputError(f"{label(node)}: its input '{name}' could not be evaluated")
            self.constants[name] = np.asarray(value)


def label(node: NodeProto) -> str:
    """A node for a message."""
    return f"node '{node.name or (node.output[0] if node.output else '')}' ({node.op_type})"


def int_attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    value = attribute(node, name, default)
    if not isinstance(value, int):
        raise InputError(f"{label(node)}: its attribute '{name}' is {value!r:.80}, expected an integer")
    return value


def float_attribute(node: NodeProto, name: str, default: float) -> float:
    """A number that is an attribute."""
    value = attribute(node, name, default)
    if not isinstance(value, (int, float)):
        raise InputError(f"{label(node)}: its attribute '{name}' is {value!r:.80}, expected a number")
    return float(value)


def counted(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis

"""Models for the launcher of every family of operators, and their nodes as TensorRT's parser hands them over."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import pytest
from onnx import AttributeProto, ModelProto, NodeProto

from onnxopt.deploy.engine_operators import TENSOR_BYTES, EngineOperator
from onnxopt.deploy.launcher import build_launcher, find_headers
from onnxopt.deploy.launcher_fields import PLUGIN_NAME
from onnxopt.deploy.launcher_model import launcher_model
from onnxopt.deploy.operator_specs import engine_operators
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.operator_source import operator_source
from onnxopt.lower.plugin_nodes import OPERATORS, PluginNode, plugin_nodes
from tests.deploy.launcher_host import CHAR, INT8, INT32, Field, Tensor
from tests.deploy.lean_packages import MODELS

ARCHITECTURES = ("sm_80", "sm_89")
"""What the kernels of the cases are compiled for."""

QUICK = ("split", "scalar")
"""Two kernels with a workspace and a fixed batch; one kernel and any batch."""

FAMILIES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MODELS]
"""Every family of operators; beyond the quick ones in the slow tests."""

headers_are_there = pytest.mark.skipif(
    find_headers().path is None,
    reason="TensorRT's headers are not here: set TENSORRT_INCLUDE to the folder with NvInferRuntime.h",
)


@dataclass(frozen=True)
class Launched:
    """A node of the launcher's plugin and the operators that it stands for, two where it is split attention.

    ``kernels`` are those for the first architecture, ``cubins`` the machine code for each.
    """

    node: NodeProto
    operators: tuple[EngineOperator, ...]
    parts: tuple[PluginNode, ...]
    kernels: tuple[CompiledKernel, ...]
    cubins: tuple[tuple[bytes, ...], ...]

    def inputs(self, batch: int) -> list[Tensor]:
        """All inputs for a batch: operands flat but for a leading dimension, which is no constant, and the tables."""
        first = self.operators[0]
        counts = input_elements(self)
        operands = [Tensor(p.type, (batch, n), open=(0,)) for p, n in zip(first.operands, counts, strict=True)]
        tables = [Tensor(p.type, _known(p.shape)) for operator in self.operators for p in operator.tables]
        return [*operands, *tables]

    def outputs(self, batch: int) -> list[Tensor]:
        """All outputs for a batch."""
        return [Tensor(output.type, output.sizes(batch)) for output in self.operators[-1].outputs]


@dataclass(frozen=True)
class Case:
    """A model in the plugin form, what it becomes for the launcher, and its nodes."""

    plugin: ModelProto
    model: ModelProto
    launched: tuple[Launched, ...]


@cache
def case(name: str) -> Case:
    """The case of one of ``MODELS``, with kernels for all architectures."""
    return compiled_case(MODELS[name](), ARCHITECTURES)


def compiled_case(model: ModelProto, architectures: Sequence[str]) -> Case:
    """A model in the plugin form with its kernels compiled for some architectures."""
    nodes = {node.operator: node for node in plugin_nodes(model, OPERATORS)}
    return case_of(
        model,
        {
            name: [compile_kernel(operator_source(node.configuration, node.resident), a) for a in architectures]
            for name, node in nodes.items()
        },
    )


def case_of(model: ModelProto, kernels: Mapping[str, Sequence[CompiledKernel]]) -> Case:
    """A model in the plugin form with kernels for each of its operators."""
    operators = engine_operators(model, {operator: made[0].report for operator, made in kernels.items()})
    known = {operator.name: operator for operator in operators}
    written = launcher_model(model, operators, kernels)
    by_output = {node.outputs[0]: node for node in plugin_nodes(model, OPERATORS)}
    launched = []
    for node in written.graph.node:
        if node.op_type == PLUGIN_NAME:
            last = by_output[node.output[0]]
            parts = (last,) if last.name == node.name else (_first_half(by_output, last), last)
            found = tuple(known[part.operator] for part in parts)
            made = [kernels[part.operator] for part in parts]
            cubins = tuple(tuple(kernel.cubin for kernel in each) for each in made)
            launched.append(Launched(node, found, parts, tuple(each[0] for each in made), cubins))
    return Case(model, written, tuple(launched))


def batches_of(node: Launched) -> list[int]:
    """Some batches, or the one of a model whose batch is fixed."""
    first = node.operators[0].operands[0]
    known = [size for size in first.shape if size is not None]
    return [1, 3, 7] if len(known) < len(first.shape) else [prod(known) // node.operators[0].batch_elements]


def parts_of_workspace(node: Launched, batch: int) -> list[tuple[int, int]]:
    """Where each part begins and how many bytes it has: the next multiple of 256 behind the one before it."""
    parts, end = [], 0
    for output in node.operators[0].outputs if len(node.operators) == 2 else ():
        size = batch * output.elements * TENSOR_BYTES[output.type]
        parts.append((end, size))
        end += -(-size // 256) * 256
    return parts


def parsed_fields(node: NodeProto, names: list[str]) -> list[Field]:
    """The attributes that a creator names as TensorRT's parser makes fields of them, in the order of the names.

    Read in ``loadFields`` of onnx-tensorrt 10.1 (onnxOpImporters.cpp): numbers become int32, a text has a zero byte
    behind it, and a tensor of int8 is given as it lies.
    """
    given = {attribute.name: attribute for attribute in node.attribute}
    return [_field(given[name]) for name in names if name in given]


def input_elements(launched: Launched) -> list[int]:
    """Elements of each operand for a batch element, by the configuration of the kernel."""
    part, first = launched.parts[0], launched.operators[0]
    kernel = part.kernel
    elsewhere: Mapping[str, Callable[[], int]] = {
        "k": lambda: int(kernel["k"][0]),
        "v": lambda: int(kernel["v"][0]),
        "lse": lambda: int(kernel["slots"]),
        "weight": lambda: int(kernel["columns"]),
        "residual": lambda: first.outputs[0].elements,
    }
    return [elsewhere.get(port.name, lambda: first.batch_elements)() for port in first.operands]


@cache
def built_launcher(session: Path) -> Path:
    """The folder with the launcher and its host library, built with this machine's headers once for a session."""
    return build_launcher(folder=session / "launcher", host=True).parent


def _first_half(by_output: Mapping[str, PluginNode], merge: PluginNode) -> PluginNode:
    return by_output[merge.operands["partial"]]


def _known(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    assert None not in shape
    return tuple(size for size in shape if size is not None)


def _field(attribute: AttributeProto) -> Field:
    if attribute.type == AttributeProto.INTS:
        numbers = list(attribute.ints)
        return Field(attribute.name, INT32, struct.pack(f"<{len(numbers)}i", *numbers), len(numbers))
    if attribute.type == AttributeProto.STRING:
        return Field(attribute.name, CHAR, attribute.s + b"\0", len(attribute.s) + 1)
    assert attribute.type == AttributeProto.TENSOR
    return Field(attribute.name, INT8, attribute.t.raw_data, prod(attribute.t.dims))

"""Nodes of the plugin form as launches: which kernel, how many blocks, which arguments in which order.

``KINDS`` is the table to extend for a new kind of operator, ``REFERENCES`` in ``whole_model_kernels`` the one for what
it computes on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from onnx import FunctionProto, ModelProto, NodeProto

from benchmarks.whole_model_program import LAUNCH, TABLE, Array, Node
from benchmarks.whole_model_translation import Translation, label
from onnxopt.errors import InputError
from onnxopt.kernels.algorithm_launch import algorithm_launch, algorithm_parameters
from onnxopt.kernels.algorithm_source import ALGORITHM_FILES
from onnxopt.kernels.arguments import Launch
from onnxopt.kernels.block_source import conv_block_launch, conv_block_parameters
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.conv_launch import group_conv_launch, group_conv_parameters, sum_conv_launch, sum_conv_parameters
from onnxopt.kernels.launch import MERGE_PARAMETERS, attention_launch, merge_launch, parameter_names
from onnxopt.kernels.report import ResourceReport
from onnxopt.lower.rewrite import DOMAIN

Configuration = Mapping[str, Any]
Tables = Mapping[str, Array]

_HOST_TYPES = {"fp16": "float16", "tf32": "float32", "fp32": "float32"}
# Tensors that have these types whatever the kernel computes in.
_FIXED_TYPES = dict.fromkeys(("partial", "products", "lse", "weight"), "float32")


@dataclass(frozen=True)
class Kind:
    """How operators of one kind are launched: the parameters of their entry, and blocks and shared memory."""

    parameters: Callable[[Configuration], tuple[str, ...]]
    launch: Callable[[Configuration, Tables, int, ResourceReport], Launch]


def _step(operator: str) -> Kind:
    """A step of a convolution algorithm."""
    return Kind(
        lambda kernel: algorithm_parameters(operator, kernel),
        lambda kernel, tables, batch, report: algorithm_launch(operator, kernel, batch, report),
    )


KINDS: Mapping[str, Kind] = {
    "SparseAttention": Kind(parameter_names, lambda k, t, batch, r: attention_launch(k, len(t["jobs"]), batch, r)),
    "MergeAttention": Kind(lambda k: MERGE_PARAMETERS, lambda k, t, batch, r: merge_launch(len(t["merges"]), batch)),
    "GroupConv": Kind(group_conv_parameters, lambda k, t, batch, r: group_conv_launch(k, len(t["jobs"]), batch, r)),
    "SumConv": Kind(sum_conv_parameters, lambda k, t, batch, r: sum_conv_launch(k, batch)),
    "ConvBlock": Kind(conv_block_parameters, lambda k, t, batch, r: conv_block_launch(k, len(t["jobs"]), batch, r)),
    **{operator: _step(operator) for operator in ALGORITHM_FILES},
}
"""Every kind of operator that a host can launch."""


@dataclass
class LaunchWriter:
    """Makes launches of one model's own operators and puts their code below a job's folder."""

    folder: Path
    model: ModelProto
    kernels: Mapping[str, CompiledKernel]
    batch: int
    _functions: dict[str, FunctionProto] = field(init=False)

    def __post_init__(self) -> None:
        self._functions = {f.name: f for f in self.model.functions if f.domain == DOMAIN}

    def __call__(self, work: Translation, node: NodeProto) -> Node:
        """The launch of a node; raises InputError for a kind that is not in the table, or without its kernel."""
        function, compiled = self._functions.get(node.op_type), self.kernels.get(node.op_type)
        if function is None or compiled is None:
            raise InputError(f"{label(node)}: has no {'body' if function is None else 'kernel'}; make the job again")
        configuration = json.loads(function.doc_string)
        kind, kernel = configuration["operator"], configuration["kernel"]
        if kind not in KINDS or kernel["element"] not in _HOST_TYPES:
            raise InputError(
                f"{label(node)}: {kind} in {kernel['element']}; the host launches {', '.join(KINDS)} in "
                f"{', '.join(_HOST_TYPES)}"
            )
        given = dict(zip(function.input, node.input, strict=True))
        tables, operands = self._divided(work, given, kernel["element"])
        launch = KINDS[kind].launch(
            kernel, {n: work.constants[t] for n, t in tables.items()}, self.batch, compiled.report
        )
        made = dict(zip(function.output, node.output, strict=True))
        attributes = {
            "kind": kind,
            "kernel": kernel,
            "batch": self.batch,
            "entry": compiled.source.entry,
            "parameters": KINDS[kind].parameters(kernel),
            "grid": launch.grid,
            "block": launch.block,
            "shared_bytes": launch.shared_bytes,
            "operands": list(operands),
            "types": {name: _type(name, kernel["element"]) for name in (*operands, *made)},
            "tables": tables,
            "results": {name: work.shape(tensor) for name, tensor in made.items()},
            **self._code(compiled),
        }
        if any(prod(shape) % self.batch for shape in attributes["results"].values()):
            raise InputError(f"{label(node)}: its outputs are not of {self.batch} batch elements")
        return Node(LAUNCH, node.name, tuple(operands.values()), tuple(node.output), attributes)

    def _divided(
        self, work: Translation, given: Mapping[str, str], element: str
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The operator's tables by the names of constants, and its operands by those of tensors."""
        tables, operands = {}, {}
        for name, tensor in given.items():
            if tensor in work.graph.data:
                operands[name] = tensor
                continue
            value = work.graph.constant(tensor)
            assert value is not None
            tables[name] = work.new_constant(f"{TABLE}{tensor}", value)
        return tables, operands

    def _code(self, compiled: CompiledKernel) -> dict[str, Any]:
        (self.folder / "kernels").mkdir(parents=True, exist_ok=True)
        digest = sha256(compiled.cubin + compiled.ptx.encode()).hexdigest()[:20]
        cubin, ptx = f"kernels/{digest}.{compiled.architecture}.cubin", f"kernels/{digest}.ptx"
        (self.folder / cubin).write_bytes(compiled.cubin)
        (self.folder / ptx).write_text(compiled.ptx)
        return {"cubins": {compiled.architecture: cubin}, "ptx": ptx}


def _type(name: str, element: str) -> str:
    return _FIXED_TYPES.get(name, _HOST_TYPES[element])

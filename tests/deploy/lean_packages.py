"""Small packages of every family of operators for the checks of generated plugin modules, and what NVIDIA's code says.

The code under test is run in a process of its own (``lean_child.py``), in which tensorrt-lean stands for TensorRT.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.deploy.aot_model import aot_model
from onnxopt.deploy.engine_operators import EngineOperator, Port, Tactic
from onnxopt.deploy.operator_specs import engine_operators
from onnxopt.deploy.plugin_module import kernel_name, write_module
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.kernels.compilation import CompiledKernel, architecture_for
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.operator_source import operator_source
from onnxopt.kernels.source import with_others
from onnxopt.lower.plugin_nodes import OPERATORS, PluginNode, plugin_nodes
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.target.variant import AttentionVariant, ConvVariant, Element
from samples.builder import GraphBuilder
from samples.convolution import conv
from tests.lower import plugin_models
from tests.lower.algorithm_models import in_steps, two_layers
from tests.lower.conv_plugin_models import in_plugin_form
from tests.lower.masked_attention import Pattern, masked_attention
from tests.lower.test_block_plugin import judged, network, written
from tests.plan.schedules import scheduled
from tests.plan.sites import Wish, made_site

needs_lean = pytest.mark.skipif(
    find_spec("tensorrt_lean") is None,
    reason="NVIDIA's plugin code is not installed here: pip install 'tensorrt-lean-cu13>=11.4,<12'",
)
CHILD = Path(__file__).with_name("lean_child.py")

# What tensorrt-lean calls the types of tensors.
DATA_TYPES = {"fp16": "HALF", "bf16": "BF16", "float32": "FLOAT", "int32": "INT32"}


@dataclass(frozen=True)
class Package:
    """A folder with a generated module and its kernels, the operators that it was made of, and their nodes.

    ``model`` is the one for TensorRT, ``plugin`` the same in the plugin form, where shapes can be inferred.

    ``nodes`` are those whose tables each tactic of an operator reads, by the operator's name.
    """

    folder: Path
    plugin: onnx.ModelProto
    model: onnx.ModelProto
    operators: tuple[EngineOperator, ...]
    nodes: Mapping[str, tuple[PluginNode, ...]]
    kernels: Mapping[str, tuple[CompiledKernel, ...]]

    @property
    def module(self) -> Path:
        return self.folder / "tensorrt_plugins.py"

    def operator(self, family: str) -> EngineOperator:
        return next(operator for operator in self.operators if operator.name.startswith(f"{family}_"))


def ask(task: str, **request: Any) -> Any:
    """What a task of the child answers."""
    with tempfile.TemporaryDirectory() as place:
        asked, answer = Path(place) / "request.json", Path(place) / "answer.json"
        asked.write_text(json.dumps({"task": task, **request}))
        done = subprocess.run(
            [sys.executable, str(CHILD), str(asked), str(answer)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(answer.read_text())


def sizes_for(port: Port, batch: int, elements: int | None = None) -> list[int]:
    """The sizes of an input for a batch; the one that is open holds what the others leave of its elements."""
    known = prod(size for size in port.shape if size is not None)
    followed = batch if elements is None else batch * elements // known
    return [followed if size is None else size for size in port.shape]


def cases_of(operator: EngineOperator, batches: Sequence[int]) -> tuple[list[list[list[int]]], list[int]]:
    """The sizes of all inputs for some batches, and these; an operator of fixed sizes has one batch alone."""
    first = operator.operands[0]
    if None not in first.shape:
        fixed = operator.batch([size for size in first.shape if size is not None])
        batches = [fixed]
    cases = []
    for batch in batches:
        others = [sizes_for(port, batch) for port in operator.inputs[1:]]
        cases.append([sizes_for(first, batch, operator.batch_elements), *others])
    return cases, list(batches)


def asked_of(operator: EngineOperator, batches: Sequence[int]) -> dict[str, Any]:
    """The request about one operator."""
    return {
        "name": operator.name,
        "types": [DATA_TYPES[port.type] for port in operator.inputs],
        "shapes": [list(port.shape) for port in operator.inputs],
        "cases": cases_of(operator, batches)[0],
    }


def answers(
    module: Path, operators: Sequence[EngineOperator], batches: Sequence[int], form: str = ""
) -> dict[str, Any]:
    """What NVIDIA's plugin objects say of operators of a module for some batches, by the operator's name.

    ``form`` is that of code, if another than the module's own. An answer that is an error has "error" alone.
    """
    asked = [asked_of(operator, batches) for operator in operators]
    found: dict[str, Any] = ask("answers", module=str(module), operators=asked, form=form)
    return found


def code_of(tactic: Mapping[str, Any]) -> bytes:
    """The kernel's text in an answer."""
    return base64.b64decode(tactic["code"])


def packaged(folder: Path, model: onnx.ModelProto, target: str = "sm_80") -> Package:
    """A package of a model in the plugin form: each operator with its own kernel."""
    nodes = {node.operator: node for node in plugin_nodes(model, OPERATORS)}
    kernels = {
        name: compile_kernel(operator_source(node.configuration, node.resident), architecture_for(target))
        for name, node in nodes.items()
    }
    aot = aot_model(model, engine_operators(model, {name: kernel.report for name, kernel in kernels.items()}), {})
    own = {name: (node,) for name, node in nodes.items()}
    return _written(
        Package(folder, model, aot.model, aot.operators, own, {name: (k,) for name, k in kernels.items()}), target
    )


def with_two_tactics(folder: Path, models: Sequence[onnx.ModelProto], target: str = "sm_80") -> Package:
    """A package whose one operator has the kernels of several models' as tactics, each with tables of its own."""
    parts = [next(iter(plugin_nodes(model, OPERATORS))) for model in models]
    counts = [len(node.tables) for node in parts]
    tactics: list[Tactic] = []
    tables: list[Port] = []
    kernels: list[CompiledKernel] = []
    singles: list[EngineOperator] = []
    for number, (model, node) in enumerate(zip(models, parts, strict=True)):
        source = with_others(
            operator_source(node.configuration, node.resident), sum(counts[:number]), sum(counts[number + 1 :])
        )
        kernels.append(compile_kernel(source, architecture_for(target)))
        (single,) = engine_operators(model, {node.operator: kernels[-1].report})
        tactics.append(replace(single.tactics[0], first_table=len(tables)))
        tables += single.tables
        singles.append(single)
    whole = replace(singles[0], tables=tuple(tables), tactics=tuple(tactics))
    name = whole.name
    return _written(
        Package(folder, models[0], models[0], (whole,), {name: tuple(parts)}, {name: tuple(kernels)}), target
    )


def _written(package: Package, target: str) -> Package:
    place = package.folder / "kernels"
    place.mkdir(parents=True)
    for operator in package.operators:
        for number, kernel in enumerate(package.kernels[operator.name]):
            name = kernel_name(operator, number)
            (place / f"{name}.ptx").write_text(kernel.ptx)
            (place / f"{name}.{kernel.architecture}.cubin").write_bytes(kernel.cubin)
    write_module(package.folder, package.operators, target)
    return package


def attention(variant: AttentionVariant, element: Element = "fp16") -> onnx.ModelProto:
    """Windows of 5 keys under a bias, for any batch."""
    rows = np.arange(24)
    live = np.abs(rows[:, None] - rows[None, :]) <= 2
    bias = np.where(live, np.random.default_rng(1).standard_normal(live.shape), 0).astype(np.float32)
    model = masked_attention(Pattern(live[None], 2, rows, 24, bias[None]), width=16, batch=None)
    return plugin_models.in_plugin_form(model, lambda site: scheduled(site, (variant,), element=element))


def split_attention() -> onnx.ModelProto:
    """Attention whose keys are split, in a model of a fixed batch."""
    site, shapes = made_site(Wish(rows=20, keys=90, width=16, value_width=16), 3)

    def cut(own: AttentionSite) -> AttentionSchedule:
        return scheduled(own, (AttentionVariant("mma", 16, 16, 1, 2),), seed=1, split_keys=32, element="fp16")

    return plugin_models.made_up(site, shapes, cut)


def convolution(pieces: int = 1, batch: int | None = None, images: int = 1) -> onnx.ModelProto:
    """A grouped convolution with a residual; with ``pieces`` its inputs are split, so that a second kernel adds up."""
    g = GraphBuilder("convolution", seed=0, batch=batch)
    x = g.input("x", 32, 5, 4)
    g.output("y", g.op("Relu", g.op("Add", conv(g, x, 32, 32, (1, 1), groups=2)[0], x)), 32, 5, 4)
    variants = (ConvVariant("mma", 16, 16, 64, 2, 2),)
    return in_plugin_form(g.model(), variants=variants, seed=1, pieces=pieces, images=images)[0]


def block() -> onnx.ModelProto:
    """Units of several convolutions, each one operator."""
    model = network(None)
    return written(model, judged(model, "bf16"))


def steps(algorithm: str, element: Element) -> onnx.ModelProto:
    """Two layers as the steps of an algorithm."""
    return in_steps(two_layers(None), algorithm, element)[0]


SMALL = AttentionVariant("mma", 16, 32, 1, 2)
TALL = AttentionVariant("mma", 64, 48, 4, 2)

MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "attention": lambda: attention(SMALL),
    "float32": lambda: attention(SMALL, "fp32"),
    "split": split_attention,
    "group": convolution,
    "images": lambda: convolution(batch=5, images=5),
    "sum": lambda: convolution(pieces=2),
    "block": block,
    "im2col": lambda: steps("im2col", "fp16"),
    "winograd": lambda: steps("winograd_2x2", "fp32"),
    "slices": lambda: steps("depthwise", "fp32"),
    "direct": lambda: steps("direct", "bf16"),
    "kn2row": lambda: steps("kn2row", "fp16"),
    "scalar": lambda: steps("scalar_matrix", "fp32"),
}
"""Models in the plugin form that together have every operator, fixed and open batches, and every type."""

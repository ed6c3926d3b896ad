"""A kernel run on the CPU with what TensorRT's plugin object says: its text, its launch, and the order of arguments."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.deploy.engine_operators import EngineOperator
from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.lower.plugin_nodes import (
    CONV_BLOCK,
    FIRST_OPERANDS,
    GROUP_CONV,
    MERGE_ATTENTION,
    SUM_CONV,
    PluginNode,
)
from onnxopt.verification.algorithm_rule import judge_step
from onnxopt.verification.block_kernels import expected_block, judge_block
from onnxopt.verification.conv_rule import ConvOperands, judge_group_conv, judge_sum_conv
from onnxopt.verification.kernel_rule import (
    Judgement,
    Operands,
    judge_attention,
    judge_merge,
    loaded,
    rounded_to,
    stored,
)
from tests.deploy.lean_packages import code_of

Array = npt.NDArray[Any]

_KEPT = {"fp16": "fp16", "bf16": "bf16", "float32": "fp32"}


def emulated(
    operator: EngineOperator,
    nodes: tuple[PluginNode, ...],
    answer: Mapping[str, Any],
    *,
    tactic: int,
    case: int,
    programs: Path,
    order: int = 0,
) -> list[Judgement]:
    """Run one tactic as the object's answer for a case of sizes says, and judge each output by the numeric rule.

    Arguments are the inputs in the operator's order, with the tables of all its tactics (``nodes`` have them), then the
    object's extra arguments, then the outputs; extra arguments, grid and block are the object's alone.
    """
    said = answer["tactics"][tactic]
    ((kind, batch),) = said["extras"][case]
    assert kind == "INT32"
    drawn = drawn_operands(operator, nodes[tactic], batch)
    tables = [stored_table(array) for node in nodes for array in node.tables.values()]
    outputs = [
        Uninitialised(stored(_KEPT[port.type], np.full(prod(shape), np.nan, np.float32)))
        for port, shape in zip(operator.outputs, answer["output_shapes"][case], strict=True)
    ]
    operands = [stored(_KEPT[port.type], drawn[port.name]) for port in operator.operands]
    launch = said["launches"][case]
    program = build_cpu_kernel(code_of(said).decode(), said["entry"], programs)
    program.run(
        grid=(launch["grid_x"], launch["grid_y"], launch["grid_z"]),
        block=(launch["block_x"], launch["block_y"], launch["block_z"]),
        shared_bytes=launch["shared_mem"],
        arguments=[*operands, *tables, np.int32(batch), *outputs],
        order=order,
    )
    found = [
        loaded(_KEPT[port.type], made.array).reshape(batch, -1)
        for port, made in zip(operator.outputs, outputs, strict=True)
    ]
    return judged_outputs(nodes[tactic], drawn, found)


def drawn_operands(operator: EngineOperator, node: PluginNode, batch: int) -> dict[str, Array]:
    """Random operands, batch x elements, as float32; run-time weights are 0 and 1."""
    rng = np.random.default_rng(0)
    first = operator.batch_elements
    drawn: dict[str, Array] = {}
    for port in operator.operands:
        elements = _elements(port.name, node, operator, first)
        if port.name == "weight":
            drawn[port.name] = (rng.random((batch, elements)) < 0.7).astype(np.float32)
        else:
            values = rng.standard_normal((batch, elements), dtype=np.float32)
            drawn[port.name] = rounded_to(_KEPT[port.type], values)
    return drawn


def _elements(name: str, node: PluginNode, operator: EngineOperator, first: int) -> int:
    """Elements of an operand for a batch element."""
    kernel = node.kernel
    if name in ("k", "v"):
        return int(kernel[name][0])
    if name == "lse":
        return int(kernel["slots"])
    if name == "weight":
        return int(kernel["columns"])
    return operator.outputs[0].elements if name == "residual" else first


def stored_table(array: Array) -> Array:
    """A table as memory holds it; bf16 as its bits."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def judged_outputs(node: PluginNode, drawn: Mapping[str, Array], found: list[Array]) -> list[Judgement]:
    operator, kernel, tables = node.configuration["operator"], node.kernel, dict(node.tables)
    residual = drawn.get("residual")
    if operator == MERGE_ATTENTION:
        shape = (-1, kernel["slots"], kernel["value_width"])
        return [judge_merge(kernel, tables, drawn["partial"].reshape(shape), drawn["lse"], found[0])]
    if operator == SUM_CONV:
        return [judge_sum_conv(kernel, tables, ConvOperands(drawn["partial"], residual), found[0])]
    if operator in FIRST_OPERANDS:
        element = kernel["element"]
        raw = node.outputs and kernel.get("raw")
        inputs = {**drawn, **{name: table.astype(np.float32) for name, table in tables.items()}}
        return [judge_step(operator, kernel, inputs, "float32" if raw else element, found[0])]
    if operator in (GROUP_CONV, CONV_BLOCK):
        operands = ConvOperands(drawn["x"], residual)
        if operator == GROUP_CONV:
            return [judge_group_conv(kernel, tables, operands, found[0])]
        expected, plain = expected_block(kernel, tables, operands)
        return [judge_block(expected, plain, found[0])]
    operands = Operands(drawn["q"], drawn["k"], drawn["v"], drawn.get("weight"))
    return judge_attention(kernel, tables, operands, found)

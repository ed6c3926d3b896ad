"""Executions of the launcher's plugins on random operands, and the judgement of what a GPU made of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.deploy.engine_operators import Output
from onnxopt.verification.kernel_rule import Judgement, loaded, stored
from tests.deploy.launcher_cases import Launched, parsed_fields, parts_of_workspace
from tests.deploy.launcher_requests import Execution
from tests.deploy.lean_running import drawn_operands, judged_outputs, stored_table

Array = npt.NDArray[Any]

KEPT = {"fp16": "fp16", "bf16": "bf16", "float32": "fp32"}
"""What the numeric rule calls the types of tensors."""

_PROGRAM = Path(__file__).with_name("launcher_gpu.py")


def execution_of(node: Launched, batch: int, names: list[str]) -> tuple[Execution, dict[str, Array]]:
    """One execution for a batch on random operands, and these; ``names`` are the fields that the creator has."""
    drawn = drawn_operands(node.operators[0], node.parts[0], batch)
    operands = [stored(KEPT[port.type], drawn[port.name]) for port in node.operators[0].operands]
    tables = [stored_table(table) for part in node.parts for table in part.tables.values()]
    fields = parsed_fields(node.node, names)
    return Execution(fields, node.inputs(batch), node.outputs(batch), [*operands, *tables]), drawn


def judged_execution(node: Launched, batch: int, drawn: Mapping[str, Array], found: Sequence[Array]) -> list[Judgement]:
    """What a GPU wrote, held against float64 step by step: each step against what the one before it really gave."""
    outputs = [_numbers(o, array, batch) for o, array in zip(node.operators[-1].outputs, found, strict=False)]
    if len(node.operators) == 1:
        return judged_outputs(node.parts[0], drawn, outputs)
    attention, merge = node.operators
    parts = [found[-1][begin : begin + size] for begin, size in parts_of_workspace(node, batch)]
    between = [_numbers(o, part.view(np.float32), batch) for o, part in zip(attention.outputs, parts, strict=True)]
    given = dict(zip((port.name for port in merge.operands), between, strict=True))
    return [*judged_outputs(node.parts[0], drawn, between), *judged_outputs(node.parts[1], given, outputs)]


def run_on_gpu(launcher: Path, request: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The program that runs a request, in a process of its own."""
    command = [sys.executable, str(_PROGRAM), str(launcher), str(request)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def _numbers(output: Output, array: Array, batch: int) -> Array:
    """What an output holds, as float32."""
    kept = KEPT[output.type]
    return loaded(kept, array.view(np.float16) if kept == "fp16" else array).reshape(batch, -1)

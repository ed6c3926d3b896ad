"""A made-up operator, and texts in the place of its kernels: what a module is made of without any model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxopt.deploy.engine_operators import EngineOperator, Grid, Output, Port, Tactic
from onnxopt.deploy.plugin_module import kernel_name


def small(**changes: Any) -> EngineOperator:
    """A made-up operator with two tactics, the first with more shared memory than a kernel has without asking."""
    tactics = (
        Tactic({}, 1, 0, 2, "first", Grid(3, 1, 2), 64, 60_000),
        Tactic({}, 1, 2, 1, "second", Grid(1, 40, 8), 128, 49_152),
    )
    operator = EngineOperator(
        name="MadeUp_0123456789abcdef",
        operands=(Port("x", "bf16", (None, 4, 6)), Port("residual", "bf16", (None, 4, 6))),
        tables=(Port("jobs", "int32", (3, 2)), Port("outputs", "int32", (8,)), Port("jobs", "int32", (5,))),
        outputs=(Output("y", "bf16", (None, 8), 24), Output("z", "float32", (2, None, 3), 12)),
        batch_elements=24,
        tactics=tactics,
    )
    return replace(operator, **changes)


def with_files(folder: Path, operator: EngineOperator, architecture: str = "sm_90a") -> Path:
    """A folder with texts in the place of an operator's kernels."""
    (folder / "kernels").mkdir(parents=True, exist_ok=True)
    for number in range(len(operator.tactics)):
        name = kernel_name(operator, number)
        (folder / "kernels" / f"{name}.ptx").write_text(f"PTX {number}")
        (folder / "kernels" / f"{name}.{architecture}.cubin").write_text(f"machine code {number}")
    return folder

"""The kernels of a package, run on the CPU: the PTX that lies in it, on the tables of its model.

A package may come from anyone: its model is read with care, only files that agree with its manifest are used, and
whatever a kernel does wrong is a finding, not the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from onnxopt.deploy.manifest import read_manifest
from onnxopt.emulate.build import require_compiler
from onnxopt.errors import InputError, MissingError, OnnxOptError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.cubin import CubinError
from onnxopt.lower.plugin_nodes import (
    CONV_BLOCK,
    FIRST_OPERANDS,
    GROUP_CONV,
    MERGE_ATTENTION,
    RESIDUAL,
    SUM_CONV,
    PluginNode,
)
from onnxopt.package import PLUGIN
from onnxopt.verification.block_kernels import check_conv_block
from onnxopt.verification.conv_kernels import check_group_conv, check_sum_conv
from onnxopt.verification.kernel_report import KernelReport
from onnxopt.verification.kernels import ORDERS, PAIRS, KernelCheck, check_attention, check_merge
from onnxopt.verification.package_programs import Program, compiled_program, package_programs
from onnxopt.verification.step_kernels import check_step, step_elements

Progress = Callable[[int, int], None]
"""Told how many kernels have been run, and of how many."""

# Above this many elements of q, k, v and y together one batch element has to do.
_ELEMENTS_FOR_TWO = 1 << 24


def verify_kernels(
    package: Path,
    *,
    cache: Path | None = None,
    pairs: int = PAIRS,
    orders: Sequence[int] = ORDERS,
    progress: Progress = lambda _, __: None,
) -> tuple[KernelReport, ...]:
    """Run the PTX of every operator in a package's ``model.onnx`` and of all tactics; judge them by the numeric rule.

    A tactic whose code is that of its operator's own kernel, but for unused parameters, is not run again. ``cache`` is
    the folder for what the C++ compiler makes, ``pairs`` limits the scores that each run computes. Raises InputError
    for a folder that is no intact package, has no model or kernels in the plugin form, or has models and tactics that
    do not belong together; MissingError without a C++ compiler.
    """
    listed = check_kernels(package)
    programs = package_programs(package, listed)
    reports: list[KernelReport] = []
    for number, program in enumerate(programs):
        progress(number, len(programs))
        reports.append(_checked(package, program, cache, pairs, orders))
    progress(len(programs), len(programs))
    return tuple(reports)


def check_kernels(package: Path) -> set[str]:
    """The files that a package lists.

    Raises InputError for a folder that is none, or has no model in the plugin form, MissingError without a compiler.
    """
    if not package.is_dir():
        raise InputError(f"{package}: is no package; kernels are emulated from a folder that `onnxopt optimize` wrote")
    listed = {entry.path for entry in read_manifest(package).files}
    if PLUGIN not in listed:
        raise InputError(
            f"{package}: has no {PLUGIN} and so no kernels; optimize the model for a GPU with --form plugin or both"
        )
    require_compiler()
    return listed


def _checked(package: Path, program: Program, cache: Path | None, pairs: int, orders: Sequence[int]) -> KernelReport:
    node = program.node
    batch = 2 if _elements(node) <= _ELEMENTS_FOR_TWO else 1
    unrun = KernelReport(
        node.operator,
        program.sites,
        program.architecture,
        0,
        batch,
        tuple(orders),
        (),
        tactic=program.tactic,
        alike=program.alike,
    )
    try:
        check = _check(compiled_program(package, program), node, batch, pairs, orders, cache)
    except (InputError, MissingError):
        raise
    except (OnnxOptError, CubinError) as error:
        return replace(unrun, problem=str(error))
    return replace(unrun, jobs=check.jobs, judgements=check.judgements)


def _check(
    compiled: CompiledKernel, node: PluginNode, batch: int, pairs: int, orders: Sequence[int], cache: Path | None
) -> KernelCheck:
    """Run an operator's kernel on its tables."""
    operator, kernel, tables = node.configuration["operator"], node.kernel, node.tables
    if operator == MERGE_ATTENTION:
        return check_merge(compiled, kernel, tables["merges"], batch=batch, orders=orders, cache=cache)
    if operator == SUM_CONV:
        return check_sum_conv(compiled, kernel, tables, batch=batch, orders=orders, cache=cache)
    if operator in FIRST_OPERANDS:
        return check_step(compiled, operator, kernel, tables, batch=batch, orders=orders, cache=cache)
    if operator == CONV_BLOCK:
        return check_conv_block(compiled, kernel, tables, batch=batch, orders=orders, cache=cache)
    if operator == GROUP_CONV:
        return check_group_conv(compiled, kernel, tables, batch=batch, orders=orders, cache=cache)
    return check_attention(compiled, kernel, tables, batch=batch, pairs=pairs, orders=orders, cache=cache)


def _elements(node: PluginNode) -> int:
    """Elements of the model's tensors and of partial results that one batch element has."""
    operator, kernel = node.configuration["operator"], node.kernel
    if operator == CONV_BLOCK:
        sizes = kernel["stages"][0]["input_size"], kernel["stages"][-1]["output_size"]
        outer: int = kernel["input_channels"] * prod(sizes[0]) + kernel["output_channels"] * prod(sizes[1])
        return outer
    if operator in (GROUP_CONV, SUM_CONV):
        made: int = (kernel["output_channels"] + kernel["slots"]) * prod(kernel["output_size"])
        return made if operator == SUM_CONV else made + kernel["input_channels"] * prod(kernel["input_size"])
    if operator in FIRST_OPERANDS:
        read, written = step_elements(operator, kernel)
        return read + written + (written if RESIDUAL in node.operands else 0)
    tensors: int = sum(kernel[name][0] for name in ("y" if operator == MERGE_ATTENTION else "qkvy"))
    partial: int = kernel["slots"] * kernel["value_width"]
    return tensors + partial

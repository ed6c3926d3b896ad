"""The kernels of a package, run on the CPU: the PTX that lies in it, on the tables of its model.

A package may come from anyone: its model is read with care, only files that agree with its manifest are used, and
whatever a kernel does wrong is a finding, not the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from onnxopt.deploy.manifest import checked_file, read_manifest
from onnxopt.deploy.packaged_kernels import packaged_architecture, packaged_kernel
from onnxopt.emulate.build import require_compiler
from onnxopt.errors import InputError, MissingError, OnnxOptError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.cubin import CubinError
from onnxopt.lower.algorithm_nodes import plugin_algorithms
from onnxopt.lower.plugin_blocks import plugin_blocks
from onnxopt.lower.plugin_convolutions import plugin_convolutions
from onnxopt.lower.plugin_nodes import (
    CONV_BLOCK,
    FIRST_OPERANDS,
    GROUP_CONV,
    MERGE_ATTENTION,
    RESIDUAL,
    SUM_CONV,
    PluginNode,
    plugin_sites,
)
from onnxopt.model.read import read_model
from onnxopt.package import PLUGIN
from onnxopt.site_kernels import source_of
from onnxopt.validate import PlanError, validate_attention_launch, validate_conv_launch
from onnxopt.verification.block_kernels import check_conv_block
from onnxopt.verification.conv_kernels import check_group_conv, check_sum_conv
from onnxopt.verification.kernel_report import KernelReport
from onnxopt.verification.kernels import ORDERS, PAIRS, KernelCheck, check_attention, check_merge
from onnxopt.verification.step_kernels import check_step, step_elements
from onnxopt.written import check_algorithm_launch, check_block_launch

Progress = Callable[[int, int], None]
"""Told how many kernels have been run, and of how many."""

# Above this many elements of q, k, v and y together one batch element has to do.
_ELEMENTS_FOR_TWO = 1 << 24


@dataclass(frozen=True, eq=False)
class _Operator:
    """One operator of the model: a node that uses it, and all its sites."""

    node: PluginNode
    sites: tuple[str, ...]


def verify_kernels(
    package: Path,
    *,
    cache: Path | None = None,
    pairs: int = PAIRS,
    orders: Sequence[int] = ORDERS,
    progress: Progress = lambda _, __: None,
) -> tuple[KernelReport, ...]:
    """Run the PTX of every operator in a package's ``model.onnx`` and judge it by the numeric rule.

    ``cache`` is the folder for what the C++ compiler makes, ``pairs`` limits the scores that each run computes. Raises
    InputError for a folder that is no intact package, or has no model or kernels in the plugin form; MissingError
    without a C++ compiler.
    """
    listed = check_kernels(package)
    operators = _operators(package)
    reports: list[KernelReport] = []
    for number, operator in enumerate(operators):
        progress(number, len(operators))
        reports.append(_checked(package, listed, operator, cache, pairs, orders))
    progress(len(operators), len(operators))
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


def _operators(package: Path) -> list[_Operator]:
    """Every distinct operator of the model, in the order of the graph."""
    found: dict[str, _Operator] = {}
    model = read_model(checked_file(package, PLUGIN))
    with _naming(package):
        attention, convolutions = plugin_sites(model), plugin_convolutions(model)
        blocks, algorithms = plugin_blocks(model), plugin_algorithms(model)
    halves: list[tuple[str, PluginNode, PluginNode | None, Callable[[Any, Any, Any], None]]] = [
        (site.site, site.attention, site.merge, validate_attention_launch) for site in attention
    ]
    halves += [(site.site, site.convolution, site.sum, validate_conv_launch) for site in convolutions]
    for site, first, second, validate in halves:
        with _refusing(package, site):
            for node in (first, second):
                # What tables are held against must be a configuration first.
                if node is not None:
                    source_of(node)
            validate(first.kernel, first.tables, None if second is None else (second.kernel, second.tables))
        _add(found, site, [node for node in (first, second) if node is not None])
    for block in blocks:
        with _refusing(package, block.site):
            check_block_launch(block)
        _add(found, block.site, [block.block])
    for algorithm in algorithms:
        with _refusing(package, algorithm.site):
            check_algorithm_launch(algorithm)
        _add(found, algorithm.site, algorithm.steps)
    return list(found.values())


@contextmanager
def _naming(package: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{package / PLUGIN}: {error}") from None


@contextmanager
def _refusing(package: Path, site: str) -> Iterator[None]:
    try:
        yield
    except (InputError, PlanError) as error:
        raise InputError(f"{package / PLUGIN}: {site}: {error}; optimize the original model again") from None


def _add(found: dict[str, _Operator], site: str, nodes: Sequence[PluginNode]) -> None:
    for node in nodes:
        known = found.get(node.operator)
        found[node.operator] = _Operator(node, (*known.sites, site) if known else (site,))


def _checked(
    package: Path,
    listed: set[str],
    operator: _Operator,
    cache: Path | None,
    pairs: int,
    orders: Sequence[int],
) -> KernelReport:
    node = operator.node
    architecture = packaged_architecture(package, listed, node.operator)
    batch = 2 if _elements(node) <= _ELEMENTS_FOR_TWO else 1
    unrun = KernelReport(node.operator, operator.sites, architecture, 0, batch, tuple(orders), ())
    try:
        compiled = packaged_kernel(package, node.operator, source_of(node), architecture)
        check = _check(compiled, node, batch, pairs, orders, cache)
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

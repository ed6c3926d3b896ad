"""Kernels for the sites that become operators of our own: compiled, held against their plans, put into the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxopt.decide import AlgorithmSource, BlockSource, ConvSource, PluginSource, SiteKernel, SiteReport
from onnxopt.errors import InputError, MissingError
from onnxopt.kernels.algorithm_source import algorithm_source
from onnxopt.kernels.block_source import conv_block_source
from onnxopt.kernels.compilation import CompiledKernel, architecture_for
from onnxopt.kernels.compiler import CompileError
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.kernels.operator_source import operator_source
from onnxopt.kernels.packages import toolchain
from onnxopt.kernels.pool import Progress, compile_kernels
from onnxopt.kernels.sass import check_occupancy
from onnxopt.kernels.source import KernelSource, attention_source, merge_source
from onnxopt.lower.plugin_nodes import OPERATORS, plugin_nodes
from onnxopt.target import GpuProfile, Target

Further = Callable[[SiteReport], Iterator[SiteReport]]
"""The same site by its next best schedules, best first."""


@dataclass
class KernelBuild:
    """Kernels compiled for one GPU, kept in the folder ``cache``; the reasons why some cannot be are remembered.

    ``progress`` is told how many kernels are there, and how many there are in all.
    """

    gpu: GpuProfile
    cache: Path | None
    progress: Progress | None = None
    refused: dict[KernelSource, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """What is compiled for: ``sm_90a`` for ``sm_90``."""
        return architecture_for(self.gpu.architecture)

    def compiled(self, sources: Sequence[KernelSource]) -> dict[KernelSource, CompiledKernel]:
        """The kernels that can be made and fit as their plans count on; ``refused`` has the reasons for the others.

        Raises MissingError where there is no compiler.
        """
        made: dict[KernelSource, CompiledKernel] = {}
        while not made:
            wanted = [source for source in dict.fromkeys(sources) if source not in self.refused]
            if not wanted:
                return {}
            try:
                requests = [(source, self.architecture) for source in wanted]
                kernels = compile_kernels(requests, self.cache, progress=self.progress)
            except CompileError as error:
                self.refused[error.source] = f"it cannot be compiled for {error.architecture}: {_first(error.lines)}"
                continue
            made = dict(zip(wanted, kernels, strict=True))
        for source, kernel in made.items():
            problems = check_occupancy(kernel, self.gpu)
            if problems:
                self.refused[source] = f"compiled for {self.architecture}, it takes more than planned: {problems[0]}"
        return {source: kernel for source, kernel in made.items() if source not in self.refused}


def kernel_build(target: Target, forms: Sequence[str], cache: Path, progress: Progress | None) -> KernelBuild | None:
    """How kernels are compiled; None where no form has any."""
    return KernelBuild(target.need_gpu_profile(), cache, progress) if "plugin" in forms else None


def check_compiler() -> None:
    """Raise MissingError, with what to install, where kernels cannot be compiled; before any work."""
    try:
        toolchain()
    except MissingError as error:
        raise MissingError(f"{error}; or use --form portable, which has no kernels") from None


def with_kernels(reports: Sequence[SiteReport], build: KernelBuild, further: Further) -> list[SiteReport]:
    """The sites with their compiled kernels.

    Where a kernel cannot be compiled, or fewer of its blocks fit a multiprocessor than its schedule counts on, the next
    best schedules are tried; where they do no better the site is kept, with the reason.
    """
    result = list(reports)
    waiting = [number for number, report in enumerate(result) if report.plugin is not None]
    reasons: dict[int, str] = {}
    queues: dict[int, Iterator[SiteReport]] = {}
    while waiting:
        following = []
        for number, outcome in zip(waiting, _attempts([result[n] for n in waiting], build), strict=True):
            if not isinstance(outcome, str):
                result[number] = _with(result[number], outcome, reasons.get(number))
                continue
            reasons.setdefault(number, outcome)
            queue = queues.setdefault(number, further(reports[number]))
            candidate = next(queue, None)
            if candidate is None:
                result[number] = reports[number].kept(f"its kernel cannot be used: {reasons[number]}")
            else:
                result[number] = candidate
                following.append(number)
        waiting = following
    return result


def kernels_written_before(model: ModelProto, build: KernelBuild | None) -> tuple[SiteKernel, ...]:
    """The kernels of the operators that an earlier run wrote into a model, each once; none without a ``build``.

    Raises InputError where one cannot be made for this GPU as its plan counts on; MissingError without a compiler.
    """
    if build is None:
        return ()
    nodes = {node.operator: node for node in plugin_nodes(model, OPERATORS)}
    sources = {name: operator_source(node.configuration, node.resident) for name, node in nodes.items()}
    made = build.compiled(list(sources.values()))
    for operator, source in sources.items():
        if source not in made:
            raise InputError(
                f"an earlier run wrote the operator {operator} into this model, and its kernel cannot be used: "
                f"{build.refused[source]}; optimise the original model for this GPU"
            )
    return tuple(SiteKernel(operator, made[source]) for operator, source in sources.items())


def notes_on(before: Sequence[SiteKernel]) -> tuple[str, ...]:
    """What a user should know of kernels that an earlier run's operators need."""
    if not before:
        return ()
    counted = "1 operator" if len(before) == 1 else f"{len(before)} operators"
    return (f"an earlier run wrote {counted} of our own into this model; their kernels are in the package",)


def all_kernels(reports: Sequence[SiteReport], before: Sequence[SiteKernel] = ()) -> tuple[SiteKernel, ...]:
    """The kernels of sites, and those that an earlier run had written already."""
    return (*(kernel for report in reports for kernel in report.kernels), *before)


def kernel_versions(kernels: Sequence[SiteKernel]) -> dict[str, str]:
    """The compiler's version for a manifest; nothing where no kernel was compiled."""
    compilers = sorted({_nvrtc(kernel.compiled) for kernel in kernels})
    return {"nvrtc": ", ".join(compilers)} if compilers else {}


def _attempts(reports: Sequence[SiteReport], build: KernelBuild) -> list[tuple[SiteKernel, ...] | str]:
    """For each site its kernels, or why there are none."""
    wanted = [operator_sources(report.plugin) for report in reports if report.plugin is not None]
    made = build.compiled([source for own in wanted if not isinstance(own, str) for _, source in own])
    outcomes: list[tuple[SiteKernel, ...] | str] = []
    for own in wanted:
        if isinstance(own, str):
            outcomes.append(own)
            continue
        refused = [build.refused[source] for _, source in own if source in build.refused]
        outcomes.append(refused[0] if refused else tuple(SiteKernel(name, made[source]) for name, source in own))
    return outcomes


def operator_sources(
    plugin: PluginSource | ConvSource | AlgorithmSource | BlockSource,
) -> list[tuple[str, KernelSource]] | str:
    """The operators of a site with their sources, in the order of the graph, or why there is no source."""
    try:
        if isinstance(plugin, AlgorithmSource):
            return [(s.operator(), algorithm_source(s.step.operator, s.step.kernel)) for s in plugin.steps]
        if isinstance(plugin, BlockSource):
            return [(plugin.tables.operator(), conv_block_source(plugin.tables.kernel.to_json(), plugin.resident))]
        return _conv_sources(plugin) if isinstance(plugin, ConvSource) else _attention_sources(plugin)
    except InputError as error:
        return str(error)


def _attention_sources(plugin: PluginSource) -> list[tuple[str, KernelSource]]:
    tables = plugin.tables
    found = [(tables.operator(), attention_source(tables.kernel.to_json(), plugin.resident))]
    if tables.merge is not None:
        found.append((tables.merge.operator(), merge_source(tables.merge.kernel)))
    return found


def _conv_sources(plugin: ConvSource) -> list[tuple[str, KernelSource]]:
    tables = plugin.tables
    found = [(tables.operator(), group_conv_source(tables.kernel.to_json(), plugin.resident))]
    if tables.sum is not None:
        found.append((tables.sum.operator(), sum_conv_source(tables.sum.kernel)))
    return found


def _with(report: SiteReport, kernels: tuple[SiteKernel, ...], refused: str | None) -> SiteReport:
    """A site with its kernels; ``refused`` says what was wrong with that of a better schedule."""
    way = "algorithm" if "algorithm" in report.planned else "schedule"
    reason = report.reason if refused is None else f"{report.reason}, by its next best {way}; of the best {refused}"
    assert report.plugin is not None
    if isinstance(report.plugin, AlgorithmSource):
        planned = {**report.planned, "kernels": [_described(kernel) for kernel in kernels]}
        return replace(report, reason=reason, kernels=kernels, planned=planned)
    first, *second = [_described(kernel) for kernel in kernels]
    planned = {**report.planned, "compiled_kernel": {**first, "resident": report.plugin.resident}}
    if second:
        planned["sum_kernel" if isinstance(report.plugin, ConvSource) else "merge_kernel"] = second[0]
    return replace(report, reason=reason, kernels=kernels, planned=planned)


def _described(kernel: SiteKernel) -> dict[str, Any]:
    """A kernel's entry in `plan.json`."""
    compiled = kernel.compiled
    return {
        "operator": kernel.operator,
        "entry": compiled.source.entry,
        "architecture": compiled.architecture,
        "registers": compiled.report.registers,
        "shared_bytes": compiled.report.shared,
        "threads": compiled.report.threads,
        "nvrtc": _nvrtc(compiled),
    }


def _nvrtc(compiled: CompiledKernel) -> str:
    return compiled.compiler.removeprefix("nvrtc ")


def _first(lines: Sequence[str]) -> str:
    return next((line.strip() for line in lines if line.strip()), "the compiler says nothing")

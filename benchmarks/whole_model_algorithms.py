"""A model's convolutions by each algorithm and by the choice, as versions of a whole-model job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from benchmarks.conv_gpu_collect import layer_bound_us
from benchmarks.whole_model_program import LAUNCH, Array, Node, Program
from benchmarks.whole_model_weights import Recipe, WeightMaker, drawn_recipe
from onnxopt.algorithm_choice import AlgorithmSettings, site_geometry
from onnxopt.decide import AlgorithmSource, ConvSource, SiteReport
from onnxopt.lower.algorithm_layouts import join_layouts
from onnxopt.lower.compat import lower_for_parsers
from onnxopt.lower.rewrite import NODE_PREFIX, copy_of
from onnxopt.plan.algorithms.options import IMPLICIT_GEMM
from onnxopt.plan.algorithms.problem import KEEP
from onnxopt.plan.algorithms.steps import ALGORITHMS, WINOGRAD_TILES
from onnxopt.plan.algorithms.tables import work_geometry
from onnxopt.plan.tables.conv_types import ConvKernel
from onnxopt.site_kernels import KernelBuild
from onnxopt.sites import Findings, carry_out, judge_network, whole_judge
from onnxopt.target import Target
from onnxopt.target.tile_store import FILE_NAME
from onnxopt.target.variant import Element

_WEIGHED = ("Conv", "Gemm", "MatMul")
# Fewer elements travel; and zeros may be a mask, which has to stay what it is.
_DRAWN_ELEMENTS = 1 << 10
_LIVE_SHARE = 0.999
_PLAIN = tuple(name for name in ALGORITHMS if name not in WINOGRAD_TILES)

VERSIONS: Mapping[str, AlgorithmSettings] = {
    "choice": AlgorithmSettings(),
    "choice with Winograd": AlgorithmSettings(winograd=True),
    "choice without keep": AlgorithmSettings(among=(IMPLICIT_GEMM, *_PLAIN)),
    **{
        f"by {name}": AlgorithmSettings(winograd=name in WINOGRAD_TILES, among=(name,))
        for name in (IMPLICIT_GEMM, *ALGORITHMS)
    },
}
"""The versions of a model: the network's choice, and one algorithm wherever it computes a layer."""


@dataclass(frozen=True, eq=False)
class Written:
    """A version of a model: its reports, how many layers each algorithm has, and what the choice predicts.

    ``same`` is the earlier version that chose alike (``original`` where all is kept), which then stands for this one.
    """

    name: str
    model: ModelProto
    reports: Sequence[SiteReport]
    layers: Mapping[str, int]
    predicted_us: float
    same: str | None

    @property
    def winograd(self) -> bool:
        """Whether any layer exceeds the numeric rule by nature."""
        return any(name in WINOGRAD_TILES for name in self.layers)


def drawn_weights(model: ModelProto, seed: int) -> dict[str, Recipe]:
    """Replace a model's large dense weights by drawn ones, in place; their recipes by the tensors' names."""
    read = {node.input[1] for node in model.graph.node if node.op_type in _WEIGHED and len(node.input) > 1}
    maker, recipes = WeightMaker(), {}
    for number, tensor in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        dense = values.dtype == np.float32 and np.count_nonzero(values) >= _LIVE_SHARE * values.size
        if tensor.name in read and dense and values.size >= _DRAWN_ELEMENTS:
            recipes[tensor.name] = drawn_recipe(values, seed + number)
            tensor.CopyFrom(numpy_helper.from_array(maker.drawn(recipes[tensor.name]), tensor.name))
    return recipes


def written_versions(
    model: ModelProto, findings: Findings, target: Target, element: Element, cache: Path
) -> Iterator[Written]:
    """The model by each of :data:`VERSIONS`; measured times of ``cache`` count in the choice."""
    seen: dict[str, str] = {}
    build = KernelBuild(target.need_gpu_profile(), cache)
    for name, settings in VERSIONS.items():
        judged = judge_network(
            model,
            findings,
            target,
            forms=("plugin",),
            records=cache / FILE_NAME,
            measure=False,
            dtype=element,
            build=build,
            algorithms=settings,
        )
        plan = judged.algorithms
        assert plan is not None
        outcome = carry_out(
            model, judged.reports["plugin"], whole_judge(model, findings, target, records=None, measure=False)
        )
        options = [(o.algorithm, o.layout) for o in plan.choice.options(plan.network).values()]
        chosen = repr([option if option[0] != KEEP else KEEP for option in options])
        kept = all(algorithm == KEEP for algorithm, _ in options)
        same = "original" if kept else seen.setdefault(chosen, name)
        candidate = copy_of(outcome.model)
        lower_for_parsers(candidate)
        join_layouts(candidate)
        layers = Counter(_algorithm(report) for report in outcome.reports if report.kind == "conv")
        predicted = plan.choice.microseconds
        yield Written(name, candidate, outcome.reports, layers, predicted, None if same == name else same)


def _algorithm(report: SiteReport) -> str:
    return KEEP if report.rewrite is None else str(report.planned.get("algorithm", "group_conv"))


def with_recipes(
    program: Program, drawn: Mapping[str, Recipe], reports: Sequence[SiteReport], maker: WeightMaker
) -> dict[str, Recipe]:
    """How the constants of a program are made that are drawn weights, or packed from them, each one tried."""
    sources = {report.id: report.plugin for report in reports}
    found = {
        name: recipe
        for name, recipe in drawn.items()
        if name in program.constants and np.array_equal(program.constants[name], maker.drawn(recipe))
    }
    for node in program.nodes:
        if node.op == LAUNCH and "w" in node.attributes["tables"]:
            key = node.attributes["tables"]["w"]
            source = sources.get(node.name.removeprefix(NODE_PREFIX).rpartition("/")[0])
            recipe = _packing(node, source, drawn, maker)
            if recipe is not None:
                tables = {name: program.constants[table] for name, table in recipe["tables"].items()}
                if np.array_equal(maker.packed(recipe, tables), program.constants[key]):
                    found[key] = recipe
    return found


def _packing(node: Node, source: Any, drawn: Mapping[str, Recipe], maker: WeightMaker) -> Recipe | None:
    """How a layer's weights are packed from drawn ones; None where they are something else."""
    weights = drawn.get(source.site.node.input[1]) if isinstance(source, AlgorithmSource | ConvSource) else None
    if weights is None or source.work.weights.shape != maker.drawn(weights).shape:
        return None
    recipe = {"weights": weights, "scales": _scales(source.work.weights, maker.drawn(weights)), "tables": {}}
    if isinstance(source, AlgorithmSource):
        kernels = {step.step.operator: dict(step.step.kernel) for step in source.steps}
        first = source.steps[0].step.kernel["element"]
        own = {"algorithm": source.algorithm, "element": first, "kernels": kernels}
        return {**recipe, "steps": {**own, "geometry": work_geometry(source.work).to_json()}}
    kernel: ConvKernel = source.tables.kernel
    granules = [[variant.output_granule, variant.input_granule] for variant in kernel.variants]
    tables = {name: node.attributes["tables"][name] for name in ("jobs", "outputs", "inputs")}
    parts = {"element": kernel.element, "size": len(source.tables.w), "granules": granules}
    return {**recipe, "tables": tables, "parts": parts}


def _scales(folded: Array, plain: Array) -> list[float] | None:
    """What each output's weights were multiplied by; None where by nothing."""
    if np.array_equal(folded, plain):
        return None
    flat, own = folded.reshape(len(folded), -1), plain.reshape(len(plain), -1)
    largest = np.abs(own).argmax(axis=1)
    rows = np.arange(len(own))
    scales: list[float] = (flat[rows, largest] / own[rows, largest].astype(np.float64)).tolist()
    return scales


def network_bound_us(findings: Findings, element: Element, target: Target) -> float:
    """What the convolutions take at the least, one after another: products, memory, or a launch each."""
    graph, total = findings.graph, 0.0
    for site in findings.convolutions:
        geometry = site_geometry(site, graph.shape(site.input) or ())
        batch = (graph.shape(site.output) or (1,))[0]
        total += layer_bound_us(geometry, element, target.need_gpu_profile(), batch)
    return total

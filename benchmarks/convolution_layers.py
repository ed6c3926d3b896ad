"""The different convolution layers of a model, and the kernels that compute them: what is run on the CPU.

A layer is its geometry, the kind of its connections and what is fused with it. Kernels count as one where they are made
from the same code: tensors of other numbers of channels, with the same rest of 16, are other constants in addresses.
Layers keep their own sizes, since rows of x decide how inputs are brought; a sample of jobs bounds the work. Only the
algorithms of dense layers, which run whole, get smaller ones: see :func:`scaled`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxopt.convolution_kernels import ConvChoice, conv_choices
from onnxopt.decide import Judge
from onnxopt.discover.conv_fusion import ConvFusion, ConvFusions
from onnxopt.discover.conv_site import ConvSite
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.kernels.compilation import architecture_for
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.kernels.source import KernelSource
from onnxopt.model.graph import Graph
from onnxopt.model.read import read_model
from onnxopt.plan.algorithms.geometry import LayerGeometry, layer_geometry
from onnxopt.plan.algorithms.steps import ALGORITHMS, AlgorithmStep, algorithm_refusal, algorithm_steps
from onnxopt.plan.algorithms.tables import work_geometry
from onnxopt.plan.tables import ConvTables, ConvWork, NoTables, conv_tables
from onnxopt.site_reports import Planning
from onnxopt.sites import discover
from onnxopt.target import load_target
from onnxopt.target.variant import Element

# Constants that say how many channels tensors have; addresses are aligned alike where this rest is the same.
_COUNTS = ("INPUT_CHANNELS", "OUTPUT_CHANNELS", "SLOTS")
_REST = 16
_WIDTH_REST = 8
_TILE_FIELDS = ("block_rows", "block_positions", "warps", "row_warps", "stages")
_FEW_INPUTS, _FEW_OUTPUTS, _FEW_POSITIONS = 32, 48, 9


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer as an operator of its own, by the plan for a target and a type."""

    name: str
    pattern: str
    choice: ConvChoice
    tables: ConvTables


@dataclass(frozen=True)
class Refused:
    """A layer that no operator computes, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Trial:
    """A kernel, or the kernels of an algorithm, to run; trials of the same ``key`` show the same.

    ``tables`` are those of its operator; an algorithm has ``steps`` of the layer ``geometry`` instead.
    """

    name: str
    layer: str
    shapes: str
    architecture: str
    key: tuple[Any, ...]
    source: KernelSource | None = None
    tables: ConvTables | None = None
    geometry: LayerGeometry | None = None
    steps: tuple[AlgorithmStep, ...] = ()


@dataclass
class Layers:
    """The layers of models for one target and compute type; plans are kept in the folder ``cache``."""

    target: str
    element: Element
    cache: Path | None
    _seen: set[tuple[Any, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        gpu = load_target(self.target).need_gpu_profile()
        self._planner = KernelPlanner.at(gpu, "time", self.cache, self.element)
        self.architecture = architecture_for(gpu.architecture)

    def of_model(self, path: Path) -> Iterator[Layer | Refused]:
        """Every different layer of a model, the first of each kind."""
        model = read_model(path)
        findings = discover(model)
        graph = findings.graph
        borders = frozenset(name for site in findings.attention for name in (*site.inputs, site.output))
        fusions = ConvFusions(graph, borders)
        judge = Judge(model, graph, load_target(self.target), None, False, lambda _: None)
        planning = Planning(judge, "time", self._planner, fusions=fusions, dtype=self.element)
        seen = set()
        for number, site in enumerate(findings.convolutions):
            fusion = fusions.fusion(site) if site.connections else None
            if fusion is None:
                continue
            fusions.take(fusion)
            kind = _kind(site, fusion, graph)
            if kind in seen:
                continue
            seen.add(kind)
            name = f"{path.stem}/conv-{number}"
            try:
                choice = conv_choices(planning, site, fusion=fusion)[0]
                yield Layer(name, site.pattern, choice, conv_tables(choice.work, choice.schedule, images=choice.images))
            except (InputError, NoTables) as reason:
                yield Refused(name, str(reason))

    def trials(self, layer: Layer) -> Iterator[Trial]:
        """The kernels of a layer and, where it is dense, its algorithms."""
        choice, tables = layer.choice, layer.tables
        shapes = ", ".join(variant.describe() for variant in choice.schedule.variants)
        kernel = tables.kernel.to_json()
        odd = tuple(bool((table < 0).any()) for table in (tables.outputs, tables.inputs))
        source = group_conv_source(kernel, choice.schedule.resident)
        key = (*_code(source), layer.pattern, odd)
        yield Trial("GroupConv", layer.name, shapes, self.architecture, key, source, tables)
        if tables.sum is not None:
            source = sum_conv_source(tables.sum.kernel)
            yield Trial("SumConv", layer.name, "", self.architecture, _code(source), source, tables)
        if layer.pattern == "dense" and _is_plain(choice.work):
            yield from self._algorithms(layer)

    def _algorithms(self, layer: Layer) -> Iterator[Trial]:
        work = layer.choice.work
        full = work_geometry(work)
        small = scaled(full)
        for name in ALGORITHMS:
            if algorithm_refusal(name, full) or algorithm_refusal(name, small):
                continue
            try:
                given = algorithm_steps(name, full, self.element)
            except InputError:
                # A tensor between steps would be too large: nothing chooses the algorithm for this layer.
                continue
            steps = algorithm_steps(name, small, self.element, activation=work.activation, residual=work.residual)
            steps = tuple(_with_tile(own, other) for own, other in zip(steps, given, strict=True))
            key = (name, *(repr((step.operator, sorted(step.kernel.items()))) for step in steps))
            yield Trial(name, layer.name, "", self.architecture, key, geometry=small, steps=steps)


def scaled(layer: LayerGeometry) -> LayerGeometry:
    """The layer with fewer channels and positions and the same index arithmetic.

    Sizes of x keep their rest of 8, and with it alignments, tails, and what strides of 2, 4 and 8 leave over; channels
    keep their rest of 16, and stay more than one step of the matrix products. Taps, strides, dilations and pads, in
    front and behind, are the layer's own. A layer that is small already stays as it is.
    """
    sizes, pads = [], []
    for axis, size in enumerate(layer.input_size):
        reach = layer.dilations[axis] * (layer.kernel[axis] - 1) + 1
        least = max(_FEW_POSITIONS, reach + layer.strides[axis])
        sizes.append(min(size, least + (size - least) % _WIDTH_REST))
        last = (layer.output_size[axis] - 1) * layer.strides[axis] + reach
        # What lies behind and is never read need not be kept.
        pads.append(max(0, last - size - layer.pads[axis]))
    inputs, outputs = (
        min(count, few + (count - few) % _REST)
        for count, few in ((layer.input_channels, _FEW_INPUTS), (layer.output_channels, _FEW_OUTPUTS))
    )
    return layer_geometry(
        sizes,
        (outputs, inputs, *layer.kernel),
        strides=layer.strides,
        dilations=layer.dilations,
        pads=(*layer.pads, *pads),
    )


def _kind(site: ConvSite, fusion: ConvFusion, graph: Graph) -> tuple[Any, ...]:
    """What makes layers different, apart from which channels are connected."""
    node = site.node
    written = sorted(attribute.SerializeToString() for attribute in node.attribute)
    shapes = [tuple(graph.shape(name) or ()) for name in (fusion.lead.source, site.input, site.output, fusion.target)]
    tail = (fusion.tail.is_identity, fusion.tail.is_permutation, fusion.tail.mix is not None)
    function = fusion.input_function
    fused = (function.is_linear_identity, function.activation, fusion.activation, fusion.residual is not None)
    return (site.pattern, *written, *shapes, site.kernel, site.groups, fusion.lead.is_identity, *tail, *fused)


def _code(source: KernelSource) -> tuple[Any, ...]:
    """What a kernel's code depends on."""
    return (
        source.entry,
        *((name, int(value) % _REST if name in _COUNTS and int(value) else value) for name, value in source.defines),
    )


def _is_plain(work: ConvWork) -> bool:
    """Whether channels stay where they are, and inputs as they are."""
    moved = len(work.reads) != work.channels or (work.reads != range(work.channels)).any()
    scaled_inputs = work.input_scales is not None or work.input_activation != "none"
    return not (moved or scaled_inputs or work.mix is not None)


def _with_tile(step: AlgorithmStep, full: AlgorithmStep) -> AlgorithmStep:
    """A matrix product with the tile that the layer at its own size has."""
    if step.operator != "ConvProduct":
        return step
    return replace(step, kernel={**step.kernel, **{name: full.kernel[name] for name in _TILE_FIELDS}})

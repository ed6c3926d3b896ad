"""Which algorithm computes each convolution of a model: the choice for the whole network.

A dense convolution may be computed by any algorithm that computes it, or be kept. A site that is an operator already
has that one option, every other one is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path

from onnxopt.decide import SiteReport, own_nodes
from onnxopt.discover.conv_site import ConvSite
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner, folded_images
from onnxopt.model.graph import Graph, symbolic_batch
from onnxopt.plan.algorithms.choice import choose_algorithms
from onnxopt.plan.algorithms.geometry import LayerGeometry, layer_geometry
from onnxopt.plan.algorithms.options import (
    IMPLICIT_GEMM,
    conversion_us,
    engine_layouts,
    engine_us,
    layer_options,
    layer_shape,
    measured_times,
)
from onnxopt.plan.algorithms.problem import KEEP, Choice, Layer, Network, Option
from onnxopt.plan.algorithms.regions import algorithm_network
from onnxopt.plan.algorithms.steps import ALGORITHMS
from onnxopt.plan.group_conv import SIZE_LIMIT
from onnxopt.plan.tables.work import geometry as conv_geometry
from onnxopt.site_reports import Planning, tensor_element
from onnxopt.target import Target
from onnxopt.target.layer_records import LayerRecord, stored_layers
from onnxopt.target.tile_store import FILE_NAME
from onnxopt.target.variant import Element
from onnxopt.validate.algorithm_choice import validate_choice

GROUP_CONV = "group_conv"
"""A site that its schedule has made an operator of its own already."""

_MEGABYTE = 10**6
_MOST_MEGABYTES = 1 << 30


@dataclass(frozen=True)
class AlgorithmSettings:
    """What a choice of algorithms may use: bytes of workspace and constants (None: any), and whether Winograd.

    With ``among`` a layer that any of these algorithms computes has one of them, every other one is kept.
    """

    budget: int | None = None
    winograd: bool = False
    among: tuple[str, ...] | None = None


def algorithm_settings(wanted: bool, workspace: float | None, winograd: bool) -> AlgorithmSettings | None:
    """The settings that options ask for, ``workspace`` in megabytes of 10^6 bytes; None where no choice is wanted.

    Raises InputError for options that mean nothing without the choice, and for a workspace that is no size.
    """
    if not wanted:
        extra = "--workspace" if workspace is not None else "--winograd" if winograd else ""
        if extra:
            raise InputError(
                f"{extra} is about the choice of convolution algorithms, which is off; add --conv-algorithms, or "
                f"leave out {extra}"
            )
        return None
    if workspace is None:
        return AlgorithmSettings(None, winograd)
    if not 0 <= workspace <= _MOST_MEGABYTES:
        raise InputError(f"--workspace {workspace:g}; allowed: 0 or more megabytes, up to {_MOST_MEGABYTES:,}")
    return AlgorithmSettings(round(workspace * _MEGABYTE), winograd)


def check_algorithms(settings: AlgorithmSettings | None, forms: Sequence[str], target: Target) -> None:
    """Raise InputError where the algorithms, which are kernels, cannot be used: no GPU, or no plugin form."""
    if settings is None:
        return
    if target.is_cpu:
        raise InputError(
            f"--conv-algorithms chooses among kernels for a GPU, and target '{target.name}' is none; name one with "
            "--target, for example --target sm_90"
        )
    if "plugin" not in forms:
        raise InputError(
            "--conv-algorithms chooses among kernels, and the portable form has none; use --form plugin or both"
        )
    target.need_gpu_profile()


@dataclass(frozen=True)
class AlgorithmPlan:
    """The choice for a model's convolutions, proved, beside simpler ones.

    ``kept_us`` is what keeping every dense convolution takes. ``single`` has for each algorithm what using it wherever
    it computes a layer and fits the budget takes, all others being kept. ``batch`` is that of all times and bytes; with
    ``symbolic`` it stands for a batch that the model leaves open.
    """

    settings: AlgorithmSettings
    element: Element
    batch: int
    network: Network
    choice: Choice
    kept_us: float
    single: Mapping[str, float] = field(default_factory=dict)
    symbolic: bool = False

    @property
    def best_single(self) -> tuple[str, float]:
        """The algorithm that alone takes the least time, and this time; ``keep`` where there is none."""
        return min(self.single.items(), key=lambda item: item[1], default=(KEEP, self.kept_us))


def plan_algorithms(
    planning: Planning, sites: Sequence[tuple[ConvSite, SiteReport]], settings: AlgorithmSettings, folder: Path | None
) -> AlgorithmPlan:
    """Choose an algorithm for every convolution of a model, each given with its decided report.

    ``folder`` has the measured times, None where there are none. Raises InputError where no choice fits the budget.
    """
    kernels, graph = planning.kernels, planning.judge.graph
    assert kernels is not None
    records = stored_layers(folder / FILE_NAME) if folder is not None else ()
    elements = (tensor_element(graph, site.output) for site, _ in sites)
    element: Element = planning.dtype or next(filter(None, elements), None) or "fp32"
    options = _Options(planning, settings, records)
    network = algorithm_network(
        graph,
        [site for site, _ in sites],
        [options.of(site, report) for site, report in sites],
        [report.id for _, report in sites],
        partial(conversion_us, element=element, gpu=kernels.gpu),
    )
    choice = _chosen(network, settings)
    single: dict[str, float] = {}
    for name in (IMPLICIT_GEMM, *ALGORITHMS):
        if any(option.algorithm == name for layer in network.layers for option in layer.options):
            found = _alone(network, name, settings.budget)
            single |= {} if found is None else {name: found}
    kept = choose_algorithms(_restricted(network, (KEEP,)))
    return AlgorithmPlan(
        settings,
        element,
        _batch(graph, sites),
        network,
        choice,
        kept.microseconds,
        single,
        symbolic_batch(planning.judge.model),
    )


def _chosen(network: Network, settings: AlgorithmSettings) -> Choice:
    """The proved choice, by the numbers of the network's own options."""
    allowed = network if settings.among is None else _restricted(network, settings.among)
    choice = choose_algorithms(allowed, settings.budget)
    validate_choice(allowed, choice, settings.budget)
    own = choice.options(allowed)
    return replace(choice, chosen=tuple(layer.options.index(own[layer.id]) for layer in network.layers))


def _batch(graph: Graph, sites: Sequence[tuple[ConvSite, SiteReport]]) -> int:
    """The batch of the convolutions, which is the model's own where that is fixed: the one that most of them have."""
    shapes = (graph.shape(site.output) for site, _ in sites)
    return Counter(shape[0] for shape in shapes if shape).most_common(1)[0][0] if sites else graph.batch


def _alone(network: Network, name: str, budget: int | None) -> float | None:
    """The time with one algorithm wherever it computes a layer; None where that breaks the budget."""
    part = _restricted(network, (name,))
    try:
        return choose_algorithms(part, budget).microseconds
    except InputError:
        return None


def _restricted(network: Network, names: Sequence[str]) -> Network:
    """The network in which every layer has the options of some algorithms alone, or else is kept."""

    def own(layer: Layer) -> Layer:
        for wanted in (names, (KEEP,)):
            if found := tuple(option for option in layer.options if option.algorithm in wanted):
                return replace(layer, options=found)
        return layer

    return replace(network, layers=tuple(map(own, network.layers)))


@dataclass
class _Options:
    """The options of layers; those of equal layers are made once."""

    planning: Planning
    settings: AlgorithmSettings
    records: Sequence[LayerRecord]
    _known: dict[tuple[LayerGeometry, Element, int], tuple[Option, ...]] = field(default_factory=dict)
    _implicit: dict[tuple[object, ...], float | None] = field(default_factory=dict)

    def of(self, site: ConvSite, report: SiteReport) -> tuple[Option, ...]:
        graph, kernels = self.planning.judge.graph, self.planning.kernels
        assert kernels is not None
        if report.rewrite is not None:
            return (Option(GROUP_CONV, "first", float(report.planned["predicted_us"])),)
        element = self.planning.dtype or tensor_element(graph, site.output)
        batch = (graph.shape(site.output) or (1,))[0]
        try:
            geometry = site_geometry(site, graph.shape(site.input) or ())
        except InputError:
            # Of a layer over other axes nothing is known but that it stays.
            return tuple(Option(KEEP, layout, 0.0) for layout in engine_layouts(element or "fp32"))
        if element is None or not self._choosable(site):
            wide: Element = element or "fp32"
            us = engine_us(geometry, wide, kernels.gpu, batch)
            return tuple(Option(KEEP, layout, us) for layout in engine_layouts(wide))
        key = (geometry, element, batch)
        if key not in self._known:
            measured = measured_times(self.records, layer_shape(geometry, batch), element, kernels.gpu)
            self._known[key] = layer_options(
                geometry,
                element,
                kernels.gpu,
                batch,
                implicit_us=self._implicit_us(site, geometry, kernels.computing_in(element), batch),
                winograd=self.settings.winograd,
                measured=measured,
            )
        return self._known[key]

    def _choosable(self, site: ConvSite) -> bool:
        """Whether algorithms can take a layer's place: dense, of one node, with constant weights and bias."""
        graph, (part, *further) = self.planning.judge.graph, site.parts
        bias = part.node.input[2] if len(part.node.input) > 2 else ""
        known = not bias or graph.constant(bias) is not None
        small = site.out_channels * site.in_channels * prod(site.kernel) <= SIZE_LIMIT
        final = own_nodes(graph, site.nodes)
        return site.pattern == "dense" and not further and known and small and not final

    def _implicit_us(self, site: ConvSite, geometry: LayerGeometry, kernels: KernelPlanner, batch: int) -> float | None:
        channels = (geometry.input_channels, geometry.output_channels, geometry.taps)
        key = (*channels, geometry.input_positions, geometry.positions, kernels.element, batch)
        if key not in self._implicit:
            images = 1 if symbolic_batch(self.planning.judge.model) else folded_images(batch, geometry.positions)
            try:
                (plan,) = kernels.convolution(site, self.planning.judge.graph, images=images)
                self._implicit[key] = plan.forecast.predicted_us
            except InputError:
                self._implicit[key] = None
        return self._implicit[key]


def site_geometry(site: ConvSite, input_shape: Sequence[int]) -> LayerGeometry:
    """The geometry of a convolution of a model; several nodes that are one count as one node with as many groups.

    Raises as :func:`layer_geometry`.
    """
    strides, dilations, pads = conv_geometry(site.node, site.kernel, input_shape[2:])
    groups = sum(part.groups for part in site.parts)
    if site.in_channels % groups or site.out_channels % groups:
        groups = 1
    weights = (site.out_channels, site.in_channels // groups, *site.kernel)
    return layer_geometry(input_shape[2:], weights, strides=strides, dilations=dilations, pads=pads, groups=groups)

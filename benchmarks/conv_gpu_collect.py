"""Every distinct convolution of some models, as operators for a job: by the planner's kernels, or by each algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conv_gpu_layers import GROUP_CONV, Layer
from onnxopt.algorithm_choice import site_geometry
from onnxopt.convolution_kernels import conv_choices
from onnxopt.decide import own_nodes
from onnxopt.discover.conv_fusion import ConvFusions
from onnxopt.discover.conv_site import ConvSite
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner, folded_images
from onnxopt.lower.convolution import site_weights
from onnxopt.measure.job.algorithm_operator import algorithm_channels, algorithm_kernel
from onnxopt.measure.job.build import Request
from onnxopt.measure.job.weights import weightless
from onnxopt.model.read import read_model
from onnxopt.plan.algorithms.geometry import LayerGeometry
from onnxopt.plan.algorithms.options import IMPLICIT_GEMM, layer_options, layer_shape
from onnxopt.plan.algorithms.steps import ALGORITHMS, algorithm_steps
from onnxopt.plan.roofline import ELEMENT_BYTES, peak_flops
from onnxopt.plan.schedule import ConvSchedule
from onnxopt.plan.tables import ConvTables, NoTables, conv_tables
from onnxopt.plan.tables.work import conv_work
from onnxopt.site_reports import Planning
from onnxopt.sites import discover, whole_judge
from onnxopt.target import GpuProfile, load_target
from onnxopt.target.layer_records import LAYOUTS
from onnxopt.target.layer_records import SCHEMA as RECORD_SCHEMA
from onnxopt.target.variant import Element

_SEED = 11


class Collected:
    """Distinct layers with their requests, in the order in which they were found."""

    def __init__(self, target: str, element: Element, cache: Path | None) -> None:
        self.target, self.element, self.cache = load_target(target), element, cache
        self.layers: dict[Any, Layer] = {}
        self.requests: dict[str, Request] = {}
        self.left_out: list[tuple[str, str]] = []

    @property
    def gpu(self) -> GpuProfile:
        """The profile of the target."""
        return self.target.need_gpu_profile()

    def add(self, path: Path, *, algorithms: bool) -> None:
        """The layers of a model. Raises InputError for one that cannot be read."""
        model = read_model(path)
        findings = discover(model)
        judge = whole_judge(model, findings, self.target, records=None, measure=False)
        planner = KernelPlanner.at(self.gpu, "time", self.cache, self.element)
        fusions = ConvFusions(findings.graph)
        planning = Planning(judge, "time", kernels=planner, fusions=fusions, dtype=self.element)
        for number, site in enumerate(findings.convolutions):
            name = f"{path.stem}/conv-{number}"
            if own_nodes(findings.graph, site.nodes):
                self.left_out.append((name, "an operator of our own"))
                continue
            try:
                (self._by_algorithm if algorithms else self._planned)(planning, site, name, path.stem)
            except (InputError, NoTables) as reason:
                self.left_out.append((name, str(reason)))

    def _known(self, key: Any, network: str) -> bool:
        """Count a layer that another one is the same as."""
        layer = self.layers.get(key)
        if layer is None:
            return False
        self.layers[key] = replace(layer, networks={**layer.networks, network: layer.networks.get(network, 0) + 1})
        return True

    def _planned(self, planning: Planning, site: ConvSite, name: str, network: str) -> None:
        choice = conv_choices(planning, site)[0]
        assert planning.fusions is not None
        planning.fusions.take(choice.fusion)
        schedule = choice.schedule
        tables = conv_tables(choice.work, schedule, images=choice.images)
        graph = planning.judge.graph
        batch = (graph.shape(site.output) or (1,))[0]
        request = _request(f"{name}/{GROUP_CONV}", schedule, tables, batch, choice.microseconds)
        key = _content(request)
        if not self._known(key, network):
            self.requests[request.id] = request
            self.layers[key] = Layer(
                name, {network: 1}, {GROUP_CONV: request.id}, schedule.needed, schedule.forecast.bound_us
            )

    def _by_algorithm(self, planning: Planning, site: ConvSite, name: str, network: str) -> None:
        graph, kernels = planning.judge.graph, planning.kernels
        assert kernels is not None
        shape = graph.shape(site.input) or ()
        geometry = site_geometry(site, shape)
        batch = (graph.shape(site.output) or (1,))[0]
        if self._known((geometry, batch), network):
            return
        images = folded_images(batch, geometry.positions)
        (schedule,) = kernels.convolution(site, graph, images=images)
        predicted = schedule.forecast.predicted_us
        bound = layer_bound_us(geometry, self.element, self.gpu, batch)
        record = self._record(geometry, batch)
        options = layer_options(geometry, self.element, self.gpu, batch, implicit_us=predicted, winograd=True)
        requests: dict[str, Request] = {}
        for option in options:
            if option.algorithm in ALGORITHMS:
                own = {**record, "algorithm": option.algorithm, "layout": option.layout}
                requests[option.algorithm] = self._steps(
                    f"{name}/{option.algorithm}", option.algorithm, geometry, batch, option.microseconds, bound, own
                )
        work = conv_work(site, *site_weights(site, graph), shape[2:])
        for layout in LAYOUTS:
            tables = conv_tables(replace(work, layout=layout), schedule, images=images)
            way = f"{IMPLICIT_GEMM}/{layout}"
            request = _request(f"{name}/{way}", schedule, tables, batch, predicted)
            own = {**record, "algorithm": IMPLICIT_GEMM, "layout": layout}
            requests[way] = replace(request, purpose="layer", bound_us=bound, record=own)
        self.requests |= {request.id: request for request in requests.values()}
        ways = {way: request.id for way, request in requests.items()}
        connections = geometry.output_channels * geometry.input_channels // geometry.groups
        self.layers[geometry, batch] = Layer(name, {network: 1}, ways, connections, bound, geometry.to_json(), record)

    def _record(self, geometry: LayerGeometry, batch: int) -> dict[str, Any]:
        shape = asdict(layer_shape(geometry, batch))
        named = {"architecture": self.gpu.architecture, "element": self.element}
        return {"schema": RECORD_SCHEMA, **shape, **named}

    def _steps(
        self,
        id: str,
        algorithm: str,
        geometry: LayerGeometry,
        batch: int,
        predicted: float,
        bound: float,
        record: Mapping[str, Any],
    ) -> Request:
        steps = algorithm_steps(algorithm, geometry, self.element)
        connections = geometry.output_channels * geometry.input_channels // geometry.groups
        return Request(
            id=id,
            kind="algorithm",
            purpose="layer",
            kernel=algorithm_kernel(algorithm, geometry, self.element, steps),
            tables=algorithm_channels(geometry),
            second_kernel=None,
            resident=1,
            batch=batch,
            needed=connections,
            computed=connections,
            predicted_us=predicted,
            bound_us=bound,
            record=record,
        )


def layer_bound_us(geometry: LayerGeometry, element: Element, gpu: GpuProfile, batch: int) -> float:
    """The longest of products at the peak rate, of x, weights and y through device memory, and a launch."""
    connections = geometry.output_channels * geometry.input_channels // geometry.groups * geometry.taps
    inputs, outputs = (
        geometry.input_channels * geometry.input_positions,
        geometry.output_channels * geometry.positions,
    )
    products = 2.0 * batch * connections * geometry.positions / peak_flops(gpu, element)
    moved = ELEMENT_BYTES[element] * (batch * (inputs + outputs) + connections) / gpu.memory_bytes_per_second
    return max(products, moved, gpu.launch_seconds) * 1e6


def _request(name: str, schedule: ConvSchedule, tables: ConvTables, batch: int, predicted: float) -> Request:
    arrays = {**tables.arrays(), **({} if tables.sum is None else tables.sum.arrays())}
    return Request(
        id=name,
        kind="conv",
        purpose="site",
        kernel=tables.kernel.to_json(),
        tables=weightless(arrays, _SEED),
        second_kernel=None if tables.sum is None else tables.sum.kernel,
        resident=schedule.resident,
        batch=batch,
        needed=schedule.needed,
        computed=schedule.computed,
        predicted_us=predicted,
        bound_us=schedule.forecast.bound_us,
    )


def _content(request: Request) -> str:
    """What two layers that are timed alike have in common: all but the values of weights, bias and normalisation."""
    content = sha256(repr((request.kernel, request.second_kernel, request.batch)).encode())
    for name, table in request.tables.items():
        if name not in ("w_drawn", "b", "input_scales", "input_shifts"):
            content.update(name.encode() + np.ascontiguousarray(table).tobytes())
    return content.hexdigest()

"""Small networks whose dense layers become steps of a wanted algorithm: measured times that make it win."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from onnxopt.algorithm_choice import site_geometry
from onnxopt.decide import AlgorithmSource
from onnxopt.discover.conv_fusion import ConvFusions
from onnxopt.lower.algorithm_plugin import AlgorithmWriter, step_fusion
from onnxopt.lower.convolution import site_weights
from onnxopt.lower.rewrite import apply_rewrites
from onnxopt.plan.algorithms.options import layer_shape
from onnxopt.plan.algorithms.tables import algorithm_tables
from onnxopt.plan.tables.fused import fused_work
from onnxopt.sites import discover
from onnxopt.target.layer_records import LayerRecord, Layout, add_layers
from onnxopt.target.tile_store import FILE_NAME
from onnxopt.target.variant import Element
from samples.builder import GraphBuilder
from samples.convolution import batch_norm, conv

GPU_NAME, ARCHITECTURE = "NVIDIA H200", "sm_90"


def two_layers(batch: int | None = 1, axes: Sequence[int] = (9, 7)) -> onnx.ModelProto:
    """Two 3x3 layers with normalisation, activation, and a residual behind the second."""
    g = GraphBuilder("two", seed=3, batch=batch)
    x = g.input("x", 20, *axes)
    first, _ = conv(g, x, 20, 20, (3,) * len(axes))
    inner = g.op("Relu", batch_norm(g, first, 20))
    second, _ = conv(g, inner, 20, 20, (3,) * len(axes))
    g.output("y", g.op("Relu", g.op("Add", batch_norm(g, second, 20), inner)), 20, *axes)
    return g.model()


def in_steps(
    model: onnx.ModelProto, algorithm: str, element: Element = "fp32"
) -> tuple[onnx.ModelProto, dict[str, AlgorithmSource]]:
    """A model with all its convolutions as the steps of one algorithm, and what each was written from."""
    found = discover(model)
    graph = found.graph
    fusions, writer = ConvFusions(graph), AlgorithmWriter(graph)
    rewrites, sources = [], {}
    for number, site in enumerate(found.convolutions):
        whole = fusions.fusion(site)
        shape = graph.shape(site.input)
        assert whole is not None and shape is not None
        fusion = step_fusion(graph, site, whole)
        fusions.take(fusion)
        work = fused_work(site, fusion, *site_weights(site, graph), shape[2:])
        steps = algorithm_tables(algorithm, work, element)
        rewrites.append(writer.lower(f"conv-{number}", fusion, work, algorithm, steps))
        sources[f"conv-{number}"] = AlgorithmSource(site, fusion, work, algorithm, steps)
    return apply_rewrites(model, rewrites), sources


def measured_to_win(
    model: onnx.ModelProto,
    algorithm: str,
    folder: Path,
    element: Element = "fp32",
    layout: Layout = "first",
    microseconds: float = 0.01,
) -> Path:
    """A cache folder whose records say that one algorithm is the fastest for every layer."""
    found = discover(model)
    records = []
    for site in found.convolutions:
        shape = found.graph.shape(site.input)
        assert shape is not None
        key = layer_shape(site_geometry(site, shape), shape[0])
        records.append(
            LayerRecord(
                gpu=GPU_NAME,
                architecture=ARCHITECTURE,
                element=element,
                shape=key,
                algorithm=algorithm,
                layout=layout,
                microseconds=microseconds,
                host="onnxopt 0.1",
                driver="580.65.06",
                nvrtc="13.0.88",
                source="0" * 16,
                clock_hz=1.7e9,
                date="2026-11-01",
            )
        )
    folder.mkdir(parents=True, exist_ok=True)
    add_layers(folder / FILE_NAME, records)
    return folder

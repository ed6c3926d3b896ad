"""The ways to compute one convolution layer, each with its time, layout and memory: what the choice chooses from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxopt.errors import InputError
from onnxopt.plan.algorithms.geometry import LayerGeometry
from onnxopt.plan.algorithms.packing import constant_bytes
from onnxopt.plan.algorithms.problem import KEEP, LAYOUTS, Layout, Option
from onnxopt.plan.algorithms.steps import (
    ALGORITHMS,
    WINOGRAD_TILES,
    Algorithm,
    algorithm_refusal,
    algorithm_steps,
)
from onnxopt.plan.algorithms.times import algorithm_us
from onnxopt.plan.estimate import GPU_PRODUCT_SHARE
from onnxopt.plan.roofline import ELEMENT_BYTES, peak_flops, same_gpu
from onnxopt.target.figures import GpuProfile
from onnxopt.target.layer_records import LayerRecord, LayerShape
from onnxopt.target.variant import Element

IMPLICIT_GEMM = "implicit_gemm"
"""The group-convolution kernel with one dense part."""

Measured = Mapping[tuple[str, Layout], float]


def layer_options(
    geometry: LayerGeometry,
    element: Element,
    gpu: GpuProfile,
    batch: int,
    *,
    implicit_us: float | None,
    winograd: bool = False,
    measured: Measured | None = None,
) -> tuple[Option, ...]:
    """Every way to compute a layer, ``keep`` first.

    ``implicit_us`` is the planned time of the implicit matrix product, None where there is no plan. Winograd exceeds
    the numeric rule and is there only where it is asked for. Times in ``measured`` take the place of predicted ones.
    """
    options = [Option(KEEP, layout, engine_us(geometry, element, gpu, batch)) for layout in engine_layouts(element)]
    if implicit_us is not None:
        options += [Option(IMPLICIT_GEMM, layout, implicit_us) for layout in LAYOUTS]
    for name in ALGORITHMS:
        if algorithm_refusal(name, geometry) or (name in WINOGRAD_TILES and not winograd):
            continue
        try:
            options.append(_own(name, geometry, element, gpu, batch))
        except InputError:
            # A tensor between its steps would be too large.
            continue
    return tuple(_as_measured(option, measured or {}) for option in options)


def engine_layouts(element: Element) -> tuple[Layout, ...]:
    """The layouts in which an engine's own convolutions compute.

    Those on the matrix units take 16-bit channels last (cuDNN's and TensorRT's documentation); an engine converts
    where the graph has them first.
    """
    return ("last",) if element in ("fp16", "bf16") else LAYOUTS


def engine_us(geometry: LayerGeometry, element: Element, gpu: GpuProfile, batch: int) -> float:
    """Predicted time of a layer as an engine computes it by itself: arithmetic or bytes, and a launch."""
    size = ELEMENT_BYTES[element]
    connections = geometry.output_channels * geometry.input_channels // geometry.groups * geometry.taps
    flops = 2.0 * batch * connections * geometry.positions
    moved = size * (batch * _moved_elements(geometry) + connections)
    arithmetic = flops / (peak_flops(gpu, element) * GPU_PRODUCT_SHARE)
    return (max(arithmetic, moved / gpu.memory_bytes_per_second) + gpu.launch_seconds) * 1e6


def conversion_us(elements: int, element: Element, gpu: GpuProfile) -> float:
    """Predicted time of bringing a tensor of so many elements into the other layout: read, written, one launch."""
    seconds = 2.0 * ELEMENT_BYTES[element] * elements / gpu.memory_bytes_per_second + gpu.launch_seconds
    return seconds * 1e6


def measured_times(
    records: Iterable[LayerRecord], shape: LayerShape, element: Element, gpu: GpuProfile
) -> dict[tuple[str, Layout], float]:
    """The measured times of a layer on a GPU by algorithm and layout; of several the latest, and of these the fastest.

    What several libraries took for ``keep`` counts by the fastest too.
    """
    found: dict[tuple[str, Layout], LayerRecord] = {}
    for record in records:
        if record.shape != shape or record.element != element or not same_gpu(gpu, record.gpu):
            continue
        key = (record.algorithm, record.layout)
        known = found.get(key)
        if known is None or (known.date, -known.microseconds) < (record.date, -record.microseconds):
            found[key] = record
    return {key: record.microseconds for key, record in found.items()}


def layer_shape(geometry: LayerGeometry, batch: int) -> LayerShape:
    """The key of a layer's measured times."""
    behind = tuple(
        (size - 1) * stride + (taps - 1) * dilation + 1 - whole - front
        for size, stride, taps, dilation, whole, front in zip(
            geometry.output_size,
            geometry.strides,
            geometry.kernel,
            geometry.dilations,
            geometry.input_size,
            geometry.pads,
            strict=True,
        )
    )
    # What lies behind counts only as far as a tap reads it.
    return LayerShape(
        batch,
        geometry.input_channels,
        geometry.output_channels,
        geometry.groups,
        geometry.input_size,
        geometry.kernel,
        geometry.strides,
        geometry.dilations,
        (*geometry.pads, *(max(0, own) for own in behind)),
    )


def _moved_elements(geometry: LayerGeometry) -> int:
    return geometry.input_channels * geometry.input_positions + geometry.output_channels * geometry.positions


def _own(name: Algorithm, geometry: LayerGeometry, element: Element, gpu: GpuProfile, batch: int) -> Option:
    steps = algorithm_steps(name, geometry, element)
    plain = ELEMENT_BYTES[element] * geometry.output_channels * geometry.input_channels // geometry.groups
    packed = constant_bytes(name, geometry, element, steps)
    return Option(
        name,
        "first",
        algorithm_us(steps, geometry, gpu, element, batch),
        batch * max(step.workspace_bytes for step in steps),
        max(0, packed - plain * geometry.taps),
    )


def _as_measured(option: Option, measured: Measured) -> Option:
    seen = measured.get((option.algorithm, option.layout))
    if seen is None:
        return option
    return Option(option.algorithm, option.layout, seen, option.workspace_bytes, option.constant_bytes, measured=True)

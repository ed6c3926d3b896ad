"""What a layer can be computed by, with the model's times and with measured ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxopt.plan.algorithms.geometry import LayerGeometry, layer_geometry
from onnxopt.plan.algorithms.options import (
    IMPLICIT_GEMM,
    conversion_us,
    engine_us,
    layer_options,
    layer_shape,
    measured_times,
)
from onnxopt.plan.algorithms.packing import packed_weights
from onnxopt.plan.algorithms.steps import ALGORITHMS, algorithm_refusal, algorithm_steps, workspace_bytes
from onnxopt.plan.algorithms.times import algorithm_us
from onnxopt.target import GpuProfile, load_target
from onnxopt.target.variant import Element
from tests.target.test_layer_records import RECORD

GPU: GpuProfile = load_target("sm_90").need_gpu_profile()
THREE = layer_geometry((28, 28), (128, 64, 3, 3), pads=(1, 1, 1, 1))
LAYERS = {
    "3x3": THREE,
    "1x1": layer_geometry((28, 28), (128, 64, 1, 1)),
    "1x7": layer_geometry((17, 17), (64, 48, 1, 7), pads=(0, 3, 0, 3)),
    "stride": layer_geometry((224, 224), (64, 3, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
    "depthwise": layer_geometry((28, 28), (64, 1, 3, 3), pads=(1, 1, 1, 1), groups=64),
}


def _options(geometry: LayerGeometry, element: Element = "fp16", winograd: bool = False) -> set[tuple[str, str]]:
    found = layer_options(geometry, element, GPU, 1, implicit_us=5.0, winograd=winograd)
    return {(option.algorithm, option.layout) for option in found}


def test_a_layer_has_every_algorithm_that_computes_it() -> None:
    plain = {("keep", "last"), (IMPLICIT_GEMM, "first"), (IMPLICIT_GEMM, "last")}
    classic = {(name, "first") for name in ("scalar_matrix", "kn2row", "im2col", "direct", "depthwise")}
    assert _options(THREE) == plain | classic
    assert _options(THREE, winograd=True) == plain | classic | {("winograd_2x2", "first"), ("winograd_4x4", "first")}
    assert _options(THREE, "fp32") == plain | classic | {("keep", "first")}
    assert _options(LAYERS["depthwise"], winograd=True) == plain | {("depthwise", "first")}


@pytest.mark.parametrize(
    ("layer", "name"),
    [(layer, name) for layer in LAYERS for name in ALGORITHMS if not algorithm_refusal(name, LAYERS[layer])],
)
def test_predicted_times_are_above_the_launches_and_grow_with_the_batch(layer: str, name: str) -> None:
    geometry = LAYERS[layer]
    steps = algorithm_steps(name, geometry, "fp16")
    times = [algorithm_us(steps, geometry, GPU, "fp16", batch) for batch in (1, 4, 64)]
    assert times[0] >= len(steps) * GPU.launch_seconds * 1e6
    assert times == sorted(times)
    assert times[2] > times[0]
    slow = replace(GPU, multiprocessors=GPU.multiprocessors // 4)
    assert algorithm_us(steps, geometry, slow, "fp16", 64) >= times[2]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("element", ["fp16", "fp32"])
def test_constants_and_workspace_are_those_of_the_steps(name: str, element: Element) -> None:

    steps = algorithm_steps(name, THREE, element)
    weights = np.ones((128, 64, 3, 3), np.float32)
    constants = packed_weights(name, THREE, element, steps, weights)
    plain = weights.size * constants["w"].itemsize
    options = layer_options(THREE, element, GPU, 3, implicit_us=None, winograd=True)
    (found,) = [option for option in options if option.algorithm == name]
    assert found.workspace_bytes == workspace_bytes(name, THREE, element, 3)
    assert found.constant_bytes == max(0, sum(array.nbytes for array in constants.values()) - plain)


def test_measured_times_take_the_place_of_predicted_ones() -> None:
    geometry = layer_geometry((28, 28), (128, 64, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    shape = layer_shape(geometry, 1)
    assert shape.pads == (0, 1, 1, 0, 0, 0)
    own = replace(RECORD, shape=shape)
    records = [
        own,
        replace(own, microseconds=9.0, host="onnxopt 0.2"),
        replace(own, microseconds=20.0, date="2026-12-01", algorithm="keep", layout="last"),
        replace(own, microseconds=1.0, element="bf16"),
        replace(own, microseconds=1.0, gpu="NVIDIA L4", architecture="sm_89"),
        replace(own, microseconds=1.0, shape=layer_shape(geometry, 2)),
    ]
    times = measured_times(records, shape, "fp16", GPU)
    assert times == {("im2col", "first"): 9.0, ("keep", "last"): 20.0}
    found = {
        (o.algorithm, o.layout): o for o in layer_options(geometry, "fp16", GPU, 1, implicit_us=5.0, measured=times)
    }
    assert found["im2col", "first"].microseconds == 9.0
    assert found["keep", "last"].measured
    assert not found[IMPLICIT_GEMM, "first"].measured


def test_an_engines_time_is_the_longer_of_arithmetic_and_bytes_and_a_launch() -> None:
    launch = GPU.launch_seconds * 1e6
    large = layer_geometry((224, 224), (512, 512, 3, 3), pads=(1, 1, 1, 1))
    flops = 2.0 * 512 * 512 * 9 * 224 * 224
    assert engine_us(large, "fp16", GPU, 1) == pytest.approx(flops / (0.5 * GPU.fp16_flops) * 1e6 + launch)
    moved = 4 * 10**6 * 2 / GPU.memory_bytes_per_second * 1e6
    assert conversion_us(10**6, "fp32", GPU) == pytest.approx(moved + launch)

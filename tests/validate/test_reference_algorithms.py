"""Every algorithm's steps in float64, composed, are the convolution, for all shapes; and what no algorithm takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxopt.errors import InputError
from onnxopt.kernels.algorithm_launch import algorithm_parameters
from onnxopt.kernels.algorithm_source import algorithm_source
from onnxopt.plan.algorithms.geometry import LayerGeometry, layer_geometry
from onnxopt.plan.algorithms.packing import constant_bytes, packed_weights
from onnxopt.plan.algorithms.steps import (
    ALGORITHMS,
    AlgorithmStep,
    algorithm_refusal,
    algorithm_steps,
    workspace_bytes,
)
from onnxopt.validate.failure import PlanError
from onnxopt.validate.reference_algorithms import layer_output, step_output
from onnxopt.validate.reference_conv import activated

CASES: dict[str, LayerGeometry] = {
    "1x1": layer_geometry((6, 5), (7, 20, 1, 1)),
    "1x1 stride 2": layer_geometry((7, 6), (5, 9, 1, 1), strides=(2, 2)),
    "3x3": layer_geometry((9, 8), (10, 35, 3, 3), pads=(1, 1, 1, 1)),
    "3x3 stride 2": layer_geometry((9, 8), (6, 5, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "3x3 dilation 2": layer_geometry((9, 10), (5, 4, 3, 3), dilations=(2, 2), pads=(2, 2, 2, 2)),
    "3x3 asymmetric": layer_geometry((7, 11), (4, 18, 3, 3), pads=(0, 1, 2, 0)),
    "5x5": layer_geometry((8, 9), (4, 3, 5, 5), pads=(2, 2, 2, 2)),
    "1x7": layer_geometry((7, 9), (6, 6, 1, 7), pads=(0, 3, 0, 3)),
    "7x1": layer_geometry((9, 7), (6, 6, 7, 1), pads=(3, 0, 3, 0)),
    "7x7 stride 2": layer_geometry((15, 14), (9, 3, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
    "one axis": layer_geometry((13,), (5, 4, 3), strides=(2,), pads=(1, 0)),
    "three axes": layer_geometry((4, 5, 6), (3, 4, 2, 3, 3), strides=(1, 2, 1), pads=(1, 1, 1, 0, 1, 1)),
    "depthwise": layer_geometry((9, 7), (10, 1, 3, 3), pads=(1, 1, 1, 1), groups=10),
    "depthwise multiplier": layer_geometry((7, 8), (15, 1, 3, 3), strides=(2, 1), pads=(1, 1, 1, 1), groups=5),
}


def operands(geometry: LayerGeometry, batch: int = 2, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    inputs = geometry.input_channels // geometry.groups
    outputs = geometry.output_channels
    return {
        "x": rng.standard_normal((batch, geometry.input_channels, geometry.input_positions)),
        "weights": rng.standard_normal((outputs, inputs, *geometry.kernel)),
        "b": rng.standard_normal(outputs),
        "residual": rng.standard_normal((batch, outputs, geometry.positions)),
    }


def composed(
    name: str, geometry: LayerGeometry, given: dict[str, NDArray[Any]], **options: Any
) -> tuple[tuple[AlgorithmStep, ...], NDArray[Any]]:
    steps = algorithm_steps(name, geometry, "fp32", **options)
    tensors = {**given, **packed_weights(name, geometry, "fp32", steps, given["weights"])}
    for step in steps:
        names = [p for p in algorithm_parameters(step.operator, step.kernel) if p != "batch"]
        inputs = dict(zip(names, (tensors[tensor] for tensor in step.inputs), strict=False))
        result = step_output(step.operator, step.kernel, inputs)
        assert result.shape[1:] == step.output_shape, step.operator
        tensors[step.outputs[0]] = result
    return steps, tensors["y"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_steps_of_an_algorithm_are_the_convolution(name: str, case: str) -> None:
    geometry = CASES[case]
    given = operands(geometry)
    if algorithm_refusal(name, geometry):
        with pytest.raises(InputError, match="choose another algorithm"):
            algorithm_steps(name, geometry, "fp32")
        return
    steps, y = composed(name, geometry, given, activation="silu", residual=True)
    wanted = layer_output(
        geometry.to_json(), given["x"], given["weights"], given["b"], given["residual"], activation="silu"
    )
    # Weights were rounded to float32 once.
    assert np.abs(y - wanted).max() < 3e-6 * np.abs(wanted).max()
    for step in steps:
        algorithm_source(step.operator, step.kernel)
    halves = algorithm_steps(name, geometry, "fp16")
    arrays = packed_weights(name, geometry, "fp16", halves, given["weights"])
    assert constant_bytes(name, geometry, "fp16", halves) == sum(array.nbytes for array in arrays.values())


def test_the_convolution_itself_worked_out_by_hand() -> None:
    geometry = layer_geometry((3,), (2, 1, 2), pads=(1, 0))
    x = np.array([[[1.0, 2.0, 3.0]]])
    weights = np.array([[[1.0, 10.0]], [[-1.0, 0.0]]])
    y = layer_output(geometry.to_json(), x, weights, np.array([0.5, 1.0]), activation="relu")
    assert np.array_equal(y, [[[10.5, 21.5, 32.5], [1.0, 0.0, 0.0]]])


def test_strided_and_dilated_taps_worked_out_by_hand() -> None:
    geometry = layer_geometry((5, 1), (1, 1, 2, 1), strides=(2, 1), dilations=(3, 1), pads=(1, 0, 1, 0))
    x = np.arange(1.0, 6).reshape(1, 1, 5)
    y = layer_output(geometry.to_json(), x, np.array([1.0, 100.0]), np.zeros(1))
    assert np.array_equal(y, [[[300.0, 502.0]]])
    residual = np.array([[[1.0, 2.0]]])
    y = layer_output(geometry.to_json(), x, np.array([1.0, 100.0]), np.zeros(1), residual, "hardswish")
    assert np.allclose(y, activated("hardswish", np.array([[[301.0, 504.0]]])))


def test_groups_have_channels_of_their_own() -> None:
    geometry = layer_geometry((2,), (4, 1, 1), groups=2)
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    y = layer_output(geometry.to_json(), x, np.array([1.0, 10.0, 100.0, 1000.0]), np.zeros(4))
    assert np.array_equal(y, [[[1, 2], [10, 20], [300, 400], [3000, 4000]]])


def test_workspace_is_what_exists_at_one_time() -> None:
    geometry = layer_geometry((7, 7), (32, 16, 3, 3), pads=(1, 1, 1, 1))
    assert workspace_bytes("direct", geometry, "fp16", 3) == 0
    assert workspace_bytes("scalar_matrix", geometry, "fp16", 3) == 0
    # 144 rows of 49 positions, padded to whole pieces of 8.
    assert workspace_bytes("im2col", geometry, "fp16", 3) == 3 * 144 * 56 * 2
    assert workspace_bytes("kn2row", geometry, "fp16", 3) == 3 * 9 * 32 * 49 * 4
    # 16 matrices of 16 tiles: of the inputs in fp16 and of the outputs in float32 at once.
    assert workspace_bytes("winograd_2x2", geometry, "fp16", 3) == 3 * 16 * 16 * (16 * 2 + 32 * 4)
    assert workspace_bytes("im2col", CASES["1x1"], "fp16", 3) == 0
    many = layer_geometry((7, 7), (8, 40, 3, 3), pads=(1, 1, 1, 1))
    assert workspace_bytes("depthwise", many, "fp16", 1) == 3 * 8 * 49 * 4


def test_what_no_algorithm_takes_is_refused_with_its_figures() -> None:
    with pytest.raises(InputError, match="5 taps with dilation 2 reach over 9 positions, the padded input has 8"):
        layer_geometry((6, 20), (1, 1, 5, 5), dilations=(2, 2), pads=(1, 0, 1, 0))
    with pytest.raises(InputError, match="10 output channels in 3 groups"):
        layer_geometry((6, 6), (10, 2, 3, 3), groups=3)
    with pytest.raises(InputError, match="weights of 3 dimensions"):
        layer_geometry((6, 6), (10, 2, 3))
    with pytest.raises(InputError, match=r"strides are \[1, 0\]; allowed: 1 or more"):
        layer_geometry((6, 6), (1, 1, 3, 3), strides=(1, 0))
    with pytest.raises(InputError, match=r"1 strides \(\[2\]\); allowed: 2"):
        layer_geometry((6, 6), (1, 1, 3, 3), strides=(2,))
    with pytest.raises(InputError, match="the input has 4,294,967,296 elements"):
        layer_geometry((65536, 65536), (1, 1, 3, 3))
    with pytest.raises(InputError, match="winograd_4x4 computes 3x3 layers.*1x5x5"):
        algorithm_steps("winograd_4x4", CASES["5x5"], "fp16")
    with pytest.raises(InputError, match="layers of one group; this one has 10 groups"):
        algorithm_steps("im2col", CASES["depthwise"], "fp16")
    with pytest.raises(InputError, match="one group or of 6, one for each channel; this one has 2"):
        algorithm_steps("depthwise", layer_geometry((6, 6), (4, 3, 3, 3), groups=2), "fp16")
    with pytest.raises(InputError, match="convolution algorithm 'fft'; allowed: scalar_matrix"):
        algorithm_refusal("fft", CASES["1x1"])
    with pytest.raises(InputError, match="'products' has 4,194,304,000 elements a batch element"):
        algorithm_steps("kn2row", layer_geometry((1024, 1024), (160, 4, 5, 5)), "fp16")
    huge = layer_geometry((64, 64), (32, 4, 31, 31))
    with pytest.raises(InputError, match="in shared memory, [0-9,]+ bytes for 961 taps; allowed: 49,152"):
        algorithm_steps("direct", huge, "fp16")
    steps = algorithm_steps("direct", CASES["3x3"], "fp32")
    with pytest.raises(InputError, match="weights of 12 elements; allowed: 10 x 35 x 9"):
        packed_weights("direct", CASES["3x3"], "fp32", steps, np.zeros((4, 3)))
    with pytest.raises(PlanError, match="'ConvTwice' is no step"):
        step_output("ConvTwice", {}, {})

"""The steps of the convolution algorithms before they run: what they compile to, take, and refuse.

A few layers of networks are compiled every time, all of them for every architecture with ``make test-all``.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from math import prod
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.kernels.algorithm_launch import algorithm_arguments, algorithm_launch, algorithm_parameters
from onnxopt.kernels.algorithm_source import algorithm_source
from onnxopt.kernels.compilation import architecture_for
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.sass import instructions, mnemonics
from onnxopt.plan.algorithms import tiles
from onnxopt.plan.algorithms.geometry import LayerGeometry, layer_geometry
from onnxopt.plan.algorithms.steps import ALGORITHMS, AlgorithmStep, algorithm_refusal, algorithm_steps
from onnxopt.target.architecture import LACKING_TYPES
from onnxopt.target.variant import Element
from tests.validate.test_reference_algorithms import CASES

_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
_ELEMENTS: tuple[Element, ...] = ("fp16", "bf16", "tf32", "fp32")

# What real networks have: VGG, ResNet and Inception, each of their kinds of layer.
_LAYERS: dict[str, LayerGeometry] = {
    "vgg first": layer_geometry((224, 224), (64, 3, 3, 3), pads=(1, 1, 1, 1)),
    "vgg 14": layer_geometry((14, 14), (512, 512, 3, 3), pads=(1, 1, 1, 1)),
    "resnet stem": layer_geometry((224, 224), (64, 3, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
    "resnet 1x1 stride 2": layer_geometry((56, 56), (512, 256, 1, 1), strides=(2, 2)),
    "resnet 7": layer_geometry((7, 7), (2048, 512, 1, 1)),
    "inception 1x7": layer_geometry((17, 17), (224, 192, 1, 7), pads=(0, 3, 0, 3)),
    "inception 7x1": layer_geometry((17, 17), (256, 224, 7, 1), pads=(3, 0, 3, 0)),
    "inception 3x3 stride 2": layer_geometry((35, 35), (384, 384, 3, 3), strides=(2, 2)),
    "depthwise 28": layer_geometry((28, 28), (240, 1, 3, 3), pads=(1, 1, 1, 1), groups=240),
    "depthwise 5x5": layer_geometry((14, 14), (384, 1, 5, 5), strides=(2, 2), pads=(2, 2, 2, 2), groups=192),
}


def _compiled_cases() -> list[object]:
    cases: list[object] = []
    kinds = cycle(_ELEMENTS)
    for number, (target, layer) in enumerate((t, c) for t in _TARGETS for c in _LAYERS):
        element = next(e for e in kinds if e not in LACKING_TYPES.get(target, ()))
        cases.append(pytest.param(target, layer, element, marks=() if number == 45 else pytest.mark.slow))
    return cases


@pytest.mark.parametrize(("target", "layer", "element"), _compiled_cases())
def test_layers_of_networks_compile_without_local_memory(target: str, layer: str, element: Element) -> None:
    geometry = _LAYERS[layer]
    for name in ALGORITHMS:
        if algorithm_refusal(name, geometry):
            continue
        for step in algorithm_steps(name, geometry, element, activation="silu", residual=True):
            compiled = compile_kernel(algorithm_source(step.operator, step.kernel), architecture_for(target))
            assert (compiled.report.stack, compiled.report.spill_stores) == (0, 0)
            assert compiled.report.shared <= tiles.MOST_SHARED, step.operator
            parameters = compiled.ptx[compiled.ptx.index(".entry") :].split(")", 1)[0].count(".param")
            assert parameters == len(algorithm_parameters(step.operator, step.kernel))
            launch = algorithm_launch(step.operator, step.kernel, 2, compiled.report)
            assert launch.block == compiled.report.threads
            if step.operator == "ConvProduct":
                assert _lacking(compiled.cubin, target, element) == []


def _lacking(cubin: bytes, target: str, element: Element) -> list[str]:
    """Instructions of a matrix product that are missing, and those that it must not have."""
    found = mnemonics(instructions(cubin))
    if target == "sm_75" and element == "fp32":
        wanted = ["FFMA"]
    else:
        wanted = ["HMMA", "LDSM"]
    return [name for name in wanted if not found[name]] + [name for name in ("LDL", "STL") if found[name]]


def test_whole_pieces_are_copied_asynchronously() -> None:
    """im2col's columns always are; x of 7 x 7 positions in fp16 begins at odd places."""
    for geometry, wanted in ((CASES["3x3"], True), (layer_geometry((7, 7), (16, 16, 1, 1)), False)):
        step = algorithm_steps("im2col", geometry, "fp16")[-1]
        found = instructions(compile_kernel(algorithm_source(step.operator, step.kernel), "sm_80").cubin)
        copies = [name for name in found if name.startswith("LDGSTS")]
        assert copies
        assert any(name.startswith("STS.U16") for name in found) != wanted


def _tensors(step: AlgorithmStep, batch: int) -> dict[str, Any]:
    """Tensors of a step of fp16, by its parameters."""
    geometry = CASES["3x3"]
    y = np.zeros((batch, 10, 72), np.float16)
    return {
        "columns": np.zeros((batch, 35 * 9, 72), np.float16),
        "w": np.zeros((geometry.output_channels, 320), np.float16),
        "b": np.zeros(10, np.float32),
        "residual": y,
        "y": y,
    }


def test_arguments_are_checked_against_the_configuration() -> None:
    step = algorithm_steps("im2col", CASES["3x3"], "fp16", residual=True)[1]
    assert algorithm_parameters(step.operator, step.kernel) == ("columns", "residual", "w", "b", "batch", "y")
    tensors = _tensors(step, 3)
    arguments = algorithm_arguments(step.operator, step.kernel, tensors, 3)
    assert arguments[4] == 3
    for change, message in (
        ({"w": np.zeros((10, 300), np.float16)}, "'w' has the shape 10 x 300, 3,000 elements; allowed: 3200"),
        ({"b": np.zeros(9, np.float32)}, "'b' has the shape 9; allowed: 10"),
        ({"columns": np.zeros((3, 35, 9, 72), np.float32)}, "'columns' is float32; allowed: float16"),
        ({"extras": np.zeros(1)}, "extras: not of this kernel"),
    ):
        with pytest.raises(InputError, match=message):
            algorithm_arguments(step.operator, step.kernel, {**tensors, **change}, 3)


def test_arguments_of_every_step_have_the_sizes_of_its_tensors() -> None:
    for name in ALGORITHMS:
        geometry = CASES["3x3"]
        steps = algorithm_steps(name, geometry, "fp32", residual=True)
        sizes = {"x": geometry.input_channels * geometry.input_positions, "residual": geometry.output_channels * 72}
        sizes |= {step.outputs[0]: prod(step.output_shape) for step in steps}
        for step in steps:
            if step.operator == "SumConv":
                continue
            names = algorithm_parameters(step.operator, step.kernel)
            tensors: dict[str, Any] = {}
            for parameter, tensor in zip(
                [n for n in names if n != "batch"], (*step.inputs, *step.outputs), strict=True
            ):
                if tensor in sizes:
                    tensors[parameter] = np.zeros((1, sizes[tensor]), np.float32)
            missing = [n for n in names if n not in tensors and n != "batch"]
            assert set(missing) <= {"w", "b"}
            own = {"w": np.zeros(1, np.float32), "b": np.zeros(geometry.output_channels, np.float32)}
            if "w" in missing:
                with pytest.raises(InputError, match="'w' has the shape 1"):
                    algorithm_arguments(step.operator, step.kernel, {**tensors, **{m: own[m] for m in missing}}, 1)
            else:
                algorithm_arguments(step.operator, step.kernel, {**tensors, **{m: own[m] for m in missing}}, 1)


def test_configurations_that_the_kernels_are_not_written_for_are_refused() -> None:
    scalar = dict(algorithm_steps("scalar_matrix", CASES["3x3"], "fp16")[0].kernel)
    unfold, product = (dict(step.kernel) for step in algorithm_steps("im2col", CASES["3x3"], "fp16"))
    shift = dict(algorithm_steps("kn2row", CASES["3x3"], "fp16")[1].kernel)
    direct = dict(algorithm_steps("direct", CASES["3x3"], "fp16")[0].kernel)
    slices = dict(algorithm_steps("depthwise", CASES["3x3"], "fp16")[0].kernel)
    winograd = dict(algorithm_steps("winograd_2x2", CASES["3x3"], "fp16")[0].kernel)
    for operator, kernel, change, message in (
        ("ConvScalar", scalar, {"threads": 100}, "'threads' is 100; allowed: whole warps"),
        ("ConvScalar", scalar, {"groups": 5}, "'groups' is 5; allowed: 1"),
        ("ConvScalar", scalar, {"strides": [1, 2]}, "'strides' is .*; allowed: three numbers"),
        ("ConvScalar", scalar, {"pads": [0, -1, 0]}, "'height' is -1; allowed: whole numbers from 0"),
        ("ConvScalar", scalar, {"activation": "tanh"}, "'activation' is 'tanh'; allowed: none, relu"),
        ("ConvScalar", scalar, {"element": "int8"}, "'element' is 'int8'"),
        ("ConvUnfold", unfold, {"pitch": 75}, "rows of 75 elements for 72 places; allowed: multiples of 8"),
        ("ConvShiftAdd", shift, {"kernel": [9999, 9, 999]}, "elements of products a batch element; allowed"),
        ("ConvProduct", product, {"pitch": 71}, "rows of 71 for 72 positions"),
        ("ConvProduct", product, {"matrices": 4}, "4 matrices are one y"),
        ("ConvProduct", product, {"block_rows": 48}, "'block_rows' is 48 for . warps; allowed: multiples of"),
        ("ConvProduct", product, {"raw": True, "activation": "relu"}, "sums without bias have activation"),
        ("ConvDirect", direct, {"own_outputs": 5}, "5 of a block's .* allowed: divisors up to 8"),
        ("ConvDirect", direct, {"tile_width": 600}, "a rectangle of .* x 600 positions; allowed"),
        ("ConvSlices", slices, {"slices": 36}, "'slices' is 36; allowed: whole numbers from 1 to 35"),
        ("ConvSlices", slices, {"slices": 1}, "1 slices with 'raw' True"),
        ("WinogradInput", winograd, {"pitch": 16}, "rows of 16 elements for 20 places; allowed: multiples of 8"),
        ("WinogradInput", winograd, {"tile": 3}, "allowed: tiles of 2 or 4"),
        ("WinogradInput", winograd, {"kernel": [1, 5, 5]}, "3x3 taps with strides"),
        ("ConvTwice", scalar, {}, "step 'ConvTwice'; allowed: ConvScalar"),
    ):
        with pytest.raises(InputError, match=message):
            algorithm_source(operator, {**kernel, **change})


def test_launches_are_checked() -> None:
    step = algorithm_steps("scalar_matrix", CASES["3x3"], "fp16")[0]
    report = ResourceReport(32, 0, 0, 0, 0, 0, 128)
    assert algorithm_launch(step.operator, step.kernel, 3, report).grid == 30
    with pytest.raises(InputError, match="batch is 0; allowed: 1 or more"):
        algorithm_launch(step.operator, step.kernel, 0, report)
    with pytest.raises(InputError, match="blocks of 64 threads, its configuration 128"):
        algorithm_launch(step.operator, step.kernel, 3, replace(report, threads=64))
    with pytest.raises(InputError, match="make 3,000,000,000 blocks"):
        algorithm_launch(step.operator, step.kernel, 300_000_000, report)

"""From the kernel part of a convolution's configuration to a source and its constants; everything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.kernels.conv_source import conv_variants, group_conv_source, sum_conv_source
from onnxopt.plan.tables.conv_types import ConvKernel
from onnxopt.target.variant import ConvVariant
from tests.kernels.conv_cases import WISHES, made_case

_MMA = (ConvVariant("mma", 32, 32, 64, 2, 3), ConvVariant("mma", 8, 16, 64, 2, 2))
_KERNEL = ConvKernel(
    element="fp16",
    variants=_MMA,
    layout="last",
    input_channels=20,
    output_channels=12,
    input_size=(1, 9, 11),
    output_size=(1, 5, 11),
    kernel=(1, 3, 3),
    strides=(1, 2, 1),
    dilations=(1, 1, 1),
    pads=(0, 1, 1),
    images=2,
    activation="relu",
    input_activation="silu",
    prologue=True,
    residual=True,
    extras=False,
    slots=0,
)
_SUM = {
    "element": "bf16",
    "layout": "first",
    "output_channels": 7,
    "output_size": [1, 5, 6],
    "activation": "hardswish",
    "residual": True,
    "slots": 9,
}


def test_constants_of_a_convolution() -> None:
    source = group_conv_source(_KERNEL.to_json(), resident=3)
    assert (source.file, source.entry) == ("conv/group_conv.cu", "group_conv")
    assert dict(source.defines) == {
        "ELEMENT": "fp16",
        "PATH_LANES": "0",
        "PATH_WGMMA": "0",
        "WARPS": "2",
        "RESIDENT": "3",
        "VARIANTS": "VARIANT(32,32,64,3)VARIANT(8,16,64,2)",
        "LAYOUT_LAST": "1",
        "INPUT_CHANNELS": "20",
        "OUTPUT_CHANNELS": "12",
        "INPUT_SIZE": "1,9,11",
        "OUTPUT_SIZE": "1,5,11",
        "KERNEL": "1,3,3",
        "STRIDES": "1,2,1",
        "DILATIONS": "1,1,1",
        "PADS": "0,1,1",
        "IMAGES": "2",
        "ACTIVATION": "relu",
        "INPUT_ACTIVATION": "silu",
        "PROLOGUE": "1",
        "RESIDUAL": "1",
        "EXTRAS": "0",
        "SPLIT": "0",
        "SLOTS": "0",
    }


def test_the_second_operator_of_split_outputs_activates_and_adds_the_residual() -> None:
    defines = dict(group_conv_source(replace(_KERNEL, slots=40).to_json(), 1).defines)
    assert [defines[name] for name in ("SPLIT", "SLOTS", "ACTIVATION", "RESIDUAL")] == ["1", "40", "none", "0"]
    assert defines["INPUT_ACTIVATION"] == "silu"


@pytest.mark.parametrize(
    ("path", "flags"), [("mma", ("0", "0")), ("wgmma", ("0", "1")), ("lanes", ("1", "0"))], ids=lambda value: str(value)
)
def test_the_path_is_named(path: Any, flags: tuple[str, str]) -> None:
    kernel = replace(_KERNEL, variants=(ConvVariant(path, 16, 16, 128, 4, 1),)).to_json()
    defines = dict(group_conv_source(kernel, 1).defines)
    assert (defines["PATH_LANES"], defines["PATH_WGMMA"]) == flags


def test_constants_of_a_sum() -> None:
    source = sum_conv_source(_SUM)
    assert (source.file, source.entry) == ("conv/sum_conv.cu", "sum_conv")
    assert dict(source.defines) == {
        "ELEMENT": "bf16",
        "LAYOUT_LAST": "0",
        "OUTPUT_CHANNELS": "7",
        "POSITIONS": "30",
        "ACTIVATION": "hardswish",
        "RESIDUAL": "1",
        "SLOTS": "9",
    }


@pytest.mark.parametrize("wish", WISHES)
def test_tables_of_every_kind_have_a_source(wish: str) -> None:
    tables = made_case(WISHES[wish], _MMA, "tf32").tables
    kernel = tables.kernel.to_json()
    assert group_conv_source(json.loads(json.dumps(kernel)), 1) == group_conv_source(kernel, 1)
    assert (tables.sum is not None) == kernel["split"]
    if tables.sum is not None:
        assert sum_conv_source(tables.sum.kernel).define("SLOTS") == str(kernel["slots"])


def test_shapes_come_back_as_they_were() -> None:
    assert conv_variants(_KERNEL.to_json()) == _MMA


def _with(**changes: Any) -> dict[str, Any]:
    return {**_KERNEL.to_json(), **changes}


def _shape(**changes: Any) -> dict[str, Any]:
    kernel = _KERNEL.to_json()
    return {**kernel, "variants": [{**kernel["variants"][0], **changes}]}


_LANES = {"path": "lanes", "output_granule": 1, "input_granule": 1, "stages": 1}


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (_with(element="int8"), "'element' is 'int8'; allowed: fp16, bf16, tf32, fp32"),
        (_with(layout="middle"), "'layout' is 'middle'; allowed: first, last"),
        (_with(activation="gelu"), "'activation' is 'gelu'; allowed: none, relu, hardswish, silu"),
        (_with(input_activation=["relu"]), "'input_activation' is ['relu']"),
        (_with(prologue=False), "'input_activation' is 'silu', but 'prologue' is false; allowed without it: none"),
        (_with(residual=1), "'residual' is 1; allowed: true or false"),
        (_with(extras=None), "'extras' is None"),
        (_with(slots=4), "'split' is false, but 'slots' is 4; allowed: both or neither"),
        (_with(split=True), "'split' is true, but 'slots' is 0"),
        (_with(split=True, slots=4, extras=True), "'split' and 'extras' are both true"),
        (_with(input_channels=0), "'input_channels' is 0; allowed: whole numbers from 1 to 2,147,483,647"),
        (_with(output_channels=12.0), "'output_channels' is 12.0"),
        (_with(images=0), "'images' is 0"),
        (_with(images=2**30), "'images' 1,073,741,824 times the positions 1 x 5 x 11"),
        (_with(split=True, slots=2**28), "'slots' 268,435,456 times the positions 1 x 5 x 11 are 14,763,950,080"),
        (_with(input_channels=2**28), "'input_channels' 268,435,456 times the positions 1 x 9 x 11"),
        (_with(input_size=[9, 11]), "'input_size' is [9, 11]; allowed: 3 numbers, one an axis"),
        (_with(kernel="133"), "'kernel' is '133'"),
        (_with(kernel=[1, 0, 3]), "'kernel[1]' is 0"),
        (_with(strides=[1, 2, -1]), "'strides[2]' is -1; allowed: whole numbers from 1"),
        (_with(dilations=[1, 1, True]), "'dilations[2]' is True"),
        (_with(pads=[0, 1, -1]), "'pads[2]' is -1; allowed: whole numbers from 0"),
        (_with(kernel=[2**11] * 3, output_size=[1, 1, 1]), "has 8,589,934,592 taps; allowed: up to 2,147,483,647"),
        (
            _with(kernel=[1, 14, 3], output_size=[1, 0, 11]),
            "along axis 1 the kernel reaches over 14 positions (14 taps, dilation 1), more than its padded input has "
            "(9 and 1 in front); 'output_size' is 0; allowed: 1 or more",
        ),
        (
            _with(dilations=[1, 2**31 - 1, 1]),
            "along axis 1 the last tap of the last position reads place 4,294,967,302",
        ),
        (_with(variants=[]), "'variants' are 0 shapes; allowed: 1 to 64"),
        (_with(variants="mma"), "'variants' are 'mma'"),
        (_with(variants=[3]), "shape 0: 3 is not an object with 'path'"),
        (_shape(path="simt"), "shape 0: 'path' is 'simt'; allowed: mma, wgmma, lanes"),
        (_shape(outputs=12), "'outputs' is 12; allowed for 'mma 12x32x64 w2 s3': multiples of 8"),
        (_shape(inputs=24), "'inputs' is 24"),
        (_shape(input_granule=8), "'input_granule' is 8; 'mma 32x32x64 w2 s3' has 16"),
        (
            _shape(pixels=48),
            "'pixels' is 48; allowed for 'mma 32x32x48 w2 s3': multiples of 32, which its 2 warps share",
        ),
        (_shape(**_LANES, pixels=96), "'pixels' is 96; allowed for 'lanes 32x32x96 w2 s1': multiples of 64"),
        (_shape(**{**_LANES, "stages": 2}), "'stages' is 2; allowed: whole numbers from 1 to 1"),
        (_shape(path="wgmma", warps=2), "'warps' is 2; allowed with wgmma: multiples of 4"),
        (_shape(path="wgmma", warps=4, outputs=264), "'outputs' is 264; allowed: whole numbers from 1 to 256"),
        ({**_shape(path="wgmma", warps=4), "element": "fp32"}, "the path 'wgmma' does not take fp32"),
        (_shape(warps=33), "'warps' is 33"),
    ],
)
def test_what_is_not_supported_is_refused_with_what_is(kernel: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        group_conv_source(kernel, resident=1)
    assert str(error.value).startswith("convolution kernel")
    assert message in str(error.value)


def test_shapes_of_one_kernel_share_path_and_warps() -> None:
    shapes = (_MMA[0], ConvVariant("lanes", 4, 4, 64, 2, 1))
    with pytest.raises(InputError, match="'mma 32x32x64 w2 s3' and 'lanes 4x4x64 w2 s1' cannot be one kernel"):
        conv_variants(replace(_KERNEL, variants=shapes).to_json())


@pytest.mark.parametrize("resident", [0, 33])
def test_resident_blocks_are_bounded(resident: int) -> None:
    with pytest.raises(InputError, match=f"{resident} resident blocks; allowed: 1 to 32"):
        group_conv_source(_KERNEL.to_json(), resident)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 0}, "'slots' is 0"),
        ({"output_size": [5, 6]}, "'output_size' is"),
        ({"output_channels": 2**31 - 1}, "'output_channels' 2,147,483,647 times"),
        ({"element": "int8"}, "'element' is"),
        ({"layout": None}, "'layout' is None"),
        ({"residual": 0}, "'residual' is 0"),
        ({"activation": "gelu"}, "'activation' is"),
    ],
)
def test_a_sum_is_checked_too(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        sum_conv_source({**_SUM, **change})
    assert f"sum kernel: {message}" in str(error.value)

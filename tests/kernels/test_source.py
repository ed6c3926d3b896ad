"""From the kernel part of a configuration to a source and its constants; everything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.kernels.source import KernelSource, attention_source, attention_variants, merge_source
from onnxopt.target.variant import AttentionVariant
from tests.kernels.small import attention_kernel

_MERGE = {"element": "bf16", "value_width": 64, "slots": 10, "y": [6400, 1]}


def test_constants_of_an_attention() -> None:
    source = attention_source(attention_kernel(), resident=3)
    assert (source.file, source.entry) == ("attention/sparse_attention.cu", "sparse_attention")
    assert dict(source.defines) == {
        "ELEMENT": "fp16",
        "PATH_WGMMA": "0",
        "WARPS": "4",
        "RESIDENT": "3",
        "VARIANTS": "VARIANT(64,64,2,0)VARIANT(32,64,2,1)",
        "HEADS": "3",
        "WIDTH": "32",
        "VALUE_WIDTH": "32",
        **{f"{name}_ELEMENTS": str(64 * 288) for name in "QKV"},
        **{f"{name}_STRIDE": "1" for name in "QKVY"},
        "Y_ELEMENTS": str(64 * 96),
        "OWN_VALUES": "0",
        "MASKS": "1",
        "BIASES": "0",
        "EXTRAS": "0",
        "SPLIT": "0",
        "WEIGHTS": "0",
        "SLOTS": "0",
        "COLUMNS": "0",
    }


def test_constants_of_a_merge() -> None:
    source = merge_source(_MERGE)
    assert (source.file, source.entry) == ("attention/merge_attention.cu", "merge_attention")
    expected = {"ELEMENT": "bf16", "VALUE_WIDTH": "64", "SLOTS": "10", "Y_ELEMENTS": "6400", "Y_STRIDE": "1"}
    assert dict(source.defines) == expected


def test_a_configuration_that_went_through_json_gives_the_same_source() -> None:
    kernel = attention_kernel(columns=7)
    assert attention_source(json.loads(json.dumps(kernel)), 1) == attention_source(kernel, 1)


def test_shapes_come_back_as_they_were() -> None:
    wgmma = (AttentionVariant("wgmma", 128, 96, 8, 2), AttentionVariant("wgmma", 16, 128, 8, 3, True))
    assert attention_variants(attention_kernel(variants=wgmma)) == wgmma


def _with(**changes: Any) -> dict[str, Any]:
    return {**attention_kernel(), **changes}


def _shape(**changes: Any) -> dict[str, Any]:
    kernel = attention_kernel()
    return {**kernel, "variants": [{**kernel["variants"][0], **changes}]}


_WGMMA = {"path": "wgmma", "row_granule": 64, "key_granule": 16}


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (_with(element="fp8"), "'element' is 'fp8'; allowed: fp16, bf16, tf32, fp32"),
        (_with(element='fp16 -D"'), "'element' is"),
        (_with(element=["fp16"]), "'element' is"),
        (_with(width=0), "'width' is 0; allowed: whole numbers from 1 to 256"),
        (_with(width=257), "'width' is 257"),
        (_with(value_width=512), "'value_width' is 512"),
        (_with(width=32.0), "'width' is 32.0"),
        (_with(width="32"), "'width' is '32'"),
        (_with(heads=True), "'heads' is True"),
        (_with(heads=None), "'heads' is None"),
        (_with(q=[64]), "'q' is [64]; allowed: two numbers"),
        (_with(q="64"), "'q' is '64'"),
        (_with(y=[2**31, 1]), "'elements' is 2147483648"),
        (_with(k=[64, 0]), "'stride' is 0"),
        (_with(masks=1), "'masks' is 1; allowed: true or false"),
        (_with(slots=5), "'split' is false, but 'slots' is 5; allowed: both or neither"),
        (_with(weights=True), "'weights' is true, but 'columns' is 0"),
        (_with(split=True, slots=5, weights=True, columns=4), "'split' and 'weights' are both true"),
        (_with(split=True, slots=5, extras=True), "'split' and 'extras' are both true"),
        (_with(variants=[]), "'variants' are 0 shapes; allowed: 1 to 64"),
        (_with(variants=None), "'variants' are None"),
        (_with(variants=["mma"]), "shape 0: 'mma' is not an object"),
        (_shape(path="simt"), "'path' is 'simt'; allowed: mma, wgmma"),
        (_shape(rows=40), "'rows' is 40; allowed for 'mma 40x64 w4 s2': multiples of 16"),
        (_shape(keys=24), "'keys' is 24"),
        (_shape(row_granule=8), "'row_granule' is 8; 'mma 64x64 w4 s2' has 16"),
        (_shape(rows=48), "'rows' is 48; allowed for 'mma 48x64 w4 s2': multiples of 64, which its 4 warps share"),
        (
            {**attention_kernel(), "variants": [{**attention_kernel()["variants"][1], "keys": 96}]},
            "'keys' is 96; allowed for 'mma 32x96 w4 s2 swapped': multiples of 64",
        ),
        (_shape(warps=33), "'warps' is 33; allowed: whole numbers from 1 to 32"),
        (_shape(stages=9), "'stages' is 9"),
        (_shape(**_WGMMA, warps=6), "'warps' is 6; allowed with wgmma: multiples of 4"),
        (_shape(**_WGMMA, warps=32), "1152 threads a block; allowed: up to 1024"),
        ({**_shape(**_WGMMA), "element": "tf32"}, "the path 'wgmma' does not take tf32; allowed with it: fp16, bf16"),
        ({**attention_kernel(), "element": "fp32"}, "shape 1: 'swapped' does not take fp32"),
    ],
)
def test_what_is_not_supported_is_refused_with_what_is(kernel: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        attention_source(kernel, resident=1)
    assert message in str(error.value)


def test_shapes_of_one_kernel_share_path_and_warps() -> None:
    shapes = (AttentionVariant("mma", 64, 64, 4, 2), AttentionVariant("mma", 128, 64, 8, 2))
    with pytest.raises(InputError, match="'mma 64x64 w4 s2' and 'mma 128x64 w8 s2' cannot be one kernel"):
        attention_source(attention_kernel(variants=shapes), 1)


@pytest.mark.parametrize("resident", [0, 33])
def test_resident_blocks_are_bounded(resident: int) -> None:
    with pytest.raises(InputError, match=f"{resident} resident blocks; allowed: 1 to 32"):
        attention_source(attention_kernel(), resident)


@pytest.mark.parametrize("change", [{"slots": 0}, {"y": None}, {"value_width": 300}, {"element": "int8"}])
def test_a_merge_is_checked_too(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="merge kernel"):
        merge_source({**_MERGE, **change})


@pytest.mark.parametrize(
    ("file", "entry", "define"),
    [
        ("../secret.cu", "k", ("A", "1")),
        ("/etc/passwd", "k", ("A", "1")),
        ("a.cu", "k()", ("A", "1")),
        ("a.cu", "k", ("A=1 -I/", "1")),
        ("a.cu", "k", ("A", '1"\n#include "/etc/passwd')),
        ("a.cu", "k", ("A", "")),
    ],
)
def test_only_plain_words_and_numbers_reach_the_compiler(file: str, entry: str, define: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="allowed are letters, digits"):
        KernelSource(file, entry, (define,))


def test_a_source_survives_json() -> None:
    source = attention_source(attention_kernel(), 2)
    assert KernelSource.from_json(json.loads(json.dumps(source.to_json()))) == source
    assert (source.define("HEADS"), source.define("ABSENT")) == ("3", None)

"""The kernels that compute the convolution layers of exported models, run on the CPU against float64."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.convolution_layers import Layer, Layers, scaled
from benchmarks.convolution_page import Selection, page
from benchmarks.emulated_convolutions import Runner, main, rows
from onnxopt.errors import InputError
from onnxopt.plan.algorithms.geometry import LayerGeometry, layer_geometry
from onnxopt.target.variant import Element
from samples import build

_FAMILIES = (
    ("shufflenet1_g3.legacy.op17", "grouped"),
    ("shufflenet2_1x.dynamo.op18", "depthwise"),
    ("condensenet_c10_g4_train.dynamo.op18", "pruned"),
    ("condensenet_c10_g4_conv.dynamo.op18", "dense"),
    ("cdnv2a_conv.dynamo.op18", "depthwise"),
)
_EVERY = (
    *(f"shufflenet1_g{groups}.dynamo.op18" for groups in (2, 4, 8)),
    *("shufflenet1_g3.legacy.op17", "shufflenet1_g3_megvii.dynamo.op18", "shufflenet1_g8_megvii.dynamo.op18"),
    "shufflenet2_1x.dynamo.op18",
    *(f"condensenet_c10_g4_{form}.dynamo.op18" for form in ("train", "conv")),
    *(f"condensenet74_g4_{form}.dynamo.op18" for form in ("train", "conv")),
    "condensenet74_g8_conv.dynamo.op18",
    *(f"cdnv2a_{form}.dynamo.op18" for form in ("train", "conv")),
    *(f"{name}.dynamo.op18" for name in ("resnext50_32x4d", "vgg16", "resnet101", "inception_v4")),
    *(f"{name}.dynamo.op18" for name in ("swin_tiny_224", "regionvit_tiny_224", "dyvit_s_07")),
    "regionvit_small_w14_peg_448.dynamo.op18",
)
_FOREVER = 1e18


@pytest.mark.corpus
@pytest.mark.parametrize(("tag", "pattern"), _FAMILIES)
def test_a_layer_of_each_family_agrees_with_float64(
    tag: str, pattern: str, corpus_model: Callable[[str], Path], programs: Path
) -> None:
    layers, runner = Layers("sm_80", "fp16", programs), Runner(programs, _FOREVER)
    found = (layer for layer in layers.of_model(corpus_model(tag)) if isinstance(layer, Layer))
    layer = next(layer for layer in found if layer.pattern == pattern)
    trials = list(layers.trials(layer))
    # Of a dense layer the operator and one algorithm.
    for trial in trials[:1] + [trial for trial in trials if trial.name == "im2col"]:
        outcome = runner.outcome(trial, "fp16")
        assert outcome is not None
        assert outcome.passed, outcome.problem


@pytest.mark.corpus_all
@pytest.mark.parametrize(
    ("target", "element"),
    [("sm_90", "fp16"), ("sm_80", "fp16"), ("sm_80", "bf16"), ("sm_80", "tf32"), ("sm_75", "fp32")],
)
@pytest.mark.parametrize("tag", _EVERY)
def test_every_layer_agrees_with_float64(
    tag: str, target: str, element: Element, corpus_model: Callable[[str], Path], programs: Path
) -> None:
    (row,) = rows([corpus_model(tag)], [Selection(target, element)], Runner(programs, _FOREVER))
    assert row.outcomes
    assert [outcome.problem for outcome in row.outcomes.values() if not outcome.passed] == []
    assert row.refused == []


def test_a_run_goes_on_where_the_one_before_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build("shufflenet_v1").to_bytes())
    selection, folder = [Selection("sm_80", "fp16", 3)], tmp_path / "cache"
    (first,) = rows([path], selection, Runner(folder, _FOREVER))
    assert first.layers == 3
    assert len(first.outcomes) == 1 and not first.left_out
    # No time is left, and yet everything is known.
    late = time.monotonic() - 1
    (again,) = rows([path], selection, Runner(folder, late))
    assert again == first
    (without,) = rows([path], selection, Runner(None, late))
    assert len(without.left_out) == 1 and not without.outcomes
    assert "; 1 were left out for lack of time." in page([without])
    agreed = "1 of 1 runs agree; none was left out."
    assert agreed in page([first])
    doc = tmp_path / "page.md"
    words = [str(path), "--kernels", "sm_80:fp16:3", "--minutes", "0", "--cache", str(folder), "--write-doc", str(doc)]
    assert main(words) == 0
    assert agreed in doc.read_text()
    assert "1 of 1 runs agree, 0 left out" in capsys.readouterr().out


_GEOMETRIES = {
    "vgg": layer_geometry((224, 224), (64, 3, 3, 3), pads=(1,) * 4),
    "late": layer_geometry((7, 7), (512, 2048, 1, 1)),
    "stem": layer_geometry((224, 224), (64, 3, 7, 7), strides=(2, 2), pads=(3,) * 4),
    "no padding, stride 2": layer_geometry((149, 149), (32, 35, 3, 3), strides=(2, 2)),
    "wide": layer_geometry((17, 17), (224, 192, 1, 7), pads=(0, 3, 0, 3)),
    "padding that is never read": layer_geometry((57, 58), (24, 17, 3, 3), strides=(2, 4), pads=(1, 1, 4, 3)),
    "patches": layer_geometry((224, 224), (96, 3, 4, 4), strides=(4, 4)),
    "one axis": layer_geometry((400,), (65, 63, 9), dilations=(3,), pads=(12, 11)),
}


def _borders(layer: LayerGeometry) -> list[tuple[int, int]]:
    """For each axis: positions in front of x that are read, and those between the last that is read and x's end."""
    return [
        (pad, (count - 1) * stride - pad + dilation * (taps - 1) + 1 - size)
        for size, count, taps, stride, dilation, pad in zip(
            *(layer.input_size, layer.output_size, layer.kernel, layer.strides, layer.dilations, layer.pads),
            strict=True,
        )
    ]


@pytest.mark.parametrize("name", _GEOMETRIES)
def test_a_scaled_layer_has_the_borders_tails_and_alignments_of_its_own(name: str) -> None:
    full, small = _GEOMETRIES[name], scaled(_GEOMETRIES[name])
    assert (small.kernel, small.strides, small.dilations) == (full.kernel, full.strides, full.dilations)
    assert _borders(small) == _borders(full)
    for few, many, rest in (
        *((a, b, 8) for a, b in zip(small.input_size, full.input_size, strict=True)),
        (small.input_channels, full.input_channels, 16),
        (small.output_channels, full.output_channels, 16),
    ):
        assert few <= many and (many - few) % rest == 0
    assert small.input_positions * small.input_channels * small.output_channels * small.taps < 3e7
    assert scaled(small) == small


def test_selections_are_read() -> None:
    assert Selection.read("sm_80:bf16:10") == Selection("sm_80", "bf16", 10)
    assert Selection.read("sm_90:fp16") == Selection("sm_90", "fp16")
    for text in ("sm_80", "sm_80:int8", "sm_80:fp16:0", "sm_80:fp16:x", "sm_80:fp16:1:1"):
        with pytest.raises(InputError, match="allowed: TARGET:TYPE or TARGET:TYPE:EACH"):
            Selection.read(text)

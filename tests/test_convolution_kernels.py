"""Convolutions as operators of our own: what is decided and why, what is fused by whom, what is tried next."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt import api, convolution_kernels, site_kernels
from onnxopt.convolution_kernels import conv_choices
from onnxopt.decide import ConvSource, Judge, SiteReport
from onnxopt.discover.conv_fusion import ConvFusions
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner, folded_images
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import CompileError
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import KernelSource
from onnxopt.lower.plugin_blocks import plugin_blocks
from onnxopt.lower.plugin_convolutions import plugin_convolutions
from onnxopt.plan.tables import NoTables
from onnxopt.plan.tables.fused import adds_up
from onnxopt.results import OptimizeResult
from onnxopt.site_reports import Form, Planning
from onnxopt.sites import carry_out, discover, judge_sites, whole_judge
from onnxopt.target import load_target
from onnxopt.target.variant import Element
from onnxopt.verification import verify_rewritten
from onnxopt.verification.widen import widen
from samples import build
from samples.builder import GraphBuilder
from samples.convolution import batch_norm, conv, shuffle


def judged(model: onnx.ModelProto, forms: Sequence[Form] = ("plugin",)) -> dict[Form, list[SiteReport]]:
    """The sites of a model for a GPU; no kernels are compiled."""
    target = load_target("sm_90")
    return judge_sites(model, discover(model), target, forms=forms, records=None, measure=False)


def carried_out(model: onnx.ModelProto, reports: list[SiteReport]) -> onnx.ModelProto:
    judge = whole_judge(model, discover(model), load_target("sm_90"), records=None, measure=False)
    return carry_out(model, reports, judge).model


def planning_for(model: onnx.ModelProto, dtype: Element = "fp16") -> Planning:
    graph, target = discover(model).graph, load_target("sm_90")
    judge = Judge(model, graph, target, None, False, lambda _: None)
    kernels = KernelPlanner.at(target.need_gpu_profile(), "time", None)
    return Planning(judge, "time", kernels, dtype=dtype, fusions=ConvFusions(graph))


@pytest.mark.parametrize("batch", [1, None])
def test_a_convolution_becomes_an_operator_where_that_is_predicted_to_win(batch: int | None) -> None:
    model = build("condensenet_converted", batch=batch).model
    reports = judged(model)["plugin"]
    first, second, *_ = reports
    assert first.decision == "rewrite" and first.reason.startswith("one kernel in fp32 is predicted 1.9")
    assert isinstance(first.plugin, ConvSource) and first.plugin.resident == first.planned["resident_blocks"]
    kinds = ["gather", "batchnormalization", "relu", "reshape", "transpose", "reshape_1", "batchnormalization_1"]
    assert first.planned["fused"] == [*kinds, "relu_1"] and first.planned["images"] == 1
    assert second.decision == "keep" and second.reason.endswith("times as fast, under 1.1")
    fused = [name for report in reports if report.rewrite for name in report.planned["fused"]]
    assert len(fused) == len(set(fused)) > len(first.planned["fused"])
    result = carried_out(model, reports)
    assert [plugin.site for plugin in plugin_convolutions(result)] == [r.id for r in reports if r.rewrite]
    assert verify_rewritten(model, result, draws=1).passed


def test_each_form_is_decided_for_itself() -> None:
    model = build("condensenet_converted").model
    both = judged(model, ("plugin", "portable"))
    forms: tuple[Form, ...] = ("plugin", "portable")
    for form in forms:
        alone = judged(model, (form,))[form]
        assert [r.verdict() for r in both[form]] == [r.verdict() for r in alone]
    assert not any(r.plugin for r in both["portable"])
    assert all("portable" in r.planned or r.decision == "keep" for r in both["portable"])


def test_what_is_no_candidate_is_kept_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {r.reason for r in judged(build("dense_cnn").model)["plugin"]} == {"dense: every output uses every input"}
    double = widen(build("shufflenet_v1").model, onnx.TensorProto.DOUBLE)
    assert judged(double)["plugin"][0].reason == (
        "it cannot be planned for a kernel: its tensors are double; kernels compute in fp16, bf16, tf32, fp32: choose "
        "one by --kernel-dtype"
    )
    g = GraphBuilder("large", seed=0)
    made = g.op("Conv", g.input("x", 4, 3, 3), g.weight(4, 2, 1, 1, scale=1e6), group=2)
    g.output("y", made, 4, 3, 3)
    large = discover(g.model()).convolutions[0]
    with pytest.raises(InputError, match="its weights are beyond the largest number of fp16; choose bf16"):
        conv_choices(planning_for(g.model()), large)
    assert conv_choices(planning_for(g.model(), "bf16"), large)
    g = GraphBuilder("bias", seed=0)
    x = g.input("x", 4, 3, 3)
    bias = g.op("Squeeze", g.op("GlobalAveragePool", x), g.constant(np.array([0, 2, 3])))
    g.output("y", g.op("Conv", x, g.weight(4, 2, 1, 1), bias, group=2), 4, 3, 3)
    assert "its bias is no constant" in judged(g.model())["plugin"][0].reason
    g = GraphBuilder("zeros", seed=0)
    made = g.op("Conv", g.input("x", 4, 3, 3), g.constant(np.zeros((4, 2, 1, 1))), group=2)
    g.output("y", made, 4, 3, 3)
    assert judged(g.model())["plugin"][0].reason == "it cannot be planned for a kernel: all its weights are zero"

    def no_tables(*_: object, **__: object) -> None:
        raise NoTables("a batch element of its input has more elements than an offset can tell")

    monkeypatch.setattr(convolution_kernels, "conv_tables", no_tables)
    report = judged(build("condensenet_converted").model)["plugin"][0]
    assert report.decision == "keep" and report.plugin is None
    assert report.reason.startswith("no table can hold what its kernel needs: a batch element of its input")


def late_layer(batch: int | None) -> onnx.ModelProto:
    """Groups over 7 x 7 positions with a shuffle behind them."""
    g = GraphBuilder("late", seed=1, batch=batch)
    made = g.op("Relu", batch_norm(g, conv(g, g.input("x", 48, 7, 7), 48, 48, (1, 1), groups=3)[0], 48))
    g.output("y", shuffle(g, made, 48, 3, (7, 7), "reshape"), 48, 7, 7)
    return g.model()


def test_few_positions_of_several_images_fill_a_tile() -> None:
    assert [folded_images(batch, 49) for batch in (1, 2, 8, 16)] == [1, 1, 8, 16]
    assert [folded_images(16, positions) for positions in (64, 196, 3136)] == [1, 4, 1]
    for batch, images in ((None, 1), (1, 1), (8, 8)):
        model = late_layer(batch)
        (report,) = judged(model)["plugin"]
        assert report.planned["images"] == images
        result = carried_out(model, [report])
        (plugin,) = plugin_convolutions(result)
        assert plugin.convolution.kernel["images"] == images
        assert verify_rewritten(model, result, draws=1).passed
    # Every image of a symbolic batch has its own blocks.
    symbolic, single = (judged(late_layer(batch))["plugin"][0].planned for batch in (None, 1))
    assert symbolic["blocks"] == single["blocks"] and symbolic["predicted_us"] >= single["predicted_us"]


def test_outputs_that_are_added_up_are_so_before_or_by_a_second_kernel() -> None:
    model = build("condensenet_v2").model
    site = discover(model).convolutions[1]
    choices = conv_choices(planning_for(model), site, 99)
    summed, separate = ([c for c in choices if adds_up(c.work) is kind] for kind in (False, True))
    assert summed and separate
    assert all(c.microseconds > c.schedule.forecast.predicted_us for c in separate)
    assert all(c.microseconds == c.schedule.forecast.predicted_us and c.links is not None for c in summed)
    assert [c.microseconds for c in choices] == sorted(c.microseconds for c in choices)
    # The weights in advance save a launch.
    assert not adds_up(choices[0].work)


class _Compiler:
    """In place of the compiler: refuses the first kernels that it is asked for; all it makes are small."""

    def __init__(self, refused: int) -> None:
        self.left = refused
        self.asked: list[KernelSource] = []

    def __call__(self, requests: Sequence[tuple[KernelSource, str]], *_: object, **__: object) -> list[CompiledKernel]:
        if self.left:
            self.left -= 1
            source, architecture = requests[0]
            self.asked.append(source)
            raise CompileError(source, architecture, ["local memory is used: 8 bytes of stack"])
        return [
            CompiledKernel(source, name, b"cubin", "ptx", ResourceReport(32, 0, 1024, 0, 0, 0, 32), "nvrtc 13.0.0")
            for source, name in requests
        ]


def optimized(folder: Path, name: str) -> OptimizeResult:
    path = folder / "model.onnx"
    path.write_bytes(build("condensenet_converted").to_bytes())
    return api.optimize(path, folder / name, target="sm_90", form="plugin", cache=folder / "cache")


def test_a_kernel_that_cannot_be_used_gives_way_to_the_next_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = _Compiler(refused=1)
    monkeypatch.setattr(site_kernels, "compile_kernels", compiler)
    # What it makes are no kernels that an engine could hold.
    monkeypatch.setattr(api, "write_for_tensorrt", lambda *_: ())
    result = optimized(tmp_path, "next")
    assert result.verification is not None and result.verification.passed
    assert {source.entry for source in compiler.asked} == {"group_conv"}
    changed = [r for r in result.sites if "by its next best schedule; of the best it cannot be compiled" in r.reason]
    assert changed and all(r.decision == "rewrite" for r in changed)
    plan = json.loads((result.package / "plan.json").read_text())["sites"][0]
    kernel = plan["compiled_kernel"]
    assert (kernel["entry"], kernel["resident"]) == ("group_conv", plan["resident_blocks"])
    # The convolution's own kernel is beside it, as in the model.
    assert all(isinstance(size, int) for size in plan["kernel"])


def test_what_a_kept_site_would_have_fused_stays_in_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_kernels, "compile_kernels", _Compiler(refused=99))
    result = optimized(tmp_path, "kept")
    assert result.verification is not None and result.verification.passed
    assert not result.rewritten
    assert all("its kernel cannot be used" in r.reason for r in result.sites if "predicted" not in r.reason)
    written = onnx.load(result.package / "model.onnx")
    original = onnx.load(tmp_path / "model.onnx")
    assert [n.name for n in written.graph.node] == [n.name for n in original.graph.node]


# How many convolutions have an operator of their own, and how many operators compute two convolutions that follow each
# other. The three of the ResNeXt, and one of CondenseNetV2's, pay because an engine pads narrow groups to the matrix
# unit's tile. Alone, 36 and 42 of the two CondenseNets would pay; blocks hold 14 and 34 of them, and as many that
# would not.
@pytest.mark.parametrize(
    ("tag", "dtype", "alone", "in_blocks"),
    [
        pytest.param("shufflenet1_g3.legacy.op17", None, 16, 0, marks=pytest.mark.corpus),
        pytest.param("shufflenet2_1x.dynamo.op18", None, 0, 0, marks=pytest.mark.corpus_all),
        pytest.param("condensenet74_g4_conv.dynamo.op18", "fp16", 22, 14, marks=pytest.mark.corpus_all),
        pytest.param("cdnv2a_conv.dynamo.op18", None, 41, 0, marks=pytest.mark.corpus_all),
        pytest.param("resnext50_32x4d.dynamo.op18", None, 3, 0, marks=pytest.mark.corpus_all),
        pytest.param("condensenet_c10_g4_conv.dynamo.op18.dyn", "fp16", 8, 34, marks=pytest.mark.corpus_all),
    ],
)
def test_exported_models_are_written_in_the_plugin_form(
    tag: str, dtype: Element | None, alone: int, in_blocks: int, corpus_model: Callable[[str], Path], tmp_path: Path
) -> None:
    result = api.optimize(
        corpus_model(tag), tmp_path / "out", target="sm_90", form="plugin", kernel_dtype=dtype, cache=tmp_path
    )
    assert result.verification is not None and result.verification.passed
    written = onnx.load(result.package / "model.onnx")
    blocks = plugin_blocks(written)
    assert (len(plugin_convolutions(written)), len(blocks)) == (alone, in_blocks)
    # A block's second convolution is rewritten by the first one's report, and nothing else is left of it.
    assert len(result.rewritten) == alone + 2 * in_blocks


@pytest.mark.parametrize(
    "tag",
    [
        pytest.param("shufflenet2_1x.dynamo.op18", marks=pytest.mark.corpus),
        pytest.param("shufflenet1_g3_megvii.dynamo.op18.dyn", marks=pytest.mark.corpus_all),
        pytest.param("cdnv2a_conv.dynamo.op18", marks=pytest.mark.corpus_all),
        pytest.param("resnext50_32x4d.dynamo.op18", marks=pytest.mark.corpus_all),
    ],
)
def test_every_site_of_exported_models_computes_the_same_whether_or_not_it_pays(
    tag: str, corpus_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_kernels, "PREDICTED_MARGIN", 0.0)
    model = onnx.load(corpus_model(tag))
    reports = judged(model)["plugin"]
    assert all((r.decision == "rewrite") == (r.found["pattern"] != "dense") for r in reports)
    assert verify_rewritten(model, carried_out(model, reports), draws=1).passed

"""Blocks of convolutions in the plugin form: found, decided, written, read back, proved, and given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxopt import api, site_kernels
from onnxopt.decide import BlockSource, SiteReport
from onnxopt.errors import InputError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import CompileError
from onnxopt.kernels.source import KernelSource
from onnxopt.lower.plugin_blocks import plugin_blocks
from onnxopt.lower.rewrite import is_plugin_node
from onnxopt.plan.block.chains import chains, fused_links
from onnxopt.sites import carry_out, discover, judge_sites, whole_judge
from onnxopt.target import load_target
from onnxopt.target.variant import Element
from onnxopt.validate import PlanError
from onnxopt.validate.reference_block import conv_block
from onnxopt.verification import verify_rewritten
from onnxopt.verification.package_kernels import verify_kernels
from onnxopt.verification.sessions import opened
from onnxopt.written import prove_written
from samples.builder import GraphBuilder
from samples.convolution import batch_norm, conv, shuffle


def network(batch: int | None = 1, shared: bool = False) -> onnx.ModelProto:
    """A residual unit and one of stride 2; with ``shared`` something else reads what lies within the first."""
    g = GraphBuilder("units", seed=5, batch=batch)
    x = g.input("x", 24, 8, 8)
    first = g.op("Relu", batch_norm(g, conv(g, x, 12, 24, (1, 1), groups=2)[0], 12))
    middle = shuffle(g, first, 12, 2, (8, 8), "reshape")
    between = batch_norm(g, conv(g, middle, 12, 12, (3, 3), groups=12)[0], 12)
    last = batch_norm(g, conv(g, between, 24, 12, (1, 1), groups=2)[0], 24)
    unit = g.op("Relu", g.op("Add", x, last))
    second = g.op("Relu", conv(g, unit, 16, 24, (1, 1), groups=4)[0])
    second = shuffle(g, second, 16, 4, (8, 8), "gather")
    g.output("y", g.op("Conv", second, g.weight(8, 4, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1]), 8, 4, 4)
    if shared:
        g.output("z", g.op("GlobalAveragePool", between), 12, 1, 1)
    return g.model()


def judged(model: onnx.ModelProto, dtype: Element | None = "fp16") -> list[SiteReport]:
    """The sites of a model for a GPU; no kernels are compiled."""
    found = discover(model)
    own = judge_sites(model, found, load_target("sm_90"), forms=("plugin",), records=None, measure=False, dtype=dtype)
    return own["plugin"]


def written(model: onnx.ModelProto, reports: list[SiteReport]) -> onnx.ModelProto:
    judge = whole_judge(model, discover(model), load_target("sm_90"), records=None, measure=False)
    return carry_out(model, reports, judge).model


@pytest.mark.parametrize(("batch", "dtype"), [(1, "fp16"), (None, "bf16")])
def test_units_become_blocks_and_compute_the_same(batch: int | None, dtype: Element) -> None:
    model = network(batch)
    reports = judged(model, dtype)
    assert [r.planned.get("block") for r in reports if r.rewrite] == [
        ["conv-0", "conv-1", "conv-2"],
        ["conv-3", "conv-4"],
    ]
    assert all(r.reason.startswith("computed by the kernel of conv-") for r in reports if not r.rewrite)
    first = reports[0]
    assert first.reason.startswith(f"one kernel in {dtype} for 3 convolutions is predicted")
    assert first.planned["predicted_us"] < first.planned["singles_us"]
    result = written(model, reports)
    onnx.checker.check_model(result, full_check=True)
    nodes = [node for node in result.graph.node if is_plugin_node(node)]
    assert [node.name for node in nodes] == ["onnxopt/conv-0/block", "onnxopt/conv-3/block"]
    report = verify_rewritten(model, result, draws=1)
    assert report.passed, report.explain()


def test_the_bodies_agree_with_the_reference_of_the_tables() -> None:
    model = network()
    result = written(model, judged(model))
    blocks = plugin_blocks(result)
    names = [name for block in blocks for name in (*block.block.operands.values(), *block.block.outputs)]
    given = onnx.ModelProto()
    given.CopyFrom(result)
    known = {value.name for value in given.graph.output}
    kinds = {value.name: value for value in given.graph.value_info}
    for name in dict.fromkeys(names):
        if name not in known:
            given.graph.output.append(kinds.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 24, 8, 8)).astype(np.float32)}
    with opened(given, threads=1) as runner:
        values = runner.run(feeds, list(dict.fromkeys(names))) | feeds
    for block in blocks:
        node = block.block
        read = {operand: np.asarray(values[tensor]) for operand, tensor in node.operands.items()}
        wanted = conv_block(node.kernel, node.tables, read["x"], read.get("residual"))
        found = values[node.outputs[0]].reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= 5e-3 * np.abs(wanted).max()


def test_what_something_else_reads_ends_a_chain() -> None:
    behind = [(2, 3, 4), (2, 3), (3, 4)]
    for shared, expected in (
        (False, [(0, 1, 2), (0, 1), (1, 2, 3), (1, 2), *behind]),
        (True, [(0, 1), *behind]),
    ):
        found = discover(network(shared=shared))
        links = fused_links(found.graph, found.convolutions)
        numbers = [tuple(link.number for link in chain) for chain in chains(found.graph, links)]
        assert numbers == expected


def test_float32_has_no_blocks() -> None:
    assert not any("block" in report.planned for report in judged(network(), None))


def test_written_blocks_are_proved(tmp_path: Path) -> None:
    model = network()
    reports = judged(model)
    path = tmp_path / "model.onnx"
    onnx.save(written(model, reports), path)
    assert prove_written(path, reports) == 2
    source = reports[0].plugin
    assert isinstance(source, BlockSource)
    stages = source.work.stages
    heavier = replace(source.work, stages=(replace(stages[0], weights=stages[0].weights * 2), *stages[1:]))
    with pytest.raises(PlanError, match="conv-0: .*other inputs or weights"):
        prove_written(path, [replace(reports[0], plugin=replace(source, work=heavier))])
    with pytest.raises(PlanError, match="conv-3: the file has another kernel's configuration"):
        prove_written(path, [replace(reports[3], plugin=source)])
    with pytest.raises(PlanError, match="the operator of conv-9 is not in the file"):
        prove_written(path, [replace(reports[0], id="conv-9")])


def test_a_changed_table_is_refused() -> None:
    result = written(network(), judged(network()))
    node = next(n for n in result.graph.node if is_plugin_node(n))
    function = next(f for f in result.functions if f.name == node.op_type)
    table = node.input[list(function.input).index("parts")]
    tensor = next(t for t in result.graph.initializer if t.name == table)
    values = numpy_helper.to_array(tensor).copy()
    values[0, 2] += 16
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(InputError, match="its tables or its configuration are not those that it is named after"):
        plugin_blocks(result)


def _without_blocks(
    compile_all: Callable[..., list[CompiledKernel]],
) -> Callable[..., list[CompiledKernel]]:
    """A compiler that has no kernel for blocks."""

    def compiled(requests: Sequence[tuple[KernelSource, str]], *rest: Any, **more: Any) -> list[CompiledKernel]:
        for source, architecture in requests:
            if source.entry == "conv_block":
                raise CompileError(source, architecture, ["no registers are left"])
        return compile_all(requests, *rest, **more)

    return compiled


def test_a_block_whose_kernel_cannot_be_compiled_stays_single(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(site_kernels, "compile_kernels", _without_blocks(site_kernels.compile_kernels))
    onnx.save(network(), tmp_path / "model.onnx")
    result = api.optimize(
        tmp_path / "model.onnx",
        tmp_path / "package",
        target="sm_90",
        form="plugin",
        kernel_dtype="fp16",
        cache=tmp_path / "cache",
    )
    assert not any("block" in site.planned for site in result.inspection.sites)


@pytest.mark.slow
def test_a_package_holds_the_kernels_of_blocks_and_runs_them(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    api.optimize(
        tmp_path / "model.onnx",
        tmp_path / "package",
        target="sm_90",
        form="plugin",
        kernel_dtype="fp16",
        cache=tmp_path / "cache",
    )
    reports = verify_kernels(tmp_path / "package", cache=tmp_path / "programs")
    own = [report for report in reports if report.tactic is None]
    assert [report.operator.partition("_")[0] for report in own] == ["ConvBlock", "ConvBlock"]
    assert all(report.passed for report in reports)


@pytest.mark.corpus_all
def test_condensenet_has_blocks_and_is_verified_as_a_whole(corpus_model: Callable[[str], Path], tmp_path: Path) -> None:
    result = api.optimize(
        corpus_model("condensenet74_g4_conv.legacy.op17"),
        tmp_path / "package",
        target="sm_90",
        form="plugin",
        kernel_dtype="fp16",
        cache=tmp_path / "cache",
    )
    blocks = [site for site in result.inspection.sites if site.kernels and "block" in site.planned]
    assert len(blocks) >= 10
    for site in blocks:
        assert site.planned["predicted_us"] < min(site.planned["singles_us"], site.planned["engine_us"])


@pytest.mark.corpus_all
def test_shufflenet_has_a_block_for_every_unit(corpus_model: Callable[[str], Path]) -> None:
    """Its random weights make all outputs share their error, so that one input is judged by what rounding takes."""
    model = onnx.load(corpus_model("shufflenet1_g3.legacy.op17"))
    reports = judged(model)
    assert sum(report.rewrite is not None for report in reports) == 16
    assert all("block" in report.planned for report in reports if report.rewrite)
    report = verify_rewritten(model, written(model, reports), draws=1)
    assert report.notes[0].startswith("with the rewritten sites in float32 the models agree by the rule of fp32")
    assert report.worst is not None and report.worst.rms_error < 1e-4

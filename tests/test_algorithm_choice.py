"""The choice of algorithms through the whole of `inspect` and `optimize`: options, plan, report, kernels, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxopt import api, site_kernels
from onnxopt.algorithm_choice import (
    GROUP_CONV,
    AlgorithmPlan,
    AlgorithmSettings,
    algorithm_settings,
    plan_algorithms,
)
from onnxopt.decide import Judge, SiteReport
from onnxopt.deploy.manifest import check_manifest
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import CompileError
from onnxopt.kernels.source import KernelSource
from onnxopt.lower.algorithm_nodes import plugin_algorithms
from onnxopt.lower.plugin_convolutions import plugin_convolutions
from onnxopt.measure.paths import EMULATED
from onnxopt.model.read import read_model
from onnxopt.plan.algorithms.choice import choose_algorithms
from onnxopt.plan.algorithms.problem import KEEP
from onnxopt.plan.algorithms.steps import ALGORITHMS
from onnxopt.report.algorithm_page import algorithm_section
from onnxopt.report.algorithms import algorithm_document, summary
from onnxopt.report.package_report import write_report
from onnxopt.results import OptimizeResult
from onnxopt.site_reports import Planning
from onnxopt.sites import discover
from onnxopt.target import load_target
from onnxopt.target.layer_records import Layout
from onnxopt.target.variant import Element
from onnxopt.validate.algorithm_choice import best_by_elimination, best_by_enumeration, validate_choice, windows
from onnxopt.verification.step_kernels import check_step
from samples.builder import GraphBuilder
from samples.convolution import conv
from tests.lower.algorithm_models import measured_to_win, two_layers

CLASSIC = {"scalar_matrix", "kn2row", "im2col", "direct", "depthwise"}


def plan_of(
    model: onnx.ModelProto,
    element: Element | None = None,
    settings: AlgorithmSettings | None = None,
    rewritten: Sequence[int] = (),
    folder: Path | None = None,
) -> AlgorithmPlan:
    """The choice for a model; the sites of some numbers count as rewritten in 3 us."""
    found, target = discover(model), load_target("sm_90")
    judge = Judge(model, found.graph, target, None, False, lambda _: None)
    kernels = KernelPlanner.at(target.need_gpu_profile(), "time", None)
    planning = Planning(judge, "time", kernels=kernels, dtype=element)
    sites = []
    for number, site in enumerate(found.convolutions):
        report = SiteReport(f"conv-{number}", "conv", {}, "keep", "", planned={"predicted_us": 3.0})
        rewrite = object() if number in rewritten else None
        sites.append((site, replace(report, rewrite=rewrite)))  # type: ignore[arg-type]
    return plan_algorithms(planning, sites, settings or AlgorithmSettings(), folder)


def mixed_model() -> onnx.ModelProto:
    """A dense, a grouped, a depthwise and again the dense layer."""
    g = GraphBuilder("mixed", seed=0)
    x = g.input("x", 16, 9, 9)
    x = conv(g, x, 16, 16, (3, 3))[0]
    x = conv(g, x, 16, 16, (1, 1), groups=4)[0]
    x = conv(g, x, 16, 16, (3, 3), groups=16)[0]
    g.output("y", conv(g, x, 16, 16, (3, 3))[0], 16, 9, 9)
    return g.model()


def test_every_layer_has_the_options_that_are_open_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[str] = []
    original = KernelPlanner.convolution

    def counted(self: KernelPlanner, site: Any, *rest: Any, **more: Any) -> Any:
        planned.append(site.output)
        return original(self, site, *rest, **more)

    monkeypatch.setattr(KernelPlanner, "convolution", counted)
    plan = plan_of(mixed_model(), "fp16", rewritten=[1])
    options = [{option.algorithm for option in layer.options} for layer in plan.network.layers]
    assert options == [CLASSIC | {KEEP, "implicit_gemm"}, {GROUP_CONV}, {KEEP}, CLASSIC | {KEEP, "implicit_gemm"}]
    assert plan.network.layers[1].options[0].microseconds == 3.0
    # Equal layers are planned once.
    assert len(planned) == 1 and plan.network.layers[0].options == plan.network.layers[3].options
    with_winograd = plan_of(mixed_model(), "fp16", AlgorithmSettings(winograd=True))
    assert {"winograd_2x2", "winograd_4x4"} < {o.algorithm for o in with_winograd.network.layers[0].options}


def test_totals_are_those_of_restricted_choices() -> None:
    plan = plan_of(two_layers(), "fp32", AlgorithmSettings(winograd=True))
    assert best_by_enumeration(plan.network) == pytest.approx(plan.choice.microseconds)
    assert plan.choice.microseconds <= min(plan.kept_us, plan.best_single[1])
    assert set(plan.single) == {*ALGORITHMS, "implicit_gemm"}
    none = plan_of(two_layers(), "fp32", AlgorithmSettings(budget=0))
    assert max(o.workspace_bytes + o.constant_bytes for o in none.choice.options(none.network).values()) == 0
    document = algorithm_document(none)
    assert (document["budget_bytes"], document["workspace_bytes"]) == (0, 0)
    assert len(document["layers"]) == 2 and document["kept_us"] == round(none.kept_us, 3)
    assert any("every dense layer kept" in line for line in summary(none))


def test_a_choice_among_some_algorithms_keeps_what_they_do_not_compute() -> None:
    plan = plan_of(mixed_model(), "fp16", AlgorithmSettings(among=("im2col", "direct")))
    chosen = [plan.choice.options(plan.network)[layer.id] for layer in plan.network.layers]
    fastest = min(
        (o for o in plan.network.layers[0].options if o.algorithm in ("im2col", "direct")), key=lambda o: o.microseconds
    )
    assert [option.algorithm for option in chosen] == [fastest.algorithm, KEEP, KEEP, fastest.algorithm]
    # The network still has all options, beside which the forced ones are shown.
    assert KEEP in {option.algorithm for option in plan.network.layers[0].options}
    assert plan.choice.microseconds > plan.kept_us


def test_a_model_of_another_type_is_kept() -> None:
    from onnxopt.verification.widen import widen

    plan = plan_of(widen(two_layers(), onnx.TensorProto.DOUBLE))
    assert {o.algorithm for layer in plan.network.layers for o in layer.options} == {KEEP}
    assert {o.algorithm for layer in plan_of(two_layers()).network.layers for o in layer.options} > CLASSIC


def test_times_are_said_for_the_batch_that_they_are_of() -> None:
    model = one_layer()
    assert "for a batch of 1:" in summary(plan_of(model))[0]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    plan = plan_of(model)
    assert plan.batch == 8
    assert "for a batch of 8:" in summary(plan)[0]
    assert "symbolic" not in algorithm_section(algorithm_document(plan))


def test_a_batch_that_stands_for_a_symbolic_one_is_said() -> None:
    plan = plan_of(two_layers(batch=None))
    assert "for a batch of 2, which stands for the model's symbolic one: " in summary(plan)[0]
    assert "batch 2, which stands for the model's symbolic one" in algorithm_section(algorithm_document(plan))


def test_settings_are_checked() -> None:
    assert algorithm_settings(False, None, False) is None
    assert algorithm_settings(True, 2.5, True) == AlgorithmSettings(2_500_000, True)
    for wrong in (-1.0, float("nan"), 1e12):
        with pytest.raises(InputError, match="allowed: 0 or more megabytes"):
            algorithm_settings(True, wrong, False)
    with pytest.raises(InputError, match="--workspace is about the choice .* add --conv-algorithms"):
        algorithm_settings(False, 1.0, False)
    with pytest.raises(InputError, match="--winograd is about the choice .* add --conv-algorithms"):
        algorithm_settings(False, None, True)


def test_what_cannot_use_kernels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(two_layers(), path)
    with pytest.raises(InputError, match="chooses among kernels for a GPU, and target 'cpu' is none"):
        api.inspect(path, target="cpu", conv_algorithms=True)
    with pytest.raises(InputError, match="the portable form has none; use --form plugin or both"):
        api.optimize(path, target="sm_90", form="portable", conv_algorithms=True)
    with pytest.raises(InputError, match="--winograd is about the choice"):
        api.optimize(path, target="sm_90", winograd=True)


def one_layer() -> onnx.ModelProto:
    g = GraphBuilder("one", seed=0)
    g.output("y", g.op("Relu", conv(g, g.input("x", 20, 9, 7), 20, 20, (3, 3))[0]), 20, 9, 7)
    return g.model()


def optimized(
    folder: Path, algorithm: str, layout: Layout = "first", model: onnx.ModelProto | None = None, **options: Any
) -> OptimizeResult:
    """A package of layers for which an algorithm was measured to be the fastest in fp16."""
    path = folder / "model.onnx"
    model = model or two_layers()
    onnx.save(model, path)
    cache = measured_to_win(model, algorithm, folder / "cache", "fp16", layout)
    given = {
        "target": "sm_90",
        "form": "plugin",
        "kernel_dtype": "fp16",
        "cache": cache,
        "conv_algorithms": True,
        **options,
    }
    return api.optimize(path, folder / "out", **given)


@pytest.mark.parametrize("algorithm", ["depthwise", "winograd_4x4"])
def test_a_chosen_algorithm_is_written_with_its_kernels_and_said(algorithm: str, tmp_path: Path) -> None:
    result = optimized(tmp_path, algorithm, winograd=True)
    assert [site.decision for site in result.sites] == ["rewrite", "rewrite"]
    assert f"{algorithm} is chosen for the whole network, measured" in result.sites[0].reason
    assert result.verification is not None and result.verification.passed
    plan = json.loads((result.package / "plan.json").read_text())
    layers = plan["conv_algorithms"]["layers"]
    assert [(entry["algorithm"], entry["measured"]) for entry in layers] == [(algorithm, True)] * 2
    assert all(entry["alternative"]["algorithm"] != algorithm for entry in layers)
    assert plan["conv_algorithms"]["gap"] == 0.0 and plan["conv_algorithms"]["winograd"]
    written = plugin_algorithms(onnx.load(result.package / "model.onnx"))
    operators = {step.operator for site in written for step in site.steps}
    assert operators == {kernel["operator"] for site in plan["sites"] for kernel in site["kernels"]}
    listed = {entry.path for entry in check_manifest(result.package).files}
    assert {f"kernels/{operator}.ptx" for operator in operators} <= listed
    page = (result.package / "report.html").read_text()
    assert "<h2>Convolution algorithms</h2>" in page and algorithm in page
    assert write_report(result.package).sites == 2
    notes = [note for model in result.models if model.verification for note in model.verification.notes]
    assert any("measured and not judged" in note for note in notes) == (algorithm != "depthwise")


def test_the_steps_of_a_package_are_run_on_the_cpu(tmp_path: Path, programs: Path) -> None:
    result = optimized(tmp_path, "direct", model=one_layer())
    report = api.verify(tmp_path / "model.onnx", result.package, kernels=True, cache=programs)
    assert report.passed, report.explain()
    assert report.kernels is not None
    assert [kernel.operator.partition("_")[0] for kernel in report.kernels] == ["ConvDirect"]
    assert [judgement.elements for judgement in report.kernels[0].judgements] == [2 * 20 * 63] * 3
    # Of a step that computes more than is asked for the first blocks are run.
    (site,) = plugin_algorithms(onnx.load(result.package / "model.onnx"))
    (compiled,) = (kernel.compiled for kernel in result.sites[0].kernels)
    (step,) = site.steps
    check = check_step(
        compiled, "ConvDirect", step.kernel, step.tables, products=1, orders=(0,), cache=programs / EMULATED
    )
    assert check.jobs == 1 and check.judgements[0].passed
    assert 0 < check.judgements[0].elements < 2 * 20 * 63


@pytest.mark.parametrize("layout", ["first", "last"])
def test_implicit_gemm_is_the_group_kernel_in_the_chosen_layout(layout: Layout, tmp_path: Path) -> None:
    result = optimized(tmp_path, "implicit_gemm", layout)
    written = onnx.load(result.package / "model.onnx")
    assert [site.convolution.kernel["layout"] for site in plugin_convolutions(written)] == [layout] * 2
    assert [n.op_type for n in written.graph.node].count("Transpose") == (5 if layout == "last" else 0)
    assert result.verification is not None and result.verification.passed


def test_both_forms_and_a_second_run(tmp_path: Path) -> None:
    result = optimized(tmp_path, "direct", form="both")
    assert [model.form for model in result.models] == ["plugin", "portable"]
    assert [len(model.rewritten) for model in result.models] == [2, 0]
    again = api.optimize(
        result.package / "model.onnx",
        tmp_path / "again",
        target="sm_90",
        form="plugin",
        cache=tmp_path / "cache",
        conv_algorithms=True,
    )
    assert not again.rewritten and again.inspection.algorithms is None
    assert any("an earlier run wrote 2 operators" in note for note in again.notes)


def test_a_step_that_cannot_be_compiled_keeps_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(requests: Sequence[tuple[KernelSource, str]], *_: object, **__: object) -> list[CompiledKernel]:
        source, architecture = requests[0]
        raise CompileError(source, architecture, ["local memory is used: 8 bytes of stack"])

    monkeypatch.setattr(site_kernels, "compile_kernels", refuse)
    result = optimized(tmp_path, "im2col")
    assert {site.decision for site in result.sites} == {"keep"}
    assert all("its kernel cannot be used: it cannot be compiled" in site.reason for site in result.sites)
    assert result.verification is not None and result.verification.passed


def test_a_layer_falls_back_to_its_next_best_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two layers one cannot be compiled by the chosen algorithm; the other one keeps what was chosen."""
    compiled = site_kernels.compile_kernels

    def refuse(requests: Sequence[tuple[KernelSource, str]], *rest: Any, **more: Any) -> list[CompiledKernel]:
        for source, architecture in requests:
            if source.entry == "conv_direct" and ("RESIDUAL", "1") in source.defines:
                raise CompileError(source, architecture, ["local memory is used: 8 bytes of stack"])
        return compiled(requests, *rest, **more)

    monkeypatch.setattr(site_kernels, "compile_kernels", refuse)
    measured_to_win(two_layers(), "im2col", tmp_path / "cache", "fp16", microseconds=0.02)
    result = optimized(tmp_path, "direct")
    first, second = result.sites
    assert first.planned["algorithm"] == "direct"
    assert second.decision == "rewrite"
    assert "by its next best algorithm; of the best it cannot be compiled for sm_90a: local memory" in second.reason
    assert second.reason.startswith("im2col is chosen for the whole network, measured")
    assert [kernel.operator.partition("_")[0] for kernel in second.kernels] == ["ConvUnfold", "ConvProduct"]
    assert second.planned["algorithm"] == "im2col"
    assert result.verification is not None and result.verification.passed


def test_inspect_shows_the_choice_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mixed_model(), path)
    found = api.inspect(path, target="sm_90", kernel_dtype="fp16", conv_algorithms=True, workspace=1, cache=tmp_path)
    assert found.algorithms is not None
    document = found.to_json()["conv_algorithms"]
    assert document["budget_bytes"] == 10**6 and len(document["layers"]) == 4
    assert "conv_algorithms" not in api.inspect(path, target="sm_90", cache=tmp_path).to_json()
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".onnxopt"] == []


def test_a_report_with_a_damaged_choice_is_refused() -> None:
    document = json.loads(json.dumps(algorithm_document(plan_of(two_layers()))))
    assert algorithm_section(None) == "" and "<table>" in algorithm_section(document)
    document["layers"][0]["id"] = "<script>"
    assert "<script>" not in algorithm_section(document)
    for change, message in (
        ({"layers": 3}, "allowed: a list of layers"),
        ({"gap": "no"}, "in the field 'gap'; allowed: a number"),
        ({"solver": None}, "field 'conv_algorithms.solver' is None"),
        ({"layers": [{"algorithm": 1}]}, "in the field 'algorithm'; allowed: a text"),
    ):
        with pytest.raises(InputError, match=message):
            algorithm_section({**document, **change})


@pytest.mark.parametrize(
    ("tag", "layers", "element", "winograd"),
    [
        pytest.param("inception_v4.dynamo.op18", 149, "fp32", True, marks=pytest.mark.corpus),
        pytest.param("inception_v4.dynamo.op18", 149, "fp16", False, marks=pytest.mark.corpus_all),
        pytest.param("vgg16.dynamo.op18", 15, "fp32", True, marks=pytest.mark.corpus_all),
        pytest.param("resnet101.dynamo.op18", 104, "fp16", True, marks=pytest.mark.corpus_all),
    ],
)
def test_whole_networks_get_the_best_choice(
    tag: str, layers: int, element: Element, winograd: bool, corpus_model: Callable[[str], Path]
) -> None:
    plan = plan_of(read_model(corpus_model(tag)), element, AlgorithmSettings(winograd=winograd))
    assert len(plan.network.layers) == layers and plan.choice.status == "optimal"
    own = [
        replace(layer, options=tuple(o for o in layer.options if o.algorithm != KEEP)) for layer in plan.network.layers
    ]
    for network in (plan.network, replace(plan.network, layers=tuple(own))):
        choice = choose_algorithms(network)
        assert choice.microseconds == pytest.approx(best_by_elimination(network))
        for budget in (10**6, 10**8):
            found = choose_algorithms(network, budget)
            validate_choice(network, found, budget)
            assert found.status == "optimal" and found.microseconds >= choice.microseconds * (1 - 1e-9)
        window = next(windows(network, 2))
        assert choose_algorithms(window, 10**6).microseconds == pytest.approx(best_by_enumeration(window, 10**6))

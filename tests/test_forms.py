"""Forms and compute types through the whole of `optimize`: what is written, decided, proved and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from onnxopt import api, site_kernels, site_reports
from onnxopt.deploy.manifest import check_manifest
from onnxopt.errors import InputError, MissingError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import CompileError
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import KernelSource, attention_source
from onnxopt.lower.plugin_nodes import OPERATORS, plugin_nodes, plugin_sites
from onnxopt.lower.rewrite import is_plugin_node
from onnxopt.measure.bench import bench_package
from onnxopt.package import package_files
from onnxopt.plan.tables import NoTables
from onnxopt.report.package_report import write_report
from onnxopt.site_reports import Form
from onnxopt.target.variant import Element
from onnxopt.verification.widen import widen
from samples import build as sample


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "model.onnx"
    path.write_bytes(sample("neighbourhood").to_bytes())
    return path


def optimized(model: Path, name: str, **options: object) -> api.OptimizeResult:
    given = {"target": "sm_90", "cache": model.parent / "cache", **options}
    return api.optimize(model, model.parent / name, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def both(model: Path) -> api.OptimizeResult:
    return optimized(model, "both")


@pytest.fixture(scope="module")
def plugin(model: Path) -> api.OptimizeResult:
    return optimized(model, "plugin", form="plugin", kernel_dtype="fp16")


def test_a_gpu_gets_both_forms(model: Path, both: api.OptimizeResult) -> None:
    assert [m.file for m in both.models] == ["model.onnx", "model.portable.onnx"]
    assert [m.verification.passed for m in both.models if m.verification] == [True, True]
    listed = {entry.path for entry in check_manifest(both.package).files}
    assert {"model.onnx", "model.portable.onnx"} <= listed
    first, second = (onnx.load(both.package / m.file) for m in both.models)
    for written in (first, second):
        onnx.checker.check_model(written, full_check=True)
    assert [site.site for site in plugin_sites(first)] == ["attention-0"]
    assert not second.functions and not any(is_plugin_node(n) for n in second.graph.node)
    assert list(first.graph.output) == list(onnx.load(model).graph.output)


def test_the_plan_says_what_was_decided_for_each_form(both: api.OptimizeResult, plugin: api.OptimizeResult) -> None:
    plan = json.loads((both.package / "plan.json").read_text())
    assert plan["form"] == "both"
    site = plan["sites"][0]
    assert set(site["forms"]) == {"plugin", "portable"}
    assert {name: site[name] for name in ("decision", "reason", "predicted_gain")} == site["forms"]["plugin"]
    assert site["dtype"] == "fp32" and "one kernel in fp32" in site["reason"]
    assert site["resident_blocks"] >= 1 and set(site["portable"]) >= {"variants", "waste"}
    alone = json.loads((plugin.package / "plan.json").read_text())
    assert (alone["form"], list(alone["sites"][0]["forms"])) == ("plugin", ["plugin"])
    assert alone["sites"][0]["dtype"] == "fp16"


def test_the_same_input_gives_the_same_bytes(model: Path, both: api.OptimizeResult) -> None:
    again = optimized(model, "again")
    for name in [*package_files(both.package), "manifest.json"]:
        assert (both.package / name).read_bytes() == (again.package / name).read_bytes(), name


@pytest.mark.parametrize("form", [None, "plugin"])
def test_an_optimised_model_is_left_as_it_is(plugin: api.OptimizeResult, form: str | None) -> None:
    written = plugin.package / "model.onnx"
    again = optimized(written, "../twice", form=form)
    assert (again.package / "model.onnx").read_bytes() == written.read_bytes()
    assert [m.form for m in again.models] == ["plugin"] and not again.rewritten
    assert "an earlier run wrote 1 operator of our own into this model; their kernels are in the package" in again.notes
    kernels = [name for name in package_files(again.package) if name.startswith("kernels/")]
    assert len(kernels) == 2
    # What the first run chose among is known to nobody any more.
    assert set(kernels) < set(package_files(plugin.package))
    for name in kernels:
        assert (again.package / name).read_bytes() == (plugin.package / name).read_bytes()
    assert check_manifest(again.package).versions["nvrtc"] == check_manifest(plugin.package).versions["nvrtc"]
    assert any("an earlier run of onnxopt wrote this" in r.reason for r in again.inspection.refusals)
    for target, wanted in (("sm_90", "portable"), ("sm_90", "both"), ("cpu", None)):
        with pytest.raises(InputError, match="wrote operators of its own into this model"):
            optimized(written, "../refused", target=target, form=wanted)
    if find_spec("tensorrt_rtx") is not None:
        with pytest.raises(InputError, match="wrote operators of its own into this model"):
            optimized(written, "../refused", target="sm_89", engine="rtx")


def test_operators_written_before_are_refused_where_they_have_no_kernel(
    plugin: api.OptimizeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = plugin.package / "model.onnx"
    with pytest.raises(InputError, match="an earlier run wrote the operator SparseAttention_.*for this GPU"):
        optimized(written, "../other_gpu", target="sm_75")
    asked: list[KernelSource] = []

    def remembered(requests: Sequence[tuple[KernelSource, str]], *_: object, **__: object) -> list[CompiledKernel]:
        asked.extend(source for source, _ in requests)
        raise CompileError(asked[0], "sm_90a", ["too large"])

    monkeypatch.setattr(site_kernels, "compile_kernels", remembered)
    with pytest.raises(InputError, match="cannot be compiled for sm_90a: too large; optimise the original model"):
        optimized(written, "../none")
    resident = plugin.sites[0].planned["resident_blocks"]
    (node,) = plugin_nodes(onnx.load(written), OPERATORS)
    assert node.resident == resident
    assert asked == [attention_source(node.kernel, resident)]


@pytest.mark.parametrize("value", ["0", "33", "two", ""])
def test_how_many_blocks_share_a_multiprocessor_is_a_number(plugin: api.OptimizeResult, value: str) -> None:
    model = onnx.load(plugin.package / "model.onnx")
    (noted,) = (p for p in model.metadata_props if p.key.startswith("onnxopt.resident_blocks.SparseAttention_"))
    noted.value = value
    with pytest.raises(InputError, match=f"says that '{value}' blocks of an operator share a multiprocessor"):
        plugin_sites(model)


def test_rounding_is_judged_by_its_own_rule(model: Path, plugin: api.OptimizeResult) -> None:
    report = plugin.verification
    assert report is not None and report.passed
    assert any("agree by the rule of fp32" in note for note in report.notes)
    worst = report.worst
    assert worst is not None and worst.max_error > 1e-6
    again = api.verify(model, plugin.package)
    assert again.passed and again.notes == report.notes


def test_every_model_of_a_package_is_verified(model: Path, both: api.OptimizeResult) -> None:
    report = api.verify(model, both.package)
    assert [name for name, _ in report.models] == ["model.onnx", "model.portable.onnx"]
    assert report.passed
    other = model.parent / "other.onnx"
    other.write_bytes(sample("neighbourhood", seed=5).to_bytes())
    assert not api.verify(other, both.package).passed


def test_a_package_without_a_portable_model_says_so(plugin: api.OptimizeResult) -> None:
    with pytest.raises(InputError, match="has only model.onnx.*needs model.portable.onnx.*--form both"):
        api.build(plugin.package, target="sm_89")
    with pytest.raises(InputError, match="timing on a CPU needs model.portable.onnx"):
        bench_package(plugin.package)
    with pytest.raises(InputError, match="are not standard ONNX, and TensorRT-RTX has no plugins"):
        api.build(plugin.package / "model.onnx", target="sm_89")
    assert write_report(plugin.package).planned >= 1


def test_the_report_has_both_decisions(both: api.OptimizeResult) -> None:
    page = (both.package / "report.html").read_text()
    assert "one kernel in fp32 is predicted" in page
    assert "<td>portable</td>" in page


def test_inspect_says_what_optimize_does(model: Path, both: api.OptimizeResult) -> None:
    for form, sites in both.inspection.judged:
        seen = api.inspect(model, target="sm_90", form=form, cache=model.parent / "cache")
        assert seen.form == form
        assert [s.verdict() for s in seen.sites] == [s.verdict() for s in sites]


def test_the_compute_type_is_that_of_the_model_unless_one_is_named(model: Path) -> None:
    cache = model.parent / "cache"
    for dtype, wanted in ((None, "fp32"), ("fp16", "fp16"), ("tf32", "tf32"), ("fp32", "fp32")):
        site = api.inspect(model, target="sm_90", kernel_dtype=dtype, cache=cache).sites[0]  # type: ignore[arg-type]
        assert site.planned["dtype"] == wanted and f"in {wanted} is" in site.reason


def test_a_type_without_kernels_is_a_reason_to_keep(tmp_path: Path) -> None:
    path = tmp_path / "double.onnx"
    path.write_bytes(_in_double(sample("neighbourhood").model).SerializeToString())
    site = api.inspect(path, target="sm_90", cache=tmp_path).sites[0]
    assert site.decision == "keep"
    assert (
        "its tensors are double; kernels compute in fp16, bf16, tf32, fp32: choose one by --kernel-dtype" in site.reason
    )


def _in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    return widen(model, onnx.TensorProto.DOUBLE)


def test_a_site_without_tables_is_kept_with_the_reason(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_tables(*_: object, **__: object) -> None:
        raise NoTables("attention-0: its tensors are too large")

    monkeypatch.setattr(site_reports, "attention_tables", no_tables)
    site = api.inspect(model, target="sm_90", cache=model.parent / "cache").sites[0]
    assert site.decision == "keep" and site.rewrite is None
    assert site.reason == "no table can hold what its kernel needs: its tensors are too large"


def test_a_mask_that_depends_on_the_input_is_kept_unless_tile_times_say_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(sample("dynamicvit_policy").to_bytes())
    reasons: dict[Form, str] = {
        "portable": "depends on the model's input",
        "plugin": "dense: every query needs every key;",
    }
    for form, reason in reasons.items():
        (site,) = api.inspect(path, target="sm_90", form=form, cache=tmp_path).sites
        assert site.decision == "keep" and reason in site.reason


class _Compiler:
    """In place of the compiler: refuses the first ``refused`` kernels it is asked for; all it makes are small."""

    def __init__(self, refused: int, registers: int = 32) -> None:
        self.left, self.registers, self.asked = refused, registers, 0

    def __call__(
        self, requests: Sequence[tuple[KernelSource, str]], *given: object, **named: object
    ) -> list[CompiledKernel]:
        (source, architecture), *_ = requests
        self.asked += source.define("OTHERS_BEFORE") is None
        if self.left:
            self.left -= 1
            raise CompileError(source, architecture, ["", "local memory is used: 8 bytes of stack"])
        report = ResourceReport(self.registers, 0, 1024, 0, 0, 0, 32)
        return [CompiledKernel(own, architecture, b"cubin", "ptx", report, "nvrtc 13.0.0") for own, _ in requests]


def test_a_kernel_that_does_not_compile_gives_way_to_the_next_best(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = _Compiler(refused=1)
    monkeypatch.setattr(site_kernels, "compile_kernels", compiler)
    # What it makes are no kernels that an engine could hold.
    monkeypatch.setattr(api, "write_for_tensorrt", lambda *_: ())
    result = optimized(model, "next", form="plugin", kernel_dtype="fp16", verify=False)
    best = api.inspect(model, target="sm_90", kernel_dtype="fp16", cache=model.parent / "cache").sites[0]
    site = result.sites[0]
    assert (compiler.asked, site.decision) == (2, "rewrite")
    assert site.planned["predicted_us"] >= best.planned["predicted_us"]
    assert (
        "by its next best schedule; of the best it cannot be compiled for sm_90a: local memory is used" in site.reason
    )
    assert json.loads((result.package / "plan.json").read_text())["sites"][0]["compiled_kernel"]["nvrtc"] == "13.0.0"


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (_Compiler(refused=9), "its kernel cannot be used: it cannot be compiled for sm_90a: local memory is used"),
        (
            _Compiler(refused=0, registers=255),
            r"its kernel cannot be used: .*it takes more than planned: NVIDIA H200: ",
        ),
    ],
)
def test_a_site_without_a_kernel_is_kept_with_the_reason(
    model: Path, monkeypatch: pytest.MonkeyPatch, compiler: _Compiler, reason: str
) -> None:
    monkeypatch.setattr(site_kernels, "compile_kernels", compiler)
    result = optimized(model, "kept", kernel_dtype="fp16", verify=False)
    (plugin, portable) = (sites[0] for _, sites in result.inspection.judged)
    assert (plugin.decision, portable.decision) == ("keep", "rewrite")
    assert re.match(reason, plugin.reason)
    assert not (result.package / "kernels").exists()
    assert not plugin_sites(onnx.load(result.package / "model.onnx"))
    assert "nvrtc" not in check_manifest(result.package).versions


def test_only_the_plugin_form_needs_a_compiler(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingError("compiling kernels needs nvidia-cuda-nvrtc, not installed here: pip install it")

    monkeypatch.setattr(site_kernels, "toolchain", missing)
    with pytest.raises(MissingError, match="pip install it; or use --form portable"):
        optimized(model, "none")
    assert not (model.parent / "none").exists()
    assert optimized(model, "portable", form="portable", verify=False).rewritten
    assert api.inspect(model, target="sm_90", cache=model.parent / "cache").rewritten


@pytest.mark.parametrize(
    ("tag", "dtype", "sites"),
    [
        pytest.param("vil_tiny_224.dynamo.op18", None, 3, marks=pytest.mark.corpus),
        pytest.param("swin_tiny_224.dynamo.op18", "fp16", 10, marks=pytest.mark.corpus_all),
        pytest.param("regionvit_tiny_224.dynamo.op18.dyn", "bf16", 12, marks=pytest.mark.corpus_all),
    ],
)
def test_exported_models_are_written_in_the_plugin_form(
    tag: str, dtype: Element | None, sites: int, corpus_model: Callable[[str], Path], tmp_path: Path
) -> None:
    result = api.optimize(
        corpus_model(tag), tmp_path / "out", target="sm_90", form="plugin", kernel_dtype=dtype, cache=tmp_path
    )
    assert result.verification is not None and result.verification.passed
    assert len(plugin_sites(onnx.load(result.package / "model.onnx"))) == sites

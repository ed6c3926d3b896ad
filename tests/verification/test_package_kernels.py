"""Kernels of a package, emulated: what passes, what is caught, and what is refused before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from onnxopt import api
from onnxopt.cli import app
from onnxopt.deploy.manifest import Source, check_manifest, read_manifest, write_manifest
from onnxopt.deploy.packaged_kernels import cubin_name, ptx_name
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.emulate import build as emulator_build
from onnxopt.errors import InputError
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.cubin import kernel_figures
from onnxopt.kernels.source import attention_source, merge_source
from onnxopt.lower.plugin_nodes import plugin_sites
from onnxopt.package import package_files
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.target.variant import AttentionVariant
from onnxopt.verification.package_kernels import verify_kernels
from samples import build as sample
from tests.lower.plugin_models import made_up
from tests.plan.schedules import scheduled
from tests.plan.sites import Wish, made_site

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "model.onnx"
    path.write_bytes(sample("neighbourhood").to_bytes())
    return path


@pytest.fixture(scope="module")
def package(model: Path) -> Path:
    folder = model.parent / "package"
    cache = model.parent / "cache"
    api.optimize(model, folder, target="sm_90", form="plugin", kernel_dtype="fp16", cache=cache, verify=False)
    return folder


def _changed(package: Path, place: Path, change: Change, *, listed: bool) -> Path:
    """A copy of a package after a change, with a new manifest if it is to be ``listed``."""
    shutil.copytree(package, place)
    change(place)
    if listed:
        before = read_manifest(package)
        files = package_files(place)
        write_manifest(place, target=before.target, versions=before.versions, source=before.source, files=files)
    return place


def _ptx(package: Path, tactic: int | None = None) -> Path:
    """The PTX of the operator alone, or of one of an engine's tactics, which have a number in their names."""
    suffix = [] if tactic is None else [f".{tactic}"]
    (path,) = (path for path in (package / "kernels").glob("*.ptx") if Path(path.stem).suffixes == suffix)
    return path


def _without_exponentials(package: Path, tactic: int | None = None) -> None:
    path = _ptx(package, tactic)
    text = path.read_text()
    assert "ex2.approx.ftz.f32" in text
    path.write_text(text.replace("ex2.approx.ftz.f32", "mov.f32"))


def _run(model: Path, package: Path, *words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(
        app, ["--cache", str(model.parent / "cache"), "verify", str(model), str(package), "--kernels", *words]
    )
    return result.exit_code, result.stdout, result.stderr


def test_a_package_has_the_kernels_that_its_plan_describes(package: Path) -> None:
    (site,) = plugin_sites(onnx.load(package / "model.onnx"))
    plan = json.loads((package / "plan.json").read_text())["sites"][0]
    kernel = plan["compiled_kernel"]
    operator = site.attention.operator
    assert (kernel["operator"], kernel["entry"], kernel["architecture"]) == (operator, "sparse_attention", "sm_90a")
    assert kernel["resident"] == plan["resident_blocks"]
    manifest = check_manifest(package)
    assert manifest.versions["nvrtc"] == kernel["nvrtc"]
    names = {cubin_name(operator, "sm_90a"), ptx_name(operator)}
    assert names <= {entry.path for entry in manifest.files}
    figures = kernel_figures((package / cubin_name(operator, "sm_90a")).read_bytes(), "sparse_attention", "sm_90a")
    assert {name: figures[name] for name in ("registers", "threads")} == {
        name: kernel[name] for name in ("registers", "threads")
    }
    assert "sm_90a, " in (package / "report.html").read_text()


def test_the_kernels_pass_and_are_called_emulated(model: Path, package: Path) -> None:
    code, out, err = _run(model, package, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["passed"]
    assert [kernel.get("tactic") for kernel in document["kernels"]] == [None, 1]
    own, second = document["kernels"]
    assert own["alike"] == [f"{second['operator']}.0"]
    assert second["operator"] != own["operator"]
    for kernel in (own, second):
        assert (kernel["sites"], kernel["architecture"], kernel["orders"]) == (["attention-0"], "sm_90a", [0, 1, 2])
        assert (kernel["passed"], kernel["batch"]) == (True, 2)
        assert kernel["jobs"] >= 1
        assert [output["order"] for output in kernel["outputs"]] == [0, 1, 2]
        for output in kernel["outputs"]:
            assert 0 < output["max_error"] <= output["max_bound"]
            assert 0 < output["rms_error"] <= output["rms_bound"]
    code, out, err = _run(model, package)
    assert code == 0
    assert "kernels, emulated on the CPU" in out
    assert "attention-0, tactic 1" in out and "attention-0, tactic 0" not in out
    assert "unlisted tactics are their site's own kernel" in out
    assert "emulating kernels: 2" in err


def test_a_wrong_kernel_is_caught(model: Path, package: Path, tmp_path: Path) -> None:
    wrong = _changed(package, tmp_path / "wrong", _without_exponentials, listed=True)
    code, out, err = _run(model, wrong)
    assert code == 3
    assert "the models agree" in out
    assert "the kernel of attention-0, emulated: " in err
    assert "allowed" in out


def test_a_kernel_that_does_not_run_is_a_finding(package: Path, model: Path, tmp_path: Path) -> None:
    def for_another(place: Path) -> None:
        _ptx(place).write_text(_ptx(place).read_text().replace(".target sm_90a", ".target sm_80"))

    def nothing(place: Path) -> None:
        _ptx(place).write_text(_ptx(place).read_text().partition(".visible .entry")[0])

    def no_code(place: Path) -> None:
        _ptx(place).with_suffix(".sm_90a.cubin").write_bytes(b"\x7fELF")

    for name, change in (("target", for_another), ("entry", nothing), ("cubin", no_code)):
        wrong = _changed(package, tmp_path / name, change, listed=True)
        report, *tactics = verify_kernels(wrong, orders=(0,), cache=model.parent / "cache" / "emulated")
        # The first tactic stands for itself where the operator's own kernel is another.
        assert [tactic.tactic for tactic in tactics if tactic.passed] == [0, 1]
        assert not report.passed
        assert report.problem
        assert report.to_json()["problem"] == report.problem


def test_only_what_the_manifest_lists_is_used(model: Path, package: Path, tmp_path: Path) -> None:
    wrong = _changed(package, tmp_path / "tampered", _without_exponentials, listed=False)
    code, _, err = _run(model, wrong)
    assert code == 2
    assert "is not the file that the manifest lists" in err
    unlisted = tmp_path / "unlisted"
    shutil.copytree(package, unlisted)
    before = read_manifest(package)
    kept = [name for name in package_files(unlisted) if not name.endswith(".ptx")]
    write_manifest(unlisted, target="sm_90", versions=before.versions, source=before.source, files=kept)
    with pytest.raises(InputError, match="lists no kernel of the operator SparseAttention_"):
        verify_kernels(unlisted)


def test_a_table_that_was_changed_is_refused(model: Path, package: Path, tmp_path: Path) -> None:
    def other_scales(place: Path) -> None:
        changed = onnx.load(place / "model.onnx")
        (site,) = plugin_sites(changed)
        node = next(node for node in changed.graph.node if node.op_type == site.attention.operator)
        number = len(site.attention.operands) + list(site.attention.tables).index("scales")
        tensor = next(t for t in changed.graph.initializer if t.name == node.input[number])
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
        onnx.save(changed, place / "model.onnx")

    wrong = _changed(package, tmp_path / "table", other_scales, listed=True)
    code, _, err = _run(model, wrong)
    assert code == 2
    assert "is not that of the plugin form" in err
    with pytest.raises(InputError, match=r"table/model\.onnx: node .* are not those that it is named after"):
        verify_kernels(wrong)


def test_packages_without_kernels_are_refused_at_once(model: Path, tmp_path: Path) -> None:
    portable = api.optimize(model, tmp_path / "portable", target="cpu", measure=False, cache=tmp_path).package
    for candidate, message in ((model, "is no package"), (portable, "has no model.onnx and so no kernels")):
        code, out, err = _run(model, candidate)
        assert (code, out) == (2, "")
        assert message in err


def test_without_a_compiler_it_says_what_to_install(
    model: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in (emulator_build._compiler, emulator_build._compiler_version):
        monkeypatch.setattr(emulator_build, known.__name__, known.__wrapped__)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = _run(model, package)
    assert code == 4
    assert "apt install g++" in err


def test_split_keys_are_two_kernels(tmp_path: Path) -> None:
    site, shapes = made_site(Wish(rows=20, keys=90, width=16, value_width=16), 3)

    def cut(own: AttentionSite) -> AttentionSchedule:
        return scheduled(own, (AttentionVariant("mma", 16, 16, 1, 2),), seed=1, split_keys=32, element="fp16")

    split = made_up(site, shapes, cut)
    (plugin,) = plugin_sites(split)
    assert plugin.merge is not None
    place = tmp_path / "package"
    (place / "kernels").mkdir(parents=True)
    onnx.save(split, place / "model.onnx")
    sources = {
        plugin.attention.operator: attention_source(plugin.attention.kernel, 1),
        plugin.merge.operator: merge_source(plugin.merge.kernel),
    }
    for operator, source in sources.items():
        kernel = compile_kernel(source, "sm_80")
        (place / cubin_name(operator, "sm_80")).write_bytes(kernel.cubin)
        (place / ptx_name(operator)).write_text(kernel.ptx)
    write_manifest(
        place, target="sm_80", versions={"onnxopt": "0"}, source=Source("0" * 64, 17), files=package_files(place)
    )
    told: list[tuple[int, int]] = []
    reports = verify_kernels(place, orders=(1,), progress=lambda done, total: told.append((done, total)))
    assert [report.operator for report in reports] == list(sources)
    assert all(report.passed for report in reports), [report.explain() for report in reports]
    assert [len(report.judgements) for report in reports] == [2, 1]
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_report_names_its_worst_output(package: Path, model: Path) -> None:
    report, *_ = verify_kernels(package, orders=(0, 1), cache=model.parent / "cache" / "emulated")
    worst = report.worst
    assert worst is not None
    bad = replace(worst, max_error=np.inf)
    failed = replace(report, judgements=(*report.judgements[:-1], bad))
    assert not failed.passed
    assert failed.worst == bad
    assert failed.explain() == bad.explain()

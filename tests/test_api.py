"""The main job from end to end on small samples: find, rewrite, verify, write, build."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxopt import api, drafts
from onnxopt.decide import SiteReport
from onnxopt.deploy import rtx
from onnxopt.deploy.manifest import check_manifest
from onnxopt.errors import InputError, MissingError, VerificationError
from onnxopt.measure.cache import list_cache
from onnxopt.sites import Rewritten
from onnxopt.target import Device, profile
from onnxopt.target.device import DeviceSearch
from samples import build as sample

PACKAGE = ["figures.json", "manifest.json", "model.portable.onnx", "plan.json", "report.html"]
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="the extra 'rtx' is not installed")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with one attention whose rewrite is predicted to win by far."""
    path = tmp_path / "neighbourhood.onnx"
    path.write_bytes(sample("neighbourhood").to_bytes())
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _optimize(model: Path, out: Path | None = None, **options: object) -> api.OptimizeResult:
    """Decided by predictions alone, so that a test does not depend on what else the machine does."""
    return api.optimize(model, out, **{"target": "cpu", "measure": False, "cache": model.parent / "cache", **options})  # type: ignore[arg-type]


def test_a_package_holds_what_was_decided_and_verified(model: Path) -> None:
    result = _optimize(model)
    assert result.package == model.with_suffix(".onnxopt")
    assert _names(result.package) == PACKAGE
    assert [site.id for site in result.rewritten] == ["attention-0"]
    assert result.verification is not None
    assert result.verification.passed
    optimised = onnx.load(result.package / "model.portable.onnx")
    onnx.checker.check_model(optimised, full_check=True)
    assert any(node.name.startswith("onnxopt/attention-0/") for node in optimised.graph.node)
    assert result.nodes_after == len(optimised.graph.node)
    manifest = check_manifest(result.package)
    assert manifest.target == "cpu"
    assert [entry.path for entry in manifest.files] == [name for name in PACKAGE if name != "manifest.json"]
    assert api.verify(model, result.package / "model.portable.onnx").passed


def test_the_plan_is_the_inspection_with_the_schedule(model: Path) -> None:
    result = _optimize(model)
    plan = json.loads((result.package / "plan.json").read_text())
    assert plan["schema"] == "onnxopt.plan/1"
    assert plan["model"] == {
        "path": "neighbourhood.onnx",
        "opset": result.inspection.opset,
        "nodes": result.inspection.nodes,
    }
    assert (plan["target"], plan["form"]) == ("cpu", "portable")
    inspected = api.inspect(model, target="cpu", cache=model.parent / "cache").to_json()["sites"]
    for entry, seen in zip(plan["sites"], inspected, strict=True):
        assert {key: entry[key] for key in seen} == seen
    attention = plan["sites"][0]
    truth = sample("neighbourhood").attention[0]
    assert (attention["pairs"], attention["heads"]) == (truth.pairs, truth.heads)
    assert attention["needed"] == truth.pairs * truth.heads
    assert attention["waste"] == pytest.approx(attention["computed"] / attention["needed"], abs=1e-3)
    assert attention["bound_us"] <= attention["predicted_us"]
    assert set(attention) >= {"reorder", "variants", "gap", "solver", "certificate"}
    assert set(attention["solver"]) == {"name", "status", "nodes"}


def test_the_same_input_gives_the_same_bytes(model: Path) -> None:
    first = _optimize(model, model.parent / "first")
    second = _optimize(model, model.parent / "second")
    assert _contents(first.package) == _contents(second.package)


def test_an_optimised_model_is_left_as_it_is(model: Path) -> None:
    once = _optimize(model).package / "model.portable.onnx"
    twice = _optimize(once, model.parent / "twice")
    assert twice.rewritten == ()
    assert (twice.package / "model.portable.onnx").read_bytes() == once.read_bytes()


def test_a_measurement_is_made_once_and_then_remembered(model: Path) -> None:
    told: list[str] = []
    first = _optimize(model, measure=True, progress=told.append)
    assert "timing attention-0" in told
    assert first.sites[0].measured_gain is not None
    told.clear()
    again = _optimize(model, model.parent / "again", measure=True, progress=told.append)
    assert not [message for message in told if message.startswith("timing")]
    assert _contents(again.package) == _contents(first.package)
    assert [file.entries > 0 for file in list_cache(model.parent / "cache")] == [True]


def test_nothing_to_gain_is_a_result_too(tmp_path: Path) -> None:
    model = tmp_path / "dense.onnx"
    model.write_bytes(sample("dense_cnn").to_bytes())
    result = _optimize(model)
    assert result.rewritten == ()
    assert all(site.reason for site in result.sites)
    assert onnx.load(result.package / "model.portable.onnx") == onnx.load(model)


def test_a_dynamic_batch_stays_dynamic(tmp_path: Path) -> None:
    model = tmp_path / "dynamic.onnx"
    model.write_bytes(sample("dense_masked", tokens=256, batch=None).to_bytes())
    result = _optimize(model)
    assert result.rewritten
    assert {draw.batch for draw in result.verification.draws} == {1, 3}  # type: ignore[union-attr]
    original, optimised = onnx.load(model), onnx.load(result.package / "model.portable.onnx")
    assert list(optimised.graph.input) == list(original.graph.input)
    assert list(optimised.graph.output) == list(original.graph.output)


def test_a_package_takes_the_place_of_an_older_one(model: Path) -> None:
    out = model.parent / "out"
    _optimize(model, out)
    (out / "plan.json").write_text("damaged")
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "tensorrt_plugins.cpython-311.pyc").write_bytes(b"of whoever imported the module")
    _optimize(model, out)
    assert _names(out) == PACKAGE
    assert check_manifest(out).target == "cpu"
    assert _names(model.parent) == ["neighbourhood.onnx", "out"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"manifest.json": '{"name": "a web page"}', "index.html": "mine"}, r"is no package .*field 'schema'"),
        ({"mine.txt": "mine"}, "holds 'mine.txt', which is no part of its package"),
    ],
)
def test_only_what_a_manifest_of_ours_lists_is_replaced(model: Path, files: dict[str, str], message: str) -> None:
    out = model.parent / "out"
    if "manifest.json" not in files:
        _optimize(model, out)
    out.mkdir(exist_ok=True)
    for name, content in files.items():
        (out / name).write_text(content)
    before = _contents(out)
    with pytest.raises(InputError, match=message):
        _optimize(model, out)
    assert _contents(out) == before


def test_the_place_is_checked_before_the_work(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(api, "discover", forbidden)
    with pytest.raises(InputError, match="holds the model itself"):
        _optimize(model, model.parent)
    monkeypatch.chdir(model.parent)
    with pytest.raises(InputError, match="is the current folder or one above it"):
        _optimize(model, Path())
    link = model.parent / "link"
    link.symlink_to(model.parent / "elsewhere")
    with pytest.raises(InputError, match="is a symbolic link"):
        _optimize(model, link)


def test_a_package_can_be_verified_by_its_folder(model: Path) -> None:
    package = _optimize(model).package
    assert api.verify(model, package).passed
    (package / "model.portable.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match="is not the file that the manifest lists"):
        api.verify(model, package)


def test_a_folder_of_someone_else_is_left_alone(model: Path) -> None:
    out = model.parent / "photos"
    out.mkdir()
    (out / "me.jpg").write_text("precious")
    with pytest.raises(InputError, match=r"photos: holds files but no manifest\.json.*choose another folder with -o"):
        _optimize(model, out)
    assert _names(out) == ["me.jpg"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_only_a_folder_can_become_a_package(model: Path, kind: str) -> None:
    out = model.parent / "out"
    if kind == "file":
        out.write_text("text")
    else:
        (model.parent / "elsewhere").mkdir()
        out.symlink_to(model.parent / "elsewhere")
    with pytest.raises(InputError, match="is a file|is a symbolic link"):
        _optimize(model, out)


def test_a_failure_leaves_the_old_package(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model.parent / "out"
    _optimize(model, out)
    before = _contents(out)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(api, "write_manifest", full)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        _optimize(model, out)
    assert _contents(out) == before
    assert _names(model.parent) == ["neighbourhood.onnx", "out"]


def test_what_is_put_into_a_package_during_the_work_is_left_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model.parent / "out"
    _optimize(model, out)
    write = api.write_manifest

    def interrupted(*given: Any, **named: Any) -> object:
        (out / "notes.txt").write_text("mine")
        return write(*given, **named)

    monkeypatch.setattr(api, "write_manifest", interrupted)
    with pytest.raises(InputError, match=r"holds 'notes\.txt', which is no part of its package"):
        _optimize(model, out)
    assert (out / "notes.txt").read_text() == "mine"
    check_manifest(out)


def test_a_failure_of_the_last_step_puts_the_old_package_back(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model.parent / "out"
    _optimize(model, out)
    before = _contents(out)
    replace = Path.replace
    calls: list[object] = []

    def fails_once(source: Path, target: Path) -> Path:
        # Files are written by the same function; only the step that puts the new folder in place fails.
        if target == out and not calls:
            calls.append(source)
            raise OSError(5, "Input/output error")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", fails_once)
    with pytest.raises(InputError, match="Input/output error"):
        _optimize(model, out)
    assert calls
    assert _contents(out) == before
    assert _names(model.parent) == ["neighbourhood.onnx", "out"]


def test_a_result_that_does_not_verify_is_not_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(original: onnx.ModelProto, reports: list[SiteReport], _: object) -> Rewritten:
        broken = onnx.ModelProto()
        broken.CopyFrom(original)
        next(node for node in broken.graph.node if node.op_type == "Softmax").op_type = "LogSoftmax"
        return Rewritten(broken, reports)

    monkeypatch.setattr(drafts, "carry_out", spoiled)
    with pytest.raises(VerificationError, match="runs disagree; output 'y'.*nothing was written"):
        _optimize(model)
    assert _names(model.parent) == ["neighbourhood.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "plugin"}, "the plugin form needs kernels, and target 'cpu' is no GPU; use --form portable"),
        ({"form": "both"}, "the plugin form needs kernels"),
        ({"kernel_dtype": "fp16"}, "--kernel-dtype fp16 is the type that kernels compute in.*leave out --kernel-dtype"),
        ({"target": "sm_75", "dtype": "bf16"}, r"NVIDIA T4 \(sm_75\) do not take 'bf16'; allowed there: fp16, fp32"),
        ({"target": "sm_75", "kernel_dtype": "tf32"}, "do not take 'tf32'"),
        ({"target": "sm_90", "form": "portable", "kernel_dtype": "fp16"}, "the portable form has none"),
        ({"target": "sm_89", "form": "plugin", "engine": "rtx"}, "--engine rtx has no plugins"),
        ({"engine": "rtx"}, "target 'cpu' is no GPU; name one, for example --target sm_89"),
        ({"target": "gpu"}, "unknown target 'gpu'; allowed: cpu, auto, sm_75"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(model: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _optimize(model, **options)
    assert _names(model.parent) == ["neighbourhood.onnx"]


@pytest.mark.parametrize(
    ("device", "reason", "message"),
    [
        (None, "no CUDA driver is installed", r"no GPU found: no CUDA driver is installed"),
        (Device(0, "Old", "sm_52", 24, 1 << 30, "470.1"), "", r"the GPU found \(Old, sm_52\) is not supported"),
    ],
)
def test_a_gpu_that_was_looked_for_in_vain_is_said_to_be_missing(
    model: Path, monkeypatch: pytest.MonkeyPatch, device: Device | None, reason: str, message: str
) -> None:
    monkeypatch.setattr(profile, "find_device", lambda: DeviceSearch(device, reason))
    options: list[dict[str, object]] = [{"form": "plugin"}, {"engine": "rtx"}]
    for given in options:
        with pytest.raises(
            InputError, match=rf"target 'auto' stands for the CPU on this machine \({message}\)"
        ) as error:
            _optimize(model, target="auto", **given)
        assert "'cpu'" not in str(error.value)


@pytest.mark.parametrize("name", ["plan.json", "figures.json", "report.html", "model.portable.onnx"])
def test_verify_holds_every_file_of_a_package_against_its_manifest(model: Path, name: str) -> None:
    package = _optimize(model).package
    assert api.verify(model, package).passed
    changed = package / name
    changed.write_bytes(changed.read_bytes().replace(b"n", b"m", 1))
    for original, candidate in ((model, package), (package, model)):
        with pytest.raises(InputError, match=rf"{name} is not the file that the manifest lists"):
            api.verify(original, candidate)
    changed.unlink()
    with pytest.raises(InputError, match=name):
        api.verify(model, package)


def test_a_missing_engine_builder_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'onnxopt\[rtx\]'"):
        _optimize(model, target="sm_89", engine="rtx")
    assert _names(model.parent) == ["neighbourhood.onnx"]


@needs_rtx
def test_an_engine_becomes_part_of_the_package(model: Path) -> None:
    result = _optimize(model, target="sm_89", engine="rtx")
    assert result.engine is not None
    tensorrt = ["model.aot.onnx", "model.launcher.onnx", "operators.json", "tensorrt_plugins.py", "trtexec.txt"]
    assert _names(result.package) == sorted([*PACKAGE, *tensorrt, "kernels", "model.onnx", "model.rtx.engine"])
    manifest = check_manifest(result.package)
    entry = manifest.entry("model.rtx.engine")
    assert entry is not None
    assert (entry.bytes, entry.sha256) == (result.engine.bytes, result.engine.sha256)
    assert manifest.versions["tensorrt_rtx"] == result.engine.version


@needs_rtx
def test_an_engine_is_built_from_a_package_or_a_model(model: Path) -> None:
    folder = _optimize(model, target="sm_89", form="portable").package
    assert api.build(folder).path == folder / "model.rtx.engine"
    assert check_manifest(folder).entry("model.rtx.engine") is not None
    info = api.build(model, target="sm_86")
    assert info.path == model.with_suffix(".rtx.engine")
    assert info.architecture == "sm_86"


def test_a_changed_package_is_not_built(model: Path) -> None:
    folder = _optimize(model, target="sm_89", form="portable").package
    with (folder / "model.portable.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"model\.portable\.onnx is not the file that the manifest lists"):
        api.build(folder)

"""Engines by TensorRT: what is built from a package and in which way, and everything that is refused.

TensorRT needs a GPU and is not here. The worker's own code runs on TensorRT-RTX, which has the same classes, under the
name of the other; models with plugin nodes never get there.
"""

from __future__ import annotations

import json
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from onnxopt import api
from onnxopt.cli import app
from onnxopt.deploy import tensorrt_machine
from onnxopt.deploy.batch_range import BatchRange
from onnxopt.deploy.child import module_command
from onnxopt.deploy.manifest import FILE_NAME, BuiltFor, Source, check_manifest, copy_files, write_manifest
from onnxopt.deploy.tensorrt import TensorrtOptions
from onnxopt.deploy.tensorrt_build import TENSORRT_RTX, WORKER, BuildProgress, run_worker
from onnxopt.deploy.tensorrt_cache import default_timing_cache, read_timings, write_timings
from onnxopt.deploy.tensorrt_machine import check_machine
from onnxopt.errors import InputError, MissingError
from onnxopt.lower.rewrite import DOMAIN, DOMAIN_VERSION
from onnxopt.measure.cache import clear_cache, list_cache, verify_cache
from onnxopt.model.check import OWN_DOMAIN, OWN_VERSION
from onnxopt.model.read import read_model
from onnxopt.target.device import Device, DeviceSearch

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="the extra 'rtx' is not installed")

_GPU = Device(0, "NVIDIA L4", "sm_89", 58, 24 << 30, "CUDA 13.0")
_MODULE = """
import json, os
from pathlib import Path
kernel = (Path(__file__).parent / "kernels" / "k.ptx").read_text()
with open(os.environ["STAND_IN_LOG"], "a") as file:
    file.write(json.dumps({"module": kernel, "name": __name__}) + "\\n")
"""


def _model(batch: int | str = 1, node: str = "Relu", domain: str = "") -> onnx.ModelProto:
    weights = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(node, ["c"], ["y"], name="last", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(weights, "w")],
    )
    imports = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def _package(
    folder: Path,
    batch: int | str = 1,
    without: tuple[str, ...] = (),
    target: str = "sm_89",
    module: str = _MODULE,
    written_by: str = "0.1.0",
) -> Path:
    """A package as `optimize` leaves it; its models have no plugin nodes, because TensorRT-RTX stands in."""
    (folder / "kernels").mkdir(parents=True)
    files = ["model.onnx", "model.aot.onnx", "model.launcher.onnx", "model.portable.onnx"]
    for name in files:
        onnx.save(_model(batch), folder / name)
    (folder / "tensorrt_plugins.py").write_text(module)
    (folder / "kernels" / "k.ptx").write_text("the kernel")
    for name in without:
        (folder / name).unlink()
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    versions = {"onnxopt": written_by}
    write_manifest(folder, target=target, versions=versions, source=Source("ab" * 32, 18), files=names)
    return folder


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TensorRT-RTX as `tensorrt` for the worker, and an L4 in this machine; gives the file of noted calls."""
    place = tmp_path / "stand-in"
    place.mkdir()
    shutil.copy(Path(__file__).with_name("tensorrt_stand_in.py"), place / "tensorrt.py")
    log = place / "calls.jsonl"
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    monkeypatch.setattr(tensorrt_machine, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorrt_machine, "find_device", lambda: DeviceSearch(_GPU, ""))
    return log


def _noted(log: Path) -> dict[str, Any]:
    return {key: value for line in log.read_text().splitlines() for key, value in json.loads(line).items()}


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def _build(folder: Path, **options: Any) -> Any:
    return api.build(folder, engine="tensorrt", options=TensorrtOptions(**options))


@needs_rtx
def test_an_engine_is_built_with_the_generated_module_of_the_package(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p")
    before = _names(folder)
    info = _build(folder)
    assert (info.way, info.architecture, info.gpu, info.version) == ("aot", "sm_89", "NVIDIA L4", "10.13.3.9")
    assert info.path == folder / "model.tensorrt.engine"
    noted = _noted(calls)
    assert (noted["module"], noted["name"]) == ("the kernel", "tensorrt_plugins")
    assert noted["flags"] == ["PREFER_AOT_PYTHON_PLUGINS", "STRONGLY_TYPED"]
    # Running the module leaves no byte code in the package, of which it would be no part.
    assert set(_names(folder)) == {*before, "model.tensorrt.engine"}
    manifest = check_manifest(folder)
    entry = manifest.entry("model.tensorrt.engine")
    assert entry is not None
    assert (entry.sha256, entry.bytes) == (info.sha256, info.bytes)
    assert entry.built == BuiltFor("sm_89", "NVIDIA L4", "CUDA 13.0", "tensorrt 10.13.3.9", "aot")
    assert manifest.versions["tensorrt"] == "10.13.3.9"


@needs_rtx
def test_a_package_may_be_named_from_the_current_folder(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    assert _build(Path("p")).path == Path("p", "model.tensorrt.engine")
    check_manifest("p")


@needs_rtx
def test_the_portable_way_runs_no_code_of_the_package_and_limits_reach_the_builder(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p", batch="n")
    seen: list[BuildProgress] = []
    options = TensorrtOptions(way="portable", workspace=64, tf32=True, batch=BatchRange(2, 4, 16))
    info = api.build(folder, engine="tensorrt", options=options, engine_progress=seen.append)
    assert (info.way, info.batch, info.inputs[0].shape) == ("portable", BatchRange(2, 4, 16), (-1, 4, 8, 8))
    noted = _noted(calls)
    assert "module" not in noted
    assert noted["flags"] == ["STRONGLY_TYPED"]
    assert (noted["workspace"], noted["tf32"], noted["profile"]) == (64 << 20, True, [2, 4, 16])
    assert any(state.steps > 0 and state.step == state.steps for state in seen)
    entry = check_manifest(folder).entry("model.tensorrt.engine")
    assert entry is not None
    assert entry.built == BuiltFor("sm_89", "NVIDIA L4", "CUDA 13.0", "tensorrt 10.13.3.9", "portable", "allowed")


@needs_rtx
def test_a_package_without_kernels_is_built_the_portable_way_for_any_gpu(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p", without=("model.onnx", "model.aot.onnx", "tensorrt_plugins.py"), target="sm_90")
    assert _build(folder).way == "portable"


@needs_rtx
def test_a_model_is_built_beside_itself(tmp_path: Path, calls: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(), path)
    info = api.build(path, engine="tensorrt")
    assert (info.path, info.way) == (tmp_path / "m.tensorrt.engine", "portable")
    assert info.path.stat().st_size == info.bytes
    document = info.to_json()
    assert (document["tensorrt"], document["gpu"], document["batch"]) == ("10.13.3.9", "NVIDIA L4", None)


@needs_rtx
def test_timings_are_kept_and_a_damaged_file_is_a_warning_and_written_anew(
    tmp_path: Path, calls: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, kept = tmp_path / "m.onnx", tmp_path / "cache" / "t.timings"
    onnx.save(_model(), path)
    options = TensorrtOptions(timing_cache=kept)
    api.build(path, engine="tensorrt", options=options)
    timings = read_timings(kept)
    assert timings
    assert _noted(calls)["timings"] == 0
    api.build(path, engine="tensorrt", options=options)
    assert _noted(calls)["timings"] == len(timings)
    assert not caplog.records
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    with caplog.at_level(logging.WARNING):
        api.build(path, engine="tensorrt", options=options)
    assert "is not used, and written anew: it is damaged" in caplog.text
    assert _noted(calls)["timings"] == 0
    assert read_timings(kept) == timings
    assert _names(kept.parent) == ["t.timings"]


@needs_rtx
def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_engine(
    tmp_path: Path, calls: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(), path)
    (tmp_path / "file").write_text("")
    info = api.build(path, engine="tensorrt", options=TensorrtOptions(cache=tmp_path / "file"))
    assert info.path.is_file()
    assert "the timing cache is not kept" in caplog.text


@needs_rtx
def test_a_module_that_fails_is_named_with_its_error_and_leaves_nothing(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p", module="raise RuntimeError('no such kernel')")
    before, manifest = _names(folder), (folder / FILE_NAME).read_bytes()
    with pytest.raises(InputError, match=r"the plugin module tensorrt_plugins\.py fails: RuntimeError: no such kernel"):
        _build(folder)
    assert (_names(folder), (folder / FILE_NAME).read_bytes()) == (before, manifest)


@needs_rtx
def test_a_launcher_that_is_no_library_is_refused(tmp_path: Path, calls: Path) -> None:
    folder, library = _package(tmp_path / "p"), tmp_path / "lib.so"
    before = _names(folder)
    with pytest.raises(InputError, match="--launcher .*there is no launcher library"):
        _build(folder, way="launcher", launcher=library)
    library.write_bytes(b"no library")
    with pytest.raises(InputError, match=r"launcher library .*lib\.so cannot be loaded; build it for this TensorRT"):
        _build(folder, way="launcher", launcher=library)
    assert _names(folder) == before


@needs_rtx
def test_a_launcher_that_is_not_there_is_missing(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_LAUNCHER", str(tmp_path / "nowhere.so"))
    with pytest.raises(MissingError, match=r"looked at .*python -m onnxopt\.deploy\.launcher"):
        _build(_package(tmp_path / "p"), way="launcher")


@needs_rtx
@pytest.mark.parametrize("when", ["loading TensorRT", "building the engine"])
def test_an_interruption_leaves_the_package_as_it_was(tmp_path: Path, calls: Path, when: str) -> None:
    folder = _package(tmp_path / "p")
    before, manifest = _names(folder), (folder / FILE_NAME).read_bytes()

    def stop(state: BuildProgress) -> None:
        if state.phase == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.build(folder, engine="tensorrt", engine_progress=stop)
    assert (_names(folder), (folder / FILE_NAME).read_bytes()) == (before, manifest)


@needs_rtx
def test_an_engine_that_was_cut_off_is_built_again(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p")
    _build(folder, way="portable")
    (folder / "model.tensorrt.engine").write_bytes(b"half")
    with pytest.raises(InputError, match="found 4 bytes"):
        check_manifest(folder)
    _build(folder, way="portable")
    check_manifest(folder)


@needs_rtx
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    onnx.save(_model(), tmp_path / "m.onnx")
    request = {
        "library": "tensorrt_rtx",
        "model": str(tmp_path / "m.onnx"),
        "engine": "/dev/full",
        "capability": "SM89",
        "batch": [1, 1, 8],
    }
    with pytest.raises(InputError, match="No space left on device"):
        run_worker(module_command(WORKER), request, TENSORRT_RTX, "m.onnx", None)


def test_a_package_that_changed_is_neither_run_nor_built(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p")
    for name in ("tensorrt_plugins.py", "kernels/k.ptx", "model.aot.onnx"):
        intact = (folder / name).read_bytes()
        (folder / name).write_bytes(intact[:-1] + b"#")
        with pytest.raises(InputError, match=rf"{name} is not the file that the manifest lists: found SHA-256"):
            _build(folder)
        (folder / name).write_bytes(intact)
    assert not calls.exists()


def test_code_that_is_exchanged_after_the_check_is_not_run(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p")
    manifest = check_manifest(folder)
    (folder / "tensorrt_plugins.py").write_text(_MODULE.replace("os", "so", 1))
    with pytest.raises(InputError, match=r"tensorrt_plugins\.py is not the file"):
        copy_files(folder, manifest.files, tmp_path / "copy")
    assert not (tmp_path / "copy" / "tensorrt_plugins.py").exists()


def test_an_installation_that_cannot_be_imported_says_why(calls: Path) -> None:
    calls.with_name("tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    with pytest.raises(MissingError, match=r"cannot be imported: ImportError: libnvinfer\.so\.10"):
        check_machine()


@needs_rtx
def test_a_version_is_asked_for_before_any_work(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_VERSION", "10.14.1")
    with pytest.raises(MissingError, match=r"TensorRT 10\.14\.1 is installed"):
        check_machine()


@needs_rtx
def test_a_machine_without_a_gpu_or_with_another_one_is_refused(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _package(tmp_path / "p", target="sm_90")
    with pytest.raises(InputError, match=r"NVIDIA L4 \(sm_89\), but the target is sm_90.*--target sm_89"):
        _build(folder)
    with pytest.raises(InputError, match="its kernels are for sm_90, and sm_80 was asked for.*--way portable"):
        api.build(folder, engine="tensorrt", target="sm_80")
    monkeypatch.setattr(tensorrt_machine, "find_device", lambda: DeviceSearch(None, "no CUDA driver"))
    with pytest.raises(MissingError, match="this machine has none: no CUDA driver.*--engine rtx"):
        _build(folder)


def test_what_a_way_needs_is_named(tmp_path: Path, calls: Path) -> None:
    bare = _package(tmp_path / "a", without=("model.launcher.onnx", "tensorrt_plugins.py"))
    with pytest.raises(InputError, match=r"has no model\.aot\.onnx and tensorrt_plugins\.py.*use --way portable"):
        _build(bare, way="aot")
    with pytest.raises(InputError, match=r"has no model\.launcher\.onnx.*--form plugin"):
        _build(bare, way="launcher")
    plugin = _package(tmp_path / "b", without=("model.portable.onnx",))
    with pytest.raises(InputError, match=r"has no model\.portable\.onnx.*use --way aot.*--form both"):
        _build(plugin, way="portable")


@needs_rtx
def test_operators_of_our_own_come_from_a_package_only(tmp_path: Path, calls: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(node="GroupConv_1", domain="onnxopt"), path)
    with pytest.raises(InputError, match="1 operators of our own, such as 'last'.*build that"):
        api.build(path, engine="tensorrt")
    with pytest.raises(InputError, match="--way aot needs the plugins of a package"):
        api.build(path, engine="tensorrt", options=TensorrtOptions(way="aot"))
    assert not calls.exists()


def test_what_a_newer_version_wrote_is_refused(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p", written_by="99.1")
    with pytest.raises(InputError, match=r"written by onnxopt '99\.1' and this is .*pip install --upgrade onnxopt"):
        _build(folder)
    model = _model(node="GroupConv_1", domain="onnxopt")
    model.opset_import[1].version = 2
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="uses version 2 of the domain 'onnxopt', and this one knows version 1"):
        read_model(tmp_path / "m.onnx")
    assert (OWN_DOMAIN, OWN_VERSION) == (DOMAIN, DOMAIN_VERSION)


@needs_rtx
def test_options_that_cannot_be_are_refused(tmp_path: Path, calls: Path) -> None:
    with pytest.raises(InputError, match="--workspace-memory is 0"):
        TensorrtOptions(workspace=0)
    with pytest.raises(InputError, match="--launcher names the library of the way 'launcher'"):
        TensorrtOptions(launcher=Path("lib.so"))
    onnx.save(_model(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="has a fixed batch"):
        api.build(tmp_path / "m.onnx", engine="tensorrt", options=TensorrtOptions(batch=BatchRange()))
    with pytest.raises(InputError, match="need --engine tensorrt"):
        api.build(tmp_path / "m.onnx", engine="rtx", target="sm_89", options=TensorrtOptions(tf32=True))


@needs_rtx
def test_optimize_builds_the_engine_into_the_package_that_it_writes(tmp_path: Path, calls: Path) -> None:
    path, folder = tmp_path / "m.onnx", tmp_path / "m.onnxopt"
    onnx.save(_model(), path)
    cache = tmp_path / "cache"
    result = api.optimize(path, target="sm_89", form="portable", engine="tensorrt", cache=cache)
    assert result.engine is not None
    assert result.engine.path == folder / "model.tensorrt.engine"
    entry = check_manifest(folder).entry("model.tensorrt.engine")
    assert entry is not None
    assert entry.sha256 == result.engine.sha256
    assert [place.name for place in (cache / "tensorrt").iterdir()] == ["10.13.3.9_NVIDIA-L4.timings"]
    assert sorted(place.name for place in tmp_path.iterdir()) == ["cache", "m.onnx", "m.onnxopt", "stand-in"]


@needs_rtx
def test_optimize_finds_out_first_that_no_engine_could_be_built(tmp_path: Path, calls: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(), path)
    with pytest.raises(InputError, match=r"NVIDIA L4 \(sm_89\), but the target is sm_90"):
        api.optimize(path, target="sm_90", engine="tensorrt")
    with pytest.raises(InputError, match="--engine tensorrt: target 'cpu' is no GPU"):
        api.optimize(path, target="cpu", engine="tensorrt")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["m.onnx", "stand-in"]


@needs_rtx
def test_the_command_builds_and_describes_the_engine(tmp_path: Path, calls: Path) -> None:
    folder = _package(tmp_path / "p", batch="n")
    words = ["build", str(folder), "--engine", "tensorrt", "--way", "portable", "--batch", "1,2,4", "--tf32"]
    words += ["--timing-cache", str(tmp_path / "t.timings"), "--workspace-memory", "32"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["schema"], document["tensorrt"]) == ("onnxopt.build/1", "10.13.3.9")
    assert (document["way"], document["batch"], document["max_batch"]) == ("portable", [1, 2, 4], 4)
    assert (tmp_path / "t.timings").is_file()
    shown = CliRunner().invoke(app, words)
    assert "TensorRT 10.13.3.9 for sm_89, NVIDIA L4" in shown.stdout
    assert "batch 1 to 4, way portable" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--engine", "tensorrt", "--batch", "4,2,8"], 2, "are no range"),
        (["--engine", "tensorrt", "--way", "fast"], 2, "'fast' is not one of"),
        (["--engine", "rtx", "--way", "portable"], 2, "need --engine tensorrt"),
        (["--engine", "tensorrt", "--workspace-memory", "0"], 2, "--workspace-memory is 0"),
        (["--engine", "tensorrt"], 4, "TensorRT is not installed"),
    ],
)
def test_the_command_refuses_with_the_code_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    folder = _package(tmp_path / "p")
    before = _names(folder)
    monkeypatch.setattr(tensorrt_machine, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["build", str(folder), *words])
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert _names(folder) == before


def test_the_cache_commands_know_the_timings(tmp_path: Path) -> None:
    place = default_timing_cache(tmp_path, "10.13.3.9", "NVIDIA L4")
    write_timings(place, b"timings")
    (listed,) = list_cache(tmp_path)
    assert (listed.kind, listed.entries, listed.problems) == ("timings of TensorRT", 1, ())
    place.write_bytes(b"?")
    (damaged,) = verify_cache(tmp_path)
    assert "10.13.3.9_NVIDIA-L4.timings: it is not one that onnxopt wrote" in damaged.problems[0].reason
    assert clear_cache(tmp_path) == [place]
    assert list(tmp_path.iterdir()) == []

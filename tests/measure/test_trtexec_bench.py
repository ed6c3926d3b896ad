"""A package beside its original by a program that behaves as trtexec is documented to; no engine is built here."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from onnxopt.cli import app
from onnxopt.deploy.manifest import Source, file_sha256, write_manifest
from onnxopt.deploy.tensorrt import launcher_library
from onnxopt.errors import InputError, MissingError
from onnxopt.measure import trtexec_bench, trtexec_run
from onnxopt.measure.trtexec_bench import TrtexecBench, bench_trtexec
from onnxopt.measure.trtexec_options import chosen_options
from onnxopt.measure.trtexec_run import find_trtexec

_FAKE = Path(__file__).parent / "fake_trtexec.py"
# Seconds, for a loaded machine; what is waited for takes a fraction of one, and what hangs sleeps for longer.
_PATIENCE = 120
_ORIGINAL = [
    {"name": "Reformatting CopyNode for Input Tensor 0 to a", "ms": 0.05},
    {"name": "a + relu", "ms": 0.5, "metadata": "[ONNX Layer: a]\x1e[ONNX Layer: relu]"},
    {"name": "__myl_Conv_myl0_1", "ms": 0.25, "metadata": "[ONNX Layer: b]"},
    {"name": "c", "ms": 0.2, "metadata": "[ONNX Layer: c]"},
]
_LAUNCHER = [
    {"name": "onnxopt/conv-0/block", "ms": 0.2, "metadata": "[ONNX Layer: onnxopt/conv-0/block]"},
    {"name": "c", "ms": 0.2, "metadata": "[ONNX Layer: c]"},
]
_PORTABLE = [
    {"name": "onnxopt/conv-0/conv + relu", "ms": 0.4},
    {"name": "onnxopt/conv-1/conv + c", "ms": 0.4},
]


def _model(nodes: list[NodeProto], batch: int | str, size: int = 4) -> ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size, 8, 8]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((size, size, 1, 1), np.float32), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("onnxopt", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _conv(source: str, target: str, name: str) -> NodeProto:
    return helper.make_node("Conv", [source, "w"], [target], name=name)


def _site(number: int, node: str, decision: str = "rewrite", **fields: Any) -> dict[str, Any]:
    site = {"id": f"conv-{number}", "kind": "conv", "decision": decision, "reason": "", "nodes": [node]}
    return {**site, "dtype": "fp16", **fields}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its package, and nothing on PATH."""
    make_package(tmp_path, "n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(trtexec_run, "_PLACES", ())
    monkeypatch.setattr(trtexec_bench, "launcher_library", _given_library)
    return tmp_path


def _given_library(given: Path | None) -> Path:
    """The library that is named; none is found on a machine of these tests."""
    if given is None:
        raise MissingError("there is no launcher library; build it")
    return launcher_library(given)


def make_package(folder: Path, batch: int | str) -> None:
    """Three convolutions, of which the operator computes two; and the package in every form."""
    relu = helper.make_node("Relu", ["t"], ["r"], name="relu")
    onnx.save(
        _model([_conv("x", "t", "a"), relu, _conv("r", "u", "b"), _conv("u", "y", "c")], batch), folder / "m.onnx"
    )
    package = folder / "m.onnxopt"
    package.mkdir()
    own = helper.make_node("ConvBlock_1", ["x", "w"], ["u"], name="onnxopt/conv-0/block", domain="onnxopt")
    for name in ("model.onnx", "model.launcher.onnx"):
        onnx.save(_model([own, _conv("u", "y", "c")], batch), package / name)
    first, second = _conv("x", "t", "onnxopt/conv-0/conv"), _conv("r", "u", "onnxopt/conv-1/conv")
    onnx.save(_model([first, relu, second, _conv("u", "y", "c")], batch), package / "model.portable.onnx")
    (package / "model.tensorrt.engine").write_bytes(b"an engine")
    sites = [_site(0, "a", fused=["relu"]), _site(1, "b", computed_by="conv-0"), _site(2, "c", "keep")]
    plan = {"schema": "onnxopt.plan/1", "model": {"path": "m.onnx", "opset": 18, "nodes": 4}, "target": "sm_90"}
    (package / "plan.json").write_text(json.dumps({**plan, "form": "plugin", "sites": sites, "refusals": []}))
    write_list(folder)


def write_list(folder: Path) -> None:
    """The manifest of what lies in the package."""
    package = folder / "m.onnxopt"
    files = [path.name for path in package.iterdir() if path.name != "manifest.json"]
    source = Source(file_sha256(folder / "m.onnx"), 18)
    write_manifest(package, target="sm_90", versions={"onnxopt": "0"}, source=source, files=files)


def fake(folder: Path, **changes: Any) -> Path:
    """The program, of TensorRT 11.1 unless told otherwise."""
    behaviour: dict[str, Any] = {
        "version": [11, 1, 0],
        "device": "NVIDIA H100 PCIe",
        "files": {
            "m.onnx": {"seed": 1, "mean": 1.0, "layers": _ORIGINAL},
            "model.launcher.onnx": {"seed": 2, "mean": 0.4, "layers": _LAUNCHER},
            "model.tensorrt.engine": {"seed": 3, "mean": 0.4, "layers": _LAUNCHER},
            "model.portable.onnx": {"seed": 4, "mean": 0.8, "layers": _PORTABLE},
        },
        **changes,
    }
    program = folder / "bin" / "trtexec"
    program.parent.mkdir(exist_ok=True)
    settings = program.parent / "behaviour.json"
    settings.write_text(json.dumps(behaviour))
    program.write_text(f'#!/bin/sh\n"{sys.executable}" -S "{_FAKE}" "{settings}" "$@"\nexit $?\n')
    program.chmod(0o755)
    (folder / "launcher.so").write_bytes(b"a library")
    return program


def _bench(folder: Path, program: Path, **given: Any) -> TrtexecBench:
    return bench_trtexec(folder / "m.onnxopt", None, chosen_options({"program": program, "iterations": 40, **given}))


def _drawn(seed: int, mean: float, count: int = 40) -> list[float]:
    numbers = random.Random(seed)
    return [float(f"{mean * numbers.uniform(0.9, 1.1):.6g}") for _ in range(count)]


@pytest.mark.parametrize("version", [(10, 9, 0), (10, 16, 1), (11, 0, 0), (11, 1, 0)])
def test_both_models_are_measured_by_the_same_options(folder: Path, version: tuple[int, int, int]) -> None:
    bench = _bench(folder, fake(folder, version=version), launcher=folder / "launcher.so")
    assert (bench.way, bench.version, bench.device) == ("launcher", ".".join(map(str, version)), "NVIDIA H100 PCIe")
    before, after = bench.original.measured, bench.optimised.measured
    alike = [
        [part for part in line if not part.startswith(("--onnx", "--export", "--staticPlugins"))]
        for line in (before.command, after.command)
    ]
    assert alike[0] == alike[1]
    assert f"--staticPlugins={folder}/launcher.so" in after.command
    assert not [part for part in before.command if part.startswith("--staticPlugins")]
    assert {"--minShapes=x:1x4x8x8", "--shapes=x:1x4x8x8"} <= set(before.command)
    for side, drawn in ((bench.original, _drawn(1, 1.0)), (bench.optimised, _drawn(2, 0.4))):
        times = side.measured.summary.times["GPU Compute Time"]
        assert (times.min, times.max) == (min(drawn), max(drawn))
        assert times.median == pytest.approx(statistics.median(drawn), rel=1e-5)
        assert times.percentiles[90] == sorted(drawn)[35]
        assert side.trace.queries == 40


def test_the_layers_of_a_block_are_those_of_its_nodes(folder: Path) -> None:
    bench = _bench(folder, fake(folder), launcher=folder / "launcher.so")
    (group,) = bench.difference.groups
    assert group.sites == ("conv-0",)
    assert group.original == tuple(layer["name"] for layer in _ORIGINAL[:3])
    assert (group.original_ms, group.optimised_ms) == (pytest.approx(0.8), 0.2)
    assert (bench.difference.other.original, bench.difference.other.optimised) == (("c",), ("c",))
    assert any("compute in fp16, the original in float32" in note for note in bench.notes)


def test_sites_of_the_portable_form_that_share_a_layer_with_others_say_so(folder: Path) -> None:
    bench = _bench(folder, fake(folder), way="portable")
    names = {group.sites: (group.original_ms, group.optimised_ms, group.shared) for group in bench.difference.groups}
    assert names == {("conv-0",): (pytest.approx(0.55), 0.4, 2), ("conv-1",): (0.25, 0.4, 1)}
    assert bench.notes == ()


def test_a_launcher_library_that_is_found_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake(folder)
    monkeypatch.setattr(trtexec_bench, "launcher_library", lambda given: folder / "launcher.so")
    bench = _bench(folder, program)
    assert bench.way == "launcher"
    assert f"--staticPlugins={folder}/launcher.so" in bench.optimised.measured.command


def test_the_engine_of_a_package_is_loaded(folder: Path) -> None:
    bench = _bench(folder, fake(folder))
    assert bench.way == "engine"
    assert f"--loadEngine={folder}/m.onnxopt/model.tensorrt.engine" in bench.optimised.measured.command
    assert [group.sites for group in bench.difference.groups] == [("conv-0",)]
    assert f"--onnx={folder}/m.onnx" in bench.original.measured.command
    assert any("was built before and is only loaded" in note for note in bench.notes)
    assert not [part for part in bench.optimised.measured.command if part.startswith("--staticPlugins")]
    bench = _bench(folder, fake(folder), way="engine", launcher=folder / "launcher.so")
    assert f"--staticPlugins={folder}/launcher.so" in bench.optimised.measured.command


def test_names_alone_serve_where_the_engine_has_no_metadata(folder: Path) -> None:
    bench = _bench(folder, fake(folder, names_only=True), way="portable")
    assert bench.difference.groups[0].original == ("Reformatting CopyNode for Input Tensor 0 to a", "a + relu")
    assert bench.difference.other.original == ("__myl_Conv_myl0_1", "c")


def test_a_package_falls_back_to_the_portable_model(folder: Path) -> None:
    (folder / "m.onnxopt" / "model.tensorrt.engine").unlink()
    write_list(folder)
    assert _bench(folder, fake(folder)).way == "portable"
    with pytest.raises(InputError, match="lists no model.tensorrt.engine, which the way 'engine' needs"):
        _bench(folder, fake(folder), way="engine")
    with pytest.raises(MissingError, match="there is no launcher library"):
        _bench(folder, fake(folder), way="launcher")
    with pytest.raises(InputError, match="--launcher none.so: there is no launcher library"):
        _bench(folder, fake(folder), launcher=Path("none.so"))
    (folder / "m.onnxopt" / "model.portable.onnx").unlink()
    write_list(folder)
    with pytest.raises(InputError, match="has nothing that trtexec can run"):
        _bench(folder, fake(folder))


def test_batches_and_kept_files(folder: Path) -> None:
    keep = folder / "kept"
    bench = _bench(folder, fake(folder), way="portable", batch=4, max_batch=8, keep=keep)
    line = bench.original.measured.command
    assert {"--minShapes=x:1x4x8x8", "--optShapes=x:4x4x8x8", "--maxShapes=x:8x4x8x8", "--shapes=x:4x4x8x8"} <= set(
        line
    )
    kept = {path.name for path in keep.iterdir()}
    for side in ("original", "optimised"):
        ends = ("log", "engine", "times.json", "profile.json", "layers.json")
        assert {f"{side}.{end}" for end in ends} <= kept


@pytest.mark.parametrize("taken", ["keep", "keep/original.log/f", "keep/original.times.json/f"])
def test_a_place_that_cannot_be_written_is_named(folder: Path, taken: str) -> None:
    (folder / taken).parent.mkdir(parents=True, exist_ok=True)
    (folder / taken).write_text("mine")
    with pytest.raises(InputError, match=r"keep.*: cannot be written: .*choose another folder with --keep"):
        _bench(folder, fake(folder), way="portable", keep=folder / "keep")


def test_a_fixed_batch_takes_no_batch(tmp_path: Path) -> None:
    make_package(tmp_path, 2)
    bench = _bench(tmp_path, fake(tmp_path), way="portable")
    assert not [part for part in bench.original.measured.command if "hapes" in part]
    with pytest.raises(InputError, match="has a fixed batch; leave out --batch"):
        _bench(tmp_path, fake(tmp_path), way="portable", batch=4)


def test_another_model_has_all_layers_as_other(folder: Path) -> None:
    other = onnx.load("m.onnx")
    other.doc_string = "other bytes, equal inputs and outputs"
    onnx.save(other, "other.onnx")
    program = fake(folder, files={"other.onnx": {"seed": 1, "mean": 1, "layers": _ORIGINAL}, **_files("portable")})
    bench = bench_trtexec(Path("m.onnxopt"), "other.onnx", chosen_options({"program": program, "way": "portable"}))
    assert bench.difference.groups == ()
    assert len(bench.difference.other.original) == 4
    assert "is not the model that the package was made from" in bench.notes[0]


def _files(form: str) -> Mapping[str, Any]:
    return {f"model.{form}.onnx": {"seed": 4, "mean": 0.8, "layers": _PORTABLE}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fails": {"m.onnx": "no importer for Foo"}}, r"exit code 1 \('&&&& FAILED'\):.*\n.*\n.*no importer for Foo"),
        ({"fails": {"m.onnx": "crash"}}, "ended with exit code 139|was killed by SIGSEGV"),
        ({"result": "FAILED"}, r"exit code 0 \('&&&& FAILED'\)"),
        ({"version": [10, 8, 0]}, "is of TensorRT 10.8.0; allowed: 10.9 to 11.x"),
        ({"replace": {"=== Performance summary ===": ""}}, "printed no performance summary"),
        ({"replace": {"Throughput: ": "Throughput: nan"}}, "'Throughput' is 'nan"),
        ({"replace": {"percentile(99%)": "percentile(98%)"}}, "does not have the percentiles that were asked for"),
        ({"trace_factor": 1.5}, "they are not of one run"),
        ({"files": {"m.onnx": {"seed": 1, "mean": 1, "layers": [{"name": "a", "ms": 0}]}}}, "has nan in 'percentage'"),
        ({"files": {"m.onnx": {"seed": 1, "mean": 1, "layers": []}}}, "has no layers"),
    ],
)
def test_a_run_that_failed_is_an_error_with_its_reason(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        _bench(folder, fake(folder, **changes), way="portable")
    if "ended with" in str(raised.value):
        assert "the command was: " in str(raised.value)
        assert "--onnx=" in str(raised.value)


def test_options_that_a_version_does_not_know_are_named(folder: Path) -> None:
    program = fake(folder)
    program.write_text(program.read_text().replace('"$@"', '"$@" --best'))
    with pytest.raises(InputError, match="Unknown option: --best"):
        _bench(folder, program, way="portable")


def test_a_run_that_takes_too_long_is_stopped_with_all_that_it_started(folder: Path) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="took longer than 0.5 s and was stopped; allow more with --timeout"):
        _bench(folder, fake(folder, fails={"m.onnx": "hang"}), way="portable", timeout=0.5)
    assert time.monotonic() - start < _PATIENCE
    _wait(lambda: not _running(folder))


def test_output_without_end_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trtexec_run, "_MAX_OUTPUT", 1 << 16)
    with pytest.raises(InputError, match="bytes; at most 65,536 are read. It was stopped"):
        _bench(folder, fake(folder, fails={"m.onnx": "flood"}), way="portable")
    _wait(lambda: not _running(folder))


def test_ctrl_c_ends_the_program(folder: Path) -> None:
    program = fake(folder, fails={"m.onnx": "hang"})
    start = [sys.executable, "-c", "from onnxopt.cli import main; main()"]
    words = [*start, "bench", "m.onnxopt", "--trtexec", "--trtexec-path", str(program)]
    root = {**os.environ, "PYTHONPATH": str(_FAKE.parents[2])}
    process = subprocess.Popen([*words, "--way", "portable"], cwd=folder, env=root, stderr=subprocess.PIPE)
    _wait(lambda: len(_running(folder)) >= 3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=_PATIENCE)
    assert process.returncode != 0
    _wait(lambda: not _running(folder))


def _wait(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def _running(folder: Path) -> list[str]:
    """The command lines of processes that this folder's program is: a shell, the stand-in, and what that started."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder / "bin") in line and "onnxopt.cli" not in line:
            found.append(line)
    return found


def test_the_program_is_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="trtexec is not on PATH.*--trtexec-path"):
        find_trtexec()
    program = fake(folder)
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_trtexec() == program
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(trtexec_run, "_PLACES", (str(program),))
    assert find_trtexec() == program
    for path, message in (("none", "is no program that can be run"), ("tensorrt_rtx", "the tool of TensorRT-RTX")):
        with pytest.raises(InputError, match=message):
            find_trtexec(path)


def test_a_damaged_package_is_refused(folder: Path) -> None:
    (folder / "m.onnxopt" / "model.portable.onnx").write_bytes(b"other bytes")
    with pytest.raises(InputError, match="model.portable.onnx"):
        _bench(folder, fake(folder), way="portable")


def _run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_the_command_prints_both_sides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    files = {"m.onnx": {"seed": 1, "mean": 1.0, "layers": _ORIGINAL, "warning": "* Throughput may be bound by Enqueue"}}
    program = fake(folder, files={**files, **_files("portable")})
    words = ["bench", "m.onnxopt", "--trtexec", "--trtexec-path", str(program), "--way", "portable"]
    table = _run(*words)
    assert table.exit_code == 0, table.stderr
    for text in (
        "Performance summary",
        "Throughput",
        "all ms",
        "GPU Compute Time",
        "percentile(99%) ms",
        "conv-0",
        "other",
    ):
        assert text in table.stdout
    assert "trtexec about the original model: Throughput may be bound by Enqueue" in " ".join(table.stdout.split())
    assert "3 layers of sites also compute nodes of no site" in table.stdout
    result = _run(*words, "--percentile", "50,99.9", "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == "onnxopt.bench.trtexec/1"
    assert document["trtexec"] == {"path": str(program), "tensorrt": "11.1.0", "device": "NVIDIA H100 PCIe"}
    before, after = (document[side]["times_ms"]["GPU Compute Time"] for side in ("original", "optimised"))
    assert list(before["percentiles"]) == ["50", "99.9"]
    ratios = document["ratios"]["times"]["GPU Compute Time"]
    assert ratios["median"] == before["median"] / after["median"]
    assert ratios["percentiles"]["99.9"] == before["percentiles"]["99.9"] / after["percentiles"]["99.9"]
    assert document["ratios"]["times"]["H2D Latency"]["mean"] is None
    assert (
        document["ratios"]["throughput"]
        == document["optimised"]["throughput_qps"] / document["original"]["throughput_qps"]
    )
    assert [group["sites"] for group in document["layers"]["groups"]] == [["conv-0"], ["conv-1"], []]


def test_the_command_says_what_is_missing_or_wrong(folder: Path) -> None:
    result = _run("bench", "m.onnxopt", "--trtexec")
    assert (result.exit_code, "install the package libnvinfer-bin" in result.stderr) == (4, True)
    result = _run("bench", "m.onnxopt", "--percentile", "50")
    assert (result.exit_code, "--percentile is an option of timing by trtexec" in result.stderr) == (2, True)
    result = _run("bench", "m.onnxopt", "--trtexec-path", "x")
    assert (result.exit_code, "--trtexec-path is an option of timing by trtexec" in result.stderr) == (2, True)

"""The commands as a user types them: documents, tables, exit codes, and how a command ends when it is disturbed."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxopt.cli import app
from onnxopt.deploy import rtx
from onnxopt.measure import bench
from onnxopt.measure.timing import TimingLimits
from samples import build as sample

COMMAND = [sys.executable, "-m", "onnxopt.cli"]
ESCAPE = "\x1b["
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="the extra 'rtx' is not installed")

Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two models; the cache lies in another one."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "attention.onnx").write_bytes(sample("neighbourhood").to_bytes())
    (work / "region.onnx").write_bytes(sample("regionvit").to_bytes())
    monkeypatch.chdir(work)
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    for name in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "COLUMNS", "ONNXOPT_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    return work


def _run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def _document(*words: str) -> dict[str, Any]:
    result = _run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def _optimize(*words: str) -> Any:
    return _run("optimize", "attention.onnx", "--target", "cpu", "--no-measure", *words)


def _start(*words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def _names() -> list[str]:
    return sorted(os.listdir("."))


def test_inspect_gives_the_documented_fields(folder: Path) -> None:
    document = _document("inspect", "attention.onnx", "--target", "cpu")
    assert set(document) == {"schema", "model", "target", "form", "sites", "refusals"}
    assert document["schema"] == "onnxopt.inspect/1"
    assert document["model"] == {"path": "attention.onnx", "opset": 18, "nodes": 30}
    attention = next(site for site in document["sites"] if site["kind"] == "attention")
    assert set(attention) == {
        *("id", "kind", "nodes", "op", "queries", "keys", "pairs", "pairs_total", "phantom_pairs", "empty_rows"),
        *("density", "heads", "head_dim", "distinct_masks", "bias", "runtime_mask", "group"),
        *("decision", "reason", "predicted_gain"),
    }
    conv = next(site for site in document["sites"] if site["kind"] == "conv")
    assert set(conv) == {
        *("id", "kind", "nodes", "out_channels", "in_channels", "connections", "density", "kernel", "groups"),
        *("pattern", "decision", "reason", "predicted_gain"),
    }
    assert {site["decision"] for site in document["sites"]} == {"rewrite", "keep"}
    assert _names() == ["attention.onnx", "region.onnx"]


def test_inspect_for_a_gpu_judges_the_plugin_form(folder: Path) -> None:
    document = _document("inspect", "attention.onnx", "--target", "sm_90")
    assert (document["target"], document["form"]) == ("sm_90", "plugin")


def test_optimize_tells_what_became_of_the_sites(folder: Path) -> None:
    result = _optimize("--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["schema"] == "onnxopt.optimize/1"
    assert document["package"] == "attention.onnxopt"
    names = ["figures.json", "manifest.json", "model.portable.onnx", "plan.json", "report.html"]
    assert document["files"] == names
    assert document["verification"]["schema"] == "onnxopt.verify/1"
    assert document["verification"]["passed"] is True
    assert document["engine"] is None
    plan = json.loads(Path("attention.onnxopt/plan.json").read_text())
    assert [site["id"] for site in document["sites"]] == [site["id"] for site in plan["sites"]]


def test_optimize_for_a_gpu_tells_of_both_models(folder: Path) -> None:
    document = _document("optimize", "attention.onnx", "--target", "sm_90", "--kernel-dtype", "fp16", "-o", "out")
    assert document["form"] == "both"
    assert [(m["file"], m["form"], m["verified"]) for m in document["models"]] == [
        ("model.onnx", "plugin", True),
        ("model.portable.onnx", "portable", True),
    ]
    assert document["models"][0]["rewritten"] == ["attention-0"]
    assert set(document["verification"]["models"]) == {"model.onnx", "model.portable.onnx"}
    shown = _run("verify", "attention.onnx", "out")
    assert shown.exit_code == 0
    assert shown.stdout.count("\nthe models agree\n") == 2
    assert "model.portable.onnx" in shown.stdout
    text = _run("optimize", "attention.onnx", "--target", "sm_90", "--form", "plugin", "-o", "out")
    assert text.exit_code == 0
    assert "one kernel in fp32 is predicted" in text.stdout
    assert "--kernels" in text.stdout


@needs_rtx
def test_optimize_and_build_describe_the_engine(folder: Path) -> None:
    document = _document(
        "optimize", "region.onnx", "--target", "sm_89", "--engine", "rtx", "--form", "portable", "-o", "out"
    )
    assert document["engine"]["architecture"] == "sm_89"
    assert document["engine"]["path"] == "out/model.rtx.engine"
    assert document["lowered"] == ["1 Col2Im"]
    again = _document("build", "out")
    assert again["schema"] == "onnxopt.build/1"
    assert again["bytes"] == Path("out/model.rtx.engine").stat().st_size


def test_bench_times_the_model_and_its_sites(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_WHOLE", TimingLimits(pairs=3, max_rounds=1))
    assert _optimize().exit_code == 0
    document = _document("bench", "attention.onnxopt")
    assert document["schema"] == "onnxopt.bench/1"
    assert document["model"]["pairs"] == 3
    assert document["against"] == "attention.onnx"
    (site,) = document["sites"]
    assert site["id"] == "attention-0"
    assert site["timing"]["ratio"] > 0
    assert site["nodes_before"] > 0 < site["nodes_after"]
    table = _run("bench", "attention.onnxopt", "--against", "attention.onnx")
    assert table.exit_code == 0
    assert "whole model" in table.stdout
    assert "attention-0" in table.stdout


def test_bench_against_another_model_leaves_out_its_sites(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_WHOLE", TimingLimits(pairs=3, max_rounds=1))
    assert _optimize().exit_code == 0
    other = onnx.load("attention.onnx")
    other.doc_string = "other bytes, equal inputs and outputs"
    onnx.save(other, "other.onnx")
    document = _document("bench", "attention.onnxopt", "--against", "other.onnx")
    assert document["sites"] == []
    assert "its sites were not timed" in document["note"]
    Path("attention.onnx").unlink()
    result = _run("bench", "attention.onnxopt")
    assert result.exit_code == 2
    assert "name it with --against MODEL" in result.stderr


def test_doctor_gives_its_checks(folder: Path) -> None:
    document = _document("doctor")
    assert document["schema"] == "onnxopt.doctor/1"
    assert "onnxruntime" in {check["name"] for check in document["checks"]}


def test_the_tables_fit_80_columns_and_name_what_was_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["inspect", "attention.onnx", "--target", "cpu"], ["inspect", "region.onnx", "--target", "sm_90"]):
        result = _run(*words)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert any(line.startswith("sites") and line.rstrip().endswith("why") for line in lines)
        assert "why 1: " in result.stdout
        assert "to rewrite" in lines[-1]
        assert ESCAPE not in result.stdout


def test_optimize_shows_the_rewrite_its_errors_and_the_files(folder: Path) -> None:
    result = _optimize()
    assert result.exit_code == 0
    for text in (
        "Attention",
        "1 rewritten, 2 kept, 0 refused",
        "30 before",
        "runs agree",
        "allowed 0.0001",
        "plan.json",
    ):
        assert text in result.stdout
    assert "onnxopt bench attention.onnxopt" in result.stdout
    assert "looking for sites" in result.stderr
    assert "looking for sites" not in result.stdout


def test_verify_shows_every_output(folder: Path) -> None:
    result = _run("verify", "region.onnx", "region.onnx")
    assert result.exit_code == 0
    assert "regions_out" in result.stdout
    assert "the models agree" in result.stdout


def test_help_and_version(folder: Path) -> None:
    assert _run("--version").stdout.startswith("onnxopt 0.")
    shown = _run("--help").stdout
    for name in ("inspect", "optimize", "verify", "build", "bench", "profile", "doctor", "cache"):
        assert name in shown
    subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)


def test_help_loads_nothing_heavy(folder: Path) -> None:
    code = "import onnxopt.cli, sys; print([m for m in ('onnx', 'numpy', 'onnxruntime', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect"], "Missing argument"),
        (["inspect", "attention.onnx", "--frobnicate"], "No such option"),
        (["optimize", "attention.onnx", "--form", "plugin"], "plugin"),
        (
            ["optimize", "attention.onnx", "--target", "cpu", "--kernel-dtype", "fp16"],
            "is the type that kernels compute in",
        ),
        (["inspect", "attention.onnx", "--target", "sm_75", "--kernel-dtype", "tf32"], "allowed there: fp16, fp32"),
        (["inspect", "attention.onnx", "--target", "sm_90", "--dtype", "fp8"], "'fp8' is not one of"),
        (["inspect", "absent.onnx"], "onnxopt: error: absent.onnx does not exist; check the path"),
        (["inspect", "attention.onnx", "--target", "sm_12"], "onnxopt: error: unknown target 'sm_12'; allowed: cpu"),
        (["optimize", "attention.onnx", "--target", "cpu", "--engine", "rtx"], "target 'cpu' is no GPU"),
        (["optimize", "attention.onnx", "--target", "cpu", "-o", "full"], "full: holds files but no manifest.json"),
        (["build", "full"], "manifest.json"),
        (["build", "attention.onnx"], "--target is needed"),
        (["build", "full", "-o", "x.engine"], "leave out -o"),
        (["bench", "attention.onnx"], "is no folder; give a package"),
        (["verify", "attention.onnx", "attention.onnx", "--inputs", "absent.npz"], "absent.npz"),
        (["--cache", "attention.onnx", "cache", "list"], "is not a folder"),
        (["optimize", ".", "--target", "cpu"], "'.' is a folder, not a file; give the path of a model"),
        (["report", "x" * 300], "File name too long; check the path and its permissions"),
        (["optimize", "attention.onnx", "--target", "cpu", "-o", "x" * 300], "File name too long"),
        (["build", "attention.onnx", "--target", "sm_89", "-o", "./attention.onnx"], "is the model itself"),
        pytest.param(
            ["build", "attention.onnx", "--target", "sm_89", "-o", "full"], "is a folder or a device", marks=needs_rtx
        ),
    ],
)
def test_wrong_usage_and_input_is_exit_code_2(folder: Path, words: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/own.txt").write_text("mine")
    result = _run(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert _names() == ["attention.onnx", "full", "region.onnx"]


def test_models_that_differ_are_exit_code_3(folder: Path) -> None:
    model = onnx.load("attention.onnx")
    bias = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    onnx.save(model, "other.onnx")
    result = _run("verify", "attention.onnx", "other.onnx")
    assert result.exit_code == 3
    assert "off" in result.stdout
    assert "onnxopt: error: other.onnx does not agree with attention.onnx" in result.stderr
    result = _run("verify", "attention.onnx", "other.onnx", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["passed"] is False


def test_what_the_machine_lacks_is_exit_code_4(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "find_spec", lambda name: None)
    result = _run("optimize", "attention.onnx", "--target", "sm_89", "--engine", "rtx")
    assert result.exit_code == 4
    assert "onnxopt: error: TensorRT-RTX is not installed; install it with: pip install 'onnxopt[rtx]'" in result.stderr
    assert _names() == ["attention.onnx", "region.onnx"]


def test_a_bug_is_called_a_bug(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("onnxopt.api.inspect", broken)
    result = _run("inspect", "attention.onnx")
    assert result.exit_code == 1
    assert "onnxopt: error: ZeroDivisionError: division by zero; this is a bug in onnxopt" in result.stderr
    assert "Traceback" not in result.stderr
    assert "in broken" in _run("--traceback", "inspect", "attention.onnx").stderr


def test_the_cache_is_listed_verified_and_cleared(folder: Path) -> None:
    assert "empty" in _run("cache", "list").stdout
    records = Path(os.environ["ONNXOPT_CACHE"], "tuning-cpu.jsonl")
    records.parent.mkdir()
    records.write_text("{damaged\n")
    assert "tuning-cpu.jsonl" in _run("cache", "list").stdout
    damaged = _run("cache", "verify")
    assert damaged.exit_code == 2
    assert "1 entries cannot be used" in damaged.stderr
    assert "1 files deleted" in _run("cache", "clear").stdout
    assert not records.exists()
    assert _run("cache", "verify").exit_code == 0


def test_the_option_for_the_cache_comes_before_the_variable(folder: Path) -> None:
    assert str(folder / "mine") in _run("--cache", str(folder / "mine"), "cache", "list").stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("moment", "form"),
    [
        ("looking for sites", "both"),
        ("compiling kernels", "both"),
        ("verifying", "portable"),
        pytest.param("loading TensorRT-RTX", "portable", marks=needs_rtx),
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(folder: Path, moment: str, form: str, number: int, code: int) -> None:
    process = _start("optimize", "attention.onnx", "--target", "sm_89", "--engine", "rtx", "--form", form)
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if moment in line:
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, seen + err
    assert out == ""
    assert "Traceback" not in seen + err
    assert _names() == ["attention.onnx", "region.onnx"]


def test_a_full_disk_is_said_and_leaves_nothing(folder: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    process = _start("optimize", "attention.onnx", "--target", "cpu", "--no-measure", preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "File too large" in err
    assert f"{folder.resolve() / 'attention.onnxopt'}/" in err and ".attention.onnxopt." not in err
    assert "free some space" in err.lower()
    assert "Traceback" not in err
    assert _names() == ["attention.onnx", "region.onnx"]


@pytest.mark.parametrize("words", [["--json"], []])
def test_a_closed_pipe_is_quiet(folder: Path, words: Sequence[str]) -> None:
    process = _start("inspect", "attention.onnx", "--target", "cpu", *words)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert err == "onnxopt: looking for sites\nonnxopt: planning\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "inspect", "attention.onnx", "--target", "cpu"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "moving"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)]
)
def test_a_terminal_gets_colours_unless_it_wants_none(folder: Path, variables: dict[str, str], moving: bool) -> None:
    assert (ESCAPE in _on_terminal(["inspect", "attention.onnx", "--target", "cpu"], variables)) is moving


def _on_terminal(words: Sequence[str], variables: dict[str, str]) -> str:
    """What a command writes to a terminal, both streams together."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, **variables}
    process = subprocess.Popen([*COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # how Linux tells that the other side is gone
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=60) == 0
    return shown.decode()

"""`onnxopt profile`: a job for another machine, its dry run, and what comes back into the planner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onnxopt import api
from onnxopt.cli import app
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.kernels.compiler import CompileError
from onnxopt.measure import tile_requests
from onnxopt.measure.cache import clear_cache, list_cache, verify_cache
from onnxopt.measure.paths import EMULATED
from onnxopt.measure.site_requests import usable_requests
from onnxopt.site_kernels import KernelBuild
from onnxopt.target import load_target
from onnxopt.target.device import DeviceSearch
from onnxopt.target.tile_records import SCHEMA
from onnxopt.target.tile_store import FILE_NAME, add_records, stored_records
from samples import build as sample
from tests.target.records import RECORD


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(sample("neighbourhood").to_bytes())
    return path


def _profile(cache: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["--cache", str(cache), "profile", *words])


def test_a_job_is_written_and_its_dry_run_passes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = tile_requests.tile_requests
    monkeypatch.setattr(tile_requests, "tile_requests", lambda gpu, shapes: every(gpu, shapes)[:1])
    job, cache = tmp_path / "job", tmp_path / "cache"
    written = _profile(cache, str(model), "--job", str(job), "--target", "sm_90")
    assert written.exit_code == 0, written.stderr
    assert "2 kernels to check and time" in written.stdout
    assert "--import results.jsonl" in written.stdout
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "onnxopt.measure.job.runner", str(job), "--dry-run", "--out", str(results)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["passed"] for line in lines] == [True, True]
    assert {line["device"]["gpu"] for line in lines} == {"none: emulated on the CPU"}
    refused = _profile(cache, "--import", str(results))
    assert refused.exit_code == 2
    assert "a dry run" in refused.stderr
    again = _profile(cache, "--job", str(job))
    assert again.exit_code == 2
    assert "is there already and not empty" in again.stderr


def test_only_shapes_that_plans_use_are_compiled_with_models(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def none_fits(requests: list[Any], _: object) -> tuple[list[Any], list[tuple[str, str]]]:
        asked.append(tuple(sorted({f"{request.kind} {request.purpose}" for request in requests})))
        return [], [("first", "compiles nowhere")]

    monkeypatch.setattr("onnxopt.measure.site_requests.usable_requests", none_fits)
    catalogued: list[tuple[str, ...]] = []
    monkeypatch.setattr(tile_requests, "catalogue", lambda *words: catalogued.append(tuple(words[2])) or [])
    words = ["--job", str(tmp_path / "job"), "--target", "sm_90"]
    results = [_profile(tmp_path / "cache", *own, *words) for own in ([str(model)], ["--kind", "conv"])]
    nothing = _profile(tmp_path / "cache", str(model), "--kind", "conv", *words)
    assert [result.exit_code for result in (*results, nothing)] == [2, 2, 2]
    assert "no kernel is left to measure; first: compiles nowhere" in results[0].stderr
    assert asked == [("attention site", "attention tile"), (), ()]
    assert catalogued == [("conv",)]


def test_results_become_records_that_the_planner_reads(model: Path, tmp_path: Path) -> None:
    cache, results, lines = tmp_path / "cache", tmp_path / "results.jsonl", tmp_path / "lines.jsonl"
    document = {"schema": SCHEMA, **asdict(RECORD)}
    results.write_text(json.dumps({"id": "a", "passed": True, "record": document}) + "\n")
    assert "1 records added" in _profile(cache, "--import", str(results)).stdout.replace("\n", "")
    other = replace(RECORD, gpu="NVIDIA L4", architecture="sm_89")
    add_records(cache / FILE_NAME, [other])
    gpu = load_target("sm_90").need_gpu_profile()
    assert KernelPlanner.at(gpu, "time", cache).records == (RECORD,)
    assert KernelPlanner.at(load_target("sm_89").need_gpu_profile(), "time", cache).records == (other,)
    assert KernelPlanner.at(gpu, "time", None).records == ()
    assert _profile(cache, "--export", str(lines)).exit_code == 0
    second = tmp_path / "second"
    assert _profile(second, "--import", str(lines)).exit_code == 0
    assert stored_records(second / FILE_NAME) == stored_records(cache / FILE_NAME)
    measured = api.inspect(model, target="sm_90", kernel_dtype="fp16", cache=cache).sites[0].planned["measured"]
    assert measured is (RECORD.variant in [v.describe() for v in _variants()])


def _variants() -> tuple[Any, ...]:
    from onnxopt.plan.attention_cost import AttentionCost

    return AttentionCost.of(load_target("sm_90").need_gpu_profile(), 8, 8, "fp16").variants()


def test_a_machine_without_a_gpu_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.target.device.find_device", lambda _: DeviceSearch(None, "no CUDA driver"))
    result = _profile(tmp_path)
    assert result.exit_code == 4
    assert "no GPU to measure on: no CUDA driver; `onnxopt profile --job DIR --target sm_90` writes" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--job", "a", "--export", "b"], "are different uses; give one of them"),
        (["--job", "job", "--target", "cpu"], "--job needs a GPU to plan for"),
        (["--import", "absent.jsonl"], "absent.jsonl"),
        (["--shapes", "used", "--job", "job", "--target", "sm_90"], "--shapes used needs models"),
        (["absent.onnx", "--job", "job", "--target", "sm_90"], "absent.onnx does not exist"),
    ],
)
def test_wrong_uses_are_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _profile(tmp_path / "cache", *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_kernels_that_cannot_be_compiled_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = load_target("sm_90").need_gpu_profile()
    shapes = tile_requests.catalogue(gpu, ["fp16"], ["attention"])
    requests = tile_requests.tile_requests(gpu, shapes[:1])[:1]

    def refuse(wanted: list[tuple[Any, str]], *_: object, **__: object) -> None:
        raise CompileError(*wanted[0], ["local memory is used"])

    monkeypatch.setattr("onnxopt.site_kernels.compile_kernels", refuse)
    kept, left_out = usable_requests(requests, KernelBuild(gpu, None))
    assert kept == []
    assert left_out == [(requests[0].id, "it cannot be compiled for sm_90a: local memory is used")]


def test_the_cache_knows_measured_times_and_emulated_kernels(tmp_path: Path) -> None:
    store, programs = tmp_path / FILE_NAME, tmp_path / EMULATED
    add_records(store, [RECORD])
    programs.mkdir()
    (programs / "damaged.so").write_bytes(b"x" * 64)
    (programs / ".new-1").write_bytes(b"left by a killed writer")
    (programs / "mine.txt").write_text("mine")
    tiles, emulated = list_cache(tmp_path)
    assert (tiles.path, tiles.entries, tiles.problems) == (store, 1, ())
    assert (emulated.entries, [p.reason for p in emulated.problems]) == (
        0,
        ["damaged.so: it is not what its checksum says"],
    )
    assert [file.path for file in verify_cache(tmp_path)] == [programs]
    store.write_bytes(b"no database at all, but long enough to be looked at")
    (store.with_name(f"{FILE_NAME}-journal")).write_bytes(b"")
    assert [file.path for file in verify_cache(tmp_path)] == [store, programs]
    assert len(clear_cache(tmp_path)) == 4
    assert sorted(path.name for path in tmp_path.rglob("*")) == [EMULATED, "mine.txt"]

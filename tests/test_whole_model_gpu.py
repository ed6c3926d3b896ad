"""Whole-model jobs without a GPU: what is in them, their rule, their dry run, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from benchmarks import whole_model_kernels
from benchmarks.whole_model_backends import NumpyBackend
from benchmarks.whole_model_check import judge_programs
from benchmarks.whole_model_gpu import JOB, main, read_job
from benchmarks.whole_model_gpu_job import build_job
from benchmarks.whole_model_gpu_job import main as make_job
from benchmarks.whole_model_kernels import REFERENCES, StreamLauncher
from benchmarks.whole_model_launches import KINDS
from benchmarks.whole_model_program import LAUNCH, read_program
from benchmarks.whole_model_results import shown
from onnxopt.errors import InputError, MissingError
from samples import build
from tests.lower.test_block_plugin import network

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of two small models, one of them with shifted windows."""
    folder = tmp_path_factory.mktemp("whole_model")
    for name in ("swin", "per_head_masks"):
        onnx.save(build(name).model, folder / f"{name}.onnx")
    build_job(folder / "job", [folder / "swin.onnx", folder / "per_head_masks.onnx"], cache=folder / "cache")
    return folder / "job"


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What one model's process prints."""
    assert main([*arguments, "--dry-run", "--numpy"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.partition("result: ")[2])
    return found


@pytest.mark.parametrize("name", ["swin", "per_head_masks"])
def test_every_version_of_a_model_runs_and_agrees(job: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, str(job), "--model", name)
    assert result["passed"]
    assert {version: check["passed"] for version, check in result["checks"].items()} == dict.fromkeys(
        ["original", "ours", "ceiling", "sdpa"], True
    )
    attention = result["sites"]["attention"]
    assert result["launches"]["ours"]["own_kernels"] >= attention["rewritten"] == attention["found"]
    assert result["fused"] == attention["rewritten"]
    assert result["checks"]["ours"]["max_error"] > 0
    assert "times" not in result


def test_the_kernels_own_ptx_takes_its_place(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = result_of(capsys, str(job), "--model", "per_head_masks")
    emulated = result_of(capsys, str(job), "--model", "per_head_masks", "--emulate")
    assert emulated["passed"]
    assert emulated["checks"]["ours"] != plain["checks"]["ours"]


def test_blocks_of_convolutions_take_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(), tmp_path / "units.onnx")
    build_job(tmp_path / "job", [tmp_path / "units.onnx"], cache=tmp_path / "cache")
    for how in ([], ["--emulate"]):
        result = result_of(capsys, str(tmp_path / "job"), "--model", "units", *how)
        assert result["checks"]["ours"]["passed"], result
        # Five convolutions in two kernels.
        assert result["launches"]["ours"]["own_kernels"] == 2


def test_the_ceiling_keeps_projections_and_has_no_attention(job: Path) -> None:
    original, ceiling = (read_program(job, f"swin/{name}.json") for name in ("original", "ceiling"))
    kinds = [[node.op for node in program.nodes] for program in (original, ceiling)]
    assert "Softmax" in kinds[0]
    assert "Softmax" not in kinds[1]
    borrowed = [node for node in ceiling.nodes if node.op == "Borrow"]
    assert len(borrowed) == 2
    weights = {
        n for p in (original, ceiling) for n in p.constants if p.constants[n].ndim == 2 and n in original.constants
    }
    assert weights <= set(ceiling.constants)


def test_a_job_runs_from_its_folder_alone(job: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(job, moved)
    command = [sys.executable, str(moved / "whole_model.py"), "--dry-run", "--numpy", "--only", "swin"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "1 models; all agreed with ONNX Runtime" in done.stdout
    (line,) = (tmp_path / "out").read_text().splitlines()
    assert json.loads(line)["name"] == "swin"


def test_a_wrong_table_is_noticed(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(job, broken)
    path = broken / "swin" / "ours.json"
    document = json.loads(path.read_text())
    launch = next(node for node in document["nodes"] if node["op"] == LAUNCH)
    keys = document["constants"][launch["attributes"]["tables"]["keys"]]
    array = np.load(broken / keys)
    np.save(broken / keys, np.roll(array, 1))
    result = result_of(capsys, str(broken), "--model", "swin")
    assert not result["passed"]
    assert result["problem"].startswith("ours: ")
    assert "FAILED: ours" in shown(result)


def test_without_a_gpu_the_job_says_what_is_missing(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(job), "--model", "swin"]) == MissingError("").exit_code
    assert "is not here; install it, or try the job by --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "2"], "has a fixed batch of 1, not 2; give --batch its own"),
        (["--batch", "0"], "1 models, batch 0"),
    ],
)
def test_what_cannot_become_a_job_is_refused(
    arguments: list[str], message: str, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(job.parent / "swin.onnx")
    assert make_job([model, "--out", str(tmp_path / "job"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "job").exists()


def test_a_folder_that_is_there_is_not_overwritten(job: Path) -> None:
    with pytest.raises(InputError, match="is there already and not empty"):
        build_job(job, [job.parent / "swin.onnx"])


@pytest.mark.parametrize("content", [None, "{", '{"schema": "other"}'])
def test_a_damaged_job_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / JOB).write_text(content)
    with pytest.raises(InputError, match=r"make the job again|name a folder made by whole_model_gpu_job"):
        read_job(tmp_path)


def test_every_kind_that_is_launched_has_a_reference() -> None:
    assert set(KINDS) == set(REFERENCES)


def test_ours_may_be_off_by_twice_the_original() -> None:
    rng = np.random.default_rng(0)
    exact, noise = rng.standard_normal((2, 1, 1000)), 1e-3 * rng.standard_normal((2, 1, 1000))

    def program(factor: float) -> list[list[Array]]:
        return [[exact[n] + factor * noise[n]] for n in range(2)]

    reference = [[exact[n]] for n in range(2)]
    found = {"original": program(1), "ours": program(1.9), "sdpa": program(2.2), "ceiling": program(90)}
    verdicts = {name: check["passed"] for name, check in judge_programs(reference, found).items()}
    assert verdicts == {"original": True, "ours": True, "sdpa": False, "ceiling": True}
    poisoned = program(1)
    poisoned[1][0][0, 7] = np.nan
    assert "NaN" in judge_programs(reference, {**found, "ours": poisoned})["ours"]["problem"]
    assert not judge_programs(reference, {**found, "original": program(90)})["original"]["passed"]
    still = [program(1)[0]] * 2
    assert "do not depend" in judge_programs(reference, {**found, "ceiling": still})["ceiling"]["problem"]


class Pointed(np.ndarray):
    """An array with an address, as PyTorch's tensors have."""

    def data_ptr(self) -> int:
        return int(self.ctypes.data)

    def clone(self) -> Pointed:
        return np.array(self).view(Pointed)


class Recorder:
    """A GPU that remembers what was put into which stream."""

    architecture = "sm_90a"

    def __init__(self, ordinal: int) -> None:
        self.launches: list[tuple[Any, int]] = []

    def enqueue(self, launch: Any, stream: int) -> None:
        self.launches.append((launch, stream))


class PointedBackend(NumpyBackend):
    """NumPy arrays with addresses."""

    def as_kind(self, x: Any, kind: str) -> Any:
        return np.ascontiguousarray(x, np.dtype(kind)).view(Pointed)

    def empty(self, shape: Sequence[int], kind: str, *, poison: bool) -> Any:
        return super().empty(shape, kind, poison=poison).view(Pointed)


def test_kernels_go_into_the_current_stream_with_their_arguments(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        cuda_stream = 77

    class Cuda:
        @staticmethod
        def current_device() -> int:
            return 0

        @staticmethod
        def current_stream() -> Stream:
            return Stream()

    class Torch:
        cuda = Cuda()

    monkeypatch.setattr(whole_model_kernels, "Gpu", Recorder)
    program = read_program(job, "swin/ours.json")
    node = next(node for node in program.nodes if node.op == LAUNCH)
    tables = {name: program.constants[key].view(Pointed) for name, key in node.attributes["tables"].items()}
    elements = {name: node.attributes["kernel"][name][0] for name in "qkv"}
    whole = np.zeros(max(elements.values()) + 1, np.float16)
    launcher = StreamLauncher(Torch(), job)
    launcher.poison = True
    # A view that begins in the middle of 16 bytes is copied, the whole tensor is read where it stands.
    operands = {"q": whole[1 : 1 + elements["q"]], "k": whole[: elements["k"]], "v": whole[: elements["v"]]}
    (made,) = launcher(PointedBackend("fp16"), node.attributes, operands, tables)
    ((launch, stream),) = launcher.gpu.launches  # type: ignore[attr-defined]
    given = dict(zip(node.attributes["parameters"], launch.arguments, strict=True))
    assert stream == 77
    assert (launch.grid, launch.entry) == (len(tables["jobs"]), "sparse_attention")
    assert launch.code == (job / node.attributes["cubins"]["sm_90a"]).read_bytes()
    assert given["q"] % 16 == 0
    assert given["q"] != operands["q"].ctypes.data
    assert given["k"] == given["v"] == whole.ctypes.data
    assert given["rows"] == tables["rows"].data_ptr()
    assert (given["batch"], given["y"]) == (np.int32(1), made.data_ptr())
    assert np.isnan(made).all()
    assert made.shape == tuple(node.attributes["results"]["y"])


def test_ratios_are_shown() -> None:
    times = {
        name: {state: {"median_us": us} for state in ("warm", "cold")}
        for name, us in {"original": 400.0, "ours": 200.0, "ceiling": 150.0, "sdpa": 300.0}.items()
    }
    checks = {name: {"passed": True} for name in times}
    launches = {name: {"operators": 10} for name in times}
    sites = {"attention": {"found": 3, "rewritten": 2}}
    result = {"name": "m", "passed": True, "sites": sites, "checks": checks, "launches": launches, "times": times}
    text = shown(result)
    assert "m: 2 of 3 attention sites rewritten" in text
    assert "ours 2.00 times as fast as the original, 1.50 times as fast as sdpa" in text
    assert "75% of the ceiling, attention 5.00 times as fast" in text

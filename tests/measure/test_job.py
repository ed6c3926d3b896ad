"""A job folder: complete, independent of the rest of onnxopt, and run on the CPU before a GPU ever sees it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.measure.job.build import Request, build_job, carry_modules
from onnxopt.measure.job.content import FILE, read_job
from onnxopt.measure.job.device import Launch
from onnxopt.measure.job.runner import main, run_entry
from onnxopt.measure.job.strips import strip_tables
from onnxopt.measure.profiling import records_in
from onnxopt.measure.site_requests import site_request
from onnxopt.measure.tile_requests import AttentionShape, catalogue, tile_requests
from onnxopt.plan.tables import attention_tables
from onnxopt.target import load_target
from onnxopt.target.tile_records import SCHEMA
from onnxopt.target.variant import AttentionVariant
from onnxopt.validate import validate_attention_launch
from tests.plan.schedules import scheduled
from tests.plan.sites import Wish, made_site

_VARIANT = AttentionVariant("mma", 16, 32, 1, 2)
_SWAPPED = AttentionVariant("mma", 8, 32, 2, 2, swapped=True)


def _site_request(name: str, split: int) -> Request:
    site, shapes = made_site(Wish(heads=1, rows=17, keys=50, width=16, value_width=16), seed=1)
    schedule = scheduled(site, (_VARIANT,), split_keys=split, element="fp16")
    return site_request(name, schedule, attention_tables(site, schedule, shapes=shapes), batch=1)


def _tile_request() -> Request:
    gpu = load_target("sm_80").need_gpu_profile()
    variant = next(s.variant for s in catalogue(gpu, ["fp16"], ["attention"]) if "swapped" not in s.variant.describe())
    assert isinstance(variant, AttentionVariant)
    first = tile_requests(gpu, [AttentionShape("fp16", (16, 16), variant)])[0]
    kernel, tables = strip_tables(_VARIANT, "fp16", (16, 16), 16, 32, masked=True)
    return replace(first, kernel=kernel.to_json(), tables=tables, resident=1)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with a site, one with split keys, and a tile."""
    folder = tmp_path_factory.mktemp("job")
    requests = [_site_request("whole", 0), _site_request("split", 16), _tile_request()]
    build_job(folder, requests, ["sm_80"], workers=1)
    return folder


def test_a_dry_run_checks_every_entry(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.jsonl"
    code = main([str(job), "--dry-run", "--cache", str(tmp_path), "--out", str(results)])
    assert (code, capsys.readouterr().out.splitlines()[-1]) == (0, "3 passed, 0 failed, 0 left out")
    found = [json.loads(line) for line in results.read_text().splitlines()]
    # Partial results and their logarithms, then what the second kernel makes of them.
    assert [len(entry["outputs"]) for entry in found] == [1, 3, 1]
    assert all(output["elements"] > 100 for entry in found for output in entry["outputs"][:1])
    assert records_in(results) == ((), [])


def test_it_carries_all_that_the_runner_imports(job: Path) -> None:
    missing = ["onnx", "onnxruntime", "scipy", "pulp", "typer", "rich", "elftools"]
    program = f"""
import sys
sys.modules.update(dict.fromkeys({missing}))
import onnxopt.measure.job.runner
print(onnxopt.measure.job.runner.__file__)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=job, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(job)
    assert "onnxopt.verification.kernel_rule" in carry_modules(job)


def test_without_a_gpu_it_says_so(job: Path) -> None:
    done = subprocess.run([sys.executable, str(job / "run.py")], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 4
    assert "no CUDA driver" in done.stderr


def test_a_kernel_that_faults_ends_itself_only(job: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(job, broken)
    document = json.loads((broken / FILE).read_text())
    ptx = broken / document["entries"][0]["first"]["ptx"]
    ptx.write_text(ptx.read_text().replace("ex2.approx", "nonsense.approx"))
    for number in (0, 2):
        document["entries"][number]["id"] += " of three"
    (broken / FILE).write_text(json.dumps(document))
    results = tmp_path / "results.jsonl"
    code = main([str(broken), "--dry-run", "--only", "of three", "--cache", str(tmp_path), "--out", str(results)])
    assert code == 1
    first, second = [json.loads(line) for line in results.read_text().splitlines()]
    assert (first["passed"], second["passed"]) == (False, True)
    assert "nonsense" in first["problem"]


def test_a_wrong_table_fails(job: Path) -> None:
    class Wrong:
        """A device on which results lie one element further on."""

        architecture = "wrong"

        def describe(self) -> dict[str, object]:
            return {}

        def upload(self, array: object, *, output: bool = False) -> object:
            return array

        def download(self, handle: object, like: object) -> object:
            return like

        def run(self, launches: object) -> None: ...

        def release(self) -> None: ...

        def microseconds(self, launches: list[Launch], replays: int) -> None: ...

    result = run_entry(read_job(job), 0, Wrong(), False)  # type: ignore[arg-type]
    assert not result["passed"]
    assert "is nan" in result["problem"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema="onnxopt.job/9"), "onnxopt.job/9"),
        (lambda d: d["entries"][0].pop("batch"), "damaged"),
        (lambda d: d["entries"][0].update(tables="../../outside.npz"), "outside of the folder"),
    ],
)
def test_a_damaged_folder_is_refused(job: Path, tmp_path: Path, change: object, message: str) -> None:
    document = json.loads((job / FILE).read_text())
    change(document)  # type: ignore[operator]
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        read_job(tmp_path)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make gpu-job"):
        read_job(tmp_path)


@pytest.mark.parametrize("variant", [_VARIANT, _SWAPPED, AttentionVariant("wgmma", 64, 80, 4, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_strips_for_profiling_are_valid_launches(variant: AttentionVariant, masked: bool) -> None:
    rows = variant.rows - 3
    kernel, tables = strip_tables(variant, "fp16", (32, 32), rows, variant.keys + 5, masked=masked)
    validate_attention_launch(kernel.to_json(), tables, None)


def test_profiling_asks_for_every_shape(tmp_path: Path) -> None:
    gpu = load_target("sm_80").need_gpu_profile()
    requests = tile_requests(gpu, catalogue(gpu, ["fp16"])[::5])
    assert {request.kind for request in requests} == {"attention", "conv"}
    assert len({request.id for request in requests}) == len(requests) > 8
    assert all(request.record is not None and request.predicted_us > 0 for request in requests)
    done = {
        "schema": SCHEMA,
        **(requests[0].record or {}),
        "registers": 90,
        "shared_bytes": 1024,
        "nvrtc": "13.0",
        "source": "0123",
        "driver": "13.0",
        "gpu": "NVIDIA A100",
        "microseconds": 3.5,
        "clock_hz": 1.4e9,
        "date": "2026-11-20",
    }
    results = tmp_path / "results"
    results.write_text(json.dumps({"id": "a", "record": done}) + "\n" + json.dumps({"id": "b"}) + "\n")
    ((record,), problems) = records_in(results)
    assert (record.microseconds, record.variant, problems) == (3.5, done["variant"], [])

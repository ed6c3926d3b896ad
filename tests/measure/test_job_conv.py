"""Convolutions in a job folder: whole ones, with added partial rows, and parts for measuring tiles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.measure.job.build import Request, build_job
from onnxopt.measure.job.content import read_job
from onnxopt.measure.job.conv_operator import ConvOperator
from onnxopt.measure.job.device import Launch
from onnxopt.measure.job.parts import part_tables
from onnxopt.measure.job.runner import main
from onnxopt.measure.job.timing import tile_microseconds
from onnxopt.measure.tile_requests import ConvShape, catalogue, shapes_of, tile_requests
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.target import load_target
from onnxopt.target.tile_records import parse_tile_record
from onnxopt.target.variant import ConvVariant, Element
from onnxopt.validate import validate_conv_launch
from onnxopt.verification.conv_rule import plain_conv
from tests.kernels.conv_cases import WISHES, made_case

_LANES = ConvVariant("lanes", 4, 4, 64, 2, 1)
_MMA = ConvVariant("mma", 16, 16, 64, 2, 2)


def _request(wish: str, variant: ConvVariant, element: Element) -> Request:
    case = made_case(WISHES[wish], (variant,), element)
    own = case.tables.sum
    arrays = {**case.tables.arrays(), **({} if own is None else own.arrays())}
    second = None if own is None else own.kernel
    kernel = case.tables.kernel.to_json()
    return Request(wish, "conv", "site", kernel, arrays, second, 1, case.batch, 10, 20, 3.0, 1.0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with convolutions of one kernel and of two, and a tile."""
    folder = tmp_path_factory.mktemp("job")
    gpu = load_target("sm_80").need_gpu_profile()
    shape = ConvShape("fp16", (1, 1, 1), ConvVariant("lanes", 4, 4, 256, 2, 1))
    tile = replace(tile_requests(gpu, [shape])[0], resident=1)
    sites = [_request("folded images", _LANES, "bf16"), _request("added outputs", _LANES, "fp16")]
    build_job(folder, [*sites, tile], ["sm_80"], workers=1)
    return folder


def test_a_dry_run_checks_every_entry(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.jsonl"
    code = main([str(job), "--dry-run", "--cache", str(tmp_path), "--out", str(results)])
    assert (code, capsys.readouterr().out.splitlines()[-1]) == (0, "3 passed, 0 failed, 0 left out")
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [len(entry["outputs"]) for entry in found] == [1, 2, 1]
    assert all(output["elements"] > 500 for entry in found for output in entry["outputs"])


def test_a_tile_is_timed_by_waves_of_equal_jobs(job: Path) -> None:
    class Clock:
        """A device on which a block takes 2 us in each of 4 x 3 places, and a launch 5 us beside."""

        architecture = "sm_80"

        def describe(self) -> dict[str, Any]:
            return {"multiprocessors": 4, "shared_bytes": 64 << 10}

        def upload(self, array: object, *, output: bool = False) -> object:
            return array

        def microseconds(self, launches: list[Launch], replays: int) -> list[float]:
            (launch,) = launches
            jobs = launch.arguments[3]
            assert launch.grid <= len(jobs)
            return [5 + 2 * launch.grid / 12] * replays

    loaded = read_job(job)
    entry = replace(loaded.entries[2], resident=3)
    assert tile_microseconds(loaded, entry, Clock(), 0) == pytest.approx(2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("wish", ["folded images", "repeated outputs, channels last", "split inputs"])
def test_of_a_whole_launch_only_what_the_sample_writes_is_judged(wish: str) -> None:
    request = _request(wish, _MMA, "fp16")
    operator, kernel = ConvOperator(), request.kernel
    operands = operator.draw(kernel, 5, 1)
    whole = plain_conv(kernel, request.tables, operands)
    part = {**request.tables, "jobs": request.tables["jobs"][:1]}
    (kept,) = operator.only_written(kernel, part, [whole.reshape(5, -1)])
    assert np.array_equal(np.isnan(kept), np.isnan(plain_conv(kernel, part, operands)).reshape(5, -1))
    assert [judgement.passed for judgement in operator.judge(kernel, part, operands, [kept])] == [True]


@pytest.mark.parametrize("taps", [(1, 1, 1), (1, 3, 3), (3, 1, 5)])
@pytest.mark.parametrize("variant", [_MMA, _LANES, ConvVariant("wgmma", 64, 32, 192, 4, 3)])
def test_parts_for_profiling_are_valid_launches(variant: ConvVariant, taps: tuple[int, int, int]) -> None:
    kernel, tables = part_tables(variant, "bf16", taps, variant.outputs, variant.inputs * 4)
    validate_conv_launch(kernel.to_json(), tables)
    assert len(np.unique(tables["jobs"][:, [0, 2, 4, 7]], axis=0)) == 1


def test_the_planner_reads_what_was_measured() -> None:
    gpu = load_target("sm_80").need_gpu_profile()
    chosen = GroupConvCost.of(gpu, 9, 784, "fp16").variants()
    every = [shape for shape in catalogue(gpu, ["fp16"], ["conv"]) if isinstance(shape, ConvShape)]
    shape = next(s for s in every if s.taps == (1, 3, 3) and s.variant in chosen)
    records = []
    for request in tile_requests(gpu, [shape]):
        measured = {"microseconds": 3 * request.predicted_us, "gpu": gpu.name, "clock_hz": 1.4e9, "date": "2026-01-01"}
        compiled = {"registers": 90, "shared_bytes": 4096, "driver": "13.0", "nvrtc": "13.0", "source": "0"}
        line = json.dumps({**(request.record or {}), **measured, **compiled})
        records.append(parse_tile_record(line.encode()))
    plain, corrected = (GroupConvCost.of(gpu, 9, 784, "fp16", own) for own in ((), records))
    outputs, inputs = np.array(shape.variant.outputs), np.array(2 * shape.variant.inputs)
    assert corrected.measured
    assert not plain.measured
    times = [float(cost.part_us(shape.variant, outputs, inputs, 1)) for cost in (plain, corrected)]
    assert times[1] == pytest.approx(3 * times[0], rel=0.3)


def test_the_shapes_of_operators_are_what_their_kernels_are_compiled_in() -> None:
    requests = [_request("three by three", _MMA, "fp16"), _request("strided", _MMA, "fp16")]
    assert shapes_of([*requests, *requests]) == [ConvShape("fp16", (1, 3, 3), _MMA)]
    assert shapes_of(requests, ["attention"]) == []

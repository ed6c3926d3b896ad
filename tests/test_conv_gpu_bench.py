"""The convolution benchmark without a GPU: what its jobs hold, its dry run, its peers' shapes, and its sums."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import conv_gpu
from benchmarks.conv_gpu import main
from benchmarks.conv_gpu_collect import Collected, layer_bound_us
from benchmarks.conv_gpu_job import main as make_job
from benchmarks.conv_gpu_job import write_job
from benchmarks.conv_gpu_layers import FILE, GROUP_CONV, read_layers
from benchmarks.conv_gpu_peers import PYTORCH
from benchmarks.conv_gpu_results import shown, summary
from onnxopt.errors import InputError
from onnxopt.measure.job.algorithm_operator import AlgorithmOperator
from onnxopt.measure.job.content import read_job
from onnxopt.measure.job.device import Launch
from onnxopt.measure.job.emulated import Emulated
from onnxopt.measure.job.weights import weightless, with_weights
from onnxopt.measure.profiling import import_results
from onnxopt.plan.algorithms.geometry import layer_geometry
from onnxopt.target import load_target
from onnxopt.target.layer_records import stored_layers
from onnxopt.validate.reference_algorithms import layer_output

_SIZE = 6
_WAYS = (GROUP_CONV, "im2col")


def _model(path: Path, layers: list[tuple[int, int, int, int]]) -> Path:
    """Convolutions one after another, each with a ReLU: outputs, inputs, taps along an axis, groups."""
    rng = np.random.default_rng(0)
    nodes, constants, name = [], [], "x"
    for number, (outputs, inputs, taps, groups) in enumerate(layers):
        w = rng.standard_normal((outputs, inputs // groups, taps, taps), dtype=np.float32)
        constants.append(onnx.numpy_helper.from_array(w, f"w{number}"))
        pads = [taps // 2] * 4
        nodes.append(
            helper.make_node("Conv", [name, f"w{number}"], [f"c{number}"], f"conv{number}", group=groups, pads=pads)
        )
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
        name = f"r{number}"
    shapes = [("x", layers[0][1]), (name, layers[-1][0])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, _SIZE, _SIZE]) for n, c in shapes)
    graph = helper.make_graph(nodes, "layers", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Collected:
    """Two grouped layers that are alike, and a dense one by every algorithm."""
    folder = tmp_path_factory.mktemp("models")
    collected = Collected("sm_80", "fp16", programs)
    collected.add(_model(folder / "grouped.onnx", [(16, 16, 1, 4), (16, 16, 1, 4)]), algorithms=False)
    collected.add(_model(folder / "dense.onnx", [(8, 4, 3, 1)]), algorithms=True)
    return collected


@pytest.fixture(scope="module")
def job(found: Collected, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of both layers, with few of the ways to compute the dense one."""
    folder = tmp_path_factory.mktemp("jobs") / "job"
    few = copy(found)
    few.layers = {
        key: replace(layer, ways={way: name for way, name in layer.ways.items() if way in _WAYS})
        for key, layer in found.layers.items()
    }
    assert write_job(folder, few, workers=1) < 2_000_000
    return folder


def test_equal_layers_are_there_once_and_counted(found: Collected) -> None:
    grouped, dense = found.layers.values()
    assert (dict(grouped.networks), set(grouped.ways)) == ({"grouped": 2}, {GROUP_CONV})
    assert set(dense.ways) == {
        *("scalar_matrix", "kn2row", "im2col", "direct", "depthwise", "winograd_2x2", "winograd_4x4"),
        *("implicit_gemm/first", "implicit_gemm/last"),
    }
    assert grouped.connections == 16 * 4
    assert found.left_out == []


def test_a_dry_run_checks_all_ways_and_goes_on_where_it_ended(
    job: Path, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    code = main([str(job), "--dry-run", "--out", str(results), "--cache", str(programs)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "2 layers, 0 left; all agree with float64" in said
    first, second = (json.loads(line) for line in results.read_text().splitlines())
    assert [len(r["ours"]) for r in (first, second)] == [1, 1]
    assert all(own["passed"] and own["outputs"][0]["elements"] >= 288 for own in second["ours"].values())
    kept = results.read_bytes()
    assert main([str(job), "--dry-run", "--out", str(results)]) == 0
    assert results.read_bytes() == kept
    assert main([str(job), "--dry-run", "--only", "nothing"]) == 1
    with pytest.raises(InputError, match="no times of tiles or layers"):
        import_results(tmp_path / "store", results)


@pytest.mark.slow
def test_a_dry_run_checks_every_algorithm(
    found: Collected, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(tmp_path / "job", found, workers=1)
    results = tmp_path / "results.jsonl"
    code = main(
        [str(tmp_path / "job"), "--dry-run", "--only", "dense", "--out", str(results), "--cache", str(programs)]
    )
    assert code == 0, capsys.readouterr().out
    assert len(json.loads(results.read_text())["ours"]) == 9


class _Clock(Emulated):
    """The CPU runner of PTX as a GPU on which every launch takes 2 us."""

    def describe(self) -> dict[str, Any]:
        facts = {"gpu": "NVIDIA A100", "cuda_driver": "13.0", "l2_bytes": 2000, "largest_clock_hz": 1.4e9}
        return {**super().describe(), **facts}

    def microseconds(self, launches: Sequence[Launch], replays: int) -> list[float]:
        return [2.0 * len(launches)] * replays


def _torch() -> Any:
    """PyTorch as far as a peer's times need it; a replay of 20 calls takes 60 us."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda own: nullcontext(),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
        graph=lambda own: nullcontext(),
        Event=lambda enable_timing: SimpleNamespace(record=lambda: None, elapsed_time=lambda end: 0.06),
        synchronize=lambda: None,
    )
    cudnn = SimpleNamespace(version=lambda: 91500, flags=lambda **wanted: nullcontext())
    return SimpleNamespace(
        __version__="2.9", cuda=cuda, backends=SimpleNamespace(cudnn=cudnn), inference_mode=nullcontext
    )


def test_what_is_measured_becomes_records_of_layers(
    job: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(x: Any, residual: Any) -> Any:
        raise RuntimeError("no kernel for this layer\nand more")

    def makes(*_: Any) -> Iterator[tuple[str, str, Any]]:
        yield PYTORCH, "first", lambda x, residual: lambda: None
        yield "dense, channels last", "last", lambda x, residual: lambda: None
        yield "grouped, channels last", "last", refused

    monkeypatch.setattr(conv_gpu, "peers", makes)
    monkeypatch.setattr(conv_gpu, "operand_sets", lambda torch, conv, batch, sets, device: [(None, None)] * 4)
    layers = read_layers(job).layers
    layer = next(layer for layer in layers if layer.record is not None)
    result = conv_gpu.measure(read_job(job), layer, "fp16", _Clock(programs), _torch(), False)
    assert result["passed"]
    assert result["ours"]["im2col"]["cold_us"]["median_us"] == 4.0
    assert result["peers"][PYTORCH]["cold_us"] == {"median_us": 3.0, "low_us": 3.0, "high_us": 3.0, "sets": 4}
    assert result["peers"]["grouped, channels last"] == "RuntimeError: no kernel for this layer"
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(result) + "\n")
    assert import_results(tmp_path / "store", results) == (2, [])
    found = {(own.algorithm, own.layout): own for own in stored_layers(tmp_path / "store")}
    assert {key: own.microseconds for key, own in found.items()} == {("im2col", "first"): 4.0, ("keep", "last"): 3.0}
    assert found["keep", "last"].host == "PyTorch 2.9, cuDNN 91500"
    said = shown(result)
    assert "ours (im2col), cold: 4.00 us" in said
    assert "0.75 times as fast as the best peer (PyTorch)" in said


def test_a_wrong_step_is_noticed(job: Path) -> None:
    read = read_job(job)
    entry = next(entry for entry in read.entries if entry.id.endswith("im2col"))
    operator = AlgorithmOperator()
    tables, operands = read.tables(entry), operator.draw(entry.kernel, 1, 3)
    y = np.full((1, 8, _SIZE * _SIZE), np.nan, np.float32)
    (judgement,) = operator.judge(entry.kernel, tables, operands, [y])
    assert not judgement.passed
    part = {"jobs": tables["jobs"][:2]}
    layer = {**entry.kernel["layer"], "output_channels": 2}
    y[:, :2] = layer_output(layer, operands.x, operands.weights[:2], operands.b[:2])
    (judgement,) = operator.judge(entry.kernel, part, operands, [y])
    assert "was not written" in judgement.explain()
    y[:, 2:] = 0.0
    assert operator.judge(entry.kernel, part, operands, [y])[0].passed


def test_the_folder_stands_alone_and_says_that_no_gpu_is_there(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job, tmp_path / "job")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "job" / "conv_gpu.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "no CUDA driver was found" in done.stderr


def test_a_damaged_folder_is_refused(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"conv_gpu_job has written"):
        read_layers(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({**json.loads((job / FILE).read_text()), "layers": [{"id": 1}]}))
    with pytest.raises(InputError, match="damaged"):
        read_layers(tmp_path)
    assert make_job(["--out", str(tmp_path / "job")]) == 2
    assert "name models" in capsys.readouterr().err


@pytest.mark.parametrize("element", ["fp16", "bf16"])
def test_weights_are_drawn_where_the_layer_has_them(element: str) -> None:
    w = np.zeros(1000, np.float32)
    w[::3] = 0.1
    tables = weightless({"w": w, "b": np.ones(3)}, 7)
    assert sum(table.nbytes for table in tables.values()) < 200
    drawn = with_weights(dict(tables), element)
    assert set(drawn) == {"w", "b"}
    assert np.array_equal(drawn["w"] != 0, w != 0)
    assert np.std(drawn["w"][::3]) == pytest.approx(0.1, rel=0.15)
    assert np.array_equal(drawn["w"], with_weights(dict(tables), element)["w"])


def test_sums_choose_the_fastest_and_name_what_we_lose(found: Collected, tmp_path: Path) -> None:
    grouped, dense = found.layers.values()

    def timed(us: float) -> dict[str, Any]:
        return {"passed": True, "cold_us": {"median_us": us}, "warm_us": {"median_us": us / 2}}

    results: dict[str, dict[str, Any]] = {
        grouped.id: {"ours": {GROUP_CONV: timed(4.0)}, "peers": {PYTORCH: timed(12.0), "dense": timed(6.0)}},
        dense.id: {
            "ours": {"im2col": timed(5.0), "direct": timed(3.0)},
            "peers": {PYTORCH: timed(9.0), "dense": timed(2.0), "split": "RuntimeError: none"},
        },
    }
    for result in results.values():
        result["bound_us"] = 2.0
    said = "\n".join(summary(list(found.layers.values()), results))
    assert "grouped: 2 convolutions, 1 distinct\n  ours: 8.0 us" in said
    assert "  PyTorch: 24.0 us" in said
    assert "  direct alone: 3.0 us" in said
    assert "  kn2row alone: 2.0 us" in said
    assert "the fastest of each layer, conversions free: 2.0 us, 1.00 times" in said
    assert "3.00 times as fast as PyTorch" in said
    assert f"1 of 2 layers lose, and keep their nodes:\n  {dense.id}: 3.00 us, the best peer 2.00 us" in said


def test_records_of_layers_are_imported(found: Collected, tmp_path: Path) -> None:
    dense = list(found.layers.values())[1]
    own = found.requests[dense.ways["direct"]].record
    assert own is not None
    measured = {"gpu": "NVIDIA A100", "driver": "13.0", "host": "onnxopt", "nvrtc": "13.0", "source": "0"}
    record = {**own, **measured, "microseconds": 3.5, "clock_hz": 1.4e9, "date": "2026-01-01"}
    lines = [{"id": "a", "passed": True, "layers": [record, {**record, "layout": "up"}]}, {"id": "b", "passed": True}]
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(map(json.dumps, lines)))
    count, problems = import_results(tmp_path / "store", results)
    assert (count, [number for number, _ in problems]) == (1, [1])
    (stored,) = stored_layers(tmp_path / "store")
    assert (stored.algorithm, stored.microseconds, stored.shape.outputs) == ("direct", 3.5, 8)


def test_the_bound_is_the_longest_of_products_bytes_and_a_launch() -> None:
    gpu = load_target("sm_90").need_gpu_profile()
    small, large = layer_geometry((6, 6), (8, 4, 3, 3)), layer_geometry((56, 56), (512, 512, 3, 3))
    assert layer_bound_us(small, "fp16", gpu, 1) == pytest.approx(gpu.launch_seconds * 1e6)
    products = 2 * 512 * 512 * 9 * 54 * 54 * 8 / gpu.fp16_flops * 1e6
    assert layer_bound_us(large, "fp16", gpu, 8) == pytest.approx(products)

"""Whole models by each convolution algorithm and by the choice, as a job: on NumPy and with the kernels' PTX."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.whole_model_algorithms import VERSIONS, drawn_weights
from benchmarks.whole_model_check import judge_programs
from benchmarks.whole_model_gpu import JOB, main
from benchmarks.whole_model_gpu_job import build_job
from benchmarks.whole_model_gpu_job import main as make_job
from benchmarks.whole_model_kernels import REFERENCES
from benchmarks.whole_model_launches import KINDS
from benchmarks.whole_model_program import LAUNCH, read_program
from benchmarks.whole_model_results import chosen, shown
from benchmarks.whole_model_weights import WeightMaker, drawn_recipe
from onnxopt.errors import InputError
from onnxopt.plan.algorithms.options import IMPLICIT_GEMM
from onnxopt.plan.algorithms.steps import ALGORITHMS
from samples.builder import GraphBuilder
from samples.convolution import batch_norm, conv
from tests.lower.algorithm_models import measured_to_win

NAME = "layer"
STEPS = {
    "scalar_matrix": ["ConvScalar"],
    "kn2row": ["ConvProduct", "ConvShiftAdd"],
    "im2col": ["ConvUnfold", "ConvProduct"],
    "direct": ["ConvDirect"],
    "depthwise": ["ConvSlices", "SumConv"],
    "winograd_2x2": ["WinogradInput", "ConvProduct", "WinogradOutput"],
    "winograd_4x4": ["WinogradInput", "ConvProduct", "WinogradOutput"],
    IMPLICIT_GEMM: ["GroupConv"],
}
QUICK = ("by kn2row", "by winograd_2x2")


def layer() -> onnx.ModelProto:
    """A 3x3 layer with normalisation, residual and activation."""
    g = GraphBuilder(NAME, seed=3)
    x = g.input("x", 20, 9, 7)
    y, _ = conv(g, x, 20, 20, (3, 3))
    g.output("y", g.op("Relu", g.op("Add", batch_norm(g, y, 20), x)), 20, 9, 7)
    return g.model()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose choice has a measured time to go by: that of ``direct``."""
    folder = tmp_path_factory.mktemp("algorithms")
    onnx.save(layer(), folder / f"{NAME}.onnx")
    cache = measured_to_win(layer(), "direct", folder / "cache", element="fp16")
    build_job(folder / "job", [], algorithms=[folder / f"{NAME}.onnx"], cache=cache)
    return folder / "job"


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What the model's process prints."""
    assert main([*arguments, "--model", NAME, "--dry-run", "--numpy"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.partition("result: ")[2])
    return found


def restricted(job: Path, folder: Path, versions: Sequence[str]) -> Path:
    """A copy of the job with the original and some versions only."""
    shutil.copytree(job, folder)
    document = json.loads((folder / JOB).read_text())
    (entry,) = document["models"]
    entry["programs"] = {name: entry["programs"][name] for name in ("original", *versions)}
    (folder / JOB).write_text(json.dumps(document))
    return folder


def test_every_algorithm_takes_the_layers_place_and_agrees(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, str(job))
    assert result["passed"], result
    assert set(result["algorithms"]) == set(VERSIONS)
    for name in (IMPLICIT_GEMM, *ALGORITHMS):
        version = result["algorithms"][f"by {name}"]
        assert version["layers"] == {name: 1}
        assert version["winograd"] == name.startswith("winograd")
        read = version["same"] or f"by {name}"
        program = read_program(job, f"{NAME}/{read.replace(' ', '_')}.json")
        assert [n.attributes["kind"] for n in program.nodes if n.op == LAUNCH] == STEPS[name]
        assert result["checks"][read]["max_error"] > 0
    predicted = [version["predicted_us"] for name, version in result["algorithms"].items() if name != "by direct"]
    assert 0 < result["bound_us"] <= sorted(predicted)[-1]


def test_the_choice_knows_measured_times(job: Path) -> None:
    (entry,) = json.loads((job / JOB).read_text())["models"]
    versions = entry["algorithms"]
    assert versions["choice"]["layers"] == {"direct": 1}
    assert versions["choice"]["predicted_us"] == pytest.approx(0.01)
    # What chooses alike is there once.
    assert [versions[name]["same"] for name in ("choice", "choice without keep", "by direct")] == [
        None,
        "choice",
        "choice",
    ]
    assert "by direct" not in entry["programs"]


@pytest.mark.parametrize(
    "versions",
    [
        QUICK,
        pytest.param(
            ("choice", "by im2col", "by depthwise", "by scalar_matrix", "by implicit_gemm", "by winograd_4x4"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_steps_own_ptx_takes_their_place(
    versions: Sequence[str],
    job: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = restricted(job, tmp_path / "job", versions)
    # Only kernels may compute the steps: with the references gone nothing else is there.
    monkeypatch.delattr("benchmarks.whole_model_gpu.ReferenceLauncher")
    emulated = result_of(capsys, str(own), "--emulate")
    assert emulated["passed"], emulated
    assert set(emulated["checks"]) == {"original", *versions}
    assert all(0 < emulated["checks"][name]["max_error"] < 0.02 for name in versions)


def test_weights_do_not_travel(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(np.load(file).size for file in (job / "constants").iterdir())
    assert largest < 20 * 20
    maker = WeightMaker()
    drawn = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or real(seed))
    (entry,) = json.loads((job / JOB).read_text())["models"]
    for file in entry["programs"].values():
        program = read_program(job, file, maker)
        assert any(array.size >= 20 * 20 * 9 for array in program.constants.values())
    assert len(drawn) == 1


def test_drawn_weights_are_those_of_the_reference(job: Path) -> None:
    model = layer()
    recipes = drawn_weights(model, 41)
    ((name, recipe),) = recipes.items()
    stored = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)
    original = read_program(job, f"{NAME}/original.json")
    np.testing.assert_array_equal(original.constants[name].astype(np.float32), stored)
    before = next(numpy_helper.to_array(t) for t in layer().graph.initializer if t.name == name)
    assert np.std(stored) == pytest.approx(np.std(before), rel=0.1)
    np.testing.assert_array_equal(WeightMaker().drawn(recipe), stored)


def test_no_drawn_number_is_zero() -> None:
    drawn = WeightMaker().drawn(drawn_recipe(np.full((512, 512), 1e-3, np.float32), 1))
    assert np.count_nonzero(drawn) == drawn.size
    assert np.abs(drawn).min() < 1e-6


def test_masked_weights_stay_what_they_are() -> None:
    model = layer()
    (weights,) = (t for t in model.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(weights).copy()
    values[:, ::2] = 0
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    assert drawn_weights(model, 41) == {}
    np.testing.assert_array_equal(numpy_helper.to_array(weights), values)


def test_another_generator_is_noticed() -> None:
    recipe = {"drawn": {**drawn_recipe(np.ones((4, 5), np.float32), 1)["drawn"], "seed": 2}}
    with pytest.raises(InputError, match="draws other numbers from seed 2"):
        WeightMaker().drawn(recipe)


def test_wrong_weights_are_noticed(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = restricted(job, tmp_path / "job", ["by im2col"])
    path = broken / NAME / "by_im2col.json"
    document = json.loads(path.read_text())
    (recipe,) = (own for own in document["constants"].values() if not isinstance(own, str))
    recipe["scales"][3] *= -1
    path.write_text(json.dumps(document))
    result = result_of(capsys, str(broken))
    assert not result["passed"]
    assert result["problem"].startswith("by im2col: ")


def test_every_step_is_launched_and_has_a_reference() -> None:
    kinds = {kind for steps in STEPS.values() for kind in steps}
    assert kinds <= set(KINDS)
    assert set(KINDS) == set(REFERENCES)


def test_winograd_may_be_off_by_more_but_not_by_anything() -> None:
    rng = np.random.default_rng(0)
    exact, noise = rng.standard_normal((2, 1, 1000)), 1e-3 * rng.standard_normal((2, 1, 1000))
    found = {name: [[exact[n] + factor * noise[n]] for n in range(2)] for name, factor in [("original", 1), ("a", 12)]}
    reference = [[exact[n]] for n in range(2)]
    assert not judge_programs(reference, found)["a"]["passed"]
    assert judge_programs(reference, found, ["a"])["a"]["passed"]
    wrong = {**found, "a": [[exact[n] + 80 * noise[n]] for n in range(2)]}
    assert "allowed 0.05" in judge_programs(reference, wrong, ["a"])["a"]["problem"]


def test_times_ratios_and_shares_of_the_bound_are_shown() -> None:
    layers = {"layers": {"im2col": 2, "keep": 1}, "predicted_us": 1.0, "winograd": False}
    times = {"original": 400.0, "original, channels last": 250.0, "by im2col": 800.0}
    result = {
        "name": "m",
        "passed": True,
        "sites": {"conv": {"found": 3, "rewritten": 0}},
        "checks": {name: {"passed": True} for name in times},
        "launches": {name: {"operators": 9} for name in times},
        "algorithms": {"by im2col": {**layers, "same": None}, "choice": {"layers": {"keep": 3}, "same": "original"}},
        "bound_us": 100.0,
        "times": {name: {state: {"median_us": us} for state in ("warm", "cold")} for name, us in times.items()},
    }
    lines = shown(result).splitlines()
    assert lines[0] == "m: 3 layers by each algorithm"
    assert "    original, channels last: 250.0 us, 1.60 times as fast as the original, 40% of the bound" in lines
    assert lines[-2].strip().startswith("choice: 400.0 us, 1.00 times as fast")
    assert lines[-2].endswith("(3 keep; as original)")
    assert lines[-1].endswith("0.50 times as fast as the original, 12% of the bound (2 im2col, 1 keep)")
    assert chosen({**layers, "same": None}) == "2 im2col, 1 keep"


def test_one_name_twice_is_refused(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(job.parent / f"{NAME}.onnx")
    assert make_job([model, "--algorithms", model, "--out", str(tmp_path / "job")]) == InputError("").exit_code
    assert "2 models of 1 names" in capsys.readouterr().err

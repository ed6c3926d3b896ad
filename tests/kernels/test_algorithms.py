"""The kernels of the convolution algorithms, emulated: their steps in sequence, in three orders of lanes.

A sample of algorithms, layers, types and architectures runs every time, all of them with ``make test-all``.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import OnnxOptError
from onnxopt.kernels.algorithm_source import ALGORITHM_FILES, algorithm_source
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.plan.algorithms import tiles
from onnxopt.plan.algorithms.geometry import LayerGeometry, layer_geometry
from onnxopt.plan.algorithms.packing import packed_weights
from onnxopt.plan.algorithms.steps import ALGORITHMS, AlgorithmStep, algorithm_refusal, algorithm_steps
from onnxopt.resources import resource_dir
from onnxopt.target.architecture import LACKING_TYPES
from onnxopt.target.variant import Element
from onnxopt.verification.algorithm_kernels import check_algorithm, check_step
from onnxopt.verification.algorithm_rule import bound_share, draw_layer, judge_layer, plain_winograd, winograd_bound
from tests.kernels.algorithm_bugs import BUGS
from tests.kernels.planted_bugs import Bug
from tests.validate.test_reference_algorithms import CASES

_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
_ELEMENTS: tuple[Element, ...] = ("fp16", "bf16", "tf32", "fp32")

# Algorithm, layer, type, architecture, activation, residual.
_SAMPLE: tuple[tuple[str, str, Element, str, str, bool], ...] = (
    ("scalar_matrix", "3x3 dilation 2", "fp32", "sm_75", "none", True),
    ("kn2row", "1x7", "bf16", "sm_90a", "hardswish", True),
    ("im2col", "3x3 asymmetric", "fp32", "sm_80", "silu", True),
    ("direct", "7x1", "fp16", "sm_100a", "silu", False),
    ("depthwise", "3x3", "fp16", "sm_80", "relu", True),
    ("depthwise", "depthwise multiplier", "fp16", "sm_89", "hardswish", False),
    ("winograd_2x2", "3x3 asymmetric", "fp16", "sm_75", "relu", True),
    ("winograd_4x4", "3x3 asymmetric", "tf32", "sm_120", "none", False),
)


def _possible() -> list[object]:
    """All algorithms on all layers that they compute, types and architectures in turn."""
    pairs = [(name, case) for name in ALGORITHMS for case in CASES if not algorithm_refusal(name, CASES[case])]
    kinds = [(e, t) for e in _ELEMENTS for t in ("sm_80", "sm_75", "sm_90a") if e not in LACKING_TYPES.get(t, ())]
    return [(name, case, *kind) for (name, case), kind in zip(pairs, cycle(kinds), strict=False)]


@pytest.mark.parametrize(
    ("name", "case", "element", "architecture", "activation", "residual"), _SAMPLE, ids=lambda v: str(v)
)
def test_a_sample_of_algorithms_computes_the_convolution(
    name: str, case: str, element: Element, architecture: str, activation: str, residual: bool, programs: Path
) -> None:
    check = check_algorithm(
        name, CASES[case], element, architecture, activation=activation, residual=residual, cache=programs
    )
    assert check.passed, check.explain()
    assert len(check.whole) == 3
    print(check.explain())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case", "element", "architecture"), _possible(), ids=lambda v: str(v))
def test_every_algorithm_computes_every_layer(
    name: str, case: str, element: Element, architecture: str, programs: Path
) -> None:
    check = check_algorithm(name, CASES[case], element, architecture, activation="silu", residual=True, cache=programs)
    assert check.passed, check.explain()
    print(check.explain())


def test_the_sample_has_every_step_type_and_layer_that_differs() -> None:
    assert {row[0] for row in _SAMPLE} == set(ALGORITHMS)
    assert {row[2] for row in _SAMPLE} == set(_ELEMENTS)
    operators = {s.operator for row in _SAMPLE for s in algorithm_steps(row[0], CASES[row[1]], row[2])}
    assert operators == {*ALGORITHM_FILES, "SumConv"}
    possible = {(row[0], row[1]) for row in _possible()}  # type: ignore[index]
    assert {(row[0], row[1]) for row in _SAMPLE} <= possible
    assert {case for _, case in possible} == set(CASES)


def _with_tile(step: AlgorithmStep, tile: tiles.ProductTile) -> AlgorithmStep:
    own = {
        "block_rows": tile.rows,
        "block_positions": tile.positions,
        "warps": tile.warps,
        "row_warps": tile.row_warps,
        "stages": tile.stages,
    }
    return replace(step, kernel={**step.kernel, **own})


def _tile_cases() -> list[object]:
    kinds = cycle([("fp16", "sm_80"), ("fp32", "sm_80"), ("fp32", "sm_75"), ("bf16", "sm_90a"), ("tf32", "sm_86")])
    return [(tile, *kind) for tile, kind in zip(tiles.PRODUCT_TILES, kinds, strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "element", "architecture"), _tile_cases(), ids=lambda v: str(v)[:60])
def test_every_tile_of_the_matrix_product(
    tile: tiles.ProductTile, element: Element, architecture: str, programs: Path
) -> None:
    """More rows than one tile has, positions that no tile divides, a depth of several steps and a rest."""
    geometry = layer_geometry((11, 13), (150, 70, 1, 1))
    steps = [_with_tile(step, tile) for step in algorithm_steps("im2col", geometry, element)]
    check = check_algorithm("im2col", geometry, element, architecture, steps=steps, batch=1, cache=programs)
    assert check.passed, check.explain()


_BUG_CASES: dict[str, tuple[str, LayerGeometry]] = {
    "product": ("im2col", layer_geometry((6, 6), (40, 70, 1, 1))),
    "direct": ("direct", layer_geometry((6, 8), (6, 40, 1, 3), dilations=(1, 2), pads=(0, 2, 0, 2))),
    "slices": ("depthwise", layer_geometry((6, 5), (4, 18, 1, 1))),
    "unfold": ("im2col", CASES["3x3 asymmetric"]),
    "winograd": ("winograd_2x2", layer_geometry((4, 6), (4, 5, 3, 3), pads=(1, 1, 1, 1))),
    "kn2row": ("kn2row", layer_geometry((6, 5), (4, 3, 1, 2), pads=(0, 1, 0, 0))),
    "scalar": ("scalar_matrix", layer_geometry((6, 5), (4, 6, 1, 2))),
}
_QUICK = ("direct", "kn2row")


def _problem(case: str, folder: Path | None, cache: Path) -> str:
    name, geometry = _BUG_CASES[case]
    try:
        check = check_algorithm(
            name, geometry, "fp16", "sm_80", activation="relu", residual=True, folder=folder, cache=cache
        )
    except OnnxOptError as error:
        return f"{type(error).__name__}: {error}"
    return "" if check.passed else check.explain()


@pytest.mark.slow
@pytest.mark.parametrize("case", _BUG_CASES)
def test_the_kernels_as_they_are_pass(case: str, programs: Path) -> None:
    assert _problem(case, None, programs) == ""


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, id=bug.name, marks=() if bug.case in _QUICK else pytest.mark.slow) for bug in BUGS],
)
def test_a_planted_bug_is_noticed(bug: Bug, tmp_path: Path, programs: Path) -> None:
    shutil.copytree(resource_dir("cuda"), tmp_path / "cuda")
    path = tmp_path / "cuda" / bug.file
    text = path.read_text()
    assert text.count(bug.before) == 1, f"{bug.name}: its text must stand once in {bug.file}"
    path.write_text(text.replace(bug.before, bug.after))
    assert _problem(bug.case, tmp_path / "cuda", programs) != ""


def test_winograd_is_judged_by_a_bound_that_follows_the_numbers() -> None:
    geometry = CASES["3x3"]
    layer = geometry.to_json()
    operands = draw_layer(layer, "fp16", False, 1, 0)
    bounds = {
        (name, element): winograd_bound(name, layer, element, "none", operands)
        for name in ("winograd_2x2", "winograd_4x4")
        for element in _ELEMENTS
    }
    for element in _ELEMENTS:
        assert bounds["winograd_4x4", element].mean() > 5 * bounds["winograd_2x2", element].mean()
    assert (bounds["winograd_2x2", "bf16"] > 7 * bounds["winograd_2x2", "fp16"]).all()
    assert (bounds["winograd_2x2", "fp32"] < 0.02 * bounds["winograd_2x2", "fp16"]).all()
    exact = judge_layer("direct", layer, "fp32", "none", operands, np.zeros((1, 10, 72)))
    assert not exact.passed
    doubled = replace(operands, x=2 * operands.x)
    larger = winograd_bound("winograd_2x2", layer, "fp32", "none", doubled)
    assert np.allclose(larger, 2 * bounds["winograd_2x2", "fp32"], rtol=0.1)
    wrong = judge_layer("winograd_2x2", layer, "fp16", "none", operands, np.zeros((1, 10, 72)))
    assert not wrong.passed
    far = judge_layer("winograd_2x2", layer, "fp16", "none", operands, np.full((1, 10, 72), 1e3))
    assert "allowed: an error of" in far.explain()


@pytest.mark.parametrize("name", ["winograd_2x2", "winograd_4x4"])
@pytest.mark.parametrize("element", _ELEMENTS)
def test_a_plain_winograd_is_within_its_bound_for_every_draw(name: str, element: Element) -> None:
    layer = CASES["3x3 asymmetric"].to_json()
    for seed in range(5):
        operands = draw_layer(layer, element, True, 1, seed)
        y = plain_winograd(name, layer, element, "hardswish", operands)
        judgement = judge_layer(name, layer, element, "hardswish", operands, y)
        assert judgement.passed, judgement.explain()
        share = bound_share(name, layer, element, "hardswish", operands)
        assert share is not None
        assert 2 * judgement.max_error < share


def test_a_package_checks_steps_one_by_one_on_their_first_blocks(programs: Path) -> None:
    geometry = layer_geometry((20, 20), (33, 24, 1, 1))
    (step,) = algorithm_steps("im2col", geometry, "bf16", activation="relu", residual=True)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((33, 24))
    constants = {**packed_weights("im2col", geometry, "bf16", [step], weights), "b": np.ones(33, np.float32)}
    compiled = compile_kernel(algorithm_source(step.operator, step.kernel), "sm_80", programs)
    check = check_step(compiled, step.operator, step.kernel, constants, blocks=3, cache=programs)
    assert check.passed, check.worst().explain()
    assert check.jobs == 3
    assert 1000 < check.judgements[0].elements < 2 * 33 * 400

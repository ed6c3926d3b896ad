"""The kernel of blocks of convolutions, emulated: the networks' forms, odd sizes, both types, and planted bugs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import InputError, OnnxOptError
from onnxopt.kernels.block_source import conv_block_arguments, conv_block_source
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.plan.block import BlockShape, BlockTables, block_work
from onnxopt.plan.tables import NoTables
from onnxopt.resources import resource_dir
from onnxopt.target.variant import Element
from onnxopt.validate import PlanError
from onnxopt.validate.block_contents import validate_block_contents
from onnxopt.validate.block_launch import validate_block_launch
from onnxopt.validate.reference_block import conv_block
from onnxopt.verification.block_kernels import draw_block_operands, expected_block
from tests.kernels.block_cases import SMALL, WIDE, WISHES, check_case, made_block, made_case
from tests.kernels.planted_bugs import Bug

CASES: list[tuple[str, BlockShape, str, Element]] = [
    ("shuffle", SMALL, "sm_75", "fp16"),
    ("shuffle of stride 2", SMALL, "sm_90a", "fp16"),
    ("odd channels, 7 x 7", WIDE, "sm_80", "bf16"),
    ("condense", SMALL, "sm_89", "fp16"),
]
_CHOSEN = {name for name, *_ in CASES}
_TURNS: tuple[tuple[BlockShape, str, Element], ...] = (
    (SMALL, "sm_120", "bf16"),
    (WIDE, "sm_75", "fp16"),
    (BlockShape(4, 4, 2, 1, 128), "sm_100a", "fp16"),
)
FURTHER = [(name, *_TURNS[i % len(_TURNS)]) for i, name in enumerate(n for n in WISHES if n not in _CHOSEN)]

_FOLDER = "conv/block"
BUGS = (
    Bug(
        "a halo row is missing",
        "shuffle",
        f"{_FOLDER}/job.cuh",
        "return {next.begin * kNext.strides.h - kNext.pads.h,",
        "return {next.begin * kNext.strides.h - (next.begin ? 0 : kNext.pads.h),",
    ),
    Bug(
        "the last stage does not wait for the one before",
        "shuffle",
        f"{_FOLDER}/conv_block.cu",
        "        __syncthreads();\n        compute_last",
        "        compute_last",
    ),
    Bug(
        "a step does not wait for its inputs",
        "shuffle",
        f"{_FOLDER}/first_stage.cuh",
        "            store(channels_now_, buffer ^ 1);\n            __syncthreads();",
        "            store(channels_now_, buffer ^ 1);",
    ),
    Bug(
        "weights are not waited for",
        "shuffle",
        f"{_FOLDER}/first_stage.cuh",
        "        wait_copies<0>();",
        "        wait_copies<1>();",
    ),
    Bug(
        "results go to the neighbouring slot",
        "shuffle",
        f"{_FOLDER}/patch.cuh",
        "patch.memory[place + slots.y]",
        "patch.memory[place + (slots.y ^ 1)]",
    ),
    Bug(
        "zeros around the image are left out",
        "shuffle",
        f"{_FOLDER}/conv_block.cu",
        "    patch.clear();\n",
        "",
    ),
    Bug(
        "results between stages keep no activation",
        "shuffle",
        f"{_FOLDER}/patch.cuh",
        "converted<T>(activated<kActivation>(own[0] + bias.x))",
        "converted<T>(own[0] + bias.x)",
    ),
)


@pytest.mark.parametrize(("name", "shape", "architecture", "element"), CASES)
def test_blocks_agree_with_float64(
    name: str, shape: BlockShape, architecture: str, element: Element, programs: Path
) -> None:
    check = check_case(WISHES[name], shape, architecture, element, programs)
    assert check.passed, check.worst()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "architecture", "element"), FURTHER)
def test_further_blocks_agree_with_float64(
    name: str, shape: BlockShape, architecture: str, element: Element, programs: Path
) -> None:
    check = check_case(WISHES[name], shape, architecture, element, programs)
    assert check.passed, check.worst()


@pytest.mark.parametrize("bug", BUGS[:2], ids=lambda bug: bug.name)
def test_planted_bugs_are_noticed(bug: Bug, programs: Path, tmp_path: Path) -> None:
    assert _noticed(bug, programs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS[2:], ids=lambda bug: bug.name)
def test_further_planted_bugs_are_noticed(bug: Bug, programs: Path, tmp_path: Path) -> None:
    assert _noticed(bug, programs, tmp_path)


def _noticed(bug: Bug, programs: Path, tmp_path: Path) -> bool:
    folder = tmp_path / "cuda"
    shutil.copytree(resource_dir("cuda"), folder)
    source = (folder / bug.file).read_text()
    assert source.count(bug.before) == 1
    (folder / bug.file).write_text(source.replace(bug.before, bug.after))
    wish = replace(WISHES[bug.case], size=(6, 8), inputs=72)
    try:
        return not check_case(wish, SMALL, "sm_80", "fp16", programs, folder=folder).passed
    except OnnxOptError:
        return True


@pytest.mark.parametrize("name", WISHES)
def test_tables_compute_what_the_convolutions_do(name: str) -> None:
    """The reference of the tables against the convolutions themselves, one behind the other."""
    case = made_case(WISHES[name], SMALL, "fp16")
    kernel, arrays = case.tables.kernel.to_json(), case.tables.arrays()
    operands = draw_block_operands(kernel, 2, seed=1)
    found = conv_block(kernel, arrays, operands.data, operands.residual)
    wanted = _plainly(name, operands.data, operands.residual)
    assert np.abs(found - wanted.reshape(found.shape)).max() <= 2e-3 * np.abs(wanted).max()


def _plainly(name: str, x: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    work = made_block(WISHES[name], 3)
    values = x.reshape(len(x), work.stages[0].channels, *work.stages[0].size).astype(np.float64)
    for conv in work.stages:
        values = values[:, conv.reads]
        if conv.input_scales is not None and conv.input_shifts is not None:
            values = values * conv.input_scales[:, None, None] + conv.input_shifts[:, None, None]
            values = np.maximum(values, 0)
        (top, left, bottom, right), (high, wide) = conv.pads, conv.output_size
        padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        sums = np.zeros((len(x), len(conv.weights), high, wide))
        for row, column in np.ndindex(*conv.weights.shape[2:]):
            first, second = row * conv.dilations[0], column * conv.dilations[1]
            part = padded[:, :, first :: conv.strides[0], second :: conv.strides[1]][:, :, :high, :wide]
            sums += np.einsum("oi,bihw->bohw", conv.weights[:, :, row, column], part)
        values = np.einsum("co,bohw->bchw", conv.sums, sums + (0 if conv.bias is None else conv.bias[:, None, None]))
        if conv.residual and residual is not None:
            values += residual.reshape(values.shape)
        values = {
            "none": lambda v: v,
            "relu": lambda v: np.maximum(v, 0),
            "silu": lambda v: v / (1 + np.exp(-v)),
            "hardswish": lambda v: v * np.clip(v / 6 + 0.5, 0, 1),
        }[conv.activation](values)
    return np.asarray(values)


def _changed(tables: BlockTables, name: str, place: Any, value: Any) -> BlockTables:
    array = getattr(tables, name).copy()
    array[place] = value
    changes: dict[str, Any] = {name: array}
    return replace(tables, **changes)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("jobs", (0, 1), 2, "row 2 of channel .* is written 0 times"),
        ("jobs", (1, 0), 7, "rows from 7 on"),
        ("jobs", (0, 3), 0, "expected some in each"),
        ("parts", (0, 1), 99, "outputs; allowed"),
        ("parts", (1, 2), 4096, "slots beyond|entries of"),
        ("parts", (0, 4), 1 << 20, "entries of 'w'"),
        ("outputs", 0, 1000, "beyond the"),
        ("inputs", 0, 24, "beyond the 24 of x"),
    ],
)
def test_tables_that_address_nothing_are_refused(name: str, place: Any, value: int, message: str) -> None:
    case = made_case(WISHES["shuffle"], SMALL, "fp16")
    wrong = _changed(case.tables, name, place, value)
    with pytest.raises(PlanError, match=message):
        validate_block_launch(wrong.kernel.to_json(), wrong.arrays())


@pytest.mark.parametrize(("name", "change"), [("w", 0.5), ("b", 0.5), ("inputs", 1)])
def test_tables_that_say_something_else_are_refused(name: str, change: float) -> None:
    case = made_case(WISHES["shuffle"], SMALL, "fp16")
    wrong = _changed(case.tables, name, 0, getattr(case.tables, name)[0] + change)
    with pytest.raises(PlanError, match="other inputs or weights"):
        validate_block_contents(case.work, wrong)


def test_a_wrong_shuffle_is_refused() -> None:
    case = made_case(WISHES["shuffle"], SMALL, "fp16")
    slots = case.tables.outputs.copy()
    begin, count = case.tables.parts[0, :2]
    slots[begin : begin + count] = slots[begin : begin + count][::-1]
    with pytest.raises(PlanError, match="other inputs or weights"):
        validate_block_contents(case.work, replace(case.tables, outputs=slots))
    other = made_block(replace(WISHES["shuffle"], residual=False), 3)
    with pytest.raises(PlanError, match="residual is True, expected False"):
        validate_block_contents(other, case.tables)


def test_no_product_is_computed_twice_but_halo_rows() -> None:
    for name, wish in WISHES.items():
        case = made_case(wish, WIDE, "fp16")
        jobs, parts = case.tables.jobs, case.tables.parts
        for stage in range(len(case.work.stages)):
            computed = 0
            for begin, *counts in sorted({tuple(job[2:6]) for job in jobs.tolist()}):
                lines = parts[begin + sum(counts[:stage]) : begin + sum(counts[: stage + 1])]
                computed += int(lines[:, 1].sum())
            assert computed == len(case.work.stages[stage].weights), (name, stage)


def test_what_no_kernel_computes_is_refused() -> None:
    stages = made_block(WISHES["shuffle"]).stages
    for wrong, message in (
        ((stages[1], stages[2]), "not pointwise"),
        ((stages[0],), "block of 1"),
        ((stages[0], replace(stages[1], residual=True), stages[2]), "residual is added behind its convolution 2"),
        ((stages[0], replace(stages[1], input_activation="relu"), stages[2]), "scaled, shifted or activated"),
        ((stages[0], stages[0]), "does not read what"),
        ((stages[0], stages[1], replace(stages[2], mix=np.ones((2, 24), np.int64))), "added up"),
    ):
        with pytest.raises(NoTables, match=message):
            block_work(wrong)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("element", "fp32", "'element' is 'fp32'; allowed: fp16, bf16"),
        ("rows", 99, "'rows' is 99"),
        ("shape", {"warps": 3, "columns": 1, "granules": 1, "blocks": 2, "step": 32}, "48 positions a step"),
        ("shape", {"warps": 2, "columns": 1, "granules": 1, "blocks": 2, "step": 48}, "'step' is 48"),
        ("stages", [], "2 or 3 stages"),
        ("input_activation", "relu", "'prologue' is false"),
    ],
)
def test_configurations_without_a_kernel_are_refused(field: str, value: Any, message: str) -> None:
    kernel = {**made_case(WISHES["shuffle"], SMALL, "fp16").tables.kernel.to_json(), field: value}
    with pytest.raises(InputError, match=message):
        conv_block_source(kernel, 1)


def test_arguments_are_those_of_the_configuration() -> None:
    case = made_case(WISHES["condense"], SMALL, "fp16")
    kernel, arrays = case.tables.kernel.to_json(), case.tables.arrays()
    x, y = np.zeros((2, 40, 6, 16), np.float16), np.zeros((2, 8, 6, 16), np.float16)
    given = conv_block_arguments(kernel, {**arrays, "x": x, "y": y}, 2)
    assert len(given) == 2 + len(arrays) + 1 and given[-2] == 2
    with pytest.raises(InputError, match="'x' has the shape"):
        conv_block_arguments(kernel, {**arrays, "x": x[:, 1:], "y": y}, 2)


def test_the_plain_implementation_rounds_between_stages() -> None:
    case = made_case(WISHES["shuffle"], SMALL, "bf16")
    kernel, arrays = case.tables.kernel.to_json(), case.tables.arrays()
    (exact, written), plain = expected_block(kernel, arrays, draw_block_operands(kernel, 1, 0))
    assert written.all() and 1e-4 < np.abs(plain - exact).max() / np.abs(exact).max() < 2e-2


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a"])
def test_kernels_neither_spill_nor_need_more_than_they_say(architecture: str, programs: Path) -> None:
    for name in ("shuffle", "condense"):
        tables = made_case(WISHES[name], WIDE, "fp16").tables
        report = compile_kernel(conv_block_source(tables.kernel.to_json(), 2), architecture, programs).report
        assert report.dynamic_shared == tables.kernel.shared_bytes <= 48 << 10
        assert report.registers <= 65536 // (2 * 128) and report.spill_stores == report.stack == 0


def test_every_wish_is_a_block_of_its_own() -> None:
    assert len({made_case(wish, SMALL, "fp16").tables.operator() for wish in WISHES.values()}) == len(WISHES)

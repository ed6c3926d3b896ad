"""What is sampled of a merge, and how kernels that give no numbers are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.source import merge_source
from onnxopt.report.verification import show_verification
from onnxopt.verification.kernel_report import KernelReport
from onnxopt.verification.kernel_rule import Judgement, judge_merge, judged
from onnxopt.verification.kernel_sample import sample_merges
from onnxopt.verification.kernels import check_merge
from onnxopt.verification.outcome import VerifyReport


def lines_of(counts: NDArray[np.int64], width: int) -> NDArray[np.int32]:
    offsets = np.arange(len(counts)) * width
    return np.stack([np.cumsum(counts) - counts, counts, offsets, 0 * counts], axis=1).astype(np.int32)


def test_a_sample_of_merges_has_the_shortest_the_longest_and_empty_ones() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 9, 5000)
    counts[1234], counts[4000], counts[10] = 0, 700, 50
    chosen = sample_merges(lines_of(counts, 64), 64, 800)
    assert {10, 1234, 4000} - set(chosen.tolist()) == {10}
    assert counts[chosen].min() == 0 and counts[chosen].max() == 700
    assert set(range(2, 9)) <= set(counts[chosen].tolist())
    assert 2000 <= 64 * len(chosen) < 64 * 50
    assert np.array_equal(chosen, np.unique(chosen))
    assert 10 in sample_merges(lines_of(counts, 64), 64, 5000)


@pytest.mark.parametrize("lines", [1, 2, 5, 8])
def test_a_sample_fills_blocks_or_has_every_line(lines: int) -> None:
    counts = np.arange(lines) % 3
    for width in (1, 4000):
        chosen = sample_merges(lines_of(counts, width), width, 10**6, multiple_of=4)
        assert len(chosen) % 4 == 0 or len(chosen) == lines


def test_some_lines_of_a_long_merge_are_run(programs: Path) -> None:
    counts = np.full(900, 2)
    counts[[100, 600]] = 40, 0
    merges = lines_of(counts, 16)
    kernel = {"element": "fp16", "value_width": 16, "slots": int(counts.sum()), "y": [900 * 16, 1]}
    compiled = compile_kernel(merge_source(kernel), "sm_80", programs)
    for batch in (1, 2, 3):
        check = check_merge(compiled, kernel, merges, batch=batch, orders=(1,), cache=programs)
        assert check.passed, check.worst().explain()
        assert 125 <= check.jobs < 140


def test_a_merge_that_writes_what_it_should_not_is_caught() -> None:
    kernel = {"element": "fp32", "value_width": 4, "slots": 6, "y": [12, 1]}
    merges = lines_of(np.array([2, 2, 2]), 4)
    partial = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
    lse = np.zeros((1, 6), np.float32)
    means = partial.reshape(1, 3, 2, 4).mean(axis=2).reshape(1, 12)
    assert judge_merge(kernel, {"merges": merges}, partial, lse, means).passed
    part = {"merges": merges[:2]}
    assert not judge_merge(kernel, part, partial, lse, means).passed
    means[:, 8:] = np.nan
    assert judge_merge(kernel, part, partial, lse, means).passed
    means[0, 9] = 0
    assert judge_merge(kernel, part, partial, lse, means).problem == (
        "element 9 of batch element 0 was written, which no line of the launch should do"
    )


def report_of(*judgements: Judgement) -> KernelReport:
    return KernelReport(
        "SparseAttention_0", ("attention-0",), "sm_90a", 3, 2, tuple(range(len(judgements))), judgements
    )


def shown(report: KernelReport) -> str:
    text = StringIO()
    whole = VerifyReport(False, "float64", 0, (), kernels=(report,))
    show_verification(Console(file=text, width=200), replace(whole, passed=report.passed))
    return text.getvalue()


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN (2 of 2,000)"), (np.inf, "infinite (2 of 2,000)")])
def test_a_kernel_that_gives_no_numbers_is_shown_as_such(value: float, said: str) -> None:
    expected = np.random.default_rng(1).standard_normal((2, 1000))
    found: NDArray[Any] = expected.astype(np.float32)
    good = judged(expected, found, found)
    found[0, 3] = found[1, 5] = value
    bad = judged(expected, expected.astype(np.float32), found)
    report = report_of(good, bad)
    assert not bad.passed and report.worst == bad and bad.nonfinite == 2
    assert bad.shown_error() == said and said in shown(report)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    last = document["outputs"][1]
    assert (last["max_error"], last["nonfinite"]) == (None, 2)
    assert last["max_bound"] > 0
    assert "nonfinite" not in document["outputs"][0]


def test_numbers_where_there_should_be_none_count_too() -> None:
    expected = np.full((1, 4), np.nan)
    bad = judged(expected, expected, np.zeros((1, 4), np.float32))
    assert not bad.passed and bad.nonfinite == 4
    assert judged(expected, expected, expected).passed

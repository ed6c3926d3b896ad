"""The log of trtexec: read by its documented format, and refused where it is not of it."""

from __future__ import annotations

import random
import statistics

import pytest

from onnxopt.errors import InputError
from onnxopt.measure.trtexec_log import METRICS, parse_log
from tests.measure.fake_trtexec import spread

_STAMP = "[03/25/2026-09:15:00]"


def _log(seed: int, number: int, version: str, result: str = "PASSED") -> tuple[str, list[float]]:
    """A whole log, and the GPU times in it."""
    numbers = random.Random(seed)
    values = [float(f"{numbers.uniform(0.5, 2):.6g}") for _ in range(101)]
    lines = [
        f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] [b31] # trtexec --onnx=m.onnx",
        f"{_STAMP} [I] === Device Information ===",
        f"{_STAMP} [I] Selected Device: NVIDIA H100 PCIe",
        f"{_STAMP} [I] Selected Device ID: 0",
        f"{_STAMP} [I] ",
        f"{_STAMP} [I] TensorRT version: {version}",
        f"{_STAMP} [W] [TRT] Detected layernorm nodes in FP16.",
        f"{_STAMP} [I] === Trace details ===",
        f"{_STAMP} [I] Average on 10 runs - GPU latency: 1.5 ms - Host latency: 1.5 ms (enqueue 0.01 ms)",
        f"{_STAMP} [I] ",
        f"{_STAMP} [I] === Performance summary ===",
        f"{_STAMP} [I] Throughput: 812.5 qps",
        *(f"{_STAMP} [I] {name}: {spread(values, [50, 99.9])}" for name in METRICS),
        f"{_STAMP} [I] Total Host Walltime: 3.00162 s",
        f"{_STAMP} [I] Total GPU Compute Time: 2.9 s",
        f"{_STAMP} [W] * GPU compute time is unstable, with coefficient of variance = 3.1%.",
        f"{_STAMP} [W]   If not already in use, locking GPU clock frequency may improve the stability.",
        f"{_STAMP} [I] Explanations of the performance metrics are printed in the verbose logs.",
        f"{_STAMP} [I] ",
        f"&&&& {result} TensorRT.trtexec [TensorRT v{number}] [b31] # trtexec --onnx=m.onnx",
    ]
    return "\n".join(lines) + "\n", values


@pytest.mark.parametrize(
    ("seed", "number", "version"), [(0, 100900, (10, 9, 0)), (1, 101600, (10, 16, 0)), (2, 110100, (11, 1, 0))]
)
def test_a_whole_log_is_read(seed: int, number: int, version: tuple[int, int, int]) -> None:
    text, values = _log(seed, number, ".".join(map(str, version)))
    log = parse_log(text)
    assert log.version == version
    assert (log.device, log.result, log.errors) == ("NVIDIA H100 PCIe", "PASSED", ())
    assert log.warnings == ("GPU compute time is unstable, with coefficient of variance = 3.1%.",)
    assert log.summary is not None
    assert (log.summary.throughput, log.summary.host_walltime, log.summary.gpu_compute) == (812.5, 3.00162, 2.9)
    for name in METRICS:
        times = log.summary.times[name]
        assert (times.min, times.max, times.median) == (min(values), max(values), statistics.median(values))
        assert times.mean == pytest.approx(statistics.fmean(values), rel=1e-5)
        assert list(times.percentiles) == [50, 99.9]
        assert times.percentiles[99.9] == max(values)
        # 101 values leave out int(50.5) of the upper ones: the 51st, counted from one.
        assert times.percentiles[50] == sorted(values)[50]


def test_the_version_is_that_of_the_first_line_where_nothing_else_says_it() -> None:
    assert parse_log("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b1] # trtexec").version == (11, 1, 0)
    assert parse_log("&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec").version == (8, 6, 1)


def test_a_log_that_stopped_has_errors_and_no_summary() -> None:
    text = f"{_STAMP} [E] [TRT] no plugin\n{_STAMP} [E] Engine set up failed\n&&&& FAILED TensorRT.trtexec [x] # y\n"
    log = parse_log(text)
    assert log.summary is None
    assert log.result == "FAILED"
    assert log.errors == ("[TRT] no plugin", "Engine set up failed")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("812.5 qps", "nan qps", "'Throughput' is nan; allowed: a finite number"),
        ("812.5 qps", "inf qps", "'Throughput' is inf"),
        ("812.5 qps", "-1 qps", "'Throughput' is -1 qps; allowed: more than 0"),
        ("812.5 qps", "812.5 fps", "'Throughput' is '812.5 fps'; allowed: a number and qps"),
        ("Latency: min = ", "Latency: min = -", "'min' of trtexec's 'Latency' is -"),
        ("Latency: min = ", "Latency: min = 9", "not in order from min over median to max"),
        ("Latency: min = ", "Latency: least = ", "'Latency' has 'least = "),
        (", median = ", ", median: ", "'Latency' has 'median: "),
        ("Enqueue Time: ", "Queue Time: ", "lacks Enqueue Time; this version reads"),
        ("Total GPU Compute Time", "Total Host Walltime", "has 'Total Host Walltime' twice"),
        ("=== Trace details ===", "=== Performance summary ===", "has 2 performance summaries"),
        ("percentile(50%) = ", "percentile(50%) = nan", r"'Latency' has 'percentile\(50%\) = nan"),
        ("percentile(50%) = ", "percentile(50%) = nan ms, percentile(5%) = ", r"percentile\(50%\)' of .* is nan"),
        ("percentile(50%)", "percentile(.%)", "a percentile of trtexec's 'Latency' is '.'"),
    ],
)
def test_a_bad_summary_is_refused(old: str, new: str, message: str) -> None:
    text, _ = _log(3, 110100, "11.1.0")
    assert old in text
    with pytest.raises(InputError, match=message):
        parse_log(text.replace(old, new, 1))

"""What the comparison of engines prints, and what it says where there is nothing to run it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import tensorrt_gpu
from onnxopt.errors import MissingError


def _refused() -> None:
    raise MissingError("TensorRT is not installed; install it")


def test_without_tensorrt_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorrt_gpu, "check_machine", _refused)
    assert tensorrt_gpu.main(["model.onnx", "--out", str(tmp_path / "out.jsonl")]) == 4
    assert capsys.readouterr().err == "not measured: TensorRT is not installed; install it\n"
    assert not (tmp_path / "out.jsonl").exists()


def test_ratios_are_of_the_original_and_losses_and_failures_are_named() -> None:
    engines = {
        "original": {"latency": {"p50_ms": 2.0}},
        "aot": {"latency": {"p50_ms": 1.0}},
        "launcher": {"latency": {"p50_ms": 4.0}},
        "portable": {"problem": "output 'y': max error 1"},
    }
    assert tensorrt_gpu.shown({"model": "m.onnx", "dtype": "fp16", "engines": engines}) == [
        "m.onnx in fp16: original 2.000 ms (median)",
        "  aot: 1.000 ms, ratio 2.00",
        "  launcher: 4.000 ms, ratio 0.50  SLOWER",
        "  portable: FAILED: output 'y': max error 1",
    ]

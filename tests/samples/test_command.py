"""`python -m samples`: files, the printed truth, and answers to wrong usage."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxopt.errors import InputError
from samples import SAMPLES, build
from samples.__main__ import run


def test_one_sample_with_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dense.onnx"
    options = ["--tokens", "64", "--dim", "16", "--heads", "2", "--kind", "window", "--batch", "dynamic"]
    run(["dense_masked", str(path), *options])
    expected = build("dense_masked", tokens=64, dim=16, heads=2, kind="window", batch=None)
    assert path.read_bytes() == expected.to_bytes()
    assert "2 heads, 64 queries, 64 keys, 376 pairs" in capsys.readouterr().out
    assert [item.name for item in tmp_path.iterdir()] == ["dense.onnx"]


def test_boolean_options_are_words(tmp_path: Path) -> None:
    path = tmp_path / "late.onnx"
    run(["shufflenet_v1", str(path), "--shuffle-last", "true"])
    early = build("shufflenet_v1").to_bytes()
    assert path.read_bytes() not in (b"", early)


def test_list_names_every_sample(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SAMPLES)
    assert all(len(line.split()) > 3 for line in lines)


def test_all_writes_every_sample(tmp_path: Path) -> None:
    run(["--all", str(tmp_path / "models")])
    written = {path.stem for path in (tmp_path / "models").glob("*.onnx")}
    assert written == set(SAMPLES)
    onnx.checker.check_model(str(tmp_path / "models" / "swin.onnx"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swn", "{out}"], "swn: no such sample"),
        (["swin", "{out}", "--tokens", "3"], "--tokens: swin has no such option; it takes --size"),
        (["swin", "{out}", "--heads"], "options come as --key value"),
        (["swin", "{out}", "--heads", "three"], "--heads three: expected int"),
        (["swin", "{out}", "--heads", "0"], "--heads 0: expected 1 or more"),
        (["swin", "{out}", "--heads", "5"], "24 does not divide by 5; the defaults are"),
        (["dense_masked", "{out}", "--kind", "dotted"], "expected one of clustered, banded"),
        (["shufflenet_v1", "{out}", "--shuffle-last", "1"], "expected true or false"),
        (["swin", "{out}/missing/x.onnx"], "there is no folder"),
    ],
)
def test_wrong_usage_is_answered(tmp_path: Path, words: list[str], message: str) -> None:
    out = tmp_path / "x.onnx"
    with pytest.raises(InputError, match=message) as caught:
        run([word.replace("{out}", str(out)) for word in words])
    assert caught.value.exit_code == 2
    assert not out.exists()


def test_missing_arguments_exit_with_two() -> None:
    with pytest.raises(SystemExit) as caught:
        run(["swin"])
    assert caught.value.code == 2

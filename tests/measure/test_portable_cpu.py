"""The benchmark's selection, goals and table, on made-up results; no model is timed here."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import portable_cpu
from benchmarks.portable_cpu import (
    Case,
    Result,
    goal,
    main,
    markdown,
    parse,
    result_from_json,
    row,
    select,
    shortfall,
)
from onnxopt.errors import InputError
from onnxopt.measure.timing import PairTiming

CASES = [Case("swin.a", "corpus", "c"), Case("swin.b", "corpus", "c"), Case("vgg", "corpus", "c")]


def timed(name: str, ratio: float) -> Result:
    timing = PairTiming(ratio * 1000, 1000.0, ratio, ratio - 0.01, ratio + 0.01, 42)
    return Result(name, "timed", timing, rewritten=3, kept=2, optimize_seconds=1.5)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("swin_tiny_224.dynamo.op18", 0.97),
        ("condensenet74_g4_train.legacy.op17", 1.3),
        ("condensenet74_g4_conv.legacy.op17", 0.97),
        ("attention_dense_masked_banded_1024_10pc", 3.0),
        ("attention_dense_masked_random_1024_10pc", 0.97),
        ("dense_masked_banded_1024_10pc", 0.97),
        ("dense_masked_banded_2048_5pc", 3.0),
        ("dense_masked_random_1024_10pc", 0.97),
    ],
)
def test_goals(name: str, least: float) -> None:
    assert goal(name) == least
    assert shortfall(timed(name, least)) == ""
    assert shortfall(timed(name, least - 0.01)) == f"{least - 0.01:.2f} is below {least:.2f}"


def test_unchanged_counts_as_one_and_failure_always_falls_short() -> None:
    assert shortfall(Result("vgg", "unchanged")) == ""
    assert shortfall(Result("attention_dense_masked_banded_1024_10pc", "unchanged")) == "1.00 is below 3.00"
    assert shortfall(Result("vgg", "failed", note="why")) == "failed: why"


def test_every_sample_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in portable_cpu.SAMPLE_CASES]
    assert len(set(names)) == len(names)
    assert all(goal(name) == 3.0 for name in names if name.startswith("attention_") and "random" not in name)


def test_selection_by_pattern_and_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.onnx"
    file.write_bytes(b"")
    assert select(CASES, []) == CASES
    assert [case.name for case in select(CASES, ["vgg", "swin*", "swin.a"])] == ["vgg", "swin.a", "swin.b"]
    assert select(CASES, [str(file)]) == [Case("mine", "file", str(file))]
    with pytest.raises(InputError, match="'nothing\\*' is neither a file"):
        select(CASES, ["nothing*"])


def test_rows() -> None:
    assert row(timed("vgg", 1.5)) == [
        "vgg",
        "1.50",
        "1.00",
        "1.50",
        "1.49 to 1.51",
        "42",
        "3",
        "2",
        "0.97",
        "ok",
    ]
    assert row(Result("vgg", "unchanged", kept=5))[3:] == ["1.00", "", "", "0", "5", "0.97", "unchanged"]
    assert row(Result("vgg", "failed", note="a | b"))[-1] == "failed: a / b"
    assert len(row(Result("vgg", "unchanged"))) == len(portable_cpu.HEADER)


def test_page_names_what_falls_short() -> None:
    page = markdown([timed("good", 1.2), timed("bad", 0.5)], timed("self", 1.0), {"machine": "here"})
    assert "- machine: here" in page
    assert "- a model against itself (self): 1.000 (0.990 to 1.010)" in page
    assert "- 2 models, missing their goal: bad" in page
    assert "| bad | 0.50 | 1.00 | 0.50 | 0.49 to 0.51 | 42 | 3 | 2 | 0.97 | 0.50 is below 0.97 |" in page
    assert "all goals met" in markdown([timed("good", 1.2)], timed("self", 1.0), {})


def test_result_survives_json() -> None:
    for result in (timed("a", 2.0), Result("b", "failed", note="x")):
        assert result_from_json(json.loads(json.dumps(asdict(result)))) == result


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"models": {"one": {}, "two": {}}}))
    return folder


class FakeChild:
    """Stands for the child processes: gives ratios by name and counts the calls."""

    def __init__(self, ratios: dict[str, float], itself: tuple[float, ...] = (1.0,)) -> None:
        self.ratios = ratios
        self.itself = list(itself)
        self.calls: list[str] = []

    def __call__(self, case: Case, options: Namespace, against_itself: bool = False) -> Result:
        if against_itself:
            return timed(case.name, self.itself.pop(0) if len(self.itself) > 1 else self.itself[0])
        self.calls.append(case.name)
        ratio = self.ratios[case.name]
        return timed(case.name, ratio) if ratio else Result(case.name, "failed", note="boom")


def test_run_writes_table_and_results(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(portable_cpu, "run_in_child", FakeChild({"one": 1.4, "two": 1.0}))
    out, data = tmp_path / "docs" / "page.md", tmp_path / "results.json"
    words = ["--corpus", str(corpus), "--models", "one", "two", "--out", str(out), "--json", str(data)]
    assert main(words) == 0
    assert "| one | 1.40 |" in out.read_text()
    assert [entry["name"] for entry in json.loads(data.read_text())["results"]] == ["one", "two"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("against itself: one | 1.00")
    assert printed[-1] == "2 models, all goals met"


def test_slow_failed_and_noisy_runs_end_with_exit_code_1(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", str(corpus), "--models", "one", "two"]
    monkeypatch.setattr(portable_cpu, "run_in_child", FakeChild({"one": 0.9, "two": 0.0}))
    assert main(words) == 1
    assert "one: 0.90 is below 0.97\ntwo: failed: boom" in capsys.readouterr().out
    monkeypatch.setattr(portable_cpu, "run_in_child", FakeChild({"one": 1.0, "two": 1.0}, itself=(1.2, 0.9, 1.01)))
    assert main(words) == 0
    monkeypatch.setattr(portable_cpu, "run_in_child", FakeChild({"one": 1.0, "two": 1.0}, itself=(1.2,)))
    assert main(words) == 1
    assert "does not read 1" in capsys.readouterr().out


def test_resumed_run_repeats_only_what_failed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "results.json"
    words = ["--corpus", str(corpus), "--models", "one", "two", "--json", str(data), "--resume"]
    monkeypatch.setattr(portable_cpu, "run_in_child", FakeChild({"one": 1.4, "two": 0.0}))
    assert main(words) == 1
    second = FakeChild({"two": 1.1})
    monkeypatch.setattr(portable_cpu, "run_in_child", second)
    assert main(words) == 0
    assert second.calls == ["two"]
    state = json.loads(data.read_text())
    data.write_text(json.dumps({**state, "facts": {**state["facts"], "machine": "another"}}))
    third = FakeChild({"one": 1.2, "two": 1.1})
    monkeypatch.setattr(portable_cpu, "run_in_child", third)
    assert main(words) == 0
    assert third.calls == ["one", "two"]


def test_child_that_fails_gives_a_result_with_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    result = portable_cpu.run_in_child(Case("broken", "file", str(broken)), parse([]))
    assert result.status == "failed"
    assert "Error" in result.note


def test_sample_against_itself_is_timed() -> None:
    case = Case("sample_swin", "sample", "swin")
    result = portable_cpu.measure_case(case, pairs=3, seconds=0.2, threads=1, against_itself=True)
    assert result.timing is not None
    assert result.timing.pairs >= 3


def test_child_that_hangs_is_stopped(tmp_path: Path) -> None:
    options = parse(["--model-timeout", "0.01"])
    result = portable_cpu.run_in_child(Case("one", "file", str(tmp_path / "x.onnx")), options)
    assert result == Result("one", "failed", note="not done after 0.01 s")


@pytest.mark.parametrize("words", [["--pairs", "0"], ["--resume"], ["--corpus", "/nowhere"], ["--seconds", "-1"]])
def test_bad_options(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(words)
    assert stop.value.code == 2


def test_noise_of_the_first_attempts_is_forgiven() -> None:
    ratios = iter([1.5, 1.0])
    result = portable_cpu.check_itself(CASES[0], lambda case: timed(case.name, next(ratios)))
    assert result == replace(timed("swin.a", 1.0))

"""The streams: what steers a terminal never comes from a model, and a pipe gets plain text."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest
from rich.console import Console

from onnxopt.report.console import printable, wants_plain
from onnxopt.report.progress import reporting
from onnxopt.report.table import cell, make_table


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain × text", "plain × text"), ("\x1b[2J\rgone\x07", "\\x1b[2J\\rgone\\x07"), ("two\nlines", "two\nlines")],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_name_is_never_markup() -> None:
    table = make_table("", ["name"], ["name"])
    table.add_row(cell("[red]x[/red] \x1b[31m:smile:"))
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    assert "[red]x[/red] \\x1b[31m:smile:" in stream.getvalue()


@pytest.mark.parametrize(
    ("environment", "plain"),
    [
        ({}, False),
        ({"NO_COLOR": "1"}, True),
        ({"NO_COLOR": ""}, False),
        ({"TERM": "dumb"}, True),
        ({"TERM": "xterm"}, False),
    ],
)
def test_who_wants_plain_text(environment: dict[str, str], plain: bool) -> None:
    assert wants_plain(environment) is plain


def test_a_log_file_gets_a_line_for_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting() as reporter:
        reporter.stage("looking for sites")
        reporter.stage("looking for sites")
        for phase, parent, steps in (
            ("parsing", None, 0),
            ("outer", None, 2),
            ("inner", "outer", 9),
            ("inner", None, 9),
        ):
            reporter.building(SimpleNamespace(phase=phase, parent=parent, step=0, steps=steps))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "onnxopt: looking for sites",
        "onnxopt: parsing",
        "onnxopt: building the engine: outer",
    ]


@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_are_shown_and_details_where_asked_for(capsys: pytest.CaptureFixture[str], verbose: bool) -> None:
    log = logging.getLogger("onnxopt.somewhere")
    with reporting(verbose):
        log.warning("the record %s is damaged", "x\x1b[2J")
        log.debug("a detail")
    log.warning("after the command")
    err = capsys.readouterr().err
    assert "onnxopt: warning: the record x\\x1b[2J is damaged\n" in err
    assert ("onnxopt: debug: a detail\n" in err) is verbose
    assert "onnxopt: warning: after" not in err

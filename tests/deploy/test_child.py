"""A child's crash, silence or noise is seen for what it is, and no child outlives the call."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from onnxopt.deploy.child import Event, run_child


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_events_arrive_in_order_and_stray_prints_do_not_disturb_them() -> None:
    code = (
        "import os\n"
        "from onnxopt.deploy.child import Channel\n"
        "channel = Channel()\n"
        "n = channel.request()['n']\n"
        "os.write(1, b'a library prints this\\n')\n"
        "print('and this', flush=True)\n"
        "for i in range(n): channel.send('count', i=i)\n"
    )
    events: list[Event] = []
    end = run_child(_python(code), {"n": 3}, events.append)
    assert (end.code, end.signal) == (0, None)
    assert events == [{"event": "count", "i": i} for i in range(3)]
    assert "a library prints this" in end.tail
    assert "and this" in end.tail


def test_an_abort_is_named_and_a_cut_line_ignored() -> None:
    code = (
        "import os, sys\n"
        'print(\'{"event": "one"}\', flush=True)\n'
        'os.write(1, b\'{"event": "cu\')\n'
        "os.write(2, b'last words')\n"
        "os.abort()\n"
    )
    events: list[Event] = []
    end = run_child(_python(code), {}, events.append)
    assert end.signal == "SIGABRT"
    assert end.code < 0
    assert events == [{"event": "one"}]
    assert "last words" in end.tail


def test_a_child_that_never_reads_its_request_does_not_block() -> None:
    end = run_child(_python("import sys; sys.exit(7)"), {"x": "y" * 1_000_000}, lambda event: None)
    assert (end.code, end.signal) == (7, None)


def test_much_error_output_does_not_block_and_is_cut_short() -> None:
    code = "import sys; sys.stderr.write('x' * 1_000_000 + 'end')"
    end = run_child(_python(code), {}, lambda event: None)
    assert end.code == 0
    assert end.tail.endswith("end")
    assert len(end.tail) < 10_000


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_kills_the_child(interruption: type[BaseException]) -> None:
    code = "import os, time; print('{\"pid\": %d}' % os.getpid(), flush=True); time.sleep(600)"
    pids: list[int] = []

    def stop(event: Event) -> None:
        pids.append(event["pid"])
        raise interruption

    start = time.monotonic()
    with pytest.raises(interruption):
        run_child(_python(code), {}, stop)
    assert time.monotonic() - start < 60
    assert _gone(pids[0])


def test_the_users_folder_cannot_replace_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('the wrong onnx')")
    monkeypatch.chdir(tmp_path)
    end = run_child(_python("import onnx"), {}, lambda event: None)
    assert end.code == 0, end.tail

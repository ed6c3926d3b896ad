"""Many kernels by several processes: order, repetition, errors, and workers that end early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onnxopt.errors import InputError, MissingError
from onnxopt.kernels import worker as worker_module
from onnxopt.kernels.compilation import prepare
from onnxopt.kernels.compiler import CompileError, compile_kernel
from onnxopt.kernels.pool import compile_kernels
from onnxopt.kernels.worker import Worker
from tests.kernels.small import scale_source, small_source, write_sources

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources") / "cuda")


def test_results_come_in_the_order_of_requests_and_each_once(sources: Path, tmp_path: Path) -> None:
    requests = [(scale_source(width), "sm_80") for width in (16, 32, 16, 48, 32)]
    told: list[tuple[int, int]] = []
    kernels = compile_kernels(requests, tmp_path, 2, lambda done, total: told.append((done, total)), sources)
    assert [kernel.report.dynamic_shared for kernel in kernels] == [2048, 4096, 2048, 6144, 4096]
    assert kernels[0] is kernels[2]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert kernels[1] == compile_kernel(scale_source(32), "sm_80", folder=sources)
    assert len(list((tmp_path / "kernels").glob("*.json"))) == 3


def test_known_kernels_are_not_compiled_again(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(scale_source(width), "sm_80") for width in (16, 32)]
    first = compile_kernels(requests, tmp_path, 1, folder=sources)
    monkeypatch.setattr(Worker, "compile", None)
    told: list[tuple[int, int]] = []
    assert compile_kernels(requests, tmp_path, 2, lambda *now: told.append(now), sources) == first
    assert told == [(2, 2)]
    assert compile_kernels([], tmp_path, 2) == []


def test_the_error_of_the_first_request_in_order_is_raised(sources: Path, tmp_path: Path) -> None:
    wrong = [small_source("scale", WIDTH=word, RESIDENT=1) for word in ("first", "second")]
    requests = [(source, "sm_80") for source in (scale_source(16), wrong[0], small_source("spill"), wrong[1])]
    with pytest.raises(CompileError, match='identifier "first" is undefined') as error:
        compile_kernels(requests, tmp_path, 2, folder=sources)
    assert error.value.source == wrong[0]
    assert len(list((tmp_path / "kernels").glob("*.json"))) == 1
    with pytest.raises(CompileError, match="256 bytes of stack") as spilled:
        compile_kernels([(small_source("spill"), a) for a in ("sm_80", "sm_86")], workers=2, folder=sources)
    assert spilled.value.report is not None


def test_bad_requests_are_refused_before_anything_is_compiled(sources: Path) -> None:
    told: list[tuple[int, int]] = []
    with pytest.raises(InputError, match="'sm_1'"):
        compile_kernels(
            [(scale_source(), "sm_80"), (scale_source(), "sm_1")], None, 2, lambda *now: told.append(now), sources
        )
    assert told == []


def test_a_worker_that_is_killed_is_an_error_and_another_one_takes_its_place(sources: Path) -> None:
    (compilation,) = prepare([(scale_source(), "sm_80")], sources)
    worker = Worker()
    try:
        first = worker.compile(compilation)
        process = worker._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        threading.Timer(0.2, process.kill).start()
        with pytest.raises(MissingError, match="'scale' for sm_80 was killed; most likely the machine ran out of mem"):
            worker.compile(compilation)
        assert worker.compile(compilation) == first
    finally:
        worker.kill()


def test_a_missing_compiler_is_told_by_the_worker(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (compilation,) = prepare([(scale_source(), "sm_80")], sources)

    def missing(_: object) -> None:
        raise MissingError("no NVRTC here")

    monkeypatch.setattr(worker_module, "run", missing)
    with pytest.raises(MissingError, match="no NVRTC here"):
        worker_module._kernel(compilation, worker_module._answer(compilation))


_INTERRUPTED = """
import signal, sys, time
from pathlib import Path
from onnxopt.kernels.pool import compile_kernels
from tests.kernels.small import scale_source

def tell(done, total):
    if done == 2:
        print("ready", flush=True)

# A shell has its background jobs ignore interrupts, and the tests may be one.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    compile_kernels([(scale_source(n), "sm_80") for n in range(1, 400)], None, 2, tell, Path(sys.argv[1]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_ends_the_workers_at_once(sources: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(sources)], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    children = _children(process.pid)
    assert len(children) == 2
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == "interrupted\n"
    assert process.wait() == 0
    assert time.monotonic() - begin < 5
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def _children(parent: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        children += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in children if os.path.exists(f"/proc/{child}")]  # noqa: PTH110


def test_a_program_without_a_main_guard_may_call_it(sources: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom onnxopt.kernels.pool import compile_kernels\n"
        "from onnxopt.kernels.source import KernelSource\n"
        "def source(width):\n"
        "    return KernelSource('small/scale.cu', 'scale', (('WIDTH', str(width)), ('RESIDENT', '2')))\n"
        "requests = [(source(width), 'sm_80') for width in (16, 32)]\n"
        "made = compile_kernels(requests, workers=2, folder=Path(sys.argv[1]))\n"
        "print([kernel.report.dynamic_shared for kernel in made])\n"
    )
    command = [sys.executable, str(script), str(sources)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert result.stdout == "[2048, 4096]\n"

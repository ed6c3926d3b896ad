"""A process that compiles kernels for another one: a request a line on its input, an answer a line on its output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError, MissingError, OnnxOptError
from onnxopt.kernels.compilation import Compilation, CompiledKernel
from onnxopt.kernels.compiler import CompileError, run
from onnxopt.kernels.packages import toolchain
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import KernelSource
from onnxopt.kernels.source_tree import SourceTree

_ERRORS: Mapping[str, type[OnnxOptError]] = {"input": InputError, "missing": MissingError}


class Worker:
    """The parent's side: starts with the first request, and serves one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def compile(self, compilation: Compilation) -> CompiledKernel:
        """Have a kernel compiled. Raises what the compiler raises, and MissingError where the process ended early."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(_request(compilation)).encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):
            answer = b""
        if not answer.endswith(b"\n"):
            raise self._lost(process, compilation)
        return _kernel(compilation, json.loads(answer))

    def kill(self) -> None:
        """End the process at once, whatever it does; safe from any thread."""
        self._killed = True
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                _close(stream)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
            if self._killed:
                self._process.kill()
        return self._process

    def _lost(self, process: subprocess.Popen[bytes], compilation: Compilation) -> OnnxOptError:
        code = process.wait()
        what = f"the process that compiled {compilation.source.entry!r} for {compilation.architecture}"
        if code == -signal.SIGKILL:
            return MissingError(f"{what} was killed; most likely the machine ran out of memory: use fewer workers")
        return OnnxOptError(f"{what} ended with code {code}; try again with one worker, which shows the reason")


def _start() -> subprocess.Popen[bytes]:
    # From the package's parent `-m` finds the package, installed or not. A session of its own keeps a terminal's
    # Ctrl-C from the worker: the parent ends it.
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "onnxopt.kernels.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[2],
            start_new_session=True,
        )
    except OSError as error:
        raise MissingError(
            f"cannot start a process that compiles kernels: {error.strerror or error}; use fewer workers"
        ) from None


def _close(stream: Any) -> None:
    try:
        stream.close()
    except OSError:  # what was not sent is no longer wanted
        return


def _request(compilation: Compilation) -> dict[str, Any]:
    tree = compilation.tree
    files = [(tree.file, tree.text), *tree.headers]
    return {
        "source": compilation.source.to_json(),
        "architecture": compilation.architecture,
        "files": [[name, b64encode(text).decode()] for name, text in files],
    }


def _compilation(request: Mapping[str, Any]) -> Compilation:
    (file, text), *headers = ((name, b64decode(text)) for name, text in request["files"])
    tree = SourceTree(file, text, tuple(headers))
    return Compilation(KernelSource.from_json(request["source"]), request["architecture"], tree, toolchain())


def _answer(compilation: Compilation) -> dict[str, Any]:
    try:
        kernel = run(compilation)
    except CompileError as error:
        report = None if error.report is None else asdict(error.report)
        return {"refused": {"lines": list(error.lines), "report": report}}
    except OnnxOptError as error:
        kind = next((name for name, known in _ERRORS.items() if isinstance(error, known)), "other")
        return {"error": {"kind": kind, "message": str(error)}}
    code = b64encode(kernel.cubin).decode()
    return {"kernel": {"cubin": code, "ptx": kernel.ptx, "report": asdict(kernel.report), "compiler": kernel.compiler}}


def _kernel(compilation: Compilation, answer: Mapping[str, Any]) -> CompiledKernel:
    source, architecture = compilation.source, compilation.architecture
    if "refused" in answer:
        lines, report = answer["refused"]["lines"], answer["refused"]["report"]
        raise CompileError(source, architecture, lines, None if report is None else ResourceReport(**report))
    if "error" in answer:
        raise _ERRORS.get(answer["error"]["kind"], OnnxOptError)(answer["error"]["message"])
    made = answer["kernel"]
    report = ResourceReport(**made["report"])
    return CompiledKernel(source, architecture, b64decode(made["cubin"]), made["ptx"], report, made["compiler"])


def main() -> None:
    """Answer requests until the input ends."""
    # Native code may print to file descriptor 1; answers keep the original.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            answers.write(json.dumps(_answer(_compilation(json.loads(line)))) + "\n")
            answers.flush()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # nobody waits for the answer any more
        os._exit(1)

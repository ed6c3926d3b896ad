"""Many kernels at once: each distinct one is compiled once, by one of several processes.

Workers are programs of their own, not forks: whoever calls needs no ``__main__`` guard, and a compiler that crashes
ends a worker only.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from onnxopt.kernels.cache import KernelCache
from onnxopt.kernels.compilation import Compilation, CompiledKernel, prepare
from onnxopt.kernels.compiler import run
from onnxopt.kernels.source import KernelSource
from onnxopt.kernels.worker import Worker

Progress = Callable[[int, int], None]
"""Told how many distinct kernels are there and how many there are in all; called once before the first."""

_Outcome = tuple[int, CompiledKernel | BaseException]


def compile_kernels(
    requests: Sequence[tuple[KernelSource, str]],
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> list[CompiledKernel]:
    """The kernels of requests, each a source and an architecture, in their order; equal requests are compiled once.

    ``workers`` processes compile what ``cache`` lacks (as many as the machine has processors). ``folder`` holds the
    sources; by default those of this package. An error ends the work, and that of the first request in order is
    raised: those of :func:`onnxopt.kernels.compiler.compile_kernel`, and MissingError where a worker is killed. Ctrl-C
    ends the workers at once. What was compiled before is kept in the cache.
    """
    distinct = list(dict.fromkeys(requests))
    compilations = prepare(distinct, folder)
    kept = KernelCache(cache)
    known = {number: kernel for number, c in enumerate(compilations) if (kernel := kept.get(c)) is not None}
    missing = [(number, c) for number, c in enumerate(compilations) if number not in known]
    tell = progress or _silent
    tell(len(known), len(compilations))

    def done(number: int, kernel: CompiledKernel) -> None:
        known[number] = kernel
        kept.put(compilations[number], kernel)
        tell(len(known), len(compilations))

    count = min(workers or os.cpu_count() or 1, len(missing))
    if count > 1:
        _Pool(missing, count).run(done)
    else:
        for number, compilation in missing:
            done(number, run(compilation))
    places = {request: number for number, request in enumerate(distinct)}
    return [known[places[request]] for request in requests]


class _Pool:
    """Compilations handed out in order to workers, each with a thread of this process that waits for it."""

    def __init__(self, work: Sequence[tuple[int, Compilation]], count: int) -> None:
        self._work = iter(work)
        self._lock = threading.Lock()
        self._outcomes: queue.SimpleQueue[_Outcome | None] = queue.SimpleQueue()
        self._workers = [Worker() for _ in range(count)]
        self._threads = [threading.Thread(target=self._serve, args=(worker,)) for worker in self._workers]

    def run(self, done: Callable[[int, CompiledKernel], None]) -> None:
        """Hand every result to ``done``, in this thread; the error of the first failed one in order is raised."""
        errors: dict[int, BaseException] = {}
        try:
            for thread in self._threads:
                thread.start()
            waiting = len(self._threads)
            while waiting:
                outcome = self._outcomes.get()
                if outcome is None:
                    waiting -= 1
                elif isinstance(outcome[1], BaseException):
                    # What stands before it in order has been handed out already and is still waited for.
                    self._stop()
                    errors[outcome[0]] = outcome[1]
                else:
                    done(outcome[0], outcome[1])
        finally:
            self._stop()
            for worker in self._workers:
                worker.kill()
            for thread in self._threads:
                if thread.ident is not None:
                    thread.join()
        if errors:
            raise errors[min(errors)]

    def _stop(self) -> None:
        with self._lock:
            self._work = iter(())

    def _serve(self, worker: Worker) -> None:
        try:
            while (item := self._next()) is not None:
                number, compilation = item
                try:
                    self._outcomes.put((number, worker.compile(compilation)))
                except Exception as error:
                    self._outcomes.put((number, error))
        finally:
            self._outcomes.put(None)

    def _next(self) -> tuple[int, Compilation] | None:
        with self._lock:
            return next(self._work, None)


def _silent(done: int, total: int) -> None:
    return

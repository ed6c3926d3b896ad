"""Calls a plugin's enqueue with a library that stands for the CUDA driver, which this process alone may load.

Arguments: the folder with the launcher and its host library, the driver's stand-in, and a pickled request; the pickled
answer goes beside it with the ending ``.answer``.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.deploy.launcher_host import RUNTIME, Host, RefusedError
from tests.deploy.launcher_requests import STREAM, Answer, Launched, Request


class _Launch(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_char * 64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("shared_allowed", ctypes.c_uint32),
        ("stream", ctypes.c_uint64),
        ("module", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("values", ctypes.c_uint64 * 128),
    )


class _Module(ctypes.Structure):
    _fields_ = (("image", ctypes.c_void_p), ("loaded", ctypes.c_uint32), ("unloaded", ctypes.c_uint32))


def answered(folder: Path, driver: ctypes.CDLL, request: Request) -> Answer:
    driver.fake_device(*request.device)
    driver.fake_fail(request.fail[0].encode(), request.fail[1])
    for place, (entry, letters) in enumerate(request.parameters.items()):
        driver.fake_parameters(place, entry.encode(), letters.encode())
    host = Host(folder)
    plugin = host.create(request.fields, RUNTIME)
    clone = plugin.clone()
    runs: list[list[Launched] | str] = []
    count = ctypes.c_int.in_dll(driver, "fake_launch_count")
    # Original and clone in turn: they share what is loaded.
    for number, run in enumerate(request.runs):
        driver.fake_context(ctypes.c_void_p(run.context))
        before = count.value
        try:
            (plugin, clone)[number % 2].enqueue(run.inputs, run.outputs, run.pointers, run.workspace, STREAM)
            runs.append([_launched(driver, place) for place in range(before, count.value)])
        except RefusedError as refusal:
            runs.append(str(refusal))
    plugin.destroy()
    modules = (_Module * 64).in_dll(driver, "fake_modules")
    early = sum(module.unloaded for module in modules)
    clone.destroy()
    return Answer(runs, sum(module.loaded for module in modules), early, sum(module.unloaded for module in modules))


def _launched(driver: ctypes.CDLL, place: int) -> Launched:
    launch = (_Launch * 64).in_dll(driver, "fake_launches")[place % 64]
    module = (_Module * 64).in_dll(driver, "fake_modules")[launch.module]
    return Launched(
        entry=launch.entry.decode(),
        grid=tuple(launch.grid),
        block=tuple(launch.block),
        shared=launch.shared,
        shared_allowed=launch.shared_allowed,
        stream=launch.stream,
        values=list(launch.values[: launch.count]),
        module=launch.module,
        image=ctypes.string_at(module.image, 256),
    )


def main() -> None:
    folder, library, request = map(Path, sys.argv[1:])
    # The name in the file makes it what the launcher finds when it looks for the driver.
    driver = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    found = answered(folder, driver, pickle.loads(request.read_bytes()))
    request.with_suffix(".answer").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()

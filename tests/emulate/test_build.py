"""Building and the cache of what was built: shared, damaged, read-only; and no compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxopt.emulate import CpuKernel, Uninitialised, build, build_cpu_kernel, translate_ptx
from onnxopt.errors import MissingError
from tests.emulate.running import ptx_text

_BODY = "mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd0, %rd2; st.global.u32 [%rd3], %r0;"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds what all kernels share, and one kernel."""
    folder = tmp_path_factory.mktemp("objects") / "deep" / "cache"
    build_cpu_kernel(ptx_text(_BODY), "run", folder)
    return folder


@pytest.fixture
def folder(objects: Path, tmp_path: Path) -> Path:
    """A cache that holds only what all kernels share: the runtime takes seconds to compile."""
    (tmp_path / "cache").mkdir()
    for path in objects.glob("*.o"):
        shutil.copy(path, tmp_path / "cache")
    return tmp_path / "cache"


def _works(kernel: CpuKernel) -> None:
    out = np.zeros(40, np.uint32)
    kernel.run((1, 1, 1), (40, 1, 1), 0, [Uninitialised(out), out])
    np.testing.assert_array_equal(out, np.arange(40))


def _entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("error")
def test_an_entry_is_used_again(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _entries(objects)
    assert sorted(Path(name).suffix for name in before) == [".o", ".o", ".so"]
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    _works(build_cpu_kernel(ptx_text(_BODY), "run", objects))
    assert _entries(objects) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_entry_is_built_again(damage: str, folder: Path) -> None:
    text = ptx_text(_BODY + f"mov.u32 %r1, {len(damage)};")
    build_cpu_kernel(text, "run", folder)
    (library,) = folder.glob("*.so")
    whole = library.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    library.unlink()
    library.write_bytes({"cut": whole[: len(whole) // 2], "flipped": flipped, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="is damaged and is built again"):
        _works(build_cpu_kernel(text, "run", folder))
    assert library.stat().st_size == len(whole)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot write to the cache"):
        _works(build_cpu_kernel(ptx_text(_BODY + "mov.u32 %r1, 77;"), "run", tmp_path / "file" / "cache"))


def test_two_processes_build_at_once(tmp_path: Path, folder: Path) -> None:
    text = ptx_text(_BODY + "mov.u32 %r1, 99;")
    (tmp_path / "kernel.ptx").write_text(text)
    code = (
        "import sys; from pathlib import Path; from onnxopt.emulate import build_cpu_kernel;"
        "build_cpu_kernel(Path(sys.argv[1]).read_text(), 'run', Path(sys.argv[2]))"
    )
    words = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "kernel.ptx"), str(folder)]
    running = [subprocess.Popen(words) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert sorted(path.suffix for path in folder.iterdir()) == [".o", ".o", ".so"]
    _works(build_cpu_kernel(text, "run", folder))


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build._compiler.cache_clear()
    build._compiler_version.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(MissingError, match=r"needs the C\+\+ compiler g\+\+.*apt install g\+\+"):
            build_cpu_kernel(ptx_text(_BODY), "run", tmp_path)
    finally:
        build._compiler.cache_clear()
        build._compiler_version.cache_clear()


def test_processors_without_a_switch_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_LIBRARY_FLAGS", (*build._LIBRARY_FLAGS, "-DEMU_UCONTEXT", "-O0"))
    body = _BODY.replace("st.global", "bar.sync 0;\nshfl.sync.bfly.b32 %r0, %r0, 1, 31, -1;\nst.global")
    kernel = build_cpu_kernel(ptx_text(body), "run", tmp_path)
    for order in range(3):
        out = np.zeros(64, np.uint32)
        kernel.run((1, 1, 1), (64, 1, 1), 0, [Uninitialised(out), out], order)
        np.testing.assert_array_equal(out, np.arange(64) ^ 1)


def test_translation_repeats_exactly() -> None:
    text = ptx_text(_BODY)
    assert translate_ptx(text, "run") == translate_ptx(text, "run")
    assert "f_run(Thread& t)" in translate_ptx(text, "run")

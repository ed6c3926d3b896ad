"""Compiled kernels by content: what the key covers, and what happens to entries that others or accidents touch."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onnxopt.kernels import cache as cache_module
from onnxopt.kernels import compilation as compilation_module
from onnxopt.kernels import compiler
from onnxopt.kernels.cache import KernelCache, content_key, read_entry
from onnxopt.kernels.compilation import CompiledKernel, prepare
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.measure.cache import clear_cache, list_cache, verify_cache
from tests.kernels.small import scale_source, write_sources


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "cuda")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures for which something was really compiled."""
    calls: list[str] = []
    run = compiler.run

    def counted(compilation: compilation_module.Compilation) -> CompiledKernel:
        calls.append(compilation.architecture)
        return run(compilation)

    monkeypatch.setattr(compiler, "run", counted)
    return calls


def _entry(cache: Path) -> Path:
    (document,) = (cache / "kernels").glob("*.json")
    return document


def test_a_kernel_is_compiled_once(sources: Path, tmp_path: Path, compiled: list[str]) -> None:
    first = compile_kernel(scale_source(), "sm_80", tmp_path / "cache", sources)
    assert compile_kernel(scale_source(), "sm_80", tmp_path / "cache", sources) == first
    assert compiled == ["sm_80"]
    document = _entry(tmp_path / "cache")
    assert sorted(path.suffix for path in document.parent.iterdir()) == [".cubin", ".json", ".ptx"]
    assert document.with_suffix(".cubin").read_bytes() == first.cubin
    assert json.loads(document.read_text())["report"]["dynamic_shared"] == 8192


def test_nvidias_tool_reads_an_entry(sources: Path, tmp_path: Path) -> None:
    from onnxopt.kernels.packages import tool

    taken = compile_kernel(scale_source(), "sm_80", tmp_path, sources).report
    code = _entry(tmp_path).with_suffix(".cubin")
    command = [str(tool("cuobjdump")), "--dump-resource-usage", str(code)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"REG:{taken.registers} STACK:0 SHARED:128 LOCAL:0" in shown


def _changed_header(sources: Path) -> None:
    (sources / "common" / "by.cuh").write_text("__device__ inline float by(float x, float y) { return y * x; }\n")


def _changed_source(sources: Path) -> None:
    with (sources / "small" / "scale.cu").open("a") as file:
        file.write("// more\n")


@pytest.mark.parametrize("change", [_changed_header, _changed_source])
def test_the_key_covers_the_source_and_headers_of_headers(sources: Path, change: Callable[[Path], None]) -> None:
    (before,) = prepare([(scale_source(), "sm_80")], sources)
    change(sources)
    (after,) = prepare([(scale_source(), "sm_80")], sources)
    assert content_key(before) != content_key(after)


def test_the_key_covers_everything_else_that_decides(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(scale_source(), "sm_80"), (scale_source(), "sm_86"), (scale_source(32), "sm_80")]
    first, *others = prepare(requests, sources)
    tools = first.toolchain
    others.append(replace(first, toolchain=replace(tools, nvrtc="13.0.99")))
    others.append(replace(first, toolchain=replace(tools, headers=(("nvidia-cuda-runtime", "13.0.99"),))))
    keys = {content_key(c) for c in (first, *others)}
    monkeypatch.setattr(compilation_module, "OPTIONS", ("--std=c++20",))
    keys.add(content_key(first))
    assert len(keys) == 2 + len(others)


def test_the_key_does_not_depend_on_places_or_unrelated_files(sources: Path, tmp_path: Path) -> None:
    elsewhere = write_sources(tmp_path / "other" / "cuda")
    (elsewhere / "common" / "unrelated.cuh").write_text("int x;\n")
    (here,) = prepare([(scale_source(), "sm_80")], sources)
    (there,) = prepare([(scale_source(), "sm_80")], elsewhere)
    moved = replace(there, toolchain=replace(there.toolchain, include=tmp_path))
    assert content_key(here) == content_key(moved)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _drop_field(path: Path) -> None:
    about = json.loads(path.read_text())
    del about["report"]["registers"]
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".cubin", _flip),
        (".ptx", _flip),
        (".cubin", lambda path: path.write_bytes(b"")),
        (".cubin", lambda path: path.unlink()),
        (".ptx", lambda path: path.unlink()),
        (".json", lambda path: path.write_text("{")),
        (".json", lambda path: path.write_text("[" * 100_000)),
        (".json", lambda path: path.write_text("[]")),
        (".json", lambda path: path.write_text('{"schema": "onnxopt.kernel/1", "sha256": {}}')),
        (".json", _drop_field),
    ],
)
def test_a_damaged_entry_is_a_warning_and_is_mended(
    sources: Path,
    tmp_path: Path,
    compiled: list[str],
    caplog: pytest.LogCaptureFixture,
    suffix: str,
    damage: Callable[[Path], None],
) -> None:
    cache = tmp_path / "cache"
    first = compile_kernel(scale_source(), "sm_80", cache, sources)
    document = _entry(cache)
    damage(document.with_suffix(suffix))
    (kernels,) = verify_cache(cache)
    assert (kernels.entries, len(kernels.problems)) == (0, 1)
    assert compile_kernel(scale_source(), "sm_80", cache, sources) == first
    assert "the kernel is compiled again" in caplog.text
    assert verify_cache(cache) == []
    assert compile_kernel(scale_source(), "sm_80", cache, sources) == first
    assert compiled == ["sm_80", "sm_80"]


def test_an_entry_under_a_wrong_name_is_not_used(
    sources: Path, tmp_path: Path, compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    compile_kernel(scale_source(), "sm_80", tmp_path / "cache", sources)
    (other,) = prepare([(scale_source(), "sm_86")], sources)
    document = _entry(tmp_path / "cache")
    for suffix in cache_module.SUFFIXES:
        document.with_suffix(suffix).rename(document.with_name(content_key(other) + suffix))
    assert compile_kernel(scale_source(), "sm_86", tmp_path / "cache", sources).architecture == "sm_86"
    assert "is about another kernel" in caplog.text


def test_a_full_disk_costs_the_entry_and_one_warning(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    kept = KernelCache(tmp_path / "cache")
    for compilation in prepare([(scale_source(), "sm_80"), (scale_source(), "sm_86")], sources):
        kernel = compiler.run(compilation)
        kept.put(compilation, kernel)
        assert kernel.cubin
    assert caplog.text.count("No space left on device") == 1
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []


def test_a_disk_that_is_full_before_the_last_file_leaves_nothing(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = cache_module.atomic_write

    def partly(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(cache_module, "atomic_write", partly)
    assert compile_kernel(scale_source(), "sm_80", tmp_path / "cache", sources).cubin
    assert "are not kept" in caplog.text
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []


def test_a_cache_folder_that_is_a_file(sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("")
    assert compile_kernel(scale_source(), "sm_80", tmp_path / "cache", sources).cubin
    assert "are not kept" in caplog.text


def test_what_a_killed_writer_left_is_ignored_and_removed_later(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True)
    old, young = folder / ".onnxopt-0123456789abcdef.tmp", folder / ".onnxopt-fedcba9876543210.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    (folder / "orphan.cubin").write_bytes(b"without a document")
    compile_kernel(scale_source(), "sm_80", tmp_path / "cache", sources)
    assert (old.exists(), young.exists()) == (False, True)
    (kernels,) = list_cache(tmp_path / "cache")
    assert (kernels.entries, kernels.problems) == (1, ())
    assert len(clear_cache(tmp_path / "cache")) == 5
    assert not folder.exists()


def test_two_processes_share_a_cache(sources: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from onnxopt.kernels.compiler import compile_kernel;"
        "from tests.kernels.small import scale_source;"
        "[compile_kernel(scale_source(w), 'sm_80', Path(sys.argv[1]), Path(sys.argv[2])) for w in (16, 32, 48)]"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "cache"), str(sources)]
    root = Path(__file__).resolve().parents[2]
    processes = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] for process in processes] == [b"", b""]
    assert [process.returncode for process in processes] == [0, 0]
    (kernels,) = list_cache(tmp_path / "cache")
    assert (kernels.entries, kernels.problems) == (3, ())
    assert len(list((tmp_path / "cache" / "kernels").iterdir())) == 9


def test_kernels_are_listed_verified_and_cleared_beside_other_files(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    compile_kernel(scale_source(), "sm_80", cache, sources)
    (cache / "kernels" / "mine.txt").write_text("stays")
    (kernels,) = list_cache(cache)
    assert (kernels.path, kernels.kind, kernels.entries) == (cache / "kernels", "compiled kernels", 1)
    assert kernels.size_bytes > len(read_entry(_entry(cache)).cubin)
    assert verify_cache(cache) == []
    assert len(clear_cache(cache)) == 3
    assert [path.name for path in (cache / "kernels").iterdir()] == ["mine.txt"]
    assert list_cache(cache) == []


def test_a_folder_of_kernels_that_is_a_link_is_left_alone(sources: Path, tmp_path: Path) -> None:
    compile_kernel(scale_source(), "sm_80", tmp_path / "elsewhere", sources)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels").symlink_to(tmp_path / "elsewhere" / "kernels")
    assert list_cache(tmp_path / "cache") == clear_cache(tmp_path / "cache") == []
    assert read_entry(_entry(tmp_path / "elsewhere")).architecture == "sm_80"

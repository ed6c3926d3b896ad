"""Compiling without a GPU: what comes out, what is refused, and that nothing depends on the place."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.errors import InputError, MissingError, OnnxOptError
from onnxopt.kernels import compiler, nvrtc, packages, report
from onnxopt.kernels.compilation import ARCHITECTURES
from onnxopt.kernels.compiler import CompileError, architecture_for, compile_kernel
from onnxopt.kernels.report import ReportError, resource_report
from onnxopt.kernels.source import KernelSource, attention_source
from onnxopt.target.variant import AttentionVariant
from tests.kernels.small import attention_kernel, scale_source, small_source, write_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources") / "cuda")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_code_ptx_and_a_report(sources: Path, architecture: str) -> None:
    kernel = compile_kernel(scale_source(), architecture, folder=sources)
    assert kernel.cubin.startswith(b"\x7fELF")
    assert f".target {architecture}\n" in kernel.ptx
    assert ".version 9.0" in kernel.ptx
    taken = kernel.report
    assert (taken.static_shared, taken.dynamic_shared, taken.threads, taken.shared) == (128, 8192, 128, 8320)
    assert (taken.stack, taken.spill_stores, taken.spill_loads) == (0, 0, 0)
    assert 8 <= taken.registers <= 32
    assert kernel.compiler == f"nvrtc {packages.toolchain().nvrtc}"


def test_the_same_bytes_from_every_folder_and_process(sources: Path, tmp_path: Path) -> None:
    elsewhere = write_sources(tmp_path / "a longer name" / "kernels")
    here = compile_kernel(scale_source(), "sm_90a", folder=sources)
    program = (
        "import sys, hashlib; from pathlib import Path; from onnxopt.kernels.compiler import compile_kernel;"
        "from tests.kernels.small import scale_source;"
        "k = compile_kernel(scale_source(), 'sm_90a', folder=Path(sys.argv[1]));"
        "sys.stdout.buffer.write(k.cubin + k.ptx.encode())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", program, str(elsewhere)]
    other = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path, env=environment).stdout
    assert other == here.cubin + here.ptx.encode()
    for text in (str(sources), "site-packages"):
        assert text.encode() not in here.cubin
        assert text not in here.ptx


def test_a_header_in_the_current_folder_takes_no_part(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "twice.cuh").write_text("#error this one\n")
    monkeypatch.chdir(tmp_path)
    assert compile_kernel(scale_source(), "sm_80", folder=sources).cubin


def test_local_memory_is_an_error_with_its_figures(sources: Path) -> None:
    with pytest.raises(CompileError, match="local memory is used: 256 bytes of stack") as error:
        compile_kernel(small_source("spill"), "sm_80", folder=sources)
    assert error.value.report is not None
    assert (error.value.report.stack, error.value.architecture) == (256, "sm_80")
    assert "'spill' cannot be compiled for sm_80" in str(error.value)


def test_what_the_compiler_had_to_mend_is_an_error(sources: Path) -> None:
    with pytest.raises(CompileError, match="C7519") as error:
        compile_kernel(small_source("unfenced"), "sm_90a", folder=sources)
    assert any("C7517" in line for line in error.value.lines)


def test_a_source_that_is_wrong_shows_the_compilers_lines_and_the_constants(sources: Path) -> None:
    with pytest.raises(CompileError) as error:
        compile_kernel(small_source("scale", WIDTH="wide", RESIDENT=1), "sm_89", folder=sources)
    message = str(error.value)
    assert 'small/scale.cu(5): error: identifier "wide" is undefined' in message
    assert "-DWIDTH=wide -DRESIDENT=1" in message
    assert "sm_89" in message
    assert str(sources) not in message
    copy = pickle.loads(pickle.dumps(error.value))
    assert (str(copy), copy.lines, copy.source) == (message, error.value.lines, error.value.source)


@pytest.mark.parametrize(
    ("name", "message"), [("unpublished", "does not publish onnxopt_shared_bytes"), ("unbounded", "__launch_bounds__")]
)
def test_a_kernel_says_what_a_launch_needs(sources: Path, name: str, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        compile_kernel(small_source(name), "sm_80", folder=sources)


def test_a_missing_header_or_source(sources: Path, tmp_path: Path) -> None:
    broken = write_sources(tmp_path / "cuda")
    (broken / "common" / "by.cuh").unlink()
    with pytest.raises(CompileError, match=r"common/by\.cuh"):
        compile_kernel(scale_source(), "sm_80", folder=broken)
    with pytest.raises(InputError, match=r"small/absent\.cu does not exist"):
        compile_kernel(small_source("absent"), "sm_80", folder=sources)


def test_a_header_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_sources(tmp_path / "cuda")
    (tmp_path / "secret.cuh").write_text("int x;\n")
    (folder / "small" / "scale.cu").write_text('#include "../secret.cuh"\n')
    with pytest.raises(InputError, match=r"'\.\./secret\.cuh' is included from outside"):
        compile_kernel(scale_source(), "sm_80", folder=folder)


@pytest.mark.parametrize("architecture", ["sm_70", "sm_90b", "compute_80", "", "sm_80 --help"])
def test_unknown_architectures_are_refused_with_the_list(architecture: str) -> None:
    with pytest.raises(InputError, match="allowed: sm_75, sm_80, .*sm_90a, .*sm_121"):
        compile_kernel(scale_source(), architecture)


def test_targets_get_the_instructions_of_their_own() -> None:
    names = {"sm_75": "sm_75", "sm_90": "sm_90a", "sm_100": "sm_100a", "sm_103": "sm_103a", "sm_120": "sm_120"}
    assert {name: architecture_for(name) for name in names} == names
    with pytest.raises(InputError, match="'sm_60'"):
        architecture_for("sm_60")


@pytest.mark.parametrize("element", ["bf16", "tf32"])
def test_turing_has_neither_bf16_nor_tf32(element: str) -> None:
    kernel = attention_kernel(element=element, variants=(AttentionVariant("mma", 64, 64, 4, 2),))
    with pytest.raises(InputError, match=f"sm_75 cannot compute in {element}; allowed there: fp16, fp32"):
        compile_kernel(attention_source(kernel, 1), "sm_75")


def test_wgmma_needs_its_architecture() -> None:
    kernel = attention_kernel(variants=(AttentionVariant("wgmma", 64, 64, 4, 2),))
    for architecture in ("sm_80", "sm_90", "sm_100a"):
        with pytest.raises(InputError, match=f"{architecture} have no path 'wgmma'.*mma.*sm_90a"):
            compile_kernel(attention_source(kernel, 1), architecture)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, sources: Path) -> None:
    packages.toolchain.cache_clear()
    monkeypatch.setattr(packages, "_version", lambda package: None if package == packages.RUNTIME else "13.0.1")
    try:
        with pytest.raises(MissingError, match="nvidia-cuda-runtime, not installed here: pip install .*nvidia-cuda-ru"):
            compile_kernel(scale_source(), "sm_80", folder=sources)
    finally:
        packages.toolchain.cache_clear()


@pytest.mark.parametrize("error", [ImportError("No module named 'cuda'"), RuntimeError("libnvrtc.so.13 not found")])
def test_a_compiler_that_cannot_be_loaded_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, sources: Path, error: Exception
) -> None:
    from cuda.bindings import nvrtc as library

    def fail() -> None:
        raise error

    monkeypatch.setattr(library, "nvrtcVersion", fail)
    with pytest.raises(MissingError, match=r"cannot be loaded \(.*pip install 'cuda-bindings"):
        compile_kernel(scale_source(), "sm_80", folder=sources)


def test_another_compiler_than_the_installed_one_is_refused(monkeypatch: pytest.MonkeyPatch, sources: Path) -> None:
    def run(*arguments: object) -> nvrtc.Compiled:
        made = nvrtc.run_nvrtc(*arguments)  # type: ignore[arg-type]
        return nvrtc.Compiled(made.log, (made.ptx or "").replace("V13.0.", "V12.9."), made.cubin)

    monkeypatch.setattr(compiler, "run_nvrtc", run)
    with pytest.raises(MissingError, match=r"loaded is 12\.9\.\d+, but the installed package is 13\.0\."):
        compile_kernel(scale_source(), "sm_80", folder=sources)


def test_log_and_code_must_agree(sources: Path) -> None:
    kernel = compile_kernel(scale_source(), "sm_80", folder=sources)
    taken = kernel.report
    log = (
        f"ptxas info    : Compiling entry function 'scale' for 'sm_80'\n    0 bytes stack frame, 0 bytes spill stores, "
        f"0 bytes spill loads\nptxas info    : Used {taken.registers} registers, used 1 barriers, 128 bytes smem\n"
    )
    assert resource_report(log, kernel.ptx, kernel.cubin, "scale", "sm_80") == taken
    with pytest.raises(ReportError, match="says static_shared 256, the CUBIN 128"):
        resource_report(log.replace("128", "256"), kernel.ptx, kernel.cubin, "scale", "sm_80")
    with pytest.raises(ReportError, match="nothing about the resources"):
        resource_report("", kernel.ptx, kernel.cubin, "scale", "sm_80")
    for code in (b"", kernel.cubin[:200], kernel.cubin[:2000], b"\x7fELF" + bytes(100)):
        with pytest.raises(ReportError, match="cannot be read"):
            resource_report(log, kernel.ptx, code, "scale", "sm_80")


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (".global .align 4 .u32 onnxopt_shared_bytes = 49152;", 49152),
        (".visible .global .align 4 .u32 onnxopt_shared_bytes = 16;", 16),
        (".visible .global .align 4 .u32 onnxopt_shared_bytes;", 0),
        ("", 0),
    ],
)
def test_the_published_size_of_shared_memory(line: str, size: int) -> None:
    assert report.published_shared(f"\n{line}\n", "entry") == size


def test_an_error_of_the_compiler_itself_is_named(monkeypatch: pytest.MonkeyPatch, sources: Path) -> None:
    monkeypatch.setattr("onnxopt.kernels.compilation.OPTIONS", ("--no-such-option",))
    with pytest.raises(OnnxOptError, match="NVRTC_ERROR_INVALID_OPTION.*no-such-option"):
        compile_kernel(scale_source(), "sm_80", folder=sources)


def test_constants_are_part_of_the_code(sources: Path) -> None:
    wide = KernelSource("small/scale.cu", "scale", (("WIDTH", "128"), ("RESIDENT", "2")))
    assert compile_kernel(wide, "sm_80", folder=sources).report.dynamic_shared == 16384

"""One call of NVRTC: sources and options in; log, PTX and CUBIN out. Needs no driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxopt.errors import OnnxOptError
from onnxopt.kernels.packages import missing_compiler
from onnxopt.kernels.source_tree import SourceTree


@dataclass(frozen=True)
class Compiled:
    """What NVRTC answered; ``ptx`` and ``cubin`` are None where it refused the source."""

    log: str
    ptx: str | None
    cubin: bytes | None


def run_nvrtc(tree: SourceTree, options: Sequence[str]) -> Compiled:
    """Compile a source with its headers. Raises MissingError where NVRTC cannot be loaded."""
    try:
        from cuda.bindings import nvrtc

        (status, *_) = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise missing_compiler(error) from None
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise missing_compiler(status.name)
    program = _checked(
        nvrtc,
        nvrtc.nvrtcCreateProgram(
            tree.text,
            tree.file.encode(),
            len(tree.headers),
            [text for _, text in tree.headers],
            [name.encode() for name, _ in tree.headers],
        ),
    )
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = _text(nvrtc, program, "ProgramLog").decode(errors="replace")
        if status == nvrtc.nvrtcResult.NVRTC_ERROR_COMPILATION:
            return Compiled(log, None, None)
        _checked(nvrtc, (status,), log)
        size = _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        cubin = bytearray(size)
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
        return Compiled(log, _text(nvrtc, program, "PTX").decode(), bytes(cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(nvrtc: Any, program: Any, what: str) -> bytes:
    """A text of a program, without the zero at its end."""
    size = _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program))
    buffer = bytearray(size)
    _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return bytes(buffer).rstrip(b"\0")


def _checked(nvrtc: Any, result: tuple[Any, ...], log: str = "") -> Any:
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        details = f" ({log.strip()[:400]})" if log.strip() else ""
        raise OnnxOptError(f"NVRTC fails with {result[0].name}{details}; install the version that onnxopt requires")
    return result[1] if len(result) > 1 else None

"""CUDA text or bare PTX to a kernel that runs on the CPU, for the tests of the emulator."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from cuda.bindings import nvrtc

from onnxopt.emulate import CpuKernel, build_cpu_kernel

Words = npt.NDArray[np.uint32]


@cache
def ptx_of(source: str, architecture: str = "sm_90a") -> str:
    """What NVRTC makes of CUDA text; it fails the test where it does not compile."""
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode(errors="replace")
    _, size = nvrtc.nvrtcGetPTXSize(program)
    text = b" " * size
    nvrtc.nvrtcGetPTX(program, text)
    nvrtc.nvrtcDestroyProgram(program)
    return text.rstrip(b"\0").decode()


@cache
def cuda_kernel(source: str, entry: str = "run", architecture: str = "sm_90a") -> CpuKernel:
    """A kernel from CUDA text."""
    return build_cpu_kernel(ptx_of(source, architecture), entry)


def ptx_text(body: str, parameters: int = 2, registers: str = "", head: str = "") -> str:
    """A module with one kernel `run` whose parameters are pointers p0, p1, ... loaded into %rd0, %rd1, ...

    Registers: %p, %r, %rd, %f, %h (16 bits), %d (double), 40 of each.
    """
    names = ", ".join(f".param .u64 p{index}" for index in range(parameters))
    loads = "\n".join(f"ld.param.u64 %rd{index}, [p{index}];" for index in range(parameters))
    return f"""
.version 9.0
.target sm_90a
.address_size 64
{head}
.visible .entry run({names})
{{
.reg .pred %p<40>; .reg .b32 %r<40>; .reg .b64 %rd<40>; .reg .f32 %f<40>; .reg .b16 %h<40>; .reg .f64 %d<40>;
{registers}
{loads}
{body}
ret;
}}
"""


@cache
def ptx_kernel(body: str, parameters: int = 2, registers: str = "", head: str = "") -> CpuKernel:
    """A kernel from the body of one in PTX; see `ptx_text`."""
    return build_cpu_kernel(ptx_text(body, parameters, registers, head), "run")


def line_of(body: str, fragment: str, parameters: int = 2) -> int:
    """The PTX line on which `fragment` stands in the text of a body."""
    lines = ptx_text(body, parameters).splitlines()
    return next(number for number, line in enumerate(lines, start=1) if fragment in line)

"""Runs the PTX of a kernel on the CPU: every thread a fiber, every memory access checked.

    kernel = build_cpu_kernel(ptx, "sparse_attention")
    kernel.run((8, 1, 1), (128, 1, 1), shared_bytes=49152, arguments=[q, k, v, np.int32(1), Uninitialised(y)])

What it shows is 'emulated': bank conflicts, the memory model's weaker orders and time are not in it.
"""

from onnxopt.emulate.errors import EmulationError
from onnxopt.emulate.kernel import CpuKernel, Limits, RunReport, Uninitialised, build_cpu_kernel
from onnxopt.emulate.translate import translate_ptx

__all__ = [
    "CpuKernel",
    "EmulationError",
    "Limits",
    "RunReport",
    "Uninitialised",
    "build_cpu_kernel",
    "translate_ptx",
]

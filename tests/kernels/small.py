"""Small kernels in a folder of their own, and configurations that are as a plan writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxopt.kernels.source import KernelSource
from onnxopt.plan.tables.addresses import TensorLayout
from onnxopt.plan.tables.types import AttentionKernel
from onnxopt.target.variant import AttentionVariant

_SCALE = """
#include "common/twice.cuh"
#include <cuda_fp16.h>

extern "C" __device__ const int onnxopt_shared_bytes = WIDTH * 128;

extern "C" __global__ void __launch_bounds__(128, RESIDENT) scale(const __half* x, int n, float* y) {
    extern __shared__ float rows[];
    __shared__ float sums[32];
    sums[threadIdx.x % 32] = rows[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = twice(__half2float(x[n])) + sums[(threadIdx.x + 1) % 32];
}
"""

_SPILL = """
extern "C" __global__ void __launch_bounds__(64) spill(float* y, int n) {
    float values[64];
    for (int i = 0; i < 64; ++i) values[(i * n) & 63] = y[i];
    y[threadIdx.x] = values[n & 63];
}
"""

# Accumulators of wgmma are touched without a wait, so that the compiler has to add fences and waits.
_UNFENCED = """
extern "C" __global__ void __launch_bounds__(128) unfenced(float* y, unsigned long long tile) {
    float a[4] = {1, 2, 3, 4};
    for (int i = 0; i < 3; ++i) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0,%1,%2,%3}, %4, %5, 1, 1, 1, 0, 0;"
                     : "+f"(a[0]), "+f"(a[1]), "+f"(a[2]), "+f"(a[3]) : "l"(tile), "l"(tile));
        a[0] *= 2.0f;
    }
    y[threadIdx.x] = a[0] + a[1] + a[2] + a[3];
}
"""

_UNPUBLISHED = """
extern "C" __global__ void __launch_bounds__(32) unpublished(float* y) {
    extern __shared__ float rows[];
    y[threadIdx.x] = rows[threadIdx.x];
}
"""

_UNBOUNDED = 'extern "C" __global__ void unbounded(float* y) { y[threadIdx.x] = 1.0f; }\n'

FILES = {
    "scale": _SCALE,
    "spill": _SPILL,
    "unfenced": _UNFENCED,
    "unpublished": _UNPUBLISHED,
    "unbounded": _UNBOUNDED,
}


def write_sources(folder: Path) -> Path:
    """A folder of sources: one for each of :data:`FILES`, and a header."""
    (folder / "small").mkdir(parents=True)
    (folder / "common").mkdir()
    (folder / "common" / "twice.cuh").write_text(
        '#include "common/by.cuh"\n__device__ inline float twice(float x) { return by(x, 2.0f); }\n'
    )
    (folder / "common" / "by.cuh").write_text("__device__ inline float by(float x, float y) { return x * y; }\n")
    for name, text in FILES.items():
        (folder / "small" / f"{name}.cu").write_text(text)
    return folder


def small_source(name: str, **defines: object) -> KernelSource:
    """The source of a small kernel with its constants."""
    return KernelSource(f"small/{name}.cu", name, tuple((key, str(value)) for key, value in defines.items()))


def scale_source(width: int = 64) -> KernelSource:
    """The small kernel that compiles everywhere: 128 threads, 128 bytes of static and ``width * 128`` of dynamic
    shared memory."""
    return small_source("scale", WIDTH=width, RESIDENT=2)


def attention_kernel(**changes: Any) -> dict[str, Any]:
    """The ``kernel`` part of a configuration: two shapes, packed q, k and v of 3 heads of 32 channels."""
    packed = TensorLayout(64 * 288, 1)
    settings: dict[str, Any] = {
        "element": "fp16",
        "variants": (AttentionVariant("mma", 64, 64, 4, 2), AttentionVariant("mma", 32, 64, 4, 2, True)),
        "heads": 3,
        "width": 32,
        "value_width": 32,
        "q": packed,
        "k": packed,
        "v": packed,
        "y": TensorLayout(64 * 96, 1),
        "own_values": False,
        "masks": True,
        "biases": False,
        "extras": False,
        "slots": 0,
        "columns": 0,
    }
    return AttentionKernel(**{**settings, **changes}).to_json()

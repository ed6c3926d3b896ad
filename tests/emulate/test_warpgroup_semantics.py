"""Rules of wgmma that results alone do not show: late data, warps that differ, missing fences, fragments in flight."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from onnxopt.emulate import EmulationError, Uninitialised
from tests.emulate.running import cuda_kernel

_HEAD = r"""
__device__ __forceinline__ unsigned long long matrix(unsigned address) {
    return (address & 0x3ffff) >> 4 | 128ull >> 4 << 16 | 256ull >> 4 << 32;
}
#define ACCUMULATORS "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
// 64 x 16 by 16 x 8.
__device__ __forceinline__ void multiply(float (&d)[4], unsigned long long a, unsigned long long b, int add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0; }"
                 : ACCUMULATORS : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned long long b, int add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %9, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, p, 1, 1, 0; }"
                 : ACCUMULATORS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
__device__ __forceinline__ void copy(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void land() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// `a` and `b` hold their matrices' 8 x 8 blocks as the descriptors above want them.
extern "C" __global__ void __launch_bounds__(128) run(const uint4* a, const uint4* b, float* y, int turns) {
    extern __shared__ __align__(1024) char shared[];
    const unsigned left = (unsigned)__cvta_generic_to_shared(shared), right = left + 2048;
    const int warp = threadIdx.x / 32;
    float d[4] = {0, 0, 0, 0};
    copy(left + 16 * threadIdx.x, a + threadIdx.x);
    if (threadIdx.x < 16) copy(right + 16 * threadIdx.x, b + threadIdx.x);
"""
_READY = "land(); proxy(); __syncthreads();\n"
_TAIL = "for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = d[i];\n}\n"
_PRODUCT = "multiply(d, matrix(left), matrix(right), 1);"
_NO_FENCE = "no wgmma.fence between another access to its registers and wgmma.mma_async; PTX line"


def _run(body: str, order: int = 0, turns: int = 3) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The 64 x 8 result of a body, and the product of its operands."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(64, 16)).astype(np.float16), rng.normal(size=(8, 16)).astype(np.float16)
    blocks = [np.ascontiguousarray(m.reshape(-1, 8, 2, 8).transpose(0, 2, 1, 3)) for m in (a, b)]
    y = Uninitialised(np.zeros((128, 4), np.float32))
    kernel = cuda_kernel(_HEAD + body + _TAIL)
    kernel.run((1, 1, 1), (128, 1, 1), 4096, [*blocks, y, np.int32(turns)], order)
    thread, word = np.arange(128)[:, None], np.arange(4)[None]
    found = np.zeros((64, 8), np.float32)
    rows = thread // 32 * 16 + thread % 32 // 4 + word // 2 * 8
    found[rows, thread % 4 * 2 + word % 2] = y.array
    return found, a.astype(np.float64) @ b.T.astype(np.float64)


def _refused(body: str, match: str, order: int = 0) -> None:
    with pytest.raises(EmulationError, match=match):
        _run(body, order)


@pytest.mark.parametrize("order", range(4))
def test_a_product(order: int) -> None:
    found, product = _run(f"{_READY} fence(); {_PRODUCT} commit(); wait();", order)
    np.testing.assert_allclose(found, product, rtol=1e-5, atol=1e-5)


def test_issued_before_its_data_has_arrived() -> None:
    """Everything is there at the wait, so that reading late alone does not show it."""
    body = f"fence(); {_PRODUCT} commit(); {_READY} wait();"
    found, product = _run(body, 0)
    np.testing.assert_allclose(found, product, rtol=1e-5, atol=1e-5)
    for order in (1, 2):
        _refused(body, "reads shared memory that nothing has written.*wgmma.mma_async", order)


def test_issued_before_the_next_data_has_arrived() -> None:
    """Where older data stands, a wrong number or a write without its fence shows; the drawn orders read either way."""
    later = "copy(left + 16 * threadIdx.x, a + (threadIdx.x ^ 64));"
    body = f"{_READY} {later} fence(); {_PRODUCT} commit(); {_READY} wait();"
    late, _ = _run(body, 0)

    def is_noticed(order: int) -> bool:
        try:
            return not np.array_equal(_run(body, order)[0], late)
        except EmulationError:
            return True

    assert all(is_noticed(order) for order in (1, 2))


def test_issued_before_the_proxy_fence() -> None:
    body = f"land(); __syncthreads(); fence(); {_PRODUCT} commit(); proxy(); __syncthreads(); wait();"
    _run(body, 0)
    _refused(body, "has not executed fence.proxy.async since.*wgmma.mma_async", 1)


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize(
    ("product", "match"),
    [
        ("multiply(d, matrix(left), matrix(right - warp / 2 * 16), 1);", "give different descriptors to wgmma"),
        ("multiply(d, matrix(left + warp / 3 * 16), matrix(right), 1);", "give different descriptors to wgmma"),
        ("multiply(d, matrix(left), matrix(right), warp != 1);", "give different scale-d to wgmma"),
        (f"if (warp == 2) {{ {_PRODUCT} __nanosleep(0); }} else {_PRODUCT}", "warps of a warpgroup execute different"),
        (f"if (warp != 2) {_PRODUCT}", "warps of a warpgroup execute different"),
    ],
)
def test_warps_that_differ(product: str, match: str, order: int) -> None:
    _refused(f"{_READY} fence(); {product} commit(); wait();", f"{match}.*PTX line \\d+: wgmma", order)


def test_a_warp_that_stops_before_the_others() -> None:
    _refused(
        f"{_READY} fence(); {_PRODUCT} commit(); wait(); if (warp == 1) wait();", "a warp ends without .*wait_group"
    )


_FRAGMENTS = "unsigned f[4]; for (int i = 0; i < 4; ++i) f[i] = 0x3c003c00u + threadIdx.x;"
_CHANGE = "for (int i = 0; i < 4; ++i) f[i] = f[i] * 3 + 1;"


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize(
    "turn",
    [
        f"{_PRODUCT} commit(); wait(); for (int i = 0; i < 4; ++i) d[i] *= 0.5f;",
        "multiply(d, matrix(left), matrix(right), 0); commit(); wait(); y[threadIdx.x] = d[1];",
        f"{_CHANGE} multiply(d, f, matrix(right), 1); commit(); wait();",
    ],
    ids=["rescaled", "read", "fragments"],
)
def test_a_missing_fence_after_the_first(turn: str, order: int) -> None:
    start = f"{_FRAGMENTS} {_READY} fence(); multiply(d, f, matrix(right), 0); commit(); wait();"
    loop = "#pragma unroll 1\nfor (int turn = 0; turn < turns; ++turn)"
    _run(f"{start}\n{loop} {{ fence(); {turn} }}".replace(f"fence(); {_CHANGE}", f"{_CHANGE} fence();"), order)
    _refused(f"{start} fence();\n{loop} {{ {turn} }}", _NO_FENCE, order)


def test_no_fence_is_needed_where_nothing_touches_the_registers() -> None:
    """Neither a wait nor work on another accumulator asks for one."""
    body = f"""{_READY} float e[4] = {{1, 2, 3, 4}}; fence();
    #pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {{ {_PRODUCT} commit(); wait(); }}
    multiply(e, matrix(left), matrix(right), 1); commit(); wait();
    for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = e[i];
    {_PRODUCT} commit(); wait();"""
    for order in range(3):
        found, product = _run(body, order)
        np.testing.assert_allclose(found, 4 * product, rtol=1e-5, atol=1e-4)


_SHAPES = r"""float e[4] = {0, 0, 0, 0};
asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16"
             " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, 0, 0;"
             : ACCUMULATORS, "+f"(e[0]), "+f"(e[1]), "+f"(e[2]), "+f"(e[3])
             : "l"(matrix(left)), "l"(matrix(left)));"""


def test_shapes_on_one_accumulator() -> None:
    _run(f"{_READY} fence(); {_SHAPES} fence(); {_PRODUCT} commit(); wait();")
    _refused(
        f"{_READY} fence(); {_SHAPES} {_PRODUCT} commit(); wait();", "of different shapes on the same accumulators"
    )


def test_a_fragment_overwritten_before_the_wait() -> None:
    loop = f"{_FRAGMENTS} {_READY}\n#pragma unroll 1\nfor (int turn = 0; turn < turns; ++turn) {{ fence();"
    product = "multiply(d, f, matrix(right), 1); commit();"
    _run(f"{loop} {product} wait(); {_CHANGE} }}")
    _refused(f"{loop} {product} {_CHANGE} wait(); }}", "overwrites a fragment of A before wgmma.wait_group; PTX line")

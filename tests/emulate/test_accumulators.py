"""What is asynchronous about wgmma: accumulators before the wait, operands read late, groups in flight."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from onnxopt.emulate import EmulationError, Uninitialised
from tests.emulate.running import cuda_kernel, ptx_kernel

ORDERS = range(4)

_PIPELINE = r"""
__device__ __forceinline__ unsigned long long matrix(unsigned address) {
    return (address & 0x3ffff) >> 4 | 1ull << 16 | 1024ull >> 4 << 32 | 1ull << 62;
}
__device__ __forceinline__ void put(unsigned tile, const uint4* rows, int count) {
    for (int i = threadIdx.x; i < count; i += 128) {
        uint4 v = rows[i];
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                     ::"r"(tile + i / 8 * 128 + 16 * ((i % 8) ^ (i / 8 % 8))), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                     : "memory");
    }
}
__device__ __forceinline__ void multiply(float (&d)[8], unsigned long long a, unsigned long long b, int add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16"
                 " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, 0, 0; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                 : "l"(a), "l"(b), "r"(add));
}
// The sum and the first of `turns` products of 64 x 64 by 64 x 16; two groups are in flight.
extern "C" __global__ void __launch_bounds__(128)
run(const uint4* a, const uint4* b, float* sum, float* first, int turns) {
    extern __shared__ __align__(1024) char shared[];
    unsigned base = (unsigned)__cvta_generic_to_shared(shared);
    float total[8], single[8], kept[8];
    put(base, a, 512);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int turn = 0; turn < turns; ++turn) {
        unsigned right = base + 8192 + turn % STAGES * 2048;
        put(right, b + turn * 128, 128);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int k = 0; k < 4; ++k) multiply(total, matrix(base) + 2 * k, matrix(right) + 2 * k, turn | k);
        for (int k = 0; k < 4; ++k) multiply(single, matrix(base) + 2 * k, matrix(right) + 2 * k, k);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        MIDDLE
        asm volatile("wgmma.wait_group.sync.aligned PENDING;" ::: "memory");
        if (PENDING == 0 && turn == 0) for (int i = 0; i < 8; ++i) kept[i] = single[i];
        __syncthreads();
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 8; ++i) {
        sum[8 * threadIdx.x + i] = total[i];
        first[8 * threadIdx.x + i] = PENDING ? single[i] : kept[i];
    }
}
"""


def _source(pending: int = 1, stages: int = 3, middle: str = "") -> str:
    return _PIPELINE.replace("PENDING", str(pending)).replace("STAGES", str(stages)).replace("MIDDLE", middle)


def _run(source: str, order: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The sum, the single product that was kept, and every product."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(64, 64)).astype(np.float16), rng.normal(size=(5, 16, 64)).astype(np.float16)
    total, single = (Uninitialised(np.zeros((128, 8), np.float32)) for _ in range(2))
    arguments = [a, b, total, single, np.int32(5)]
    report = cuda_kernel(source).run((1, 1, 1), (128, 1, 1), 8192 + 3 * 2048, arguments, order)
    assert report.counts == {"wgmma": 4 * 5 * 8}
    products = np.einsum("mk,tnk->tmn", a.astype(np.float64), b.astype(np.float64))
    return _matrix(total.array), _matrix(single.array), products


def _matrix(fragments: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """64 x 16 from the eight words of each of 128 threads: rows by groups of four lanes, pairs of columns by lane."""
    thread, word = np.arange(128)[:, None], np.arange(8)[None]
    rows = thread // 32 * 16 + thread % 32 // 4 + word // 2 % 2 * 8
    columns = word // 4 * 8 + thread % 4 * 2 + word % 2
    found = np.zeros((64, 16), np.float32)
    found[rows, columns] = fragments
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_groups_in_flight(order: int) -> None:
    total, single, products = _run(_source(pending=1), order)
    np.testing.assert_allclose(total, products.sum(axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(single, products[-1], rtol=1e-5, atol=1e-4)
    total, single, products = _run(_source(pending=0, stages=1), order)
    np.testing.assert_allclose(total, products.sum(axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(single, products[0], rtol=1e-5, atol=1e-4)


def test_operands_are_read_late() -> None:
    """With one buffer and a group in flight, the next tile overwrites what the last product may still read."""

    def is_wrong(order: int) -> bool:
        total, _, products = _run(_source(pending=1, stages=1), order)
        return bool(np.abs(total - products.sum(axis=0)).max() > 1)

    assert is_wrong(0) and not is_wrong(1)
    assert all(is_wrong(order) for order in range(2, 6))


@pytest.mark.parametrize("order", ORDERS)
def test_accumulators_before_the_wait(order: int) -> None:
    with pytest.raises(
        EmulationError, match=r"reads an accumulator of wgmma.mma_async before wgmma.wait_group; PTX line \d+"
    ):
        _run(_source(middle="first[8 * threadIdx.x] = single[3];"), order)


def test_without_a_register_fence() -> None:
    with pytest.raises(
        EmulationError, match=r"no wgmma.fence in front of the first wgmma.mma_async; PTX line \d+: wgmma"
    ):
        _run(_source().replace('asm volatile("wgmma.fence.sync.aligned;" ::: "memory");', ""), 0)


def test_without_a_proxy_fence() -> None:
    match = (
        r"reads shared memory whose writer has not executed fence.proxy.async since: 16? bytes|fence.proxy.async since"
    )
    with pytest.raises(EmulationError, match=match):
        _run(_source().replace('asm volatile("fence.proxy.async.shared::cta;" ::: "memory");', ""), 0)


def test_register_counts_of_setmaxnreg() -> None:
    arrays = [np.zeros(1), np.zeros(1)]
    ptx_kernel("setmaxnreg.dec.sync.aligned.u32 40;").run((1, 1, 1), (128, 1, 1), 0, arrays)
    with pytest.raises(EmulationError, match="setmaxnreg takes a multiple of 8 from 24 to 256 .found 36"):
        ptx_kernel("setmaxnreg.dec.sync.aligned.u32 36;").run((1, 1, 1), (128, 1, 1), 0, arrays)

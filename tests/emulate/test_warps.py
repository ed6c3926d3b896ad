"""Shuffles, votes and the other collectives of a warp; barriers of a block; what goes wrong with them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.emulate import EmulationError, Limits, Uninitialised
from tests.emulate.running import cuda_kernel, line_of, ptx_kernel

ORDERS = range(5)

_COLLECTIVES = r"""
#define FULL 0xffffffffu
extern "C" __global__ void run(const int* in, int* out) {
    int t = threadIdx.x, lane = t & 31, v = in[t], n = 0;
    int* o = out + t * 24;
    o[n++] = __shfl_xor_sync(FULL, v, 5);
    o[n++] = __shfl_sync(FULL, v, 9, 16);
    o[n++] = __shfl_up_sync(FULL, v, 3, 8);
    o[n++] = __shfl_down_sync(FULL, v, 30);
    o[n++] = __ballot_sync(FULL, v & 1);
    o[n++] = __all_sync(FULL, v >= 0);
    o[n++] = __any_sync(FULL, v == 7);
    o[n++] = __reduce_add_sync(FULL, v);
    o[n++] = __reduce_min_sync(FULL, v);
    o[n++] = __reduce_max_sync(FULL, (unsigned)v);
    o[n++] = __reduce_xor_sync(FULL, v);
    o[n++] = __match_any_sync(FULL, v & 3);
    int same;
    o[n++] = __match_all_sync(FULL, v >> 30, &same);
    o[n++] = same;
    if (lane < 12) { o[n++] = __shfl_xor_sync(0xfffu, v, 1); } else { o[n++] = __ballot_sync(0xfffff000u, lane & 1); }
    int leader, elected;
    asm volatile("{ .reg .pred p; elect.sync %0|p, 0xffffffff; selp.s32 %1, 1, 0, p; }" : "=r"(leader), "=r"(elected));
    o[n++] = leader;
    o[n++] = elected;
    o[n++] = __activemask();
    o[n++] = __syncthreads_count(v & 1);
    o[n++] = __syncthreads_and(v >= 0);
    o[n++] = __syncthreads_or(v == 7);
    unsigned below;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(below));
    o[n++] = below;
    float f = __int_as_float(v);
    o[n++] = __float_as_int(__shfl_down_sync(FULL, f, 1));
    __syncwarp();
    o[n++] = (t / 32) * 1000 + lane;
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_collectives(order: int) -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(0, 40, 64).astype(np.int32)
    given[3] = -5
    out = np.zeros((64, 24), np.int32)
    cuda_kernel(_COLLECTIVES).run((1, 1, 1), (64, 1, 1), 0, [given, Uninitialised(out)], order=order)
    lane = np.arange(32)
    for warp in range(2):
        v, got = given[32 * warp :][:32], out[32 * warp :][:32]
        bits = sum(1 << i for i in range(32) if v[i] & 1)
        matches = [sum(1 << j for j in range(32) if v[j] & 3 == v[i] & 3) for i in range(32)]
        alike = len(set((v >> 30).tolist())) == 1
        expected = [
            *(v[lane ^ 5], v[lane // 16 * 16 + 9], v[np.where(lane % 8 >= 3, lane - 3, lane)]),
            *(v[np.where(lane < 2, lane + 30, lane)], bits, int((v >= 0).all()), int((v == 7).any())),
            *(v.sum(), v.min(), v.view(np.uint32).max(), np.bitwise_xor.reduce(v), matches),
            *(0xFFFFFFFF if alike else 0, int(alike), np.where(lane < 12, v[lane ^ 1], 0xAAAAA000)),
            *(0, lane == 0, 0xFFFFFFFF, int((given & 1).sum()), int((given >= 0).all()), int((given == 7).any())),
            *((1 << lane) - 1, v[np.minimum(lane + 1, 31)], warp * 1000 + lane),
        ]
        for column, wanted in enumerate(expected):
            np.testing.assert_array_equal(
                got[:, column].view(np.uint32), (np.zeros(32, np.int64) + wanted).astype(np.uint32), err_msg=str(column)
            )


_NAMED = r"""
extern "C" __global__ void run(int* out) {
    __shared__ int box[32];
    int t = threadIdx.x;
    for (int turn = 0; turn < 4; ++turn) {
        if (t < 32) {
            asm volatile("bar.sync 2, 64;" ::: "memory");
            out[turn * 32 + t] = box[31 - t];
            asm volatile("barrier.cta.arrive 3, 64;" ::: "memory");
        } else {
            if (turn) asm volatile("barrier.cta.sync.aligned 3, 64;" ::: "memory");
            box[t - 32] = turn * 100 + t;
            asm volatile("bar.arrive 2, 64;" ::: "memory");
        }
    }
    if (t >= 32) asm volatile("bar.sync 3, 64;" ::: "memory");
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_named_barriers_hand_over(order: int) -> None:
    out = np.zeros((4, 32), np.int32)
    cuda_kernel(_NAMED).run((1, 1, 1), (64, 1, 1), 0, [Uninitialised(out)], order=order)
    np.testing.assert_array_equal(out, np.arange(4)[:, None] * 100 + 63 - np.arange(32))


_MISSING = r"""
extern "C" __global__ void run(int* out) {
    __shared__ int box[256];
    int t = threadIdx.x;
    box[t] = t;
    __syncthreads();
    for (int turn = 1; turn < 3; ++turn) {
        int value = box[255 - t];
        BARRIER
        box[t] = value + turn;
        __syncthreads();
    }
    out[t] = box[t];
}
"""


def test_a_missing_barrier_shows() -> None:
    t = np.arange(256)
    for order in ORDERS:
        out = np.zeros(256, np.int32)
        source = _MISSING.replace("BARRIER", "__syncthreads();")
        cuda_kernel(source).run((1, 1, 1), (256, 1, 1), 0, [Uninitialised(out)], order=order)
        np.testing.assert_array_equal(out, t + 3)
        cuda_kernel(_MISSING.replace("BARRIER", "")).run((1, 1, 1), (256, 1, 1), 0, [Uninitialised(out)], order=order)
        assert (out != t + 3).any()


_LANE = "mov.u32 %r0, %tid.x; setp.lt.u32 %p1, %r0, 16; setp.eq.u32 %p2, %r0, 3;\n"


def _fails(body: str, match: str, fragment: str, threads: int = 32, limits: Limits | None = None) -> None:
    for order in ORDERS:
        with pytest.raises(EmulationError, match=match) as caught:
            ptx_kernel(_LANE + body).run(
                (1, 1, 1), (threads, 1, 1), 0, [np.zeros(64), np.zeros(64)], order=order, limits=limits
            )
        assert fragment in str(caught.value), caught.value
        assert caught.value.line == 0 or line_of(_LANE + body, fragment) >= 12


def test_divergence() -> None:
    split = "@%p1 bra A;\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff;\nbra B;\nA:\n"
    other = "vote.sync.any.pred %p3, %p2, 0xffffffff;\nB:\n"
    _fails(split + other, "divergence: lane .* of the same warp waits at PTX line", "sync")
    gone = "@%p2 exit;\nbar.warp.sync 0xffffffff;"
    _fails(gone, "divergence: .*exited", "bar.warp.sync")
    _fails("vote.sync.any.pred %p3, %p2, 0xfffffffe;", "does not name the executing lane", "vote.sync")
    far = "@!%p1 exit;\nshfl.sync.idx.b32 %r1, %r0, 20, 31, 0xffff;"
    _fails(far, "a lane that its member mask does not name", "shfl.sync.idx")


def test_deadlock() -> None:
    _fails(
        "@%p2 bra A;\nbar.sync 1;\nA:\nbar.sync 2;",
        "deadlock after divergence.*barrier 1.*barrier 2|barrier 2",
        "bar.sync",
    )
    _fails("@%p1 exit;\nbar.sync 0;", "deadlock: 16 threads wait at barrier 0 .*; 16 threads have exited", "bar.sync 0")
    _fails("bar.sync 0, 96;", "a barrier expects more threads than the block has", "bar.sync 0, 96", threads=64)
    _fails("bar.sync 0, 40;", "must be a multiple of 32", "bar.sync 0, 40", threads=64)
    _fails("bar.sync 16;", "a barrier's number is 0 to 15", "bar.sync 16")
    sides = "setp.lt.u32 %p3, %r0, 32;\n@%p3 bar.sync 0, 64;\n@!%p3 bar.sync 0, 96;"
    _fails(sides, "one barrier with different thread counts", "bar.sync 0", threads=96)


def test_endless_loop() -> None:
    _fails("A:\nadd.u32 %r1, %r1, 1;\nbra A;", "endless loop", "bra A", limits=Limits(steps=300_000))
    spin = "A:\nld.volatile.global.u32 %r1, [%rd0];\nsetp.eq.u32 %p4, %r1, 0;\n@%p4 bra A;"
    _fails(spin, "endless loop", "bra A", limits=Limits(steps=300_000))


def test_threads_wait_for_each_other_through_memory() -> None:
    source = r"""
extern "C" __global__ void run(volatile int* flag, int* lock) {
    if (threadIdx.x == 5) { flag[0] = 1; }
    while (flag[0] == 0) { }
    while (atomicCAS(lock, 0, 1) != 0) { }
    flag[1] = flag[1] + 1;
    __threadfence();
    atomicExch(lock, 0);
}
"""
    for order in ORDERS:
        flag = np.zeros(2, np.int32)
        cuda_kernel(source).run((1, 1, 1), (64, 1, 1), 0, [flag, np.zeros(1, np.int32)], order=order)
        assert flag.tolist() == [1, 64]


def test_trap_and_branch_tables() -> None:
    _fails("@%p2 trap;", "trap was executed", "trap")
    body = (
        "mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 3;\nT: .branchtargets A, B, C, A;\nbrx.idx %r1, T;\n"
        "A: mov.u32 %r2, 10; bra D;\nB: mov.u32 %r2, 11; bra D;\nC: mov.u32 %r2, 12;\n"
        "D: mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd0, %rd2; st.global.u32 [%rd3], %r2;"
    )
    out = np.zeros(32, np.int32)
    ptx_kernel(body).run((1, 1, 1), (32, 1, 1), 0, [Uninitialised(out), out])
    np.testing.assert_array_equal(out, np.array([10, 11, 12, 10])[np.arange(32) % 4])


def test_runs_repeat_exactly() -> None:
    source = 'extern "C" __global__ void run(int* out) { out[threadIdx.x] = atomicAdd(out + 96, 1); }'
    kernel = cuda_kernel(source)
    seen = set()
    for order in ORDERS:
        results = []
        for _ in range(2):
            out = np.zeros(97, np.int32)
            kernel.run((1, 1, 1), (96, 1, 1), 0, [out], order=order)
            results.append(out.tobytes())
        assert results[0] == results[1]
        seen.add(results[0])
    assert len(seen) == len(ORDERS)


def test_several_blocks_and_dimensions() -> None:
    source = (
        'extern "C" __global__ void run(int* out) { int t = threadIdx.x + 4 * (threadIdx.y + 2 * threadIdx.z);'
        " out[((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * 40 + t] = t + 100 * blockIdx.x; }"
    )
    out = np.zeros((2, 3, 2, 40), np.int32)
    report = cuda_kernel(source).run((2, 3, 2), (4, 2, 5), 0, [Uninitialised(out)])
    assert report.blocks == 12
    np.testing.assert_array_equal(out, np.arange(40) + 100 * np.arange(2)[:, None] + np.zeros((2, 3, 1, 1)))

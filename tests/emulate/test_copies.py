"""cp.async, mbarrier and bulk copies: they land at the wait that covers them, and misuse is an error."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.emulate import EmulationError, Uninitialised
from tests.emulate.running import cuda_kernel, ptx_kernel

ORDERS = range(5)

_COPY = r"""
#define COPY(to, from, n) asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" \
                                       ::"r"(to), "l"(from), "r"(n) : "memory")
#define COMMIT asm volatile("cp.async.commit_group;" ::: "memory")
extern "C" __global__ void run(const uint4* in, uint4* out, int turns) {
    __shared__ uint4 stage[3][64];
    int t = threadIdx.x;
    unsigned base = (unsigned)__cvta_generic_to_shared(&stage[0][t]);
    for (int s = 0; s < 3; ++s) stage[s][t] = make_uint4(9, 9, 9, 9);
    for (int s = 0; s < 2; ++s) { COPY(base + s * 1024, in + s * 64 + t, t == 5 ? 6 : 16); COMMIT; }
    for (int turn = 0; turn < turns; ++turn) {
        WAIT
        __syncthreads();
        if (turn + 2 < turns) COPY(base + (turn + 2) % 3 * 1024, in + (turn + 2) * 64 + t, 16);
        COMMIT;
        out[turn * 64 + t] = stage[turn % 3][t ^ 1];
    }
}
"""


def _pipeline(wait: str, order: int) -> tuple[np.ndarray, np.ndarray]:
    given = np.random.default_rng(0).integers(0, 2**32, (7, 64, 4), dtype=np.uint32)
    out = np.zeros_like(given)
    source = _COPY.replace("WAIT", f'asm volatile("{wait}" ::: "memory");' if wait else "")
    cuda_kernel(source, architecture="sm_80").run(
        (1, 1, 1), (64, 1, 1), 0, [given, Uninitialised(out), np.int32(7)], order
    )
    wanted = given[:, np.arange(64) ^ 1].copy()
    # The source size of thread 5 was 6 bytes in the first two turns: the rest is filled with zeros.
    tail = wanted[:2, 4].view(np.uint16)
    tail[:, 3:] = 0
    return out, wanted


@pytest.mark.parametrize("order", ORDERS)
def test_copies_land_at_their_wait(order: int) -> None:
    out, wanted = _pipeline("cp.async.wait_group 1;", order)
    np.testing.assert_array_equal(out, wanted)
    out, wanted = _pipeline("cp.async.wait_all;", order)
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("wait", ["", "cp.async.wait_group 2;"])
def test_a_missing_wait_shows(wait: str) -> None:
    for order in ORDERS:
        out, wanted = _pipeline(wait, order)
        assert (out != wanted).any()


def test_a_copy_that_reads_too_much_is_refused() -> None:
    source = _COPY.replace("WAIT", 'asm volatile("cp.async.wait_all;");')
    given = np.zeros((7, 64, 4), np.uint32)[:6]
    kernel = cuda_kernel(source, architecture="sm_80")
    match = r"out of bounds: 16 bytes at byte (6144|7152) of argument 0; PTX line \d+: cp.async.cg"
    with pytest.raises(EmulationError, match=match):
        kernel.run((1, 1, 1), (64, 1, 1), 0, [given, np.zeros((7, 64, 4), np.uint32), np.int32(7)])


_BARRIER = r"""
#define INIT(b, n) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(n) : "memory")
#define ARRIVE(b) asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(b) : "memory")
#define EXPECT(b, n) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(n) : "memory")
__device__ __forceinline__ void wait(unsigned b, unsigned parity) {
    asm volatile("{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%0], %1, 0x989680;"
                 " @p bra DONE; bra AGAIN; DONE: }" ::"r"(b), "r"(parity) : "memory");
}
"""

_PRODUCER = (
    _BARRIER
    + r"""
extern "C" __global__ void run(const int4* in, int* out, int turns) {
    __shared__ alignas(128) int4 stage[2][64];
    __shared__ unsigned long long full[2], empty[2];
    int t = threadIdx.x;
    unsigned f = (unsigned)__cvta_generic_to_shared(full), e = (unsigned)__cvta_generic_to_shared(empty);
    if (t == 0) {
        for (int s = 0; s < 2; ++s) { INIT(f + 8 * s, FULL); INIT(e + 8 * s, 64); }
        asm volatile("fence.mbarrier_init.release.cluster;");
    }
    __syncthreads();
    if (t >= 64) {
        int lane = t - 64;
        for (int turn = 0; turn < turns; ++turn) {
            int s = turn & 1;
            if (turn >= 2) wait(e + 8 * s, (turn / 2 - 1) & 1);
            PRODUCE
        }
        return;
    }
    for (int turn = 0; turn < turns; ++turn) {
        int s = turn & 1;
        wait(f + 8 * s, (turn / 2) & 1);
        out[turn * 64 + t] = stage[s][63 - t].x + stage[s][t].w;
        ARRIVE(e + 8 * s);
    }
}
"""
)
_ASYNC = r"""for (int i = lane; i < 64; i += 32)
    asm volatile("cp.async.ca.shared::cta.global [%0], [%1], 16;"
                 ::"r"((unsigned)__cvta_generic_to_shared(&stage[s][i])), "l"(in + turn * 64 + i) : "memory");
asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(f + 8 * s) : "memory");"""
_BULK = r"""if (lane == 0) {
    EXPECT(f + 8 * s, 1024);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"((unsigned)__cvta_generic_to_shared(stage[s])), "l"(in + turn * 64), "r"(1024), "r"(f + 8 * s)
                 : "memory");
}"""
_STORES = r"""for (int i = lane; i < 64; i += 32) stage[s][i] = in[turn * 64 + i];
ARRIVE(f + 8 * s);"""


@pytest.mark.parametrize(
    ("produce", "count"), [(_ASYNC, 32), (_BULK, 1), (_STORES, 32)], ids=["async", "bulk", "stores"]
)
def test_producer_and_consumers(produce: str, count: int) -> None:
    given = np.random.default_rng(0).integers(0, 1000, (9, 64, 4), dtype=np.int32)
    wanted = given[:, ::-1, 0] + given[:, :, 3]
    kernel = cuda_kernel(_PRODUCER.replace("PRODUCE", produce).replace("FULL", str(count)))
    for order in ORDERS:
        out = np.zeros((9, 64), np.int32)
        kernel.run((1, 1, 1), (96, 1, 1), 0, [given, Uninitialised(out), np.int32(9)], order)
        np.testing.assert_array_equal(out, wanted)


def _broken(source: str, match: str, orders: range = ORDERS) -> None:
    given = np.random.default_rng(0).integers(0, 1000, (9, 64, 4), dtype=np.int32)
    for order in orders:
        with pytest.raises(EmulationError, match=match):
            cuda_kernel(source).run((1, 1, 1), (96, 1, 1), 0, [given, np.zeros((9, 64), np.int32), np.int32(9)], order)


def test_wrong_use_of_mbarriers() -> None:
    source = _PRODUCER.replace("PRODUCE", _STORES)
    _broken(source.replace("FULL", "33"), "deadlock: .* wait at the mbarrier at shared address")
    late = source.replace("FULL", "32").replace("__syncthreads();", "", 1)
    _broken(late, "no mbarrier.init has made an mbarrier here", range(1, 2))
    twice = source.replace("FULL", "32").replace("INIT(e + 8 * s, 64);", "INIT(e, 64);")
    _broken(twice, "initialises an mbarrier that is still valid|no mbarrier.init")


def test_a_count_of_nothing() -> None:
    body = ".shared .align 8 .b64 word;\nmov.u32 %r1, word;\nmbarrier.init.shared::cta.b64 [%r1], 0;"
    with pytest.raises(EmulationError, match="an mbarrier's count is 1 to"):
        ptx_kernel(body).run((1, 1, 1), (1, 1, 1), 0, [np.zeros(1), np.zeros(1)])


def test_more_arrivals_than_a_phase_takes() -> None:
    body = (
        ".shared .align 8 .b64 word;\nmov.u32 %r1, word;\nmbarrier.init.shared::cta.b64 [%r1], 3;\n"
        "mbarrier.arrive.shared::cta.b64 %rd5, [%r1], 2;\nmbarrier.arrive.shared::cta.b64 %rd6, [%r1], 2;"
    )
    with pytest.raises(EmulationError, match="more arrivals at an mbarrier than its phase takes.*%rd6"):
        ptx_kernel(body).run((1, 1, 1), (1, 1, 1), 0, [np.zeros(1), np.zeros(1)])


def test_a_missing_wait_of_a_bulk_copy_shows() -> None:
    source = _PRODUCER.replace("PRODUCE", _BULK).replace("FULL", "1").replace("wait(f + 8 * s, (turn / 2) & 1);", "")
    for order in ORDERS:
        with pytest.raises(EmulationError, match="shared memory that nothing has written|no mbarrier|more arrivals"):
            given = np.zeros((9, 64, 4), np.int32)
            cuda_kernel(source).run((1, 1, 1), (96, 1, 1), 0, [given, np.zeros((9, 64), np.int32), np.int32(9)], order)


def test_arrival_states_and_bulk_stores() -> None:
    source = (
        _BARRIER
        + r"""
extern "C" __global__ void run(int* out, int* copy) {
    __shared__ alignas(16) int box[64];
    __shared__ unsigned long long word;
    unsigned b = (unsigned)__cvta_generic_to_shared(&word), s = (unsigned)__cvta_generic_to_shared(box);
    int t = threadIdx.x;
    if (t == 0) INIT(b, 64);
    __syncthreads();
    box[t] = t * t;
    FENCE
    unsigned long long state;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(b) : "memory");
    int done = 0;
    while (!done) asm volatile("{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.s32 %0, 1, 0, p; }"
                               : "=r"(done) : "r"(b), "l"(state) : "memory");
    out[t] = box[63 - t];
    __syncthreads();
    if (t == 0) {
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 256;" ::"l"(copy), "r"(s) : "memory");
        asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;" ::: "memory");
        asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(b) : "memory");
    }
}
"""
    )
    fenced = source.replace("FENCE", 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");')
    for order in ORDERS:
        out, copy = np.zeros(64, np.int32), np.zeros(64, np.int32)
        cuda_kernel(fenced).run((1, 1, 1), (64, 1, 1), 0, [Uninitialised(out), Uninitialised(copy)], order)
        np.testing.assert_array_equal(copy, np.arange(64) ** 2)
        np.testing.assert_array_equal(out, copy[::-1])
        with pytest.raises(EmulationError, match="has not executed fence.proxy.async"):
            cuda_kernel(source.replace("FENCE", "")).run((1, 1, 1), (64, 1, 1), 0, [out, copy], order)

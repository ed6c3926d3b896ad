"""State spaces, vector accesses, atomics, variables of the module, and what is refused of each."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.emulate import EmulationError, Uninitialised, build_cpu_kernel
from onnxopt.errors import InputError
from tests.emulate.running import cuda_kernel, line_of, ptx_kernel, ptx_of, ptx_text

_SPACES = r"""
__constant__ float table[4] = {1.f, 2.f, 3.f, 4.f};
__device__ int counter = 5;
__device__ const int* pointer = &counter;
struct Inner { short a[3]; double b; };
__device__ __noinline__ float power(float x, int n) {
    float y = 1;
    for (int i = 0; i < n; ++i) y = y * x + table[i & 3];
    return y;
}
extern "C" __global__ void run(const float4* in, float* out, Inner inner, int n, int* counts, unsigned char* bytes) {
    extern __shared__ float4 shared[];
    __shared__ float fixed[64];
    __shared__ int mine[64];
    int t = threadIdx.x;
    shared[t] = in[t];
    fixed[t] = in[t].x;
    __syncthreads();
    float local[8];
    for (int i = 0; i < 8; ++i) local[i] = i * in[t].y;
    float4 other = shared[63 - t];
    out[t] = other.x + fixed[t ^ 1] + local[(t + n) & 7] + inner.a[t % 3];
    out[t] += (float)inner.b + power(0.5f, n + t % 2) + *pointer;
    atomicAdd(&counts[0], t);
    atomicMax(&counts[1], t * 3);
    atomicMin(&counts[2], -t);
    atomicOr(&counts[3], 1 << (t & 31));
    atomicCAS(&counts[4], 0, 77);
    atomicExch(&counts[5], 9);
    atomicAdd((float*)&counts[6], 0.5f);
    atomicInc((unsigned*)&counts[7], 9);
    int* generic = t & 1 ? &mine[t] : &counts[8 + t];
    *generic = t;
    if (t & 1) counts[8 + t] = mine[t] * 2;
    bytes[t] = (unsigned char)(t * 7);
    asm volatile("prefetch.global.L2 [%0];" ::"l"(in + 100000));
}
"""


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a", "sm_100a"])
def test_every_state_space(architecture: str) -> None:
    kernel = cuda_kernel(_SPACES, architecture=architecture)
    rng = np.random.default_rng(0)
    given = rng.normal(size=(64, 4)).astype(np.float32)
    inner = np.zeros(1, [("a", np.int16, 3), ("pad", np.int16), ("b", np.float64)])
    inner["a"], inner["b"] = [10, -20, 30], 2.5
    for order in range(3):
        out, counts, data = np.zeros(64, np.float32), np.zeros(72, np.int32), np.zeros(64, np.uint8)
        kernel.run(
            (1, 1, 1),
            (64, 1, 1),
            1024,
            [given, Uninitialised(out), inner[0], np.int32(3), counts, Uninitialised(data)],
            order=order,
        )
        t = np.arange(64)
        power = np.array([_power(np.float32(0.5), 3 + i % 2) for i in t])
        expected = (
            given[::-1, 0] + given[t ^ 1, 0] + ((t + 3) & 7) * given[:, 1] + inner["a"][0][t % 3] + 2.5 + power + 5
        )
        np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-5)
        assert counts[:8].tolist() == [2016, 189, -63, -1, 77, 9, np.float32(32).view(np.int32), 4]
        np.testing.assert_array_equal(counts[8:], np.where(t & 1, 2 * t, t))
        np.testing.assert_array_equal(data, (t * 7) & 255)


def _power(x: np.float32, n: int) -> np.float32:
    y = np.float32(1)
    for i in range(n):
        y = y * x + np.float32([1, 2, 3, 4][i & 3])
    return y


_LANES = "mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 16; add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2;"


def test_vectors_and_hints() -> None:
    body = f"""{_LANES}
ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd3];
st.global.L1::evict_last.v2.b32 [%rd4], {{%r4, %r3}};
ld.volatile.global.v2.u16 {{%h1, %h2}}, [%rd3+4];
ld.global.s8 %r5, [%rd3];
mov.b32 %r6, {{%h2, %h1}};
st.global.wt.v2.b32 [%rd4+8], {{%r6, %r5}};"""
    given = np.random.default_rng(1).integers(0, 2**32, (32, 4), dtype=np.uint32)
    out = np.zeros((32, 4), np.uint32)
    ptx_kernel(body).run((1, 1, 1), (32, 1, 1), 0, [given, Uninitialised(out)])
    np.testing.assert_array_equal(out[:, :2], given[:, [3, 2]])
    np.testing.assert_array_equal(out[:, 2], (given[:, 1] >> 16) | (given[:, 1] << 16))
    np.testing.assert_array_equal(
        out[:, 3], given[:, 0].astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32)
    )


def _fails(body: str, match: str, fragment: str, size: int = 32, threads: int = 32) -> None:
    given, out = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
    given.flags.writeable = False
    for order in range(3):
        with pytest.raises(EmulationError, match=match) as caught:
            ptx_kernel(body).run((1, 1, 1), (threads, 1, 1), 64, [given, Uninitialised(out)], order=order)
        assert caught.value.line == line_of(body, fragment), caught.value
        assert caught.value.block == (0, 0, 0) and caught.value.thread is not None


_HEAD = "mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2;\n"
_SHARED = ".shared .align 16 .b8 area[64];\nmov.u32 %r1, area; shl.b32 %r2, %r0, 2; add.u32 %r1, %r1, %r2;\n"


def test_out_of_bounds() -> None:
    _fails(_HEAD + "ld.global.u32 %r5, [%rd3+4];", "out of bounds: 4 bytes at byte 128 of argument 0", "ld.global.u32")
    _fails(_HEAD + "st.global.u32 [%rd4+-4], %r0;", "out of bounds: 4 bytes at byte -4 of argument 1", "st.global.u32")
    _fails(_HEAD + "mov.u64 %rd9, 0;\nld.global.u32 %r5, [%rd9];", "the address is in no tensor", "ld.global.u32 %r5")
    _fails(
        _HEAD + _SHARED + "st.shared.u32 [%r1+64], %r0;", "out of bounds of shared memory", "st.shared.u32", threads=17
    )
    _fails(
        _HEAD + ".local .b8 mine[8];\nst.local.u32 [%r0+2000], %r0;", "bounds of local memory", "st.local", threads=1
    )


def test_misaligned() -> None:
    _fails(_HEAD + "ld.global.u32 %r5, [%rd3+2];", "misaligned address: 4 bytes", "ld.global.u32")


def test_reads_of_what_nothing_wrote() -> None:
    _fails(_HEAD + "ld.global.u32 %r5, [%rd4];", "reads global memory that nothing has written", "ld.global.u32 %r5")
    _fails(
        _HEAD + _SHARED + "ld.shared.u32 %r5, [%r1];", "shared memory that nothing has written", "ld.shared", threads=8
    )
    half = "st.shared.u16 [%r1], %h1;\nld.shared.u32 %r5, [%r1];"
    _fails(_HEAD + _SHARED + half, "shared memory that nothing has written", "ld.shared.u32", threads=8)


def test_read_only_arrays_and_constants() -> None:
    _fails(_HEAD + "st.global.u32 [%rd3], %r0;", "writes to memory that is read-only", "st.global.u32")


def test_counts_of_writes() -> None:
    body = _HEAD + "setp.lt.u32 %p1, %r0, 8; st.global.u32 [%rd4], %r0; @%p1 st.global.u32 [%rd4+64], %r0;"
    out = Uninitialised(np.zeros(32, np.uint32))
    ptx_kernel(body).run((1, 1, 1), (16, 1, 1), 0, [np.zeros(1), out])
    assert out.writes.reshape(32, 4).tolist() == [[1] * 4] * 24 + [[0] * 4] * 8
    ptx_kernel(body).run((1, 1, 1), (32, 1, 1), 0, [np.zeros(1), out])
    assert out.writes.reshape(32, 4)[:, 0].tolist() == [1] * 16 + [2] * 8 + [1] * 8


def test_arguments_that_do_not_fit() -> None:
    kernel = ptx_kernel(_HEAD)
    array = np.zeros((4, 4), np.float32)
    with pytest.raises(InputError, match="takes 2 arguments, not 1"):
        kernel.run((1, 1, 1), (32, 1, 1), 0, [array])
    with pytest.raises(InputError, match="argument 1 of run has 4 bytes"):
        kernel.run((1, 1, 1), (32, 1, 1), 0, [array, np.int32(4)])
    with pytest.raises(InputError, match="not C-contiguous"):
        kernel.run((1, 1, 1), (32, 1, 1), 0, [array, array.T])
    with pytest.raises(InputError, match="argument 0 of run is a list"):
        kernel.run((1, 1, 1), (32, 1, 1), 0, [[1], array])  # type: ignore[list-item]
    with pytest.raises(InputError, match="product of 1 to 1024"):
        kernel.run((1, 1, 1), (2048, 1, 1), 0, [array, array])
    with pytest.raises(InputError, match="dynamic shared memory"):
        kernel.run((1, 1, 1), (32, 1, 1), -1, [array, array])
    with pytest.raises(InputError, match="grid"):
        kernel.run((0, 1, 1), (32, 1, 1), 0, [array, array])
    with pytest.raises(InputError, match="order"):
        kernel.run((1, 1, 1), (32, 1, 1), 0, [array, array], order=-1)


def test_launch_bounds_and_entries() -> None:
    source = 'extern "C" __global__ void __launch_bounds__(64) run(int* x) { x[threadIdx.x] = blockIdx.y; }'
    with pytest.raises(InputError, match="at most 64 threads, not 96"):
        cuda_kernel(source).run((1, 1, 1), (96, 1, 1), 0, [np.zeros(96, np.int32)])
    with pytest.raises(EmulationError, match="no kernel 'walk'; it has: run"):
        build_cpu_kernel(ptx_of(source), "walk")


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("tcgen05.alloc.b32 [%r1], 32;", "PTX line 12: tcgen05.alloc.b32 is not supported .*does not know it"),
        ("barrier.cluster.arrive;", "barrier.cluster.arrive is not supported"),
        ("mapa.shared::cluster.u32 %r1, %r2, 1;", "mapa.shared::cluster.u32 is not supported"),
        ("add.rn.bogus.f32 %f1, %f2, %f3;", "add.rn.bogus.f32 is not supported .*other modifiers"),
        ("add.f32 %f1, %f2;", "add.f32 has 2 operands; allowed: 3"),
        ("mov.u32 %r1, %cluster_ctarank;", "the register %cluster_ctarank is not declared or not supported"),
        ("bra NOWHERE;", "which is no label"),
        ("call missing, ();", "a call of missing, which the PTX does not define"),
        ("add.u64 %rd1, %r1, %rd2;", "the register %r1 cannot be read as u64"),
        ("{ .reg .b8000 x; }", "registers of type .b8000 are not supported"),
        ("mov.u32 %r1, 3; #", "cannot read '#"),
    ],
)
def test_unknown_things_are_refused_by_name(body: str, match: str) -> None:
    with pytest.raises(EmulationError, match=match) as caught:
        build_cpu_kernel(ptx_text(body), "run")
    assert caught.value.line == 12

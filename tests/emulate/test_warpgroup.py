"""wgmma as computed by runtime/warpgroup.h, against canonical layouts of the PTX ISA and products in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.emulate import matrix_formulas as isa
from tests.emulate.matrix_formulas import Floats, Words
from tests.emulate.matrix_host import HostError, MatrixHost, build
from tests.emulate.warpgroup_layouts import SWIZZLE_BITS, Layout, compact

KINDS = {"f16": "F16", "bf16": "BF16", "tf32": "TF32"}
WIDTHS = tuple(range(8, 257, 8))
MMA = {"f16": "emu::mma_f32<emu::F16, 16>", "bf16": "emu::mma_f32<emu::BF16, 16>", "tf32": "emu::mma_f32<emu::TF32, 8>"}


def wgmma_name(kind: str, n: int, a_in_registers: bool) -> str:
    return f"emu::wgmma_f32<emu::{KINDS[kind]}, {n}, {str(a_in_registers).lower()}>"


FUNCTIONS = tuple(wgmma_name(kind, n, r) for kind in KINDS for r in (False, True) for n in WIDTHS) + tuple(MMA.values())


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> MatrixHost:
    return build(tmp_path_factory.mktemp("wgmma"), FUNCTIONS)


def size_of(kind: str) -> int:
    return 4 if kind == "tf32" else 2


def depth(kind: str) -> int:
    return 32 // size_of(kind)


def accumulator_places(n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Row and column of each (warp, element, lane), as the ISA's figures of the accumulator show them."""
    warp, i, lane = np.indices((4, n // 2, 32))
    return 16 * warp + lane // 4 + np.where(i % 4 >= 2, 8, 0), 8 * (i // 4) + 2 * (lane % 4) + i % 2


def accumulator_words(d: Floats) -> Words:
    """A 64 x N matrix as (warp, word, lane)."""
    return d[accumulator_places(d.shape[1])].astype(np.float32).view(np.uint32)


def accumulator_matrix(words: Words) -> Floats:
    """The inverse of `accumulator_words`."""
    d = np.full((64, 2 * words.shape[1]), np.nan)
    d[accumulator_places(d.shape[1])] = words.view(np.float32)
    return d


def a_registers(a: Floats, kind: str) -> Words:
    """A as fragments (warp, register, lane): each warp's sixteen rows are laid out as those of mma.sync."""
    layout = isa.places(isa.A, f"m16n8k{depth(kind)}", kind)
    return isa.to_words(isa.distribute(isa.encode(a.reshape(4, 16, -1), kind), layout)).transpose(0, 2, 1)


def random_operands(kind: str, n: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """A (64 x k), B (n x k, so transposed) and D, all exact in their types."""
    rng = np.random.default_rng(seed)
    a, b = (isa.decode(isa.encode(rng.normal(size=(rows, depth(kind))), kind), kind) for rows in (64, n))
    return a, b, rng.normal(size=(64, n)).astype(np.float32).astype(float)


def shared_of(**matrices: tuple[Layout, Floats, str]) -> bytearray:
    """Shared memory with the matrices in it and NaN patterns elsewhere."""
    shared = bytearray(b"\xff" * 131072)
    for layout, matrix, kind in matrices.values():
        layout.write(shared, isa.encode(matrix, kind))
    return shared


def assert_product(words: Words, exact: Floats) -> None:
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(float)
    assert np.all(np.abs(accumulator_matrix(words) - exact) <= 0.5000001 * ulp)


@pytest.mark.parametrize("n", WIDTHS)
def test_every_width(host: MatrixHost, n: int) -> None:
    for kind in KINDS:
        a, b, d = random_operands(kind, n, seed=n)
        layout = compact("128B", False, size_of(kind), n, depth(kind), start=2048)
        left = compact("128B", False, size_of(kind), 64, depth(kind), start=65536)
        shared = shared_of(a=(left, a, kind), b=(layout, b, kind))
        before = accumulator_words(d)
        from_shared = host.warpgroup(wgmma_name(kind, n, False), before, left.descriptor, layout.descriptor, shared)
        registers = a_registers(a, kind)
        immediates = (1, 1, 0)
        from_registers = host.warpgroup(
            wgmma_name(kind, n, True), before, registers, layout.descriptor, shared, immediates=immediates
        )
        assert_product(from_shared, a @ b.T + d)
        np.testing.assert_array_equal(from_shared, from_registers)


LAYOUTS = [
    (kind, swizzle, a_mn, b_mn)
    for kind in ("f16", "bf16")
    for swizzle in SWIZZLE_BITS
    for a_mn in (False, True)
    for b_mn in (False, True)
] + [("tf32", swizzle, False, False) for swizzle in SWIZZLE_BITS]


@pytest.mark.parametrize("gap", [0, 1])
@pytest.mark.parametrize(("kind", "swizzle", "a_mn", "b_mn"), LAYOUTS)
def test_every_layout(host: MatrixHost, kind: str, swizzle: str, a_mn: bool, b_mn: bool, gap: int) -> None:
    """N = 40 ends within a pattern of every MN-major swizzle; gaps make strides that nothing else could explain."""
    n = 40
    a, b, d = random_operands(kind, n)
    left = compact(swizzle, a_mn, size_of(kind), 64, depth(kind), start=4096, gap=gap)
    right = compact(swizzle, b_mn, size_of(kind), n, depth(kind), start=65536, gap=2 * gap)
    shared = shared_of(a=(left, a, kind), b=(right, b, kind))
    words = host.warpgroup(
        wgmma_name(kind, n, False),
        accumulator_words(d),
        left.descriptor,
        right.descriptor,
        shared,
        immediates=(1, 1, int(a_mn), int(b_mn)) if kind != "tf32" else (1, 1),
    )
    assert_product(words, a @ b.T + d)


@pytest.mark.parametrize("swizzle", SWIZZLE_BITS)
def test_b_transposed_with_a_in_registers(host: MatrixHost, swizzle: str) -> None:
    a, b, d = random_operands("f16", 136)
    right = compact(swizzle, True, 2, 136, 16)
    words = host.warpgroup(
        wgmma_name("f16", 136, True),
        accumulator_words(d),
        a_registers(a, "f16"),
        right.descriptor,
        shared_of(b=(right, b, "f16")),
        immediates=(1, 1, 1),
    )
    assert_product(words, a @ b.T + d)


@pytest.mark.parametrize(("swizzle", "steps"), [("128B", 4), ("64B", 2)])
def test_a_step_along_k_within_a_swizzled_row(host: MatrixHost, swizzle: str, steps: int) -> None:
    """A tile whose rows are as wide as the swizzle: the start moves 32 bytes a step, the pattern does not."""
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=(rows, 16 * steps)).astype(np.float16).astype(float) for rows in (64, 64))
    left, right = (compact(swizzle, False, 2, 64, 16 * steps, start=start) for start in (1024, 32768))
    shared = shared_of(a=(left, a, "f16"), b=(right, b, "f16"))
    words, d = accumulator_words(np.zeros((64, 64))), np.zeros((64, 64))
    for step in range(steps):
        # Descriptors count in 16 bytes, which is how kernels step them.
        words = host.warpgroup(
            wgmma_name("f16", 64, False),
            words,
            left.descriptor + 2 * step,
            right.descriptor + 2 * step,
            shared,
            scale_d=step > 0,
        )
        part = slice(16 * step, 16 * step + 16)
        d = (a[:, part] @ b[:, part].T + d).astype(np.float32).astype(float)
    np.testing.assert_allclose(accumulator_matrix(words), d, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_as_mma_sync(host: MatrixHost, kind: str) -> None:
    a, b, d = random_operands(kind, 64)
    left, right = (compact("128B", False, size_of(kind), 64, depth(kind), start=start) for start in (1024, 32768))
    shared = shared_of(a=(left, a, kind), b=(right, b, kind))
    words = host.warpgroup(wgmma_name(kind, 64, False), accumulator_words(d), left.descriptor, right.descriptor, shared)
    shape = f"m16n8k{depth(kind)}"
    for row in range(0, 64, 16):
        for column in range(0, 64, 8):
            lanes = [
                isa.to_words(isa.distribute(isa.encode(matrix, of), layout))
                for matrix, of, layout in (
                    (a[row : row + 16], kind, isa.places(isa.A, shape, kind)),
                    (b[column : column + 8].T, kind, isa.places(isa.B, shape, kind)),
                    (d[row : row + 16, column : column + 8], "f32", isa.C),
                )
            ]
            tile = host.warp(MMA[kind], np.concatenate(lanes, axis=1), 4)
            np.testing.assert_array_equal(tile.T, words[row // 16, column // 2 : column // 2 + 4])


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("scale_d", [False, True])
def test_signs_and_scale_d(host: MatrixHost, signs: tuple[int, int], scale_d: bool) -> None:
    a, b, d = random_operands("bf16", 16)
    right = compact("32B", False, 2, 16, 16)
    shared = shared_of(b=(right, b, "bf16"))
    # Without scale_d the accumulators may hold anything.
    before = accumulator_words(d) if scale_d else np.full((4, 8, 32), 0x7FC00000, np.uint32)
    words = host.warpgroup(
        wgmma_name("bf16", 16, True),
        before,
        a_registers(a, "bf16"),
        right.descriptor,
        shared,
        scale_d,
        immediates=(*signs, 0),
    )
    assert_product(words, signs[0] * signs[1] * (a @ b.T) + (d if scale_d else 0))


def test_tf32_operands_are_truncated(host: MatrixHost) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(64, 8)), rng.normal(size=(8, 8))
    left, right = (compact("32B", False, 4, rows, 8, start=start) for rows, start in ((64, 1024), (8, 8192)))
    shared = shared_of(a=(left, a, "f32"), b=(right, b, "f32"))
    words = host.warpgroup(
        wgmma_name("tf32", 8, False),
        accumulator_words(np.zeros((64, 8))),
        left.descriptor,
        right.descriptor,
        shared,
        immediates=(1, 1),
    )
    a, b = (isa.decode(isa.encode(m, "f32") & np.uint32(0xFFFFE000), "tf32") for m in (a, b))
    assert_product(words, a @ b.T)


# Examples that the ISA prints: swizzle, MN-major, element size, leading and stride offset in elements, and the layout
# as ((shape of mn), (shape of k)):((strides), (strides)).
PRINTED = [
    ("none", False, 4, 64, 32, ((8, 2), (4, 4)), ((4, 32), (1, 64))),
    ("32B", False, 4, 4, 64, ((8, 2), (4, 2)), ((8, 64), (1, 4))),
    ("none", True, 2, 128, 64, ((8, 1, 2), (8, 2)), ((1, 8, 64), (8, 128))),
    ("32B", True, 2, 128, 256, ((8, 2, 2), (8, 2)), ((1, 8, 128), (16, 256))),
    ("64B", True, 2, 256, 512, ((8, 4, 2), (8, 2)), ((1, 8, 256), (32, 512))),
]


@pytest.mark.parametrize(("swizzle", "mn_major", "size", "leading", "stride", "shape", "strides"), PRINTED)
def test_layouts_that_the_isa_prints(
    host: MatrixHost,
    swizzle: str,
    mn_major: bool,
    size: int,
    leading: int,
    stride: int,
    shape: tuple[tuple[int, ...], tuple[int, ...]],
    strides: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    """B in a printed layout, elements placed by its strides alone, times the rows of an identity."""
    kind = "tf32" if size == 4 else "bf16"
    n, k = int(np.prod(shape[0])), depth(kind)
    layout = Layout(swizzle, mn_major, size, 1024, leading * size, stride * size)
    b = np.arange(1.0, n * k + 1).reshape(n, k) % 251
    shared, bits = bytearray(b"\xff" * 16384), SWIZZLE_BITS[swizzle]
    for (mn, at), value in np.ndenumerate(isa.encode(b, kind)):
        offset = 0
        for coordinate, extents, steps in zip((mn, at), shape, strides, strict=True):
            for extent, step in zip(extents, steps, strict=True):
                offset += coordinate % extent * step
                coordinate //= extent
        address = 1024 + offset * size
        address ^= (address >> 7 & ((1 << bits) - 1)) << 4
        shared[address : address + size] = value.tobytes()
    a = np.zeros((64, k))
    a[:k] = np.eye(k)
    words = host.warpgroup(
        wgmma_name(kind, n, True),
        np.zeros((4, n // 2, 32), np.uint32),
        a_registers(a, kind),
        layout.descriptor,
        shared,
        scale_d=False,
        immediates=(1, 1, int(mn_major)),
    )
    np.testing.assert_array_equal(accumulator_matrix(words)[:k], b.T)


def test_a_base_offset_is_refused(host: MatrixHost) -> None:
    right = compact("64B", False, 2, 8, 16)
    arguments = (np.zeros((4, 4, 32), np.uint32), np.zeros((4, 4, 32), np.uint32))
    with pytest.raises(HostError, match="base offset"):
        host.warpgroup(
            wgmma_name("f16", 8, True), *arguments, right.descriptor | 1 << 49, bytearray(8192), immediates=(1, 1, 0)
        )


def test_a_matrix_that_reaches_out_of_shared_memory_is_an_error(host: MatrixHost) -> None:
    right = compact("64B", False, 2, 256, 16)
    arguments = (np.zeros((4, 128, 32), np.uint32), np.zeros((4, 4, 32), np.uint32))
    with pytest.raises(HostError, match="out of bounds"):
        host.warpgroup(
            wgmma_name("f16", 256, True), *arguments, right.descriptor, bytearray(8192), immediates=(1, 1, 0)
        )

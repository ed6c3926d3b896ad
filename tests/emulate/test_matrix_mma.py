"""mma.sync as computed by runtime/matrix.h, against the layouts of the PTX ISA and products in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulate import matrix_formulas as isa
from tests.emulate.matrix_formulas import Floats
from tests.emulate.matrix_host import HostError, MatrixHost, build

# shape, operand types, accumulator type, name in C++
CASES = (
    ("m16n8k8", "f16", "f16", "f32", "emu::mma_f32<emu::F16, 8>"),
    ("m16n8k16", "f16", "f16", "f32", "emu::mma_f32<emu::F16, 16>"),
    ("m16n8k8", "bf16", "bf16", "f32", "emu::mma_f32<emu::BF16, 8>"),
    ("m16n8k16", "bf16", "bf16", "f32", "emu::mma_f32<emu::BF16, 16>"),
    ("m16n8k4", "tf32", "tf32", "f32", "emu::mma_f32<emu::TF32, 4>"),
    ("m16n8k8", "tf32", "tf32", "f32", "emu::mma_f32<emu::TF32, 8>"),
    ("m16n8k8", "f16", "f16", "f16", "emu::mma_f16<8>"),
    ("m16n8k16", "f16", "f16", "f16", "emu::mma_f16<16>"),
    ("m16n8k16", "s8", "u8", "s32", "emu::mma_s32<emu::S8, emu::U8, 16, false>"),
    ("m16n8k32", "u8", "s8", "s32", "emu::mma_s32<emu::U8, emu::S8, 32, false>"),
    ("m16n8k32", "s8", "s8", "s32", "emu::mma_s32<emu::S8, emu::S8, 32, true>"),
)
Case = tuple[str, str, str, str, str]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case[:4]))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> MatrixHost:
    return build(tmp_path_factory.mktemp("mma"), tuple(case[4] for case in CASES))


def depth(case: Case) -> int:
    return int(case[0].split("k")[1])


def mma(host: MatrixHost, case: Case, a: Floats, b: Floats, c: Floats) -> Floats:
    """d for matrices (..., 16, k), (..., k, 8) and (..., 16, 8), through the ISA's layouts in and out."""
    shape, a_kind, b_kind, c_kind, function = case
    words = [
        isa.to_words(isa.distribute(isa.encode(a, a_kind), isa.places(isa.A, shape, a_kind))),
        isa.to_words(isa.distribute(isa.encode(b, b_kind), isa.places(isa.B, shape, b_kind))),
        isa.to_words(isa.distribute(isa.encode(c, c_kind), isa.C)),
    ]
    d = host.warp(function, np.concatenate(words, axis=-1), words[2].shape[-1])
    return isa.decode(isa.collect(isa.from_words(d, c_kind), isa.C, 16, 8), c_kind)


def codes(count: int, kind: str) -> Floats:
    """As many different values as the type allows, up to `count`, 0 excluded."""
    first = -128 if kind == "s8" else 1
    values = np.array([v for v in range(first, 256 if kind != "s8" else 128) if v], float)
    return np.resize(values, count)


@every_case
def test_every_position_of_a_meets_the_right_row_of_b(host: MatrixHost, case: Case) -> None:
    k = depth(case)
    a = np.eye(16 * k).reshape(-1, 16, k)
    b = np.broadcast_to(codes(k * 8, case[2]).reshape(k, 8), (len(a), k, 8))
    d = mma(host, case, a, b, np.zeros((len(a), 16, 8)))
    np.testing.assert_array_equal(d, a @ b)


@every_case
def test_every_position_of_b_meets_the_right_column_of_a(host: MatrixHost, case: Case) -> None:
    k = depth(case)
    b = np.eye(8 * k).reshape(-1, k, 8)
    a = np.broadcast_to(codes(16 * k, case[1]).reshape(16, k), (len(b), 16, k))
    d = mma(host, case, a, b, np.zeros((len(b), 16, 8)))
    np.testing.assert_array_equal(d, a @ b)


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5]], ids=lambda case: "-".join(case[:2]))
def test_one_hot_against_one_hot(host: MatrixHost, case: Case) -> None:
    k = depth(case)
    left, right = np.eye(16 * k).reshape(-1, 16, k), np.eye(8 * k).reshape(-1, k, 8)
    a = np.repeat(left, len(right), axis=0)
    b = np.tile(right, (len(left), 1, 1))
    np.testing.assert_array_equal(mma(host, case, a, b, np.zeros((len(a), 16, 8))), a @ b)


@every_case
def test_every_accumulator_stays_in_its_place(host: MatrixHost, case: Case) -> None:
    k = depth(case)
    c = np.arange(128.0).reshape(16, 8)
    np.testing.assert_array_equal(mma(host, case, np.zeros((16, k)), np.zeros((k, 8)), c), c)


@every_case
def test_identity(host: MatrixHost, case: Case) -> None:
    k = depth(case)
    b = codes(k * 8, case[2]).reshape(k, 8)
    a = np.zeros((16, k))
    a[: min(16, k)] = np.eye(min(16, k), k)
    expected = np.zeros((16, 8))
    expected[: min(16, k)] = b[:16]
    np.testing.assert_array_equal(mma(host, case, a, b, np.zeros((16, 8))), expected)


@every_case
def test_random_matrices_against_float64(host: MatrixHost, case: Case) -> None:
    _, a_kind, b_kind, c_kind, _ = case
    k, rng = depth(case), np.random.default_rng(7)
    if c_kind == "s32":
        a = isa.decode(rng.integers(0, 256, (50, 16, k)).astype(np.uint8), a_kind)
        b = isa.decode(rng.integers(0, 256, (50, k, 8)).astype(np.uint8), b_kind)
        c = rng.integers(-(2**30), 2**30, (50, 16, 8)).astype(float)
        np.testing.assert_array_equal(mma(host, case, a, b, c), a @ b + c)
        return
    a = isa.decode(isa.encode(rng.normal(size=(50, 16, k)), a_kind), a_kind)
    b = isa.decode(isa.encode(rng.normal(size=(50, k, 8)), b_kind), b_kind)
    c = isa.decode(isa.encode(rng.normal(size=(50, 16, 8)), c_kind), c_kind)
    # Rounded once: nothing between the exact sum and the result but half a unit in the last place.
    exact, d = a @ b + c, mma(host, case, a, b, c)
    ulp = np.spacing(np.abs(exact).astype(np.float32 if c_kind == "f32" else np.float16)).astype(float)
    assert np.all(np.abs(d - exact) <= 0.5000001 * ulp)


@pytest.mark.parametrize(("long", "short"), [(1, 0), (3, 2), (5, 4), (7, 6)])
def test_one_long_product_is_two_short_ones(host: MatrixHost, long: int, short: int) -> None:
    k, rng = depth(CASES[long]), np.random.default_rng(3)
    a = rng.integers(-4, 5, (16, k)).astype(float)
    b = rng.integers(-4, 5, (k, 8)).astype(float)
    c = rng.integers(-4, 5, (16, 8)).astype(float)
    first = mma(host, CASES[short], a[:, : k // 2], b[: k // 2], c)
    both = mma(host, CASES[short], a[:, k // 2 :], b[k // 2 :], first)
    np.testing.assert_array_equal(both, mma(host, CASES[long], a, b, c))
    np.testing.assert_array_equal(both, a @ b + c)


@pytest.mark.parametrize("case", CASES[4:6], ids=lambda case: case[0])
def test_tf32_ignores_the_low_bits_of_its_operands(host: MatrixHost, case: Case) -> None:
    shape, rng = case[0], np.random.default_rng(1)
    a = isa.encode(rng.normal(size=(16, depth(case))), "f32")
    b = isa.encode(rng.normal(size=(depth(case), 8)), "f32")
    truncated = [isa.decode(m & np.uint32(0xFFFFE000), "tf32") for m in (a, b)]
    words = [isa.distribute(a, isa.places(isa.A, shape, "tf32")), isa.distribute(b, isa.places(isa.B, shape, "tf32"))]
    d = host.warp(case[4], np.concatenate([*words, np.zeros((32, 4), np.uint32)], axis=-1), 4)
    exact = truncated[0] @ truncated[1]
    np.testing.assert_allclose(isa.decode(isa.collect(d, isa.C, 16, 8), "f32"), exact, rtol=1e-7, atol=1e-7)
    # The test can tell: rounded operands would give something else.
    rounded = isa.decode(a, "f32") @ isa.decode(b, "f32")
    assert np.max(np.abs(rounded - exact)) > 1e-4


def test_one_rounding_where_float_sums_would_lose_terms(host: MatrixHost) -> None:
    a, b = np.zeros((16, 16)), np.zeros((16, 8))
    a[0, :4] = [32768.0, 1.0, 2.0**-9, -32768.0]
    b[:4, 0] = [1024.0, 1.0, 2.0**-9, 1024.0]
    c = np.zeros((16, 8))
    assert mma(host, CASES[1], a, b, c)[0, 0] == 1.0 + 2.0**-18


def test_integer_overflow_wraps_or_saturates(host: MatrixHost) -> None:
    a, b = np.full((16, 32), 127.0), np.full((32, 8), 127.0)
    c = np.full((16, 8), 2.0**31 - 100)
    assert np.all(mma(host, CASES[10], a, b, c) == 2**31 - 1)
    assert np.all(mma(host, CASES[9], a, b, c) == 127 * 127 * 32 - 100 - 2**31)


@pytest.mark.parametrize("case", CASES[:8], ids=lambda case: "-".join(case[:4]))
def test_infinities_and_nan(host: MatrixHost, case: Case) -> None:
    k = depth(case)
    a, b, c = np.zeros((16, k)), np.ones((k, 8)), np.zeros((16, 8))
    a[1, 2] = np.inf
    a[2, :2] = [np.inf, -np.inf]
    a[3, 1] = np.nan
    d = mma(host, case, a, b, c)
    assert np.all(d[1] == np.inf)
    assert np.all(np.isnan(d[2:4]))
    assert np.all(d[4:] == 0)


@pytest.mark.parametrize(("case", "nan"), [(CASES[0], 0x7FFFFFFF), (CASES[6], 0x7FFF7FFF)])
def test_nan_is_written_as_the_canonical_one(host: MatrixHost, case: Case, nan: int) -> None:
    d = host.warp(case[4], np.full((32, 7), 0xFFC1FFC1, np.uint32), 4 if case[3] == "f32" else 2)
    assert np.all(d == nan)


def test_a_part_of_a_warp_is_refused(host: MatrixHost) -> None:
    with pytest.raises(HostError, match="all 32 lanes"):
        host.warp(CASES[0][4], np.zeros((32, 7), np.uint32), 4, lanes=0x7FFFFFFF)


def test_halves_are_widened_exactly(host: MatrixHost) -> None:
    bits = np.arange(65536).astype(np.uint16)
    np.testing.assert_array_equal(host.half_to_float(bits), bits.view(np.float16).astype(np.float32))


def test_rounding_to_half_is_to_nearest_even(host: MatrixHost) -> None:
    halves = np.arange(0x7C00).astype(np.uint16).view(np.float16).astype(np.float64)
    between = (halves[1:] + halves[:-1]) / 2
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            between,
            np.nextafter(between, np.inf),
            np.nextafter(between, 0),
            halves,
            [65519.999, 65520.0, 1e300, np.inf, 2.0**-25, 2.0**-26, 5e-324],
            rng.normal(size=1000) * 10.0 ** rng.integers(-9, 6, 1000),
        ]
    )
    values = np.concatenate([values, -values])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(host.double_to_half(values), values.astype(np.float16).view(np.uint16))
    assert host.double_to_half(np.array([np.nan])).tolist() == [0x7FFF]

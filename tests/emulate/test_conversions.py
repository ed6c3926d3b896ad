"""Conversions between types, 16-bit arithmetic, packed pairs, comparisons and selections."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.emulate import Uninitialised
from tests.emulate.running import Words, ptx_kernel

_COUNT = 128


def _words() -> Words:
    rng = np.random.default_rng(5)
    floats = np.concatenate([
        rng.normal(size=70), rng.normal(size=20) * 1e-6, rng.normal(size=20) * 7e4, rng.integers(-300, 300, 8) + 0.5,
        [0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 65519.9, 65520.0, 3e38, 5.96e-8],
    ])  # fmt: skip
    return floats.astype(np.float32).view(np.uint32)


def _run(lines: list[str]) -> Words:
    """One instruction a line on %f1 (a float), %f2 (its neighbour) and %r1 (its bits), each leaving %r10."""
    words = _words()
    stores = "".join(f"{line}\nst.global.u32 [%rd5+{4 * index}], %r10;\n" for index, line in enumerate(lines))
    body = f"""
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd0, %rd2;
ld.global.b32 %r1, [%rd3]; mov.b32 %f1, %r1;
xor.b32 %r2, %r0, 1; mul.wide.u32 %rd2, %r2, 4; add.s64 %rd3, %rd0, %rd2; ld.global.f32 %f2, [%rd3];
mul.wide.u32 %rd4, %r0, {4 * len(lines)}; add.s64 %rd5, %rd1, %rd4;
{stores}"""
    results = np.zeros((_COUNT, len(lines)), np.uint32)
    ptx_kernel(body).run((1, 1, 1), (_COUNT, 1, 1), 0, [words, Uninitialised(results)])
    return results


def _bf16(values: np.ndarray) -> np.ndarray:
    """Nearest even bfloat16 bits, canonical NaN."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint32)
    return np.where(np.isnan(values), 0x7FFF, rounded)


def _half_bits(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.where(np.isnan(values), 0x7FFF, values.astype(np.float16).view(np.uint16)).astype(np.uint32)


def test_to_and_from_16_bits() -> None:
    a = _words().view(np.float32)
    b = a[np.arange(_COUNT) ^ 1]
    half, brain = _half_bits(a), _bf16(a)
    widen = "mov.b32 %r10, %f3;"
    expected = {
        "cvt.rn.f16.f32 %h1, %f1; cvt.u32.u16 %r10, %h1;": half,
        "cvt.rn.bf16.f32 %h1, %f1; cvt.u32.u16 %r10, %h1;": brain,
        "cvt.rn.f16x2.f32 %r10, %f1, %f2;": (half << 16) | _half_bits(b),
        "cvt.rn.bf16x2.f32 %r10, %f1, %f2;": (brain << 16) | _bf16(b),
        f"cvt.rn.f16.f32 %h1, %f1; cvt.f32.f16 %f3, %h1; {widen}": np.where(
            half == 0x7FFF, 0x7FFFE000, half.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
        ),
        f"cvt.rn.bf16.f32 %h1, %f1; cvt.f32.bf16 %f3, %h1; {widen}": brain << 16,
        "cvt.rn.relu.f16.f32 %h1, %f1; cvt.u32.u16 %r10, %h1;": np.where(a > 0, half, np.where(np.isnan(a), 0x7FFF, 0)),
        "cvt.rz.f16.f32 %h1, %f1; cvt.u32.u16 %r10, %h1;": _truncated(a),
    }
    results = _run(list(expected))
    for column, (line, wanted) in enumerate(expected.items()):
        np.testing.assert_array_equal(results[:, column], wanted, err_msg=line)


def _truncated(values: np.ndarray) -> np.ndarray:
    """float16 towards zero: the nearest one, or its neighbour where that is larger."""
    bits = _half_bits(values)
    near = bits.astype(np.uint16).view(np.float16).astype(np.float64)
    outside = np.abs(near) > np.abs(values.astype(np.float64))
    return np.where(outside, bits - 1, bits)


def test_tf32_rounds_to_nearest_away() -> None:
    bits = _words()
    a = bits.view(np.float32)
    rounded = (bits.astype(np.uint64) + 0x1000).astype(np.uint32) & np.uint32(0xFFFFE000)
    expected = np.where(np.isnan(a), 0x7FFFE000, np.where(np.isinf(a), bits, rounded))
    np.testing.assert_array_equal(_run(["cvt.rna.tf32.f32 %r10, %f1;"])[:, 0], expected)


def test_float_to_integer_saturates() -> None:
    a = _words().view(np.float32).astype(np.float64)
    zero_for_nan = np.where(np.isnan(a), 0.0, a)
    expected = {
        "cvt.rzi.s32.f32 %r10, %f1;": np.clip(np.trunc(zero_for_nan), -(2**31), 2**31 - 1),
        "cvt.rni.s32.f32 %r10, %f1;": np.clip(np.rint(zero_for_nan), -(2**31), 2**31 - 1),
        "cvt.rmi.s32.f32 %r10, %f1;": np.clip(np.floor(zero_for_nan), -(2**31), 2**31 - 1),
        "cvt.rzi.u32.f32 %r10, %f1;": np.clip(np.trunc(zero_for_nan), 0, 2**32 - 1),
    }
    results = _run(list(expected))
    for column, (line, wanted) in enumerate(expected.items()):
        np.testing.assert_array_equal(results[:, column], wanted.astype(np.int64) & 0xFFFFFFFF, err_msg=line)


def test_integer_widths_and_integral_floats() -> None:
    words = _words()
    signed = words.view(np.int32)
    a = words.view(np.float32)
    bits = "mov.b32 %r10, %f3;"
    expected = {
        "cvt.s32.s8 %r10, %r1;": words.astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32),
        "cvt.u32.u16 %r10, %r1;": words & 0xFFFF,
        "cvt.sat.u8.s32 %r10, %r1;": np.clip(signed, 0, 255).astype(np.uint32),
        "cvt.s64.s32 %rd9, %r1; shr.u64 %rd9, %rd9, 32; cvt.u32.u64 %r10, %rd9;": (signed >> 31).view(np.uint32),
        f"cvt.rn.f32.s32 %f3, %r1; {bits}": signed.astype(np.float32).view(np.uint32),
        f"cvt.rn.f32.u32 %f3, %r1; {bits}": words.astype(np.float32).view(np.uint32),
        f"cvt.rpi.f32.f32 %f3, %f1; {bits}": np.ceil(a).view(np.uint32),
        f"cvt.f64.f32 %d1, %f1; cvt.rn.f32.f64 %f3, %d1; {bits}": a.view(np.uint32),
    }
    results = _run(list(expected))
    for column, (line, wanted) in enumerate(expected.items()):
        got, want = results[:, column], wanted.astype(np.uint32)
        keep = ~np.isnan(a) if line.endswith(bits) else np.full(_COUNT, True)
        np.testing.assert_array_equal(got[keep], want[keep], err_msg=line)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_arithmetic_of_16_bits_rounds_once(kind: str) -> None:
    a = _words().view(np.float32)
    narrow = _half_bits if kind == "f16" else _bf16
    x = _widened(narrow(a), kind)
    y = x[np.arange(_COUNT) ^ 1]
    pack = f"cvt.rn.{kind}x2.f32 %r3, %f1, %f1; cvt.rn.{kind}x2.f32 %r4, %f2, %f2;"
    with np.errstate(all="ignore"):
        expected = {
            f"{pack} fma.rn.{kind}x2 %r10, %r3, %r4, %r3;": x.astype(np.longdouble) * y + x,
            f"{pack} max.{kind}x2 %r10, %r3, %r4;": np.where((x == 0) & (y == 0), x + y, np.fmax(x, y)),
            f"{pack} ex2.approx{'.ftz' if kind == 'bf16' else ''}.{kind}x2 %r10, %r3;": np.exp2(x),
        }
        if kind == "f16":
            expected[f"{pack} add.f16x2 %r10, %r3, %r4;"] = x + y
            expected[f"{pack} mul.f16x2 %r10, %r3, %r4;"] = x * y
        wanted = [_nearest(np.asarray(value), kind) for value in expected.values()]
    results = _run(list(expected))
    for column, line in enumerate(expected):
        ones = wanted[column]
        if "ftz" in line:
            ones = np.where(((ones & 0x7F80) == 0), 0, ones)
            ones = np.where(np.abs(x) < 2**-126, 0x3F80, ones)
        np.testing.assert_array_equal(results[:, column] & 0xFFFF, ones, err_msg=line)
        np.testing.assert_array_equal(results[:, column] >> 16, ones, err_msg=line)


def _widened(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _nearest(values: np.ndarray, kind: str) -> np.ndarray:
    """The nearest 16-bit number of an exact value, ties to even: a search over all of them."""
    every = np.arange(0x7C00 if kind == "f16" else 0x7F80, dtype=np.uint32)
    numbers = _widened(every, kind).astype(np.longdouble)
    magnitude = np.abs(values)
    place = np.clip(np.searchsorted(numbers, magnitude), 1, len(numbers) - 1)
    low, high = numbers[place - 1], numbers[place]
    up = (high - magnitude < magnitude - low) | ((high - magnitude == magnitude - low) & (place % 2 == 0))
    bits = np.where(up, place, place - 1).astype(np.uint32)
    step = numbers[-1] - numbers[-2]
    infinity = 0x7C00 if kind == "f16" else 0x7F80
    bits = np.where(magnitude >= numbers[-1] + step / 2, infinity, bits)
    bits = bits | np.where(np.signbit(values), 0x8000, 0).astype(np.uint32)
    return np.where(np.isnan(values), 0x7FFF, bits)


def test_comparisons() -> None:
    a = _words().view(np.float32)
    b = a[np.arange(_COUNT) ^ 1]
    unordered = np.isnan(a) | np.isnan(b)
    choose = "selp.u32 %r10, 1, 0, %p1;"
    tests = {
        "eq": a == b,
        "ne": (a != b) & ~unordered,
        "lt": a < b,
        "ge": a >= b,
        "equ": (a == b) | unordered,
        "neu": a != b,
        "gtu": ~(a <= b),
        "leu": ~(a > b),
        "num": ~unordered,
        "nan": unordered,
    }
    lines = {f"setp.{name}.f32 %p1, %f1, %f2; {choose}": wanted for name, wanted in tests.items()}
    first = "setp.gt.f32 %p2, %f1, 0f00000000;"
    lines[f"{first} setp.lt.and.f32 %p1, %f1, %f2, %p2; {choose}"] = (a < b) & (a > 0)
    lines[f"{first} setp.lt.or.f32 %p1|%p3, %f1, %f2, !%p2; selp.u32 %r10, 1, 0, %p3;"] = ~(a < b) | ~(a > 0)
    lines["set.lt.u32.f32 %r10, %f1, %f2;"] = np.where(a < b, 0xFFFFFFFF, 0)
    lines["setp.hi.u32 %p1, %r1, 0x40000000; selp.u32 %r10, 1, 0, %p1;"] = _words() > 0x40000000
    lines["testp.infinite.f32 %p1, %f1; selp.u32 %r10, 1, 0, %p1;"] = np.isinf(a)
    lines["mov.u32 %r10, 2; setp.eq.f32 %p1, %f1, %f1; @%p1 mov.u32 %r10, 1; @!%p1 mov.u32 %r10, 0;"] = ~np.isnan(a)
    results = _run(list(lines))
    for column, (line, wanted) in enumerate(lines.items()):
        np.testing.assert_array_equal(results[:, column], np.asarray(wanted).astype(np.uint32), err_msg=line)

"""Integer, bit and floating-point instructions, each in PTX of its own beside NumPy or a formula of the ISA."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from onnxopt.emulate import Uninitialised
from tests.emulate.running import Words, cuda_kernel, ptx_kernel

_COUNT = 256


def _inputs(columns: int, seed: int = 1) -> Words:
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 32, (_COUNT, columns), dtype=np.uint32)
    special = [0, 1, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x3F800000, 0x7FC00000, 0x00000001]
    words[: len(special)] = np.array(special, np.uint32)[:, None]
    for column in range(columns):
        words[11:40, column] = rng.choice(np.array(special, np.uint32), 29)
    return words


def _run(lines: list[str], inputs: Words) -> Words:
    """Runs one instruction a line on %r1, %r2, %r3 (a row of inputs), each leaving its result in %r10."""
    columns = inputs.shape[1]
    loads = "".join(f"ld.global.u32 %r{index + 1}, [%rd3+{4 * index}];\n" for index in range(columns))
    stores = "".join(f"{line}\nst.global.u32 [%rd5+{4 * index}], %r10;\n" for index, line in enumerate(lines))
    body = f"""
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd2, %r0, {4 * columns};
add.s64 %rd3, %rd0, %rd2;
{loads}
mul.wide.u32 %rd4, %r0, {4 * len(lines)};
add.s64 %rd5, %rd1, %rd4;
{stores}"""
    results = np.zeros((_COUNT, len(lines)), np.uint32)
    ptx_kernel(body).run((1, 1, 1), (_COUNT, 1, 1), 0, [inputs, Uninitialised(results)])
    return results


def _check(table: dict[str, npt.ArrayLike], inputs: Words) -> None:
    results = _run(list(table), inputs)
    for column, (line, expected) in enumerate(table.items()):
        wanted = np.asarray(expected).astype(np.int64) & 0xFFFFFFFF
        np.testing.assert_array_equal(results[:, column], wanted.astype(np.uint32), err_msg=line)


def _signed(words: Words) -> npt.NDArray[np.int64]:
    return words.astype(np.uint32).view(np.int32).astype(np.int64)


def test_integers() -> None:
    inputs = _inputs(3)
    a, b, c = (inputs[:, column].astype(np.int64) for column in range(3))
    sa, sb = _signed(inputs[:, 0].copy()), _signed(inputs[:, 1].copy())
    wide = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    wide_signed = [int(x) * int(y) for x, y in zip(sa, sb, strict=True)]
    nonzero = np.where(b == 0, 1, b)
    quotient = np.where(b == 0, 0xFFFFFFFF, a // nonzero)
    signed_quotient = [
        -1 if y == 0 else abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1)
        for x, y in zip(sa, sb, strict=True)
    ]
    _check(
        {
            "add.s32 %r10, %r1, %r2;": a + b,
            "sub.u32 %r10, %r1, %r2;": a - b,
            "mul.lo.s32 %r10, %r1, %r2;": [x & 0xFFFFFFFF for x in wide],
            "mul.hi.u32 %r10, %r1, %r2;": [x >> 32 for x in wide],
            "mul.hi.s32 %r10, %r1, %r2;": [(x >> 32) & 0xFFFFFFFF for x in wide_signed],
            "mad.lo.s32 %r10, %r1, %r2, %r3;": [(x + int(y)) & 0xFFFFFFFF for x, y in zip(wide, c, strict=True)],
            "div.u32 %r10, %r1, %r2;": quotient,
            "div.s32 %r10, %r1, %r2;": signed_quotient,
            "rem.u32 %r10, %r1, %r2;": np.where(b == 0, a, a % nonzero),
            "min.s32 %r10, %r1, %r2;": np.minimum(sa, sb),
            "max.u32 %r10, %r1, %r2;": np.maximum(a, b),
            "neg.s32 %r10, %r1;": -sa,
            "abs.s32 %r10, %r1;": np.abs(sa),
            "sad.s32 %r10, %r1, %r2, %r3;": c + np.abs(sa - sb),
            "add.sat.s32 %r10, %r1, %r2;": np.clip(sa + sb, -(2**31), 2**31 - 1),
            "cvt.u16.u32 %h1, %r1; cvt.u16.u32 %h2, %r2; mul.wide.u16 %r10, %h1, %h2;": (a & 0xFFFF) * (b & 0xFFFF),
            "add.cc.u32 %r9, %r1, %r2; addc.u32 %r10, %r3, 0;": c + ((a + b) >> 32),
            "sub.cc.u32 %r9, %r1, %r2; subc.u32 %r10, %r3, 0;": c - (a < b),
        },
        inputs,
    )


def test_bits() -> None:
    inputs = _inputs(3)
    a, b, c = (inputs[:, column].astype(np.int64) for column in range(3))
    sa = _signed(inputs[:, 0].copy())
    count = np.minimum(b, 32)
    numbers = [int(x) for x in a]
    reversed_bits = [int(f"{x:032b}"[::-1], 2) for x in numbers]
    lengths = np.array([x.bit_length() for x in numbers])
    signed_lengths = np.array([(x if x >= 0 else ~x).bit_length() for x in map(int, sa)])
    pairs = [(int(y) << 32) | int(x) for x, y in zip(a, b, strict=True)]
    _check(
        {
            "and.b32 %r10, %r1, %r2;": a & b,
            "or.b32 %r10, %r1, %r2;": a | b,
            "xor.b32 %r10, %r1, %r2;": a ^ b,
            "not.b32 %r10, %r1;": ~a,
            "lop3.b32 %r10, %r1, %r2, %r3, 0x96;": a ^ b ^ c,
            "lop3.b32 %r10, %r1, %r2, %r3, 0xCA;": (a & b) | (~a & c),
            "shl.b32 %r10, %r1, %r2;": [(x << int(n)) & 0xFFFFFFFF for x, n in zip(numbers, count, strict=True)],
            "shr.u32 %r10, %r1, %r2;": [x >> int(n) for x, n in zip(numbers, count, strict=True)],
            "shr.s32 %r10, %r1, %r2;": [int(x) >> int(n) for x, n in zip(sa, count, strict=True)],
            "shf.l.wrap.b32 %r10, %r1, %r2, %r3;": [
                ((p << (int(n) & 31)) >> 32) & 0xFFFFFFFF for p, n in zip(pairs, c, strict=True)
            ],
            "shf.r.wrap.b32 %r10, %r1, %r2, %r3;": [
                (p >> (int(n) & 31)) & 0xFFFFFFFF for p, n in zip(pairs, c, strict=True)
            ],
            "shf.r.clamp.b32 %r10, %r1, %r2, %r3;": [
                (p >> min(int(n), 32)) & 0xFFFFFFFF for p, n in zip(pairs, c, strict=True)
            ],
            "popc.b32 %r10, %r1;": [x.bit_count() for x in numbers],
            "clz.b32 %r10, %r1;": 32 - lengths,
            "brev.b32 %r10, %r1;": reversed_bits,
            "bfind.u32 %r10, %r1;": lengths - 1,
            "bfind.s32 %r10, %r1;": signed_lengths - 1,
            "bfind.shiftamt.u32 %r10, %r1;": np.where(lengths == 0, -1, 32 - lengths),
            "prmt.b32 %r10, %r1, %r2, %r3;": [_permuted(p, int(n)) for p, n in zip(pairs, c, strict=True)],
            "bfe.u32 %r10, %r1, %r2, %r3;": [
                _field(x, y, z, False) for x, y, z in zip(numbers, map(int, b), map(int, c), strict=True)
            ],
            "bfe.s32 %r10, %r1, %r2, %r3;": [
                _field(x, y, z, True) for x, y, z in zip(numbers, map(int, b), map(int, c), strict=True)
            ],
            "bfi.b32 %r10, %r1, 0x12345678, 4, 9;": [(0x12345678 & ~0x1FF0) | ((x & 0x1FF) << 4) for x in numbers],
            "setp.lt.s32 %p1, %r1, 0; slct.u32.s32 %r10, %r2, %r3, %r1;": np.where(sa >= 0, b, c),
        },
        inputs,
    )


def _permuted(pair: int, selector: int) -> int:
    result = 0
    for place in range(4):
        choice = (selector >> (4 * place)) & 0xF
        byte = (pair >> (8 * (choice & 7))) & 0xFF
        if choice & 8:
            byte = 0xFF if byte & 0x80 else 0
        result |= byte << (8 * place)
    return result


def _field(value: int, position: int, length: int, signed: bool) -> int:
    """The ISA's own definition of bfe, bit by bit."""
    position, length = position & 0xFF, length & 0xFF
    sign = (value >> min(position + length - 1, 31)) & 1 if signed and length else 0
    bits = [(value >> (position + i)) & 1 if i < length and position + i <= 31 else sign for i in range(32)]
    return sum(bit << i for i, bit in enumerate(bits))


def test_64_bits() -> None:
    inputs = _inputs(3)
    a, b, c = ([int(x) for x in inputs[:, column]] for column in range(3))
    pack = "mov.b64 %rd10, {%r1, %r2}; cvt.u64.u32 %rd11, %r3;"
    low, high = "mov.b64 {%r10, %r9}, %rd12;", "mov.b64 {%r9, %r10}, %rd12;"
    wide = [(y << 32) | x for x, y in zip(a, b, strict=True)]
    signed = [x - (1 << 64) if x >> 63 else x for x in wide]
    _check(
        {
            f"{pack} add.s64 %rd12, %rd10, %rd11; {high}": [
                ((x + y) >> 32) & 0xFFFFFFFF for x, y in zip(wide, c, strict=True)
            ],
            f"{pack} mul.lo.s64 %rd12, %rd10, %rd11; {high}": [
                ((x * y) >> 32) & 0xFFFFFFFF for x, y in zip(wide, c, strict=True)
            ],
            f"{pack} mul.hi.u64 %rd12, %rd10, %rd11; {low}": [
                ((x * y) >> 64) & 0xFFFFFFFF for x, y in zip(wide, c, strict=True)
            ],
            f"{pack} mul.hi.s64 %rd12, %rd10, %rd11; {low}": [
                ((x * y) >> 64) & 0xFFFFFFFF for x, y in zip(signed, c, strict=True)
            ],
            f"{pack} mad.wide.s32 %rd12, %r1, %r2, %rd11; {high}": [
                ((_as_signed(x) * _as_signed(y) + z) >> 32) & 0xFFFFFFFF for x, y, z in zip(a, b, c, strict=True)
            ],
            f"{pack} shr.s64 %rd12, %rd10, 40; {low}": [(x >> 40) & 0xFFFFFFFF for x in signed],
            f"{pack} popc.b64 %r10, %rd10;": [x.bit_count() for x in wide],
            f"{pack} clz.b64 %r10, %rd10;": [64 - x.bit_length() for x in wide],
            f"{pack} div.u64 %rd12, %rd10, %rd11; {low}": [
                0xFFFFFFFF if y == 0 else (x // y) & 0xFFFFFFFF for x, y in zip(wide, c, strict=True)
            ],
            f"{pack} setp.gt.u64 %p1, %rd10, %rd11; selp.u32 %r10, %r1, %r3, %p1;": [
                x if w > z else z for x, w, z in zip(a, wide, c, strict=True)
            ],
        },
        inputs,
    )


def _as_signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


_OPERATIONS = {
    "add.rn.f32": lambda a, b, c: a + b,
    "sub.f32": lambda a, b, c: a - b,
    "mul.f32": lambda a, b, c: a * b,
    "div.rn.f32": lambda a, b, c: a / b,
    "fma.rn.f32": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
    "min.f32": lambda a, b, c: np.fmin(a, b),
    "max.f32": lambda a, b, c: np.fmax(a, b),
    "max.NaN.f32": lambda a, b, c: np.maximum(a, b),
    "abs.f32": lambda a, b, c: np.abs(a),
    "neg.f32": lambda a, b, c: -a,
    "sqrt.rn.f32": lambda a, b, c: np.sqrt(a),
    "rcp.rn.f32": lambda a, b, c: np.float32(1) / a,
    "copysign.f32": lambda a, b, c: np.copysign(b, a),
}
_APPROXIMATE = {
    "ex2.approx.ftz.f32": np.exp2,
    "lg2.approx.f32": np.log2,
    "rsqrt.approx.f32": lambda a: 1 / np.sqrt(a),
    "rcp.approx.ftz.f32": lambda a: 1 / a,
    "sin.approx.f32": np.sin,
    "cos.approx.f32": np.cos,
    "tanh.approx.f32": np.tanh,
    "sqrt.approx.f32": np.sqrt,
}


def _floats() -> Words:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(_COUNT, 3)).astype(np.float32)
    special = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, -3e38, 2**-126], np.float32)
    values[:100] = special[np.stack([np.arange(100) % 10, np.arange(100) // 10, np.arange(100) % 7], 1)]
    return values.view(np.uint32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_floats() -> None:
    inputs = _floats()
    a, b, c = (inputs.view(np.float32)[:, column] for column in range(3))
    lines = []
    for name in _OPERATIONS:
        count = {"fma": 3, "abs": 1, "neg": 1, "sqrt": 1, "rcp": 1}.get(name.split(".")[0], 2)
        lines.append(f"{name} %r10, {', '.join(f'%r{index}' for index in range(1, count + 1))};")
    results = _run(lines, inputs).view(np.float32)
    for column, (name, function) in enumerate(_OPERATIONS.items()):
        np.testing.assert_array_equal(results[:, column], function(a, b, c), err_msg=name)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_approximate_functions() -> None:
    inputs = _floats()
    results = _run([f"{name} %r10, %r1;" for name in _APPROXIMATE], inputs).view(np.float32)
    a = inputs.view(np.float32)[:, 0].astype(np.float64)
    for column, (name, function) in enumerate(_APPROXIMATE.items()):
        flushed = np.where(np.abs(a) < 2**-126, np.copysign(0.0, a), a) if "ftz" in name else a
        expected = function(flushed)
        expected = np.where(np.abs(expected) > 3.4028236e38, np.copysign(np.inf, expected), expected)
        np.testing.assert_allclose(results[:, column], expected, rtol=3e-7, atol=1e-38, err_msg=name)


def test_directed_roundings() -> None:
    inputs = _floats()
    inputs = inputs[np.isfinite(inputs.view(np.float32)).all(axis=1)].repeat(2, axis=0)[:_COUNT]
    inputs = np.resize(inputs, (_COUNT, 3)).astype(np.uint32)
    names = [f"{operation}.{rounding}.f32" for operation in ("add", "mul") for rounding in ("rz", "rm", "rp")]
    results = _run([f"{name} %r10, %r1, %r2;" for name in names], inputs).view(np.float32)
    for column, name in enumerate(names):
        operation, rounding, _ = name.split(".")
        for row in range(_COUNT):
            a, b = (Fraction(float(value)) for value in inputs.view(np.float32)[row, :2])
            exact = a + b if operation == "add" else a * b
            got = results[row, column]
            if not np.isfinite(got) or abs(got) == np.finfo(np.float32).max:
                assert abs(exact) >= Fraction(float(np.finfo(np.float32).max)), name
                continue
            low = Fraction(float(got))
            if rounding == "rm" or (rounding == "rz" and exact > 0):
                assert low <= exact, (name, a, b)
            elif rounding == "rp" or (rounding == "rz" and exact < 0):
                assert low >= exact, (name, a, b)
            assert abs(low - exact) <= abs(exact) * Fraction(1, 1 << 23) + Fraction(1, 1 << 149), (name, a, b)


def test_three_operands_and_saturation() -> None:
    inputs = _floats()
    results = _run(["add.sat.f32 %r10, %r1, %r2;", "cvt.sat.f32.f32 %r10, %r1;"], inputs).view(np.float32)
    a, b = inputs.view(np.float32)[:, 0], inputs.view(np.float32)[:, 1]
    with np.errstate(all="ignore"):
        for column, value in enumerate((a + b, a)):
            expected = np.where(np.isnan(value), 0, np.clip(value, 0, 1))
            np.testing.assert_array_equal(results[:, column], expected)


_LIBRARY = r"""
extern "C" __global__ void run(const float* in, double* out) {
    int t = threadIdx.x;
    float x = in[t];
    double d = x, *o = out + t * 16;
    o[0] = sinf(x * 1000.f);  // large arguments are reduced in local memory
    o[1] = expf(x);
    o[2] = logf(fabsf(x));
    o[3] = tanhf(x);
    o[4] = erff(x);
    o[5] = powf(fabsf(x), 1.7f);
    o[6] = x / 3.1f;
    o[7] = fmodf(x * 100.f, 7.f);
    o[8] = sqrt(fabs(d)) / (1.0 + d * d);
    o[9] = exp(d);
    o[10] = (double)((long long)(d * 1e12) / 1237) + (double)((unsigned long long)(fabs(d) * 1e12) % 997);
    o[11] = rintf(x * 50.f) + floorf(x) + ceilf(x) + truncf(x) + roundf(x * 3.f);
    o[12] = __fdividef(x, 2.5f) + __expf(x) + __powf(2.f, x);
    o[13] = cbrtf(x);
    o[14] = atan2f(x, 0.7f);
    o[15] = (double)__float2int_rd(x * 77.f) + __float2uint_ru(fabsf(x)) + __double2int_rz(d * 3);
}
"""


@pytest.mark.parametrize("architecture", ["sm_75", "sm_100a"])
def test_the_device_library(architecture: str) -> None:
    """Long instruction sequences that NVRTC writes itself, with tables, local memory and branches."""
    x = np.random.default_rng(3).normal(size=64).astype(np.float32)
    out = np.zeros((64, 16))
    cuda_kernel(_LIBRARY, architecture=architecture).run((1, 1, 1), (64, 1, 1), 0, [x, Uninitialised(out)])
    d, size = x.astype(np.float64), np.abs(x.astype(np.float64))
    quotient = np.trunc(np.trunc(d * 1e12) / 1237) + np.trunc(size * 1e12) % 997
    thirds = x * np.float32(3)
    rounded = np.rint(x * np.float32(50)) + np.floor(x) + np.ceil(x) + np.trunc(x)
    rounded += np.copysign(np.floor(np.abs(thirds) + 0.5), thirds)
    expected = [
        *(np.sin((x * np.float32(1000)).astype(np.float64)), np.exp(d), np.log(size), np.tanh(d)),
        *([math.erf(value) for value in d], size ** np.float32(1.7), d / np.float32(3.1)),
        *(np.fmod(x * np.float32(100), np.float32(7)), np.sqrt(size) / (1 + d * d), np.exp(d), quotient, rounded),
        *(d / 2.5 + np.exp(d) + 2**d, np.cbrt(d), np.arctan2(d, np.float32(0.7))),
        np.floor(x * np.float32(77)) + np.ceil(size) + np.trunc(d * 3),
    ]
    for column, wanted in enumerate(expected):
        np.testing.assert_allclose(out[:, column], wanted, rtol=1e-6, atol=1e-6, err_msg=f"o[{column}]")

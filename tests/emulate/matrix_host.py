"""The emulator's matrix functions as a library of their own, with a byte array as shared memory and no threads."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_RUNTIME = Path(__file__).resolve().parents[2] / "onnxopt" / "emulate" / "runtime"

_HEAD = r"""
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include "warpgroup.h"

namespace emu {

struct Warp {
    uint8_t* shared;
    uint32_t size;
};

static uint8_t* place(const Warp* warp, uint32_t address, uint32_t bytes) {
    if (address % bytes) throw std::runtime_error("not aligned");
    if (static_cast<uint64_t>(address) + bytes > warp->size) throw std::runtime_error("out of bounds");
    return warp->shared + address;
}

void WarpCall::load_shared(int, uint32_t address, void* to, uint32_t bytes) const {
    std::memcpy(to, place(warp, address, bytes), bytes);
}

void WarpCall::store_shared(int, uint32_t address, const void* from, uint32_t bytes) const {
    std::memcpy(place(warp, address, bytes), from, bytes);
}

void WarpCall::fail(int, const char* message) const { throw std::runtime_error(message); }

void WarpgroupCall::read_shared(uint32_t address, void* to, uint32_t bytes) const {
    std::memcpy(to, place(warp, address, bytes), bytes);
}

void WarpgroupCall::fail(const char* message) const { throw std::runtime_error(message); }

}  // namespace emu

using emu::Warp;
using emu::WarpCall;
using emu::WarpgroupCall;

static char message[256];

template <class Work>
[[maybe_unused]] static int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::exception& error) {
        std::snprintf(message, sizeof message, "%s", error.what());
        return 1;
    }
}

extern "C" const char* last_message() { return message; }

[[maybe_unused]] static int on_warp(void (*function)(WarpCall&), int calls, uint32_t lanes, const uint32_t* in,
                                    int inputs, uint32_t* out, int outputs, uint8_t* shared, uint32_t size) {
    return guarded([&] {
        Warp warp = {shared, size};
        for (int n = 0; n < calls; ++n) {
            WarpCall call = {&warp, 1, lanes, {}, {}};
            for (int lane = 0; lane < 32; ++lane) {
                call.in[lane] = in + (32ll * n + lane) * inputs;
                call.out[lane] = out + (32ll * n + lane) * outputs;
            }
            function(call);
        }
    });
}

[[maybe_unused]] static int on_warpgroup(void (*function)(WarpgroupCall&), int words, uint32_t* d, const uint32_t* a,
                                         uint64_t a_descriptor, uint64_t b_descriptor, int scale_d,
                                         const int32_t* immediates, uint8_t* shared, uint32_t size) {
    return guarded([&] {
        Warp warp = {shared, size};
        for (int rank = 0; rank < 4; ++rank) {
            WarpgroupCall call = {&warp, 1, rank, nullptr, nullptr, a_descriptor, b_descriptor, scale_d != 0, {}};
            call.d = reinterpret_cast<uint32_t(*)[32]>(d + 32ll * words * rank);
            if (a) call.a = reinterpret_cast<const uint32_t(*)[32]>(a + 128ll * rank);
            std::memcpy(call.immediates, immediates, sizeof call.immediates);
            function(call);
        }
    });
}

extern "C" void halves_to_floats(const uint16_t* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(emu::F16::value(from[i]));
}

extern "C" void doubles_to_halves(const double* from, uint16_t* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = emu::from_double<emu::f16>(from[i]).bits;
}
"""


class HostError(Exception):
    """What a function reported through `fail` or a checked access."""


@dataclass(frozen=True)
class MatrixHost:
    """`functions` of the library, called by their C++ names."""

    library: ctypes.CDLL
    functions: tuple[str, ...]

    def warp(
        self, function: str, inputs: Words, outputs: int, shared: bytearray | None = None, lanes: int = 0xFFFFFFFF
    ) -> Words:
        """Inputs (32, words), or (calls, 32, words) for many calls in a row; gives words of the same leading shape."""
        words = np.ascontiguousarray(inputs, np.uint32).reshape(-1, 32, inputs.shape[-1])
        out = np.full((len(words), 32, outputs), 0xDEADBEEF, np.uint32)
        view, size = _bytes(shared)
        self._check(
            self.library[f"warp_{self.functions.index(function)}"](
                len(words), ctypes.c_uint32(lanes), _at(words), words.shape[2], _at(out), outputs, view, size
            )
        )
        return out.reshape(*inputs.shape[:-1], outputs)

    def warpgroup(
        self,
        function: str,
        d: Words,
        a: Words | int,
        b: int,
        shared: bytearray,
        scale_d: bool = True,
        immediates: tuple[int, ...] = (1, 1, 0, 0),
    ) -> Words:
        """`d` is (4 warps, words, 32 lanes), `a` registers (4, 4, 32) or a descriptor; gives the new accumulators."""
        result = np.array(d, np.uint32, order="C")
        registers = None if isinstance(a, int) else np.ascontiguousarray(a, np.uint32)
        padded = np.array([*immediates, *[99] * (6 - len(immediates))], np.int32)
        view, size = _bytes(shared)
        self._check(
            self.library[f"warpgroup_{self.functions.index(function)}"](
                d.shape[1],
                _at(result),
                None if registers is None else _at(registers),
                ctypes.c_uint64(a if isinstance(a, int) else 0xFFFFFFFFFFFFFFFF),
                ctypes.c_uint64(b),
                int(scale_d),
                _at(padded),
                view,
                size,
            )
        )
        return result

    def half_to_float(self, halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """Halves by their bits."""
        result = np.empty(halves.shape, np.float32)
        self.library["halves_to_floats"](_at(halves), _at(result), ctypes.c_int64(halves.size))
        return result

    def double_to_half(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
        """Bits of the nearest halves."""
        result = np.empty(values.shape, np.uint16)
        self.library["doubles_to_halves"](_at(values), _at(result), ctypes.c_int64(values.size))
        return result

    def _check(self, code: int) -> None:
        if code:
            raise HostError(self.library.last_message().decode())


def build(folder: Path, functions: tuple[str, ...]) -> MatrixHost:
    """Compiles a library with these functions; names that begin with `emu::wgmma` are a warpgroup's."""
    text = [_HEAD]
    for index, name in enumerate(functions):
        if name.startswith("emu::wgmma"):
            text.append(
                f'extern "C" int warpgroup_{index}(int words, uint32_t* d, const uint32_t* a, uint64_t da, '
                "uint64_t db, int scale, const int32_t* immediates, uint8_t* shared, uint32_t size) "
                f"{{ return on_warpgroup({name}, words, d, a, da, db, scale, immediates, shared, size); }}\n"
            )
        else:
            text.append(
                f'extern "C" int warp_{index}(int calls, uint32_t lanes, const uint32_t* in, int inputs, '
                "uint32_t* out, int outputs, uint8_t* shared, uint32_t size) "
                f"{{ return on_warp({name}, calls, lanes, in, inputs, out, outputs, shared, size); }}\n"
            )
    # The loader takes two files of one name for one library.
    stem = f"matrix_{hashlib.sha256(''.join(text).encode()).hexdigest()[:12]}"
    source, library = folder / f"{stem}.cpp", folder / f"{stem}.so"
    source.write_text("".join(text))
    compiler = shutil.which("c++") or shutil.which("g++") or "clang++"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{_RUNTIME}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.last_message.restype = ctypes.c_char_p
    return MatrixHost(loaded, functions)


def _at(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _bytes(shared: bytearray | None) -> tuple[ctypes.c_void_p | None, ctypes.c_uint32]:
    if shared is None:
        return None, ctypes.c_uint32(0)
    return ctypes.c_void_p(np.frombuffer(shared, np.uint8).ctypes.data), ctypes.c_uint32(len(shared))

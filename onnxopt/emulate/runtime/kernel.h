// All that a translated kernel includes.
#pragma once

#include "access.h"
#include "floats.h"
#include "integers.h"
#include "synchronize.h"
#include "thread.h"

namespace emu {

// What a register holds that nothing has written: a NaN that stands out, the same in each run.
constexpr uint32_t kUnwritten = 0x7FEEDEAD;

// Places of values whose wgmma has not been waited for yet; see wgmma.h.
inline bool in_flight(uint32_t value) { return (value >> 16) == 0xFFA5u; }
template <class T>
inline T settled(Thread& t, uint32_t line, T value) {
    if constexpr (sizeof(T) == 4) {
        if (in_flight(value)) fail(t, line, "reads an accumulator of wgmma.mma_async before wgmma.wait_group");
    }
    return value;
}
inline void touch(Thread& t, uint32_t number) {
    t.touched[number / 64] |= uint64_t{1} << (number % 64);
    t.touched_words |= uint64_t{1} << (number / 64);
}
inline void resolve(Thread& t, uint32_t& value) {
    if (in_flight(value)) value = resolve_accumulator(t, value);
}

}  // namespace emu

// Loads, stores and atomics as translated code calls them. Each returns the place in host memory after its checks.
#pragma once

#include <cstdint>

#include "floats.h"
#include "thread.h"

namespace emu {

// The address as the instruction has it; `bytes` is the whole access and must divide the address.
const uint8_t* read_global(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
uint8_t* write_global(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
const uint8_t* read_shared(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
uint8_t* write_shared(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
const uint8_t* read_local(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
uint8_t* write_local(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
const uint8_t* read_generic(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
uint8_t* write_generic(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
const uint8_t* read_parameter(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);

// cvta: into the generic space and back; isspacep.
inline uint64_t to_generic(uint64_t window, uint64_t address) { return (window << kWindowBits) | address; }
inline uint64_t from_generic(Thread& t, uint32_t line, uint64_t window, uint64_t address) {
    if ((address >> kWindowBits) != window) {
        fail_address(t, line, "converts an address that is not in the state space it names", address, 0);
    }
    return address & ((uint64_t{1} << kWindowBits) - 1);
}

using Reader = const uint8_t* (*)(Thread&, uint32_t, uint64_t, uint32_t);
using Writer = uint8_t* (*)(Thread&, uint32_t, uint64_t, uint32_t);

// One fiber runs at a time, so read, change and write need no more than to be three steps.
template <class T, class Change>
inline T atomic(Thread& t, uint32_t line, Reader reader, Writer writer, uint64_t address, Change change) {
    const T old = fetch<T>(reader(t, line, address, sizeof(T)));
    keep<T>(writer(t, line, address, sizeof(T)), change(old));
    return old;
}

}  // namespace emu

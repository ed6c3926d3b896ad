// The checks behind every load and store.
#pragma once

#include <cstring>

#include "access.h"
#include "scheduler.h"

namespace emu {

inline bool all_written(const uint8_t* writes, uint32_t bytes) { return std::memchr(writes, 0, bytes) == nullptr; }

inline void check_alignment(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    if (address & (bytes - 1)) fail_address(t, line, "misaligned address", address, bytes);
}

inline Allocation& find_allocation(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    Run& run = run_of(t);
    const uint64_t window = address >> kWindowBits;
    if (window < kFirstWindow || window >= run.windows.size()) {
        fail_address(t, line, "the address is in no tensor", address, bytes);
    }
    Allocation& allocation = run.windows[window];
    const uint64_t offset = address & ((uint64_t{1} << kWindowBits) - 1);
    if (offset > allocation.size || bytes > allocation.size - offset) {
        fail_address(t, line, "out of bounds", address, bytes);
    }
    return allocation;
}

// Any number of bytes, aligned or not.
inline const uint8_t* global_bytes(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    const Allocation& allocation = find_allocation(t, line, address, bytes);
    const uint64_t offset = address & ((uint64_t{1} << kWindowBits) - 1);
    if (allocation.writes && !all_written(allocation.writes + offset, bytes)) {
        fail_address(t, line, "reads global memory that nothing has written", address, bytes);
    }
    return allocation.data + offset;
}

const uint8_t* read_global(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    check_alignment(t, line, address, bytes);
    return global_bytes(t, line, address, bytes);
}

uint8_t* write_global(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    check_alignment(t, line, address, bytes);
    Allocation& allocation = find_allocation(t, line, address, bytes);
    if (!allocation.writable) fail_address(t, line, "writes to memory that is read-only", address, bytes);
    const uint64_t offset = address & ((uint64_t{1} << kWindowBits) - 1);
    if (allocation.writes) {
        for (uint32_t i = 0; i < bytes; ++i) {
            uint8_t& count = allocation.writes[offset + i];
            if (count != 255) ++count;
        }
    }
    return allocation.data + offset;
}

// The place in the block's shared memory, after the checks that reads and writes have in common.
inline uint32_t shared_offset(Thread& t, uint32_t line, uint64_t address, uint64_t bytes) {
    const uint64_t offset = address - kSharedBase;
    const uint64_t size = block_of(t).shared.size();
    if (offset > size || bytes > size - offset) {
        fail_address(t, line, "out of bounds of shared memory", address, static_cast<uint32_t>(bytes));
    }
    return static_cast<uint32_t>(offset);
}

inline void check_shared_written(Thread& t, uint32_t line, uint32_t offset, uint32_t bytes) {
    if (!all_written(block_of(t).shared_written.data() + offset, bytes)) {
        fail_address(t, line, "reads shared memory that nothing has written", uint64_t{offset} + kSharedBase, bytes);
    }
}

// Writes of the generic proxy wait in `owner` until their thread's fence.
inline void note_shared_write(Fiber& f, uint32_t offset, uint32_t bytes) {
    Block& block = *f.owner;
    std::memset(block.shared_written.data() + offset, 1, bytes);
    if (block.owner.empty()) return;
    for (uint32_t i = 0; i < bytes; ++i) block.owner[offset + i] = static_cast<uint16_t>(f.index + 1);
    if (!f.unfenced.empty() && f.unfenced.back().offset + f.unfenced.back().bytes == offset) {
        f.unfenced.back().bytes += bytes;
    } else {
        f.unfenced.push_back({offset, bytes});
    }
}

const uint8_t* read_shared(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    check_alignment(t, line, address, bytes);
    const uint32_t offset = shared_offset(t, line, address, bytes);
    check_shared_written(t, line, offset, bytes);
    return block_of(t).shared.data() + offset;
}

uint8_t* write_shared(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    check_alignment(t, line, address, bytes);
    const uint32_t offset = shared_offset(t, line, address, bytes);
    note_shared_write(fiber_of(t), offset, bytes);
    return block_of(t).shared.data() + offset;
}

uint8_t* write_local(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    check_alignment(t, line, address, bytes);
    const uint64_t size = run_of(t).kernel->local_bytes;
    const uint64_t offset = address - kLocalBase;
    if (offset > size || bytes > size - offset) fail_address(t, line, "out of bounds of local memory", address, bytes);
    return fiber_of(t).local + offset;
}

const uint8_t* read_local(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    return write_local(t, line, address, bytes);
}

const uint8_t* read_parameter(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    check_alignment(t, line, address, bytes);
    const std::vector<uint8_t>& parameters = run_of(t).parameters;
    if (address > parameters.size() || bytes > parameters.size() - address) {
        fail_address(t, line, "out of bounds of the parameters", address, bytes);
    }
    return parameters.data() + address;
}

const uint8_t* read_generic(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    const uint64_t offset = address & ((uint64_t{1} << kWindowBits) - 1);
    switch (address >> kWindowBits) {
        case kSharedWindow: return read_shared(t, line, offset, bytes);
        case kLocalWindow: return read_local(t, line, offset, bytes);
        case kParameterWindow: return read_parameter(t, line, offset, bytes);
        default: return read_global(t, line, address, bytes);
    }
}

uint8_t* write_generic(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    const uint64_t offset = address & ((uint64_t{1} << kWindowBits) - 1);
    switch (address >> kWindowBits) {
        case kSharedWindow: return write_shared(t, line, offset, bytes);
        case kLocalWindow: return write_local(t, line, offset, bytes);
        default: return write_global(t, line, address, bytes);
    }
}

void fence_proxy(Thread& t) {
    Fiber& f = fiber_of(t);
    Block& block = *f.owner;
    const auto mine = static_cast<uint16_t>(f.index + 1);
    for (const Range& range : f.unfenced) {
        for (uint32_t i = range.offset; i < range.offset + range.bytes; ++i) {
            if (block.owner[i] != mine) continue;
            block.owner[i] = 0;
            block.proxy[i] = block.shared[i];
            block.proxy_written[i] = 1;
        }
    }
    f.unfenced.clear();
}

inline bool any_owned(const uint16_t* owners, uint64_t bytes) {
    uint64_t together = 0;
    for (; bytes >= 4; bytes -= 4, owners += 4) together |= fetch<uint64_t>(reinterpret_cast<const uint8_t*>(owners));
    for (; bytes != 0; --bytes, ++owners) together |= *owners;
    return together != 0;
}

// What the asynchronous proxy reads. A byte whose last ordinary write was not fenced is an error rather than stale:
// whatever the program does with it is wrong.
inline void read_proxy(Thread& t, uint32_t line, uint64_t address, void* destination, uint64_t bytes) {
    Block& block = block_of(t);
    const uint32_t offset = shared_offset(t, line, address, bytes);
    if (any_owned(block.owner.data() + offset, bytes)) {
        fail_address(t, line, "reads shared memory whose writer has not executed fence.proxy.async since", address,
                     static_cast<uint32_t>(bytes));
    }
    if (!all_written(block.proxy_written.data() + offset, static_cast<uint32_t>(bytes))) {
        fail_address(t, line, "reads shared memory that nothing has written", address, static_cast<uint32_t>(bytes));
    }
    std::memcpy(destination, block.proxy.data() + offset, bytes);
}

// What the asynchronous proxy writes is visible to both.
inline void write_proxy(Thread& t, uint32_t line, uint64_t address, const void* source, uint64_t bytes) {
    Block& block = block_of(t);
    const uint32_t offset = shared_offset(t, line, address, bytes);
    std::memcpy(block.shared.data() + offset, source, bytes);
    std::memset(block.shared_written.data() + offset, 1, bytes);
    if (block.owner.empty()) return;
    std::memcpy(block.proxy.data() + offset, source, bytes);
    std::memset(block.proxy_written.data() + offset, 1, bytes);
    std::memset(block.owner.data() + offset, 0, bytes * sizeof(uint16_t));
}

}  // namespace emu

// Barriers of the block and mbarrier objects.
#pragma once

#include "collectives.h"

namespace emu {

inline void release_barrier(Block& block, Barrier& barrier) {
    for (Fiber* waiting : barrier.waiting) make_ready(*waiting);
    barrier.waiting.clear();
    barrier.result = barrier.sum;
    barrier.sum = 0;
    barrier.arrived = 0;
    barrier.expected = 0;
    ++block.progress;
}

// Counts the thread in; true where it was the last one.
inline bool arrive_at_barrier(Fiber& f, uint32_t line, uint32_t id, uint32_t count) {
    Block& block = *f.owner;
    if (id > 15) fail_address(f, line, "a barrier's number is 0 to 15", id, 0);
    if (count % 32) fail_address(f, line, "a barrier's thread count must be a multiple of 32", count, 0);
    const uint32_t threads = (block_threads(f) + 31) / 32 * 32;
    if (count > threads) fail_address(f, line, "a barrier expects more threads than the block has", count, 0);
    Barrier& barrier = block.barriers[id];
    // Lanes that a partial warp lacks count as arrived.
    const uint32_t expected = count == 0 || count == threads ? block_threads(f) : count;
    if (barrier.arrived != 0 && barrier.expected != expected) {
        fail_address(f, line, "threads arrive at one barrier with different thread counts", expected, 0);
    }
    barrier.expected = expected;
    return ++barrier.arrived == expected;
}

uint32_t barrier_count(Thread& t, uint32_t line, uint32_t id, uint32_t count, bool predicate) {
    Fiber& f = fiber_of(t);
    const bool last = arrive_at_barrier(f, line, id, count);
    Barrier& barrier = f.owner->barriers[id];
    barrier.sum += predicate;
    if (last) {
        release_barrier(*f.owner, barrier);
    } else {
        barrier.waiting.push_back(&f);
        suspend(f, Wait::barrier, line, id);
    }
    return barrier.result;
}

void barrier_sync(Thread& t, uint32_t line, uint32_t id, uint32_t count) { barrier_count(t, line, id, count, false); }

void barrier_arrive(Thread& t, uint32_t line, uint32_t id, uint32_t count) {
    Fiber& f = fiber_of(t);
    if (arrive_at_barrier(f, line, id, count)) release_barrier(*f.owner, f.owner->barriers[id]);
}

inline uint32_t mbarrier_address(Thread& t, uint32_t line, uint64_t address) {
    check_alignment(t, line, address, 8);
    return shared_offset(t, line, address, 8) + kSharedBase;
}

inline MemoryBarrier* search_mbarrier(Block& block, uint32_t address) {
    for (MemoryBarrier& barrier : block.memory_barriers) {
        if (barrier.address == address) return &barrier;
    }
    return nullptr;
}

inline MemoryBarrier& find_mbarrier(Thread& t, uint32_t line, uint64_t address) {
    MemoryBarrier* found = search_mbarrier(block_of(t), mbarrier_address(t, line, address));
    if (!found) fail_address(t, line, "no mbarrier.init has made an mbarrier here", address, 8);
    return *found;
}

void mbarrier_init(Thread& t, uint32_t line, uint64_t address, uint32_t count) {
    Block& block = block_of(t);
    const uint32_t place = mbarrier_address(t, line, address);
    if (count == 0 || count >= (1u << 20)) fail_address(t, line, "an mbarrier's count is 1 to 2^20 - 1", count, 0);
    if (search_mbarrier(block, place)) {
        fail_address(t, line, "initialises an mbarrier that is still valid (mbarrier.inval comes first)", address, 8);
    }
    block.memory_barriers.push_back({place, count, static_cast<int64_t>(count), 0, 0, {}});
}

void mbarrier_invalidate(Thread& t, uint32_t line, uint64_t address) {
    MemoryBarrier& barrier = find_mbarrier(t, line, address);
    std::swap(barrier, block_of(t).memory_barriers.back());
    block_of(t).memory_barriers.pop_back();
}

inline void finish_phase(Block& block, MemoryBarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.count;
    ++block.progress;
    const uint32_t address = barrier.address;
    each_waiting(block, Wait::mbarrier, [&](Fiber& f) {
        if (f.wait_on != address) return;
        f.wait_result = true;
        make_ready(f);
    });
}

inline void arrive_on(Thread& t, uint32_t line, MemoryBarrier& barrier, uint32_t count) {
    if (count > barrier.pending) {
        fail_address(t, line, "more arrivals at an mbarrier than its phase takes", barrier.address, 8);
    }
    barrier.pending -= count;
    finish_phase(block_of(t), barrier);
}

inline void expect_on(Thread& t, uint32_t line, MemoryBarrier& barrier, uint32_t bytes) {
    barrier.bytes += bytes;
    if (barrier.bytes >= (1 << 20)) {
        fail_address(t, line, "an mbarrier's pending bytes are limited to 2^20 - 1", barrier.address, 8);
    }
}

uint64_t mbarrier_arrive(Thread& t, uint32_t line, uint64_t address, uint32_t count, uint32_t expected_bytes,
                         bool drop) {
    MemoryBarrier& barrier = find_mbarrier(t, line, address);
    const uint64_t state = (barrier.phase << 20) | static_cast<uint64_t>(barrier.pending);
    expect_on(t, line, barrier, expected_bytes);
    if (drop) barrier.count -= count;
    arrive_on(t, line, barrier, count);
    // In the drawn orders those who are let go run first now and then: what the arriving thread has announced too early
    // shows.
    Run& run = *block_of(t).run;
    if (run.order >= 2 && (next_random(run) & 1) == 0) yield(t);
    return state;
}

void mbarrier_expect(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    expect_on(t, line, find_mbarrier(t, line, address), bytes);
}

void mbarrier_complete(Thread& t, uint32_t line, uint64_t address, uint32_t bytes) {
    MemoryBarrier& barrier = find_mbarrier(t, line, address);
    barrier.bytes -= bytes;
    finish_phase(block_of(t), barrier);
}

uint32_t mbarrier_pending(uint64_t state) { return static_cast<uint32_t>(state & 0xFFFFF); }

void land_events(Block& block, uint32_t address);

// Whether the phase `wanted(phase)` asks for is complete. A poll makes what is under way to this barrier land.
template <class Complete>
inline bool poll(Thread& t, uint32_t line, uint64_t address, bool wait, Complete complete) {
    Fiber& f = fiber_of(t);
    Block& block = *f.owner;
    const uint32_t place = find_mbarrier(t, line, address).address;
    land_events(block, place);
    if (complete(*search_mbarrier(block, place))) return true;
    if (wait) {
        suspend(f, Wait::mbarrier, line, place);
    } else {
        suspend(f, Wait::deferred, line, place);
    }
    const MemoryBarrier& barrier = find_mbarrier(t, line, address);
    return complete(barrier);
}

bool mbarrier_test(Thread& t, uint32_t line, uint64_t address, uint64_t state, bool wait) {
    const uint64_t phase = state >> 20;
    return poll(t, line, address, wait, [=](const MemoryBarrier& barrier) { return barrier.phase != phase; });
}

bool mbarrier_test_parity(Thread& t, uint32_t line, uint64_t address, uint32_t parity, bool wait) {
    return poll(t, line, address, wait, [=](const MemoryBarrier& barrier) { return (barrier.phase & 1) != (parity & 1); });
}

void check_registers(Thread& t, uint32_t line, uint32_t count) {
    if (count < 24 || count > 256 || count % 8) {
        fail_address(t, line, "setmaxnreg takes a multiple of 8 from 24 to 256", count, 0);
    }
}

}  // namespace emu

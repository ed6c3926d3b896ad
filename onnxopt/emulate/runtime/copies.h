// Asynchronous copies. Each is kept until the wait that covers it: what reads without waiting sees what was there
// before. In the drawn orders some copies land at once instead, which is when an overwritten buffer shows.
#pragma once

#include "barriers.h"

namespace emu {

inline bool lands_at_once(Run& run) { return run.order >= 2 && (next_random(run) & 3) == 0; }

inline void land_copy(Fiber& f, PendingCopy& copy) {
    if (copy.landed) return;
    copy.landed = true;
    if (copy.bytes == 0) {
        MemoryBarrier* barrier = search_mbarrier(*f.owner, copy.barrier);
        if (barrier) arrive_on(f, copy.line, *barrier, 1);
        return;
    }
    uint8_t data[16] = {};
    if (copy.source_bytes) {
        std::memcpy(data, global_bytes(f, copy.line, copy.global, copy.source_bytes), copy.source_bytes);
    }
    const uint32_t offset = copy.shared - kSharedBase;
    note_shared_write(f, offset, copy.bytes);
    std::memcpy(f.owner->shared.data() + offset, data, copy.bytes);
}

// Lands the thread's copies in front of `end`, which counts from the thread's first.
inline void land_copies(Fiber& f, uint64_t end) {
    while (f.copies_retired < end && !f.copies.empty()) {
        const size_t count = static_cast<size_t>(end - f.copies_retired) < f.copies.size()
                                 ? static_cast<size_t>(end - f.copies_retired)
                                 : f.copies.size();
        for (size_t i = 0; i < count; ++i) land_copy(f, f.copies[i]);
        f.copies.erase(f.copies.begin(), f.copies.begin() + static_cast<std::ptrdiff_t>(count));
        f.copies_retired += count;
    }
}

void copy_async(Thread& t, uint32_t line, uint64_t shared, uint64_t global, uint32_t bytes, uint32_t source_bytes) {
    Fiber& f = fiber_of(t);
    check_alignment(t, line, shared, bytes);
    const uint32_t place = shared_offset(t, line, shared, bytes) + kSharedBase;
    if (source_bytes > bytes) fail_address(t, line, "cp.async copies more bytes than it writes", source_bytes, bytes);
    if (source_bytes) {
        check_alignment(t, line, global, bytes);
        find_allocation(t, line, global, source_bytes);
    }
    f.copies.push_back({line, place, bytes, source_bytes, global, 0, false});
    if (lands_at_once(run_of(t))) land_copy(f, f.copies.back());
}

inline uint64_t copies_end(const Fiber& f) { return f.copies_retired + f.copies.size(); }

void copy_commit(Thread& t) { fiber_of(t).copy_groups.push_back(copies_end(fiber_of(t))); }

void copy_wait(Thread& t, uint32_t pending) {
    Fiber& f = fiber_of(t);
    if (f.copy_groups.size() <= pending) return;
    const size_t done = f.copy_groups.size() - pending;
    land_copies(f, f.copy_groups[done - 1]);
    f.copy_groups.erase(f.copy_groups.begin(), f.copy_groups.begin() + static_cast<std::ptrdiff_t>(done));
}

void copy_wait_all(Thread& t) {
    Fiber& f = fiber_of(t);
    f.copy_groups.clear();
    land_copies(f, copies_end(f));
}

void copy_arrive(Thread& t, uint32_t line, uint64_t barrier, bool counted) {
    Fiber& f = fiber_of(t);
    MemoryBarrier& found = find_mbarrier(t, line, barrier);
    // Without .noinc the arrival is one more than the phase was initialised for.
    if (counted) ++found.pending;
    f.copies.push_back({line, 0, 0, 0, 0, found.address, false});
    found.events.push_back({line, &f, copies_end(f), false, 0, 0, 0});
}

inline void land_bulk(Block& block, const PendingEvent& event, uint32_t address) {
    Fiber& f = *event.fiber;
    write_proxy(f, event.line, event.shared, global_bytes(f, event.line, event.global, event.bytes), event.bytes);
    MemoryBarrier* barrier = search_mbarrier(block, address);
    if (!barrier) return;
    barrier->bytes -= event.bytes;
    finish_phase(block, *barrier);
}

// All that is under way to an mbarrier arrives.
void land_events(Block& block, uint32_t address) {
    MemoryBarrier* barrier = search_mbarrier(block, address);
    if (!barrier || barrier->events.empty()) return;
    std::vector<PendingEvent> events;
    events.swap(barrier->events);
    for (const PendingEvent& event : events) {
        if (event.bulk) land_bulk(block, event, address);
        else land_copies(*event.fiber, event.copies_end);
    }
    ++block.progress;
}

// Lands what somebody waits for; true where that let anybody go on.
bool land_polled(Block& block) {
    std::vector<uint32_t> polled;
    each_waiting(block, Wait::mbarrier, [&](Fiber& f) { polled.push_back(f.wait_on); });
    for (uint32_t address : polled) land_events(block, address);
    return block.ready_warps != 0;
}

inline void check_bulk(Thread& t, uint32_t line, uint64_t shared, uint64_t global, uint32_t bytes) {
    if (bytes % 16) fail_address(t, line, "a bulk copy takes a multiple of 16 bytes", bytes, 0);
    check_alignment(t, line, shared, 16);
    check_alignment(t, line, global, 16);
    shared_offset(t, line, shared, bytes);
    find_allocation(t, line, global, bytes);
}

void bulk_load(Thread& t, uint32_t line, uint64_t shared, uint64_t global, uint32_t bytes, uint64_t barrier) {
    Fiber& f = fiber_of(t);
    if (bytes == 0) return;
    check_bulk(t, line, shared, global, bytes);
    MemoryBarrier& found = find_mbarrier(t, line, barrier);
    found.events.push_back({line, &f, 0, true, static_cast<uint32_t>(shared), global, bytes});
    if (lands_at_once(run_of(t))) land_events(*f.owner, found.address);
}

void bulk_store(Thread& t, uint32_t line, uint64_t global, uint64_t shared, uint32_t bytes) {
    if (bytes == 0) return;
    check_bulk(t, line, shared, global, bytes);
    fiber_of(t).stores.push_back({line, global, static_cast<uint32_t>(shared), bytes});
}

void bulk_commit(Thread& t) { fiber_of(t).store_groups.push_back(fiber_of(t).stores.size()); }

inline void land_store(Fiber& f, const BulkStore& store) {
    std::vector<uint8_t> data(store.bytes);
    read_proxy(f, store.line, store.shared, data.data(), store.bytes);
    for (uint32_t i = 0; i < store.bytes; ++i) *write_global(f, store.line, store.global + i, 1) = data[i];
}

void bulk_wait(Thread& t, uint32_t pending) {
    Fiber& f = fiber_of(t);
    if (f.store_groups.size() <= pending) return;
    const size_t groups = f.store_groups.size() - pending;
    const size_t count = f.store_groups[groups - 1];
    for (size_t i = 0; i < count; ++i) land_store(f, f.stores[i]);
    f.stores.erase(f.stores.begin(), f.stores.begin() + static_cast<std::ptrdiff_t>(count));
    f.store_groups.erase(f.store_groups.begin(), f.store_groups.begin() + static_cast<std::ptrdiff_t>(groups));
    for (size_t& end : f.store_groups) end -= count;
}

}  // namespace emu

// Instructions that involve other threads or happen later, as translated code calls them.
#pragma once

#include <cstdint>

#include "thread.h"

namespace emu {

// Warp collectives: the lanes of `mask` meet, the last one calls `function` for all.
void collective(Thread& t, uint32_t line, uint32_t mask, const uint32_t* in, uint32_t* out, void (*function)(WarpCall&));
// The same, counted for the report under `counter`.
void counted_collective(Thread& t, uint32_t line, const uint32_t* in, uint32_t* out, void (*function)(WarpCall&),
                        uint32_t counter);

// in: value, lane or delta, clamp and segment mask. out: value, whether the source lane was in range.
void shuffle_up(WarpCall& call);
void shuffle_down(WarpCall& call);
void shuffle_butterfly(WarpCall& call);
void shuffle_index(WarpCall& call);
void vote_all(WarpCall& call);
void vote_any(WarpCall& call);
void vote_uniform(WarpCall& call);
void vote_ballot(WarpCall& call);
void reduce_add(WarpCall& call);
void reduce_min_signed(WarpCall& call);
void reduce_max_signed(WarpCall& call);
void reduce_min_unsigned(WarpCall& call);
void reduce_max_unsigned(WarpCall& call);
void reduce_min_float(WarpCall& call);
void reduce_max_float(WarpCall& call);
void reduce_and(WarpCall& call);
void reduce_or(WarpCall& call);
void reduce_xor(WarpCall& call);
void match_any(WarpCall& call);    // in: low and high word
void match_all(WarpCall& call);    // out: mask, predicate
void elect(WarpCall& call);        // out: leader, whether this lane is it
void meet_only(WarpCall& call);    // bar.warp.sync
uint32_t active_lanes(Thread& t);

// Barriers of the block. `count` 0 stands for all threads.
void barrier_sync(Thread& t, uint32_t line, uint32_t id, uint32_t count);
void barrier_arrive(Thread& t, uint32_t line, uint32_t id, uint32_t count);
// The number of threads whose predicate was true.
uint32_t barrier_count(Thread& t, uint32_t line, uint32_t id, uint32_t count, bool predicate);

// cp.async: lands at the wait that covers it.
void copy_async(Thread& t, uint32_t line, uint64_t shared, uint64_t global, uint32_t bytes, uint32_t source_bytes);
void copy_commit(Thread& t);
void copy_wait(Thread& t, uint32_t pending);
void copy_wait_all(Thread& t);
void copy_arrive(Thread& t, uint32_t line, uint64_t barrier, bool counted);

// cp.async.bulk.
void bulk_load(Thread& t, uint32_t line, uint64_t shared, uint64_t global, uint32_t bytes, uint64_t barrier);
void bulk_store(Thread& t, uint32_t line, uint64_t global, uint64_t shared, uint32_t bytes);
void bulk_commit(Thread& t);
void bulk_wait(Thread& t, uint32_t pending);

// mbarrier objects, named by their address in shared memory.
void mbarrier_init(Thread& t, uint32_t line, uint64_t address, uint32_t count);
void mbarrier_invalidate(Thread& t, uint32_t line, uint64_t address);
uint64_t mbarrier_arrive(Thread& t, uint32_t line, uint64_t address, uint32_t count, uint32_t expected_bytes, bool drop);
void mbarrier_expect(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
void mbarrier_complete(Thread& t, uint32_t line, uint64_t address, uint32_t bytes);
bool mbarrier_test(Thread& t, uint32_t line, uint64_t address, uint64_t state, bool wait);
bool mbarrier_test_parity(Thread& t, uint32_t line, uint64_t address, uint32_t parity, bool wait);
uint32_t mbarrier_pending(uint64_t state);

// Makes the thread's ordinary writes to shared memory visible to the asynchronous proxy.
void fence_proxy(Thread& t);

// wgmma: `d` holds the accumulator's words and receives the places where the results will be.
struct WarpgroupIssue {
    uint32_t line;
    void (*function)(WarpgroupCall&);
    uint32_t d_words;
    uint32_t a_words;  // 0: A in shared memory
    uint64_t a_descriptor;
    uint64_t b_descriptor;
    bool scale_d;
    int32_t immediates[6];
    uint32_t counter;
    const uint16_t* registers;  // the numbers of D's and then of A's
};
void warpgroup_mma(Thread& t, const WarpgroupIssue& issue, uint32_t* d, const uint32_t* a);
void warpgroup_fence(Thread& t, uint32_t line);
void warpgroup_commit(Thread& t, uint32_t line);
void warpgroup_wait(Thread& t, uint32_t line, uint32_t pending);
uint32_t resolve_accumulator(Thread& t, uint32_t place);
// The thread is about to overwrite a register that is a fragment of A somewhere.
void check_fragment(Thread& t, uint32_t line, uint32_t number);

void yield(Thread& t);
void check_registers(Thread& t, uint32_t line, uint32_t count);

}  // namespace emu

// The state of a run: allocations, the block's shared memory, its warps and fibers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "thread.h"

namespace emu {

struct Allocation {
    uint8_t* data;
    uint64_t size;
    uint8_t* writes;  // per byte, how often it was written (255 at most); null: initialised from the start
    uint32_t writable;
};

struct Failure {
    uint32_t happened;
    uint32_t line;
    uint32_t block[3];
    int32_t thread[3];  // -1: no thread in particular
    uint64_t address;
    uint32_t bytes;
    char message[2048];
};

enum class Wait : uint8_t { none, deferred, warp, barrier, mbarrier, exited };

// A cp.async, or (bytes 0) the arrival on `barrier` that follows the copies before it.
struct PendingCopy {
    uint32_t line;
    uint32_t shared;
    uint32_t bytes;
    uint32_t source_bytes;
    uint64_t global;
    uint32_t barrier;
    bool landed;
};

struct BulkStore {
    uint32_t line;
    uint64_t global;
    uint32_t shared;
    uint32_t bytes;
};

struct Range {
    uint32_t offset;
    uint32_t bytes;
};

struct Block;

struct Fiber : Thread {
    void* stack_pointer;
    Block* owner;
    Wait wait;
    uint32_t wait_line;
    uint32_t wait_on;  // barrier id or mbarrier address
    bool wait_result;
    const uint32_t* in;
    uint32_t* out;
    std::vector<PendingCopy> copies;
    uint64_t copies_retired;  // copies removed from the front so far
    std::vector<uint64_t> copy_groups;
    std::vector<BulkStore> stores;
    std::vector<size_t> store_groups;
    std::vector<Range> unfenced;
    uint8_t* local;
};

// A wgmma.mma_async that has been issued; its arrays are 32 lanes wide.
struct WarpgroupOperation {
    uint32_t line;
    void (*function)(WarpgroupCall&);
    uint32_t d_words;
    uint32_t a_words;
    uint64_t a_descriptor;
    uint64_t b_descriptor;
    bool scale_d;
    bool done;
    int32_t immediates[6];
    std::vector<uint32_t> d;
    std::vector<uint32_t> a;
};

constexpr uint32_t kOperations = 512;  // in flight per warp

// A wgmma instruction as every warp of a warpgroup has to execute it; descriptors are those of wgmma.mma_async.
struct WarpgroupStep {
    uint32_t line;
    bool scale_d;
    uint64_t a_descriptor;
    uint64_t b_descriptor;
};

// What a register of wgmma.mma_async was last: an accumulator of `d_words` after so many fences, a fragment of an
// operation that is in flight until so many are complete.
struct RegisterUse {
    uint32_t fences;
    uint32_t d_words;
    uint32_t fragment_until;
};

enum class Reading : uint8_t { undecided, late, at_issue };

// Lanes that wait for each other at one collective.
struct Meeting {
    uint32_t line;
    uint32_t mask;
    uint32_t arrived;
};

struct Warp {
    Block* block;
    uint32_t number;
    Fiber* fibers[32];
    uint32_t present;
    uint32_t exited;
    uint32_t ready;
    Meeting meetings[32];
    uint32_t meeting_count;
    std::vector<WarpgroupOperation> operations;
    // Operations so far: those issued, of these carried out, of these waited for.
    uint32_t issued;
    uint32_t executed;
    uint32_t completed;
    std::vector<uint32_t> groups;
    Reading reading;  // of the group that is being issued
    uint32_t fences;
    std::vector<RegisterUse> uses;  // by the register's number
    uint32_t steps;
    std::vector<WarpgroupStep> log;  // in the first warp of a warpgroup: the steps of that which is ahead
};

struct Barrier {
    uint32_t expected;
    uint32_t arrived;
    uint32_t sum;
    uint32_t result;
    std::vector<Fiber*> waiting;
};

// What will arrive at an mbarrier by itself: a bulk copy, or a thread's copies up to a place in its list.
struct PendingEvent {
    uint32_t line;
    Fiber* fiber;
    uint64_t copies_end;
    bool bulk;
    uint32_t shared;
    uint64_t global;
    uint32_t bytes;
};

struct MemoryBarrier {
    uint32_t address;
    uint32_t count;  // arrivals that a phase takes
    int64_t pending;
    int64_t bytes;
    uint64_t phase;
    std::vector<PendingEvent> events;
};

struct Run;

struct Block : Launch {
    Run* run;
    std::vector<Warp> warps;
    uint32_t ready_warps;
    uint32_t current_warp;
    uint32_t alive;
    Barrier barriers[16];
    std::vector<MemoryBarrier> memory_barriers;
    uint64_t progress;  // grows with everything that lets somebody go on
    uint64_t idle_progress;
    uint32_t idle_rounds;
    std::vector<uint8_t> shared;
    std::vector<uint8_t> shared_written;
    // The asynchronous proxy's view; `owner` is 1 + the thread whose last ordinary write it has not seen.
    std::vector<uint8_t> proxy;
    std::vector<uint8_t> proxy_written;
    std::vector<uint16_t> owner;
};

struct Run {
    const Kernel* kernel;
    std::vector<Allocation> windows;  // by window number
    std::vector<uint8_t> parameters;
    std::vector<Fiber> fibers;
    Block block;
    void* main_stack;
    Failure* failure;
    uint32_t order;
    uint64_t random;
    uint64_t* counters;
    uint8_t* stacks;
    size_t stack_bytes;
    uint64_t stack_total;
};

inline Fiber& fiber_of(Thread& t) { return static_cast<Fiber&>(t); }
inline Block& block_of(Thread& t) { return *fiber_of(t).owner; }
inline Run& run_of(Thread& t) { return *block_of(t).run; }

// A small generator (xorshift) whose sequence depends on the run's order alone.
inline uint32_t next_random(Run& run) {
    run.random ^= run.random << 13;
    run.random ^= run.random >> 7;
    run.random ^= run.random << 17;
    return static_cast<uint32_t>(run.random >> 32);
}

}  // namespace emu

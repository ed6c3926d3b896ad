// Who runs next. The choice is greedy, so that one warp runs as far as synchronisation lets it: that is where a missing
// barrier shows. Order 0 prefers low lanes and warps, order 1 high ones, others draw from a generator.
#pragma once

#include <cstdio>

#include "fiber.h"
#include "state.h"

namespace emu {

inline void record_failure(Run& run, const Fiber* fiber, uint32_t line, const char* message, uint64_t address,
                           uint32_t bytes) {
    Failure& failure = *run.failure;
    failure.happened = 1;
    failure.line = line_of(line);
    failure.address = address;
    failure.bytes = bytes;
    for (int i = 0; i < 3; ++i) {
        failure.block[i] = run.block.block[i];
        failure.thread[i] = fiber ? static_cast<int32_t>(fiber->position[i]) : -1;
    }
    std::snprintf(failure.message, sizeof failure.message, "%s", message);
}

// Leaves the fibers where they are; their stacks are taken away with the run.
[[noreturn]] inline void abandon(Run& run) {
    void* ignored = nullptr;
    switch_stack(&ignored, run.main_stack);
    __builtin_unreachable();
}

void fail_address(Thread& t, uint32_t line, const char* message, uint64_t address, uint32_t bytes) {
    record_failure(run_of(t), &fiber_of(t), line, message, address, bytes);
    abandon(run_of(t));
}
void fail(Thread& t, uint32_t line, const char* message) { fail_address(t, line, message, 0, 0); }

inline void make_ready(Fiber& f) {
    f.wait = Wait::none;
    f.warp->ready |= 1u << f.lane;
    f.owner->ready_warps |= 1u << f.warp->number;
}

inline uint32_t lowest(uint32_t set) { return static_cast<uint32_t>(__builtin_ctz(set)); }
inline uint32_t highest(uint32_t set) { return 31u - static_cast<uint32_t>(__builtin_clz(set)); }
inline uint32_t drawn(Run& run, uint32_t set) {
    const uint32_t turn = next_random(run) & 31;
    const uint32_t rotated = turn ? (set >> turn) | (set << (32 - turn)) : set;
    return (lowest(rotated) + turn) & 31;
}

inline Fiber* next_fiber(Block& block) {
    if (block.ready_warps == 0) return nullptr;
    Run& run = *block.run;
    uint32_t number, lane;
    if (run.order == 0) {
        number = lowest(block.ready_warps);
        lane = lowest(block.warps[number].ready);
    } else if (run.order == 1) {
        number = highest(block.ready_warps);
        lane = highest(block.warps[number].ready);
    } else {
        // Mostly the same warp again: a draw for each switch would keep the warps close to each other.
        number = block.current_warp;
        if (!((block.ready_warps >> number) & 1) || (next_random(run) & 31) == 0) number = drawn(run, block.ready_warps);
        lane = drawn(run, block.warps[number].ready);
    }
    Warp& warp = block.warps[number];
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) block.ready_warps &= ~(1u << number);
    block.current_warp = number;
    return warp.fibers[lane];
}

void idle(Block& block);

// Lets another fiber run; the caller has said in `wait` what it waits for, or is in the set of ready ones.
inline void leave(Fiber& f) {
    Block& block = *f.owner;
    Fiber* next = next_fiber(block);
    while (next == nullptr) {
        idle(block);
        next = next_fiber(block);
    }
    if (next != &f) switch_stack(&f.stack_pointer, next->stack_pointer);
}

inline void suspend(Fiber& f, Wait wait, uint32_t line, uint32_t on) {
    f.wait = wait;
    f.wait_line = line;
    f.wait_on = on;
    leave(f);
}

void yield(Thread& t) { suspend(fiber_of(t), Wait::deferred, 0, 0); }

void step_check(Thread& t, uint32_t line) {
    if (t.launch->steps <= 0) fail(t, line, "endless loop: the budget of backward branches is spent");
    yield(t);
}

void exit_thread(Thread& t) {
    Fiber& f = fiber_of(t);
    Warp& warp = *f.warp;
    Block& block = *f.owner;
    warp.exited |= 1u << f.lane;
    f.wait = Wait::exited;
    for (uint32_t i = 0; i < warp.meeting_count; ++i) {
        const Meeting& meeting = warp.meetings[i];
        if ((meeting.mask >> f.lane) & 1) {
            record_failure(*block.run, warp.fibers[lowest(meeting.arrived)], meeting.line,
                           "divergence: waits for a lane of its warp that has exited", 0, 0);
            abandon(*block.run);
        }
    }
    ++block.progress;
    if (--block.alive == 0) abandon(*block.run);
    leave(f);
    __builtin_unreachable();
}

// Where everybody stands, for the message of a deadlock.
inline void describe_waits(const Block& block, char* text, size_t size) {
    struct Group { Wait wait; uint32_t line, on, threads; };
    std::vector<Group> groups;
    uint32_t exited = 0;
    bool diverged = false;
    for (const Warp& warp : block.warps) {
        const Fiber* first = nullptr;
        for (uint32_t set = warp.present; set != 0; set &= set - 1) {
            const Fiber& f = *warp.fibers[lowest(set)];
            if (f.wait == Wait::exited) {
                ++exited;
                continue;
            }
            if (first && (first->wait != f.wait || first->wait_line != f.wait_line)) diverged = true;
            if (!first) first = &f;
            bool known = false;
            for (Group& g : groups) {
                if (g.wait == f.wait && g.line == f.wait_line && g.on == f.wait_on) {
                    ++g.threads;
                    known = true;
                }
            }
            if (!known) groups.push_back({f.wait, f.wait_line, f.wait_on, 1});
        }
    }
    int used = std::snprintf(text, size, "%s", diverged ? "deadlock after divergence within a warp:" : "deadlock:");
    for (size_t i = 0; i < groups.size() && i < 8; ++i) {
        const Group& g = groups[i];
        char place[64];
        if (g.wait == Wait::barrier) std::snprintf(place, sizeof place, "barrier %u", g.on);
        else if (g.wait == Wait::mbarrier) std::snprintf(place, sizeof place, "the mbarrier at shared address %u", g.on);
        else std::snprintf(place, sizeof place, "a collective of the warp");
        used += std::snprintf(text + used, size - used, "%s %u threads wait at %s (PTX line %u)", i ? ";" : "", g.threads,
                              place, line_of(g.line));
    }
    if (exited) std::snprintf(text + used, size - used, "; %u threads have exited", exited);
}

inline uint32_t first_wait_line(const Block& block) {
    for (const Warp& warp : block.warps) {
        for (uint32_t set = warp.present; set != 0; set &= set - 1) {
            const Fiber& f = *warp.fibers[lowest(set)];
            if (f.wait != Wait::exited) return f.wait_line;
        }
    }
    return 0;
}

template <class Visit>
inline void each_waiting(Block& block, Wait wait, Visit visit) {
    for (Warp& warp : block.warps) {
        for (uint32_t set = warp.present & ~warp.exited; set != 0; set &= set - 1) {
            Fiber& f = *warp.fibers[lowest(set)];
            if (f.wait == wait) visit(f);
        }
    }
}

bool land_polled(Block& block);

// Nobody can run: what is under way lands, those who stepped aside come back, polls return false, or it is a deadlock.
void idle(Block& block) {
    if (land_polled(block)) return;
    bool found = false;
    each_waiting(block, Wait::deferred, [&](Fiber& f) {
        make_ready(f);
        found = true;
    });
    if (found) return;
    if (block.idle_progress != block.progress) block.idle_rounds = 0;
    block.idle_progress = block.progress;
    if (++block.idle_rounds <= 64) {
        each_waiting(block, Wait::mbarrier, [&](Fiber& f) {
            f.wait_result = false;
            make_ready(f);
            found = true;
        });
        if (found) return;
    }
    char text[sizeof(Failure::message)];
    describe_waits(block, text, sizeof text);
    record_failure(*block.run, nullptr, first_wait_line(block), text, 0, 0);
    abandon(*block.run);
}

}  // namespace emu

// Collectives of a warp: lanes meet by member mask, and the last one computes for all.
#pragma once

#include "memory.h"
#include "synchronize.h"

namespace emu {

void WarpCall::fail(int lane, const char* message) const { emu::fail(*warp->fibers[lane], line, message); }
void WarpCall::load_shared(int lane, uint32_t address, void* destination, uint32_t bytes) const {
    std::memcpy(destination, read_shared(*warp->fibers[lane], line, address, bytes), bytes);
}
void WarpCall::store_shared(int lane, uint32_t address, const void* source, uint32_t bytes) const {
    std::memcpy(write_shared(*warp->fibers[lane], line, address, bytes), source, bytes);
}

[[noreturn]] inline void fail_diverged(Fiber& f, uint32_t line, const Meeting& other) {
    char text[160];
    std::snprintf(text, sizeof text, "divergence: lane %u of the same warp waits at PTX line %u with mask 0x%08x",
                  lowest(other.arrived), line_of(other.line), other.mask);
    fail(f, line, text);
}

// Counts the lane in. Lanes at another collective may still come to this one, unless they wait for this lane there.
inline Meeting& arrive_at(Fiber& f, uint32_t line, uint32_t mask) {
    Warp& warp = *f.warp;
    if (!((mask >> f.lane) & 1)) fail(f, line, "the member mask does not name the executing lane");
    if (mask & warp.exited) fail(f, line, "divergence: the member mask names lanes that have exited");
    Meeting* mine = nullptr;
    for (uint32_t i = 0; i < warp.meeting_count; ++i) {
        Meeting& meeting = warp.meetings[i];
        if (meeting.line == line && meeting.mask == mask) mine = &meeting;
        else if ((meeting.arrived & mask) && ((meeting.mask >> f.lane) & 1)) fail_diverged(f, line, meeting);
    }
    if (!mine) {
        mine = &warp.meetings[warp.meeting_count++];
        *mine = {line, mask, 0};
    }
    mine->arrived |= 1u << f.lane;
    return *mine;
}

inline void release_lanes(Fiber& f, uint32_t lanes) {
    Warp& warp = *f.warp;
    warp.ready |= lanes & ~(1u << f.lane);
    if (warp.ready) f.owner->ready_warps |= 1u << warp.number;
    ++f.owner->progress;
}

inline void meet(Fiber& f, uint32_t line, uint32_t mask, const uint32_t* in, uint32_t* out,
                 void (*function)(WarpCall&), uint64_t* counter) {
    Warp& warp = *f.warp;
    f.in = in;
    f.out = out;
    Meeting& meeting = arrive_at(f, line, mask);
    const uint32_t lanes = mask & warp.present;
    if (meeting.arrived != lanes) {
        suspend(f, Wait::warp, line, 0);
        return;
    }
    meeting = warp.meetings[--warp.meeting_count];
    WarpCall call{};
    call.warp = &warp;
    call.line = line;
    call.lanes = lanes;
    for (uint32_t set = lanes; set != 0; set &= set - 1) {
        Fiber& other = *warp.fibers[lowest(set)];
        other.wait = Wait::none;
        call.in[other.lane] = other.in;
        call.out[other.lane] = other.out;
    }
    if (counter) ++*counter;
    function(call);
    release_lanes(f, lanes);
}

void collective(Thread& t, uint32_t line, uint32_t mask, const uint32_t* in, uint32_t* out,
                void (*function)(WarpCall&)) {
    meet(fiber_of(t), line, mask, in, out, function, nullptr);
}

void counted_collective(Thread& t, uint32_t line, const uint32_t* in, uint32_t* out, void (*function)(WarpCall&),
                        uint32_t counter) {
    if (t.warp->present != 0xFFFFFFFFu) fail(t, line, "needs all 32 lanes of the warp, and the block has fewer");
    meet(fiber_of(t), line, 0xFFFFFFFFu, in, out, function, run_of(t).counters + counter);
}

template <class Visit>
inline void each_lane(const WarpCall& call, Visit visit) {
    for (uint32_t set = call.lanes; set != 0; set &= set - 1) visit(static_cast<int>(lowest(set)));
}

// A source lane outside of the mask has no defined value on the device, so reading one is an error.
template <class Source>
inline void shuffle(WarpCall& call, Source source) {
    each_lane(call, [&](int lane) {
        const uint32_t* in = call.in[lane];
        const int clamp = static_cast<int>(in[2] & 31), segment = static_cast<int>((in[2] >> 8) & 31);
        const int highest_lane = (lane & segment) | (clamp & ~segment), lowest_lane = lane & segment;
        int from = 0;
        const bool inside = source(lane, static_cast<int>(in[1] & 31), lowest_lane, highest_lane, segment, from);
        if (!inside) from = lane;
        if (!call.in[from]) call.fail(lane, "shuffles from a lane that its member mask does not name");
        call.out[lane][0] = call.in[from][0];
        call.out[lane][1] = inside;
    });
}

void shuffle_up(WarpCall& call) {
    shuffle(call, [](int lane, int b, int, int high, int, int& from) { return (from = lane - b) >= high; });
}
void shuffle_down(WarpCall& call) {
    shuffle(call, [](int lane, int b, int, int high, int, int& from) { return (from = lane + b) <= high; });
}
void shuffle_butterfly(WarpCall& call) {
    shuffle(call, [](int lane, int b, int, int high, int, int& from) { return (from = lane ^ b) <= high; });
}
void shuffle_index(WarpCall& call) {
    shuffle(call, [](int, int b, int low, int high, int segment, int& from) {
        return (from = low | (b & ~segment)) <= high;
    });
}

inline uint32_t ballot(const WarpCall& call) {
    uint32_t set = 0;
    each_lane(call, [&](int lane) { set |= (call.in[lane][0] & 1) << lane; });
    return set;
}
inline void answer(WarpCall& call, uint32_t value) {
    each_lane(call, [&](int lane) { call.out[lane][0] = value; });
}

void vote_all(WarpCall& call) { answer(call, ballot(call) == call.lanes); }
void vote_any(WarpCall& call) { answer(call, ballot(call) != 0); }
void vote_uniform(WarpCall& call) { answer(call, ballot(call) == 0 || ballot(call) == call.lanes); }
void vote_ballot(WarpCall& call) { answer(call, ballot(call)); }

template <class T, class Combine>
inline void reduce(WarpCall& call, Combine combine) {
    T total = static_cast<T>(call.in[lowest(call.lanes)][0]);
    for (uint32_t set = call.lanes & (call.lanes - 1); set != 0; set &= set - 1) {
        total = combine(total, static_cast<T>(call.in[lowest(set)][0]));
    }
    answer(call, static_cast<uint32_t>(total));
}

void reduce_add(WarpCall& call) { reduce<uint32_t>(call, [](uint32_t a, uint32_t b) { return a + b; }); }
void reduce_min_signed(WarpCall& call) { reduce<int32_t>(call, [](int32_t a, int32_t b) { return a < b ? a : b; }); }
void reduce_max_signed(WarpCall& call) { reduce<int32_t>(call, [](int32_t a, int32_t b) { return a > b ? a : b; }); }
void reduce_min_unsigned(WarpCall& call) {
    reduce<uint32_t>(call, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
}
void reduce_max_unsigned(WarpCall& call) {
    reduce<uint32_t>(call, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}
void reduce_and(WarpCall& call) { reduce<uint32_t>(call, [](uint32_t a, uint32_t b) { return a & b; }); }
void reduce_or(WarpCall& call) { reduce<uint32_t>(call, [](uint32_t a, uint32_t b) { return a | b; }); }
void reduce_xor(WarpCall& call) { reduce<uint32_t>(call, [](uint32_t a, uint32_t b) { return a ^ b; }); }

template <class Combine>
inline void reduce_floats(WarpCall& call, Combine combine) {
    reduce<uint32_t>(call, [&](uint32_t a, uint32_t b) {
        return bit_cast<uint32_t>(combine(bit_cast<float>(a), bit_cast<float>(b)));
    });
}
void reduce_min_float(WarpCall& call) { reduce_floats(call, float_min<float, false>); }
void reduce_max_float(WarpCall& call) { reduce_floats(call, float_max<float, false>); }

inline uint32_t lanes_equal_to(const WarpCall& call, int lane) {
    uint32_t equal = 0;
    each_lane(call, [&](int other) {
        const bool same = call.in[other][0] == call.in[lane][0] && call.in[other][1] == call.in[lane][1];
        equal |= static_cast<uint32_t>(same) << other;
    });
    return equal;
}
void match_any(WarpCall& call) {
    each_lane(call, [&](int lane) { call.out[lane][0] = lanes_equal_to(call, lane); });
}
void match_all(WarpCall& call) {
    const bool same = lanes_equal_to(call, static_cast<int>(lowest(call.lanes))) == call.lanes;
    each_lane(call, [&](int lane) {
        call.out[lane][0] = same ? call.lanes : 0;
        call.out[lane][1] = same;
    });
}
void elect(WarpCall& call) {
    const uint32_t leader = lowest(call.lanes);
    each_lane(call, [&](int lane) {
        call.out[lane][0] = leader;
        call.out[lane][1] = static_cast<uint32_t>(lane) == leader;
    });
}
void meet_only(WarpCall&) {}

uint32_t active_lanes(Thread& t) { return t.warp->present & ~t.warp->exited; }

}  // namespace emu

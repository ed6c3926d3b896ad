// Asynchronous matrix instructions of a warpgroup. An operation is recorded where it is issued and carried out at the
// wait that covers it, so an operand that changes too early gives what the program deserves. Until then an
// accumulator register holds a place: a NaN with a mark, the operation's number and the word's number. Copies of a
// register carry it along; translated code puts the result in after the wait and refuses any other reading.
#pragma once

#include "copies.h"

namespace emu {

constexpr uint32_t kPlaceMark = 0xFFA50000u;

inline bool is_place(uint32_t value) { return (value & 0xFFFF0000u) == kPlaceMark; }
inline uint32_t place_of(uint32_t operation, uint32_t word) { return kPlaceMark | (operation << 7) | word; }

void WarpgroupCall::read_shared(uint32_t address, void* destination, uint32_t bytes) const {
    read_proxy(*warp->fibers[0], line, address, destination, bytes);
}
void WarpgroupCall::fail(const char* message) const { emu::fail(*warp->fibers[0], line, message); }

namespace {
struct IssuedLane {
    const WarpgroupIssue* issue;
    uint32_t* d;
    const uint32_t* a;
};
}  // namespace

inline void check_uniform(WarpCall& call, const WarpgroupIssue& first, int lane, const WarpgroupIssue& issue) {
    const bool same = issue.scale_d == first.scale_d && issue.b_descriptor == first.b_descriptor &&
                      (first.a_words != 0 || issue.a_descriptor == first.a_descriptor);
    if (!same) call.fail(lane, "lanes of a warp give different descriptors or scale-d to wgmma.mma_async");
}

inline void record_operation(WarpCall& call) {
    Warp& warp = *call.warp;
    IssuedLane lanes[32];
    for (int lane = 0; lane < 32; ++lane) std::memcpy(&lanes[lane], call.in[lane], sizeof(IssuedLane));
    const WarpgroupIssue& issue = *lanes[0].issue;
    if (!warp.register_fence) call.fail(0, "no wgmma.fence in front of the first wgmma.mma_async");
    if (warp.operations.empty()) warp.operations.resize(kOperations);
    if (warp.issued - warp.completed >= kOperations) call.fail(0, "too many wgmma.mma_async without a wait");
    const uint32_t number = warp.issued++ % kOperations;
    WarpgroupOperation& operation = warp.operations[number];
    operation.line = issue.line;
    operation.function = issue.function;
    operation.d_words = issue.d_words;
    operation.a_words = issue.a_words;
    operation.a_descriptor = issue.a_descriptor;
    operation.b_descriptor = issue.b_descriptor;
    operation.scale_d = issue.scale_d;
    operation.done = false;
    std::memcpy(operation.immediates, issue.immediates, sizeof issue.immediates);
    operation.d.resize(size_t{issue.d_words} * 32);
    operation.a.resize(size_t{issue.a_words} * 32);
    for (int lane = 0; lane < 32; ++lane) {
        check_uniform(call, issue, lane, *lanes[lane].issue);
        for (uint32_t i = 0; i < issue.d_words; ++i) {
            operation.d[i * 32 + lane] = lanes[lane].d[i];
            lanes[lane].d[i] = place_of(number, i);
        }
        for (uint32_t i = 0; i < issue.a_words; ++i) operation.a[i * 32 + lane] = lanes[lane].a[i];
    }
    ++warp.block->run->counters[issue.counter];
}

void warpgroup_mma(Thread& t, const WarpgroupIssue& issue, uint32_t* d, const uint32_t* a) {
    const IssuedLane mine{&issue, d, a};
    uint32_t in[sizeof(IssuedLane) / 4];
    std::memcpy(in, &mine, sizeof mine);
    if (block_threads(t) % 128 || t.warp->present != 0xFFFFFFFFu) {
        fail(t, issue.line, "wgmma needs whole warpgroups of 128 threads");
    }
    collective(t, issue.line, 0xFFFFFFFFu, in, nullptr, record_operation);
}

// Operations complete in the order of their issue, so what an accumulator stands for is there by now.
inline void settle_accumulators(Warp& warp, WarpgroupOperation& operation) {
    if (!operation.scale_d) return;
    for (uint32_t i = 0; i < operation.d_words * 32; ++i) {
        const uint32_t value = operation.d[i];
        if (!is_place(value)) continue;
        const WarpgroupOperation& source = warp.operations[(value >> 7) % kOperations];
        operation.d[i] = source.d[(value & 127) * 32 + i % 32];
    }
}

inline void carry_out(Warp& warp, WarpgroupOperation& operation) {
    settle_accumulators(warp, operation);
    WarpgroupCall call{};
    call.warp = &warp;
    call.line = operation.line;
    call.rank = static_cast<int>(warp.number % 4);
    call.d = reinterpret_cast<uint32_t(*)[32]>(operation.d.data());
    call.a = operation.a_words ? reinterpret_cast<const uint32_t(*)[32]>(operation.a.data()) : nullptr;
    call.a_descriptor = operation.a_descriptor;
    call.b_descriptor = operation.b_descriptor;
    call.scale_d = operation.scale_d;
    std::memcpy(call.immediates, operation.immediates, sizeof call.immediates);
    operation.function(call);
    operation.done = true;
}

inline void note_fence(WarpCall& call) { call.warp->register_fence = true; }
void warpgroup_fence(Thread& t, uint32_t line) { collective(t, line, 0xFFFFFFFFu, nullptr, nullptr, note_fence); }

inline void note_group(WarpCall& call) { call.warp->groups.push_back(call.warp->issued); }
void warpgroup_commit(Thread& t, uint32_t line) { collective(t, line, 0xFFFFFFFFu, nullptr, nullptr, note_group); }

inline void complete_groups(WarpCall& call) {
    Warp& warp = *call.warp;
    const uint32_t pending = call.in[lowest(call.lanes)][0];
    if (warp.groups.size() <= pending) return;
    const size_t count = warp.groups.size() - pending;
    const uint32_t end = warp.groups[count - 1];
    while (warp.completed != end) carry_out(warp, warp.operations[warp.completed++ % kOperations]);
    warp.groups.erase(warp.groups.begin(), warp.groups.begin() + static_cast<std::ptrdiff_t>(count));
}

void warpgroup_wait(Thread& t, uint32_t line, uint32_t pending) {
    collective(t, line, 0xFFFFFFFFu, &pending, nullptr, complete_groups);
}

uint32_t resolve_accumulator(Thread& t, uint32_t place) {
    const Warp& warp = *t.warp;
    if (warp.operations.empty()) return place;
    const WarpgroupOperation& operation = warp.operations[(place >> 7) % kOperations];
    return operation.done ? operation.d[(place & 127) * 32 + t.lane] : place;
}

}  // namespace emu

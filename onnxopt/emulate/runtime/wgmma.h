// Asynchronous matrix instructions of a warpgroup.
//
// When operands are read. An operation is recorded where it is issued and carried out between there and the wait that
// covers it, in the order of issue. Order 0 reads operands in shared memory at the wait, where one that was overwritten
// too early shows; order 1 at the issue, where one that has not arrived shows; the drawn orders choose for each group of
// each warp, and what is still behind is carried out with the first operation that is read at its issue. Every reading
// goes through the checks of the asynchronous proxy. Fragments of A are taken at the issue.
//
// Results. Until the wait an accumulator register holds a place: a NaN with a mark, the operation's number and the
// word's number. Copies of a register carry it along; translated code puts the result in after the wait and refuses any
// other reading, also of results that are already computed.
//
// The warpgroup. Its four warps have to execute the same wgmma instructions one for one, with the same descriptors and
// scale-d; each is compared with the warp that is ahead. Nothing makes them wait for each other.
//
// Registers. wgmma.fence is needed before the first operation, between any other access to an accumulator or a fragment
// and an operation on it, and between operations of different shapes on an accumulator. Registers are those that the
// PTX names: a mov is no access, since compilers put copies anywhere and remove them later, and so a value that changed
// before it was moved into an accumulator goes unseen. Writing to a fragment, by a mov too, before the wait is an
// error.
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

// The other warps of the warpgroup have executed the same, or will.
inline void follow(WarpCall& call, const WarpgroupStep& step) {
    Warp& warp = *call.warp;
    std::vector<WarpgroupStep>& log = warp.block->warps[warp.number & ~3u].log;
    const uint32_t number = warp.steps++;
    if (number == log.size()) {
        log.push_back(step);
        return;
    }
    const WarpgroupStep& other = log[number];
    if (other.line != step.line) {
        char text[160];
        std::snprintf(text, sizeof text,
                      "warps of a warpgroup execute different wgmma instructions: another one that of PTX line %u",
                      line_of(other.line));
        call.fail(0, text);
    }
    if (other.a_descriptor != step.a_descriptor || other.b_descriptor != step.b_descriptor) {
        call.fail(0, "warps of a warpgroup give different descriptors to wgmma.mma_async");
    }
    if (other.scale_d != step.scale_d) {
        call.fail(0, "warps of a warpgroup give different scale-d to wgmma.mma_async");
    }
}

inline void check_untouched(WarpCall& call, const WarpgroupIssue& issue) {
    for (int lane = 0; lane < 32; ++lane) {
        const Fiber& f = *call.warp->fibers[lane];
        if (f.touched_words == 0) continue;
        for (uint32_t i = 0; i < issue.d_words + issue.a_words; ++i) {
            const uint32_t number = issue.registers[i];
            if (number < kTouchable && ((f.touched[number / 64] >> (number % 64)) & 1)) {
                call.fail(lane, "no wgmma.fence between another access to its registers and wgmma.mma_async");
            }
        }
    }
}

inline void note_uses(WarpCall& call, const WarpgroupIssue& issue) {
    Warp& warp = *call.warp;
    if (warp.uses.empty()) warp.uses.resize(kTouchable);
    for (uint32_t i = 0; i < issue.d_words + issue.a_words; ++i) {
        if (issue.registers[i] >= kTouchable) continue;
        RegisterUse& use = warp.uses[issue.registers[i]];
        if (i >= issue.d_words) {
            use.fragment_until = warp.issued + 1;
            continue;
        }
        if (use.fences == warp.fences && use.d_words != issue.d_words) {
            call.fail(0, "no wgmma.fence between wgmma.mma_async of different shapes on the same accumulators");
        }
        use.fences = warp.fences;
        use.d_words = issue.d_words;
    }
}

void check_fragment(Thread& t, uint32_t line, uint32_t number) {
    const Warp& warp = *t.warp;
    if (!warp.uses.empty() && warp.uses[number].fragment_until > warp.completed) {
        fail(t, line, "overwrites a fragment of A before wgmma.wait_group");
    }
}

inline void carry_out_until(Warp& warp, uint32_t end);

inline bool reads_at_issue(Warp& warp) {
    Run& run = *warp.block->run;
    if (run.order < 2) return run.order == 1;
    if (warp.reading == Reading::undecided) warp.reading = next_random(run) & 1 ? Reading::at_issue : Reading::late;
    return warp.reading == Reading::at_issue;
}

inline void record_operation(WarpCall& call) {
    Warp& warp = *call.warp;
    IssuedLane lanes[32];
    for (int lane = 0; lane < 32; ++lane) std::memcpy(&lanes[lane], call.in[lane], sizeof(IssuedLane));
    const WarpgroupIssue& issue = *lanes[0].issue;
    for (int lane = 0; lane < 32; ++lane) check_uniform(call, issue, lane, *lanes[lane].issue);
    follow(call, {issue.line, issue.scale_d, issue.a_descriptor, issue.b_descriptor});
    if (warp.fences == 0) call.fail(0, "no wgmma.fence in front of the first wgmma.mma_async");
    check_untouched(call, issue);
    note_uses(call, issue);
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
        for (uint32_t i = 0; i < issue.d_words; ++i) {
            operation.d[i * 32 + lane] = lanes[lane].d[i];
            lanes[lane].d[i] = place_of(number, i);
        }
        for (uint32_t i = 0; i < issue.a_words; ++i) operation.a[i * 32 + lane] = lanes[lane].a[i];
    }
    if (reads_at_issue(warp)) carry_out_until(warp, warp.issued);
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

// Operations are carried out in the order of their issue, so what an accumulator stands for is there by now.
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
}

inline void carry_out_until(Warp& warp, uint32_t end) {
    while (warp.executed != end) carry_out(warp, warp.operations[warp.executed++ % kOperations]);
}

inline void note_fence(WarpCall& call) {
    follow(call, {call.line, false, 0, 0});
    ++call.warp->fences;
    for (Fiber* f : call.warp->fibers) {
        if (!f || f->touched_words == 0) continue;
        std::memset(f->touched, 0, sizeof f->touched);
        f->touched_words = 0;
    }
}
void warpgroup_fence(Thread& t, uint32_t line) { collective(t, line, 0xFFFFFFFFu, nullptr, nullptr, note_fence); }

inline void note_group(WarpCall& call) {
    follow(call, {call.line, false, 0, 0});
    call.warp->groups.push_back(call.warp->issued);
    call.warp->reading = Reading::undecided;
}
void warpgroup_commit(Thread& t, uint32_t line) { collective(t, line, 0xFFFFFFFFu, nullptr, nullptr, note_group); }

inline void complete_groups(WarpCall& call) {
    Warp& warp = *call.warp;
    follow(call, {call.line, false, 0, 0});
    const uint32_t pending = call.in[lowest(call.lanes)][0];
    if (warp.groups.size() <= pending) return;
    const size_t count = warp.groups.size() - pending;
    const uint32_t end = warp.groups[count - 1];
    if (static_cast<int32_t>(end - warp.executed) > 0) carry_out_until(warp, end);
    while (warp.completed != end) warp.operations[warp.completed++ % kOperations].done = true;
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

inline void reset_warpgroup(Warp& warp) {
    warp.issued = warp.executed = warp.completed = 0;
    warp.groups.clear();
    warp.reading = Reading::undecided;
    warp.fences = 0;
    warp.uses.clear();
    warp.steps = 0;
    warp.log.clear();
}

// After a block: no warp has executed fewer wgmma instructions than another of its warpgroup.
inline void check_ends(Run& run) {
    for (const Warp& warp : run.block.warps) {
        const std::vector<WarpgroupStep>& log = run.block.warps[warp.number & ~3u].log;
        if (warp.steps == log.size()) continue;
        record_failure(run, warp.fibers[0], log[warp.steps].line,
                       "a warp ends without this instruction, which another one of its warpgroup has executed", 0, 0);
        return;
    }
}

}  // namespace emu

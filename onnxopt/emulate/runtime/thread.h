// What translated code sees of its thread and its block, and the few inline helpers that every kernel needs.
#pragma once

#include <cstdint>
#include <cstring>

#include "warp_call.h"

namespace emu {

// A generic address is a window number above 40 bits of offset, so that no access that leaves one allocation can reach
// another. Module variables and then arguments take the windows from kFirstWindow on.
constexpr int kWindowBits = 40;
constexpr uint64_t kSharedWindow = 1;
constexpr uint64_t kLocalWindow = 2;
constexpr uint64_t kParameterWindow = 3;
constexpr uint64_t kFirstWindow = 16;

// Addresses below these are in no variable, so that a null pointer into the space is out of bounds.
constexpr uint32_t kSharedBase = 1024;
constexpr uint32_t kLocalBase = 64;

// Places in the text: a PTX line, above it which of the line's instructions.
constexpr uint32_t line_of(uint32_t place) { return place & 0xFFFFFF; }

struct Launch {
    uint32_t threads[3];
    uint32_t blocks[3];
    uint32_t block[3];
    uint32_t static_shared;
    uint32_t dynamic_shared;
    int64_t steps;   // Backward branches that the block may still take.
    uint64_t clock;  // Reads of a clock register so far: time that only moves when it is looked at.
};

// Registers of wgmma.mma_async whose accesses by a thread are noted; what a program has beyond them is not checked.
constexpr uint32_t kTouchable = 4096;

struct Thread {
    uint32_t position[3];
    uint32_t index;
    uint32_t lane;
    Launch* launch;
    Warp* warp;
    // Registers of wgmma.mma_async touched since the last wgmma.fence, and which of the words have any.
    uint64_t touched[kTouchable / 64];
    uint64_t touched_words;
};

// Special registers that are more than a field.
inline uint32_t block_threads(const Thread& t) {
    return t.launch->threads[0] * t.launch->threads[1] * t.launch->threads[2];
}
inline uint32_t lanes_below(const Thread& t) { return (1u << t.lane) - 1; }

// Ends the run with a message (see errors.h for the numbered ones); never returns to the caller.
[[noreturn]] void fail(Thread& t, uint32_t line, const char* message);
[[noreturn]] void fail_address(Thread& t, uint32_t line, const char* message, uint64_t address, uint32_t bytes);

// The step budget is spent, or it is time to let other threads run.
void step_check(Thread& t, uint32_t line);

inline void step(Thread& t, uint32_t line) {
    if ((--t.launch->steps & 0xFFFF) == 0) step_check(t, line);
}

// Ends the calling thread.
[[noreturn]] void exit_thread(Thread& t);

// What the kernel's own translation unit tells the runtime.
struct ModuleVariable {
    const uint8_t* initial;  // null: zeros
    uint64_t size;
    uint32_t constant;
};

struct ModuleReference {
    uint32_t variable;
    uint32_t offset;
    uint64_t value;
};

struct Kernel {
    void (*function)(Thread&);
    uint32_t parameter_bytes;
    uint32_t static_shared;   // bytes of static shared variables, rounded to the alignment of the dynamic ones
    uint32_t local_bytes;
    uint32_t asynchronous_proxy;  // 1 where something reads shared memory through it
    uint32_t variable_count;
    uint32_t reference_count;
    uint32_t counter_count;
    const ModuleVariable* variables;
    const ModuleReference* references;
};

}  // namespace emu

extern const emu::Kernel emu_kernel;

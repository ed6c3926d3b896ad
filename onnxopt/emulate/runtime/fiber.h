// Switching between stacks: a dozen instructions on x86-64, ucontext elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "state.h"

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)

extern "C" __attribute__((visibility("hidden"))) void emu_switch_stack(void** save, void* next);
extern "C" __attribute__((visibility("hidden"))) void emu_start_fiber();

// Saves the registers that a call preserves, changes stacks, and returns on the other one. A new stack is laid out so
// that the same pops load the fiber into r12 and its function into r13.
asm(R"(
.text
.hidden emu_switch_stack
.globl emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch_stack, .-emu_switch_stack
.hidden emu_start_fiber
.globl emu_start_fiber
.type emu_start_fiber, @function
emu_start_fiber:
    movq %r12, %rdi
    call *%r13
    ud2
.size emu_start_fiber, .-emu_start_fiber
)");

namespace emu {

inline void switch_stack(void** save, void* next) { emu_switch_stack(save, next); }

inline void* new_stack(uint8_t* top, Fiber* fiber, void (*function)(Fiber*)) {
    auto** slot = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
    *--slot = nullptr;
    *--slot = nullptr;
    *--slot = reinterpret_cast<void*>(&emu_start_fiber);
    *--slot = nullptr;                                // rbp
    *--slot = nullptr;                                // rbx
    *--slot = fiber;                                  // r12
    *--slot = reinterpret_cast<void*>(function);      // r13
    *--slot = nullptr;                                // r14
    *--slot = nullptr;                                // r15
    return slot;
}

}  // namespace emu

#else

#include <ucontext.h>

namespace emu {

inline void switch_stack(void** save, void* next) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t*>(next));
}

inline void start_from_halves(unsigned fiber_high, unsigned fiber_low, unsigned function_high, unsigned function_low) {
    const auto fiber = (static_cast<uint64_t>(fiber_high) << 32) | fiber_low;
    const auto function = (static_cast<uint64_t>(function_high) << 32) | function_low;
    reinterpret_cast<void (*)(Fiber*)>(function)(reinterpret_cast<Fiber*>(fiber));
}

// The context itself lies above the stack that it describes.
inline void* new_stack(uint8_t* top, Fiber* fiber, void (*function)(Fiber*)) {
    const uintptr_t place = (reinterpret_cast<uintptr_t>(top) - sizeof(ucontext_t)) & ~uintptr_t{63};
    auto* context = reinterpret_cast<ucontext_t*>(place);
    getcontext(context);
    uint8_t* bottom = top - run_of(*fiber).stack_bytes;
    context->uc_stack.ss_sp = bottom;
    context->uc_stack.ss_size = place - reinterpret_cast<uintptr_t>(bottom);
    context->uc_link = nullptr;
    const auto fiber_bits = reinterpret_cast<uint64_t>(fiber);
    const auto function_bits = reinterpret_cast<uint64_t>(function);
    makecontext(context, reinterpret_cast<void (*)()>(&start_from_halves), 4, static_cast<unsigned>(fiber_bits >> 32),
                static_cast<unsigned>(fiber_bits), static_cast<unsigned>(function_bits >> 32),
                static_cast<unsigned>(function_bits));
    return context;
}

}  // namespace emu

#endif

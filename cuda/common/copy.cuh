// Copies of 16 bytes from global to shared memory: asynchronous from sm_80 on, through registers before.
#pragma once

#include "common/element.cuh"

constexpr int kChunkBytes = 16;
constexpr bool kAsynchronousCopies = __CUDA_ARCH__ >= 800;

DEVICE unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Keeps a pointer in registers, where the compiler would rather compute it anew for every access.
template <class Element>
DEVICE Element* held(Element* pointer) {
    asm("" : "+l"(pointer));
    return pointer;
}

// A value that the compiler takes for a new one each time, so that what follows from it is computed where it is needed,
// instead of once, in front of a loop that has no registers to spare for it.
DEVICE int renewed(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

DEVICE void store_chunk(unsigned shared, uint4 chunk) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(chunk.x), "r"(chunk.y), "r"(chunk.z),
                 "r"(chunk.w)
                 : "memory");
}

// Brings a chunk to shared memory, or zeros where it is not `present`; then nothing is read. The thread's copies have
// landed once wait_copies lets it pass, and other threads see them behind a barrier.
DEVICE void copy_chunk(unsigned shared, const void* global, bool present = true) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared),
                 "l"(__cvta_generic_to_global(global)), "r"(present ? kChunkBytes : 0)
                 : "memory");
#else
    store_chunk(shared, present ? __ldg(static_cast<const uint4*>(global)) : uint4{0, 0, 0, 0});
#endif
}

// Ends a group of this thread's copies; groups complete in order.
DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all of this thread's groups but the last `kPending` have landed.
template <int kPending>
DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// A list of `count` 32-bit entries, a multiple of 4 and at most kMost, that begins at 16 bytes in both memories.
template <int kThreads, int kMost = 0x40000000>
DEVICE void copy_list(unsigned shared, const int* global, int count, int thread) {
    if constexpr (kMost <= 4 * kThreads) {
        if (4 * thread < count) copy_chunk(shared + 16 * thread, global + 4 * thread);
    } else {
#pragma unroll 1
        for (int first = 4 * thread; first < count; first += 4 * kThreads) {
            copy_chunk(shared + 4 * first, global + first);
        }
    }
}

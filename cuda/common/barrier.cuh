// Barriers that part of a block waits at, and the fence between ordinary writes to shared memory and wgmma's reads.
#pragma once

#include "common/element.cuh"

// An mbarrier in shared memory. It completes a phase whenever its count of arrivals is reached; who waits says the
// parity of the phase: 0 for the first, 1 for the second, 0 for the third. A new barrier lets the parity 1 pass, as if
// a phase before the first had completed.
class ArrivalBarrier {
public:
    DEVICE explicit ArrivalBarrier(unsigned address) : address_(address) {}

    static constexpr int kBytes = 8;

    // By one thread, before a barrier of the whole block that everyone passes who uses this one.
    DEVICE void initialize(int arrivals) const {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_), "r"(arrivals) : "memory");
    }

    // Releases what this thread has written and read so far to those who wait.
    DEVICE void arrive() const {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_) : "memory");
    }

    DEVICE bool has_completed(unsigned parity) const {
        unsigned done;
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
            "selp.u32 %0, 1, 0, done;\n"
            "}"
            : "=r"(done)
            : "r"(address_), "r"(parity)
            : "memory");
        return done != 0;
    }

    DEVICE void wait(unsigned parity) const {
        while (!has_completed(parity)) {
        }
    }

private:
    unsigned address_;
};

// One of the block's 16 hardware barriers; 0 is that of __syncthreads. `threads` counts those who wait and those who
// only arrive, in whole warps.
struct NamedBarrier {
    int number, threads;

    DEVICE void wait() const { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }
    DEVICE void arrive() const { asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory"); }
};

// wgmma reads shared memory past the ordinary path. What a thread has written there (by stores, or by copies that it
// has waited for) is visible to wgmma only after this thread's fence and a barrier.
DEVICE void fence_before_matrix_reads() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

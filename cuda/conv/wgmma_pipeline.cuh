// How the warpgroups of a wgmma tile work together: one producer, the last of the block, fills a ring of slots in shared
// memory, a batch a slot, and the consumers multiply.
#pragma once

#include "common/barrier.cuh"
#include "common/copy.cuh"
#include "common/warpgroup.cuh"
#include "conv/config.cuh"

namespace conv {

constexpr int kGroups = kWarps / 4;

// Registers that a thread has when the block starts: an even share of the multiprocessor's.
constexpr int kStartRegisters = 65536 / (RESIDENT * kThreads) / 8 * 8;

// Found by compiling: what the producer needs, which is least where chunks of inputs lie in x as they are wanted.
constexpr int kProducerRegisters = 96;
constexpr int kConsumerRegisters = (kStartRegisters * (kGroups + 1) - kProducerRegisters) / larger(kGroups, 1) / 8 * 8;

// The producer gives up what it does not need, and consumers share it. A thread can name 255, so with 240 from the
// start nothing is to be gained.
constexpr bool kShareRegisters = kStartRegisters < 240 && kProducerRegisters < kStartRegisters;

DEVICE void become_producer() {
    if constexpr (kShareRegisters) give_registers<kProducerRegisters>();
}
DEVICE void become_consumer() {
    if constexpr (kShareRegisters) take_registers<(kConsumerRegisters < 240 ? kConsumerRegisters : 240)>();
}

// A batch's slot comes again after kStages batches. Its first barrier completes when the producer has filled it, its
// second when all consumer warps have released it.
template <int kStages>
struct Ring {
    static constexpr int kBytes = 2 * kStages * ArrivalBarrier::kBytes;
    unsigned address;

    // By one thread; `warps` is the number of warps that release every batch.
    DEVICE void initialize(int warps) const {
        for (unsigned slot = 0; slot < kStages; ++slot) {
            filled(slot).initialize(kWarpgroupThreads);
            released(slot).initialize(warps);
        }
    }

    DEVICE void publish(unsigned batch) const { filled(batch).arrive(); }
    DEVICE void wait_until_filled(unsigned batch) const { filled(batch).wait(parity(batch)); }

    // What the warp reads of the batch, it has read.
    DEVICE void release(unsigned batch) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) released(batch).arrive();
    }
    DEVICE bool is_free(unsigned batch) const { return released(batch).has_completed(parity(batch) ^ 1); }
    DEVICE void wait_until_free(unsigned batch) const { released(batch).wait(parity(batch) ^ 1); }

private:
    static DEVICE unsigned parity(unsigned batch) { return batch / kStages & 1; }
    DEVICE ArrivalBarrier filled(unsigned batch) const {
        return ArrivalBarrier(address + batch % kStages * ArrivalBarrier::kBytes);
    }
    DEVICE ArrivalBarrier released(unsigned batch) const {
        return ArrivalBarrier(address + (kStages + batch % kStages) * ArrivalBarrier::kBytes);
    }
};

// The producer's side of a ring. Copies of the latest batches are left in flight while the next are started; a batch is
// published when they have landed.
template <int kStages>
class Producer {
public:
    DEVICE explicit Producer(Ring<kStages> ring) : ring_(ring) {}

    // Before the copies of the next batch. Who has to wait for its slot publishes first what is on its way: those who
    // are to free the slot may be waiting for it.
    DEVICE void begin_batch() {
        if (!ring_.is_free(started_)) {
            finish();
            ring_.wait_until_free(started_);
        }
    }

    // After the copies of the batch.
    DEVICE void end_batch() {
        commit_copies();
        ++started_;
        if (started_ - published_ == kStages) {
            wait_copies<kStages - 1>();
            publish();
        }
    }

    DEVICE void finish() {
        if (started_ != published_) {
            wait_copies<0>();
            while (started_ != published_) publish();
        }
    }

private:
    DEVICE void publish() {
        fence_before_matrix_reads();
        ring_.publish(published_++);
    }

    Ring<kStages> ring_;
    unsigned started_ = 0, published_ = 0;
};

}  // namespace conv

// How the warpgroups of a wgmma strip work together: one producer, the last of the block, fills a ring of shared
// memory, and consumers take their turns at the matrix unit.
#pragma once

#include "attention/config.cuh"
#include "common/barrier.cuh"
#include "common/copy.cuh"
#include "common/warpgroup.cuh"

namespace attention {

constexpr int kGroups = kWarps / 4;

// Registers that a thread has when the block starts: an even share of the multiprocessor's.
constexpr int kStartRegisters = 65536 / (RESIDENT * kThreads) / 8 * 8;

// Found by compiling: what the producer needs, less only where the consumers' sums leave it no choice.
constexpr bool kCopiesChunks = kK.whole_chunks(kWidth) && kV.whole_chunks(kValueWidth);
template <bool kSwapped>
constexpr int kProducerRegisters = !kCopiesChunks                                       ? 56
                                   : kGroups == 3                                       ? 32
                                   : kSwapped || kWeights || kPaddedValueWidth <= 192 ? 40
                                                                                        : 24;
template <bool kSwapped>
constexpr int kConsumerRegisters =
    (kStartRegisters * (kGroups + 1) - kProducerRegisters<kSwapped>) / larger(kGroups, 1) / 8 * 8;

// The producer gives up what it does not need, and consumers share it. A thread can name 255, so with 240 from the
// start nothing is to be gained.
template <bool kSwapped>
constexpr bool kShareRegisters = kStartRegisters < 240 && kProducerRegisters<kSwapped> < kStartRegisters;

template <bool kSwapped>
DEVICE void become_producer() {
    if constexpr (kShareRegisters<kSwapped>) give_registers<kProducerRegisters<kSwapped>>();
}
template <bool kSwapped>
DEVICE void become_consumer() {
    constexpr int kShare = kConsumerRegisters<kSwapped>;
    if constexpr (kShareRegisters<kSwapped>) take_registers<(kShare < 240 ? kShare : 240)>();
}

// Where tiles begin in shared memory: a multiple of every pattern in which their chunks are exchanged.
constexpr int kTileAlignment = 1024;

// Hardware barriers: one for each consumer warpgroup by itself, one for its turn, one for all consumers.
DEVICE NamedBarrier warpgroup_barrier(int group) { return {1 + group, kWarpgroupThreads}; }
DEVICE NamedBarrier turn_barrier(int group) { return {1 + kGroups + group, 2 * kWarpgroupThreads}; }
DEVICE NamedBarrier consumer_barrier() { return {1 + 2 * kGroups, kGroups * kWarpgroupThreads}; }

// Warpgroups start their products in turn, the first group first.
struct Turns {
    int group, groups;

    DEVICE void wait(bool first) const {
        if (kGroups > 1 && groups > 1 && !(first && group == 0)) turn_barrier(group).wait();
    }
    DEVICE void pass(bool last) const {
        const int next = group + 1 == groups ? 0 : group + 1;
        if (kGroups > 1 && groups > 1 && !(last && next == 0)) turn_barrier(next).arrive();
    }
};

constexpr int ring_bytes(int stages) { return 4 * stages * ArrivalBarrier::kBytes; }

// The tiles of a strip in the order in which they are used: item 2 * n is the keys of step n, item 2 * n + 1 its
// values. An item's slot comes again after kStages steps. Its first barrier completes when the producer has filled it,
// its second when all consumer warps have released it.
template <int kStages>
struct Ring {
    static constexpr unsigned kSlots = 2 * kStages;
    unsigned address;

    // By one thread; `warps` is the number of warps that release every item.
    DEVICE void initialize(int warps) const {
        for (unsigned slot = 0; slot < kSlots; ++slot) {
            filled(slot).initialize(kWarpgroupThreads);
            released(slot).initialize(warps);
        }
    }

    static DEVICE int stage(int step) { return static_cast<unsigned>(step) % kStages; }

    DEVICE void publish(unsigned item) const { filled(item).arrive(); }
    DEVICE void wait_until_filled(unsigned item) const { filled(item).wait(parity(item)); }

    // What the warp reads of the item, it has read.
    DEVICE void release(unsigned item) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) released(item).arrive();
    }
    DEVICE bool is_free(unsigned item) const { return released(item).has_completed(parity(item) ^ 1); }
    DEVICE void wait_until_free(unsigned item) const { released(item).wait(parity(item) ^ 1); }

private:
    static DEVICE unsigned parity(unsigned item) { return item / kSlots & 1; }
    DEVICE ArrivalBarrier filled(unsigned item) const {
        return ArrivalBarrier(address + item % kSlots * ArrivalBarrier::kBytes);
    }
    DEVICE ArrivalBarrier released(unsigned item) const {
        return ArrivalBarrier(address + (kSlots + item % kSlots) * ArrivalBarrier::kBytes);
    }
};

// The producer's side of a ring. Copies of the latest items are left in flight while the next are started; an item is
// published when they have landed.
template <int kStages>
class Producer {
public:
    DEVICE explicit Producer(Ring<kStages> ring) : ring_(ring) {}

    // Before the copies of the next item. Who has to wait for its slot publishes first what is on its way: those who
    // are to free the slot may be waiting for it.
    DEVICE void begin_item() {
        if (!ring_.is_free(started_)) {
            finish();
            ring_.wait_until_free(started_);
        }
    }

    // After the copies of the item.
    DEVICE void end_item() {
        commit_copies();
        ++started_;
        if (started_ - published_ > kInFlight) {
            wait_copies<kInFlight>();
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
    static constexpr int kInFlight = 2;

    DEVICE void publish() {
        fence_before_matrix_reads();
        ring_.publish(published_++);
    }

    Ring<kStages> ring_;
    unsigned started_ = 0, published_ = 0;
};

}  // namespace attention

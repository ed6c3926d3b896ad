// How the warpgroups of a wgmma strip work together: one producer, the last of the block, fills a ring of shared
// memory, and consumers take their turns at the matrix unit.
#pragma once

#include "attention/config.cuh"
#include "common/ring.cuh"

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

// The tiles of a strip in the order in which they are used: item 2 * n is the keys of step n, item 2 * n + 1 its values.
// Both come again after kStages steps.
template <int kStages>
using Ring = SlotRing<2 * kStages>;
template <int kStages>
using Producer = SlotProducer<2 * kStages, 2>;

constexpr int ring_bytes(int stages) { return 4 * stages * ArrivalBarrier::kBytes; }

// Which of the tiles in shared memory a step's are.
template <int kStages>
DEVICE int stage_of(int step) {
    return static_cast<unsigned>(step) % kStages;
}

}  // namespace attention

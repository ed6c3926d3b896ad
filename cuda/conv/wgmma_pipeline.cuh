// How the warpgroups of a wgmma tile work together: one producer, the last of the block, fills a ring of slots in shared
// memory, a batch a slot, and the consumers multiply.
#pragma once

#include "common/ring.cuh"
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

// The batches of a tile; the copies of all but one slot's are left in flight.
template <int kStages>
using Ring = SlotRing<kStages>;
template <int kStages>
using Producer = SlotProducer<kStages, kStages - 1>;

}  // namespace conv

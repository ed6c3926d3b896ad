// A ring of slots in shared memory that a producer warpgroup fills by asynchronous copies and consumer warps read, by
// wgmma among other ways. What fills a slot is an item; items are numbered in the order in which they are used.
#pragma once

#include "common/barrier.cuh"
#include "common/copy.cuh"
#include "common/warpgroup.cuh"

// An item's slot comes again after kSlots items. Its first barrier completes when the producer has filled it, its
// second when all consumer warps have released it.
template <int kSlotCount>
struct SlotRing {
    static constexpr unsigned kSlots = kSlotCount;
    static constexpr int kBytes = 2 * kSlotCount * ArrivalBarrier::kBytes;
    unsigned address;

    // By one thread; `warps` is the number of warps that release every item.
    DEVICE void initialize(int warps) const {
        for (unsigned slot = 0; slot < kSlots; ++slot) {
            filled(slot).initialize(kWarpgroupThreads);
            released(slot).initialize(warps);
        }
    }

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

// The producer's side. Copies of the latest kInFlight items are left in flight while the next are started; an item is
// published when they have landed.
template <int kSlots, int kInFlight>
class SlotProducer {
public:
    DEVICE explicit SlotProducer(SlotRing<kSlots> ring) : ring_(ring) {}

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
    DEVICE void publish() {
        fence_before_matrix_reads();
        ring_.publish(published_++);
    }

    SlotRing<kSlots> ring_;
    unsigned started_ = 0, published_ = 0;
};

// Which part of the work a block has: its job, and the batch element.
#pragma once

#include "common/element.cuh"

namespace algorithms {

// Blocks that share a multiprocessor at least. Said to the compiler, because it otherwise spills a register or two for
// the sake of more.
constexpr int kLeastBlocks = 1;

// Block n computes job n / batch of batch element n % batch.
struct BlockWork {
    unsigned job;
    size_t element;
};

DEVICE BlockWork block_work(int batch) {
    const unsigned count = static_cast<unsigned>(batch);
    return {blockIdx.x / count, blockIdx.x % count};
}

// Offsets of neighbours in one tensor: those within a batch element fit 31 bits.
template <class Element>
DEVICE Element* of_element(Element* base, size_t element, unsigned elements) {
    return base + element * elements;
}

}  // namespace algorithms

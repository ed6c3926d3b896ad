// Rows in shared memory, without gaps, their 16-byte chunks in an order of their own. A row is one input position, or
// one output of the weights, and input channels lie along it: they are the depth of the matrix instruction, and another
// tap is only another row. Or it is one channel, with pixels along it.
#pragma once

#include "common/copy.cuh"
#include "conv/config.cuh"

namespace conv {

// Bank conflicts: shared memory serves 128 bytes at a time, 8 chunks whose addresses differ modulo 8. Row r begins at
// chunk r * kChunks. With a multiple of 8 all rows begin alike, and chunk c of row r goes to place c ^ (r % 8). With 4
// two neighbouring rows already differ, so c is turned once every two rows, within fours; with 2 once every four rows,
// within twos. In each case the same chunk of any 8 rows whose numbers differ modulo 8 falls into 8 places, wherever
// the first of them lies: a tap that moves all rows by the same distance costs nothing.
template <int kInputs_>
struct InputRows {
    static constexpr int kInputs = kInputs_;
    static constexpr int kPitch = kInputs * static_cast<int>(sizeof(T));
    static constexpr int kChunks = kPitch / kChunkBytes;
    // Chunks that change places among themselves.
    static constexpr int kTurned = kChunks % 8 == 0 ? 8 : kChunks;
    static_assert(kTurned == 2 || kTurned == 4 || kTurned == 8, "rows have 2 or 4 chunks, or a multiple of 8");

    static constexpr int bytes(int rows) { return rows * kPitch; }

    DEVICE static unsigned turn(unsigned row) { return row / (8 / kTurned) % kTurned; }

    // Bytes from the first row to a chunk.
    DEVICE static unsigned offset(unsigned row, unsigned chunk) {
        return row * kPitch + (chunk ^ turn(row)) * kChunkBytes;
    }
};

// Rows in blocks of 64 entries, one block behind the other, as wgmma reads them across.
template <int kInputs_, int kRows>
struct BlockedRows {
    static constexpr int kInputs = kInputs_;
    static constexpr int kBlockBytes = kRows * 8 * kChunkBytes;
    DEVICE static unsigned offset(unsigned row, unsigned chunk) {
        return chunk / 8 * kBlockBytes + (row * 8 + (chunk ^ row) % 8) * kChunkBytes;
    }
};

// A lane's address in rows, from which it walks along its row in steps of 2 chunks and down in whole granules of 8
// rows. Turning is an exclusive or of the lowest chunk bits, so a walk costs one instruction at most.
template <class Rows>
struct Cursor {
    unsigned address;

    DEVICE unsigned at(int rows, int chunks) const {
        const int turned = chunks % Rows::kTurned;
        return (address ^ turned * kChunkBytes) + rows * Rows::kPitch + (chunks - turned) * kChunkBytes;
    }
};

// `rows` is a multiple of 128.
template <class Rows>
DEVICE Cursor<Rows> cursor(unsigned rows, unsigned row, unsigned chunk) {
    return {rows + Rows::offset(row, chunk)};
}

}  // namespace conv

// Tiles in shared memory: vectors one below the other without gaps, their 16-byte chunks in an order of their own.
#pragma once

#include "attention/config.cuh"
#include "common/copy.cuh"

namespace attention {

// Who reads a tile in steps of the matrix instruction, and therefore how its chunks are turned.
//   whole_chunks  eight rows, the same chunk of each: ldmatrix, and 4-byte accesses by (row g, word t)
//   word_pairs    four rows, a pair of chunks of each: 8-byte accesses by (row g, words 2 t, 2 t + 1)
//   even_odd      four rows of equal parity, a pair of chunks of each: words (row 2 t or 2 t + 1, word g)
enum class Access { whole_chunks, word_pairs, even_odd };

// Bank conflicts: shared memory serves 128 bytes at a time, 8 chunks whose addresses differ modulo 8. Row r begins at
// chunk r * kChunks. With kChunks a multiple of 8 all rows begin alike, so chunk c of row r goes to place c ^ (r % 8):
// eight rows, eight places. With kChunks an odd multiple of 4 two neighbouring rows already differ by 4, so c is turned
// once every two rows, within fours; with an odd multiple of 2 four neighbouring rows differ by 2, 4, 6, and c is
// turned once every four rows, within twos. Where pairs of chunks are read, pairs are turned, and four rows are enough.
// Rows of equal parity would all begin alike where kChunks is an odd multiple of 4, so even_odd keeps the even rows of
// eight in front of the odd ones: rows 0, 2, 4, 6 are then neighbours.
template <int kWidth_, Access kAccess = Access::whole_chunks>
struct Tile {
    static constexpr int kWidth = kWidth_;
    static constexpr int kPitch = kWidth * static_cast<int>(sizeof(T));
    static constexpr int kChunks = kPitch / kChunkBytes;
    // Chunks that change places among themselves.
    static constexpr int kTurned = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;
    static constexpr int kUnit = kAccess == Access::whole_chunks ? 1 : 2;
    static_assert(kWidth % 16 == 0, "widths are padded to the depth of a product");
    static_assert(kUnit == 1 || kTurned > 2, "pairs of chunks are for 32-bit elements");

    static constexpr int bytes(int rows) { return rows * kPitch; }

    // Where a vector lies. Numbers are unsigned, so that divisions are shifts.
    DEVICE static unsigned place(unsigned row) {
        return kAccess == Access::even_odd ? (row & ~7u) | (row >> 1 & 3) | (row & 1) << 2 : row;
    }

    // By what the chunks of the vector at a place are turned.
    DEVICE static unsigned turn(unsigned place) { return kUnit * (place / (8 / kTurned) % (kTurned / kUnit)); }

    // Bytes from the tile's begin to a chunk of a vector; both repeat every 8 rows but for 8 times the pitch.
    DEVICE static unsigned offset(unsigned row, unsigned chunk) {
        const unsigned at = place(row);
        return at * kPitch + (chunk ^ turn(at)) * kChunkBytes;
    }
};

// A lane's address in a tile, from which it walks in whole granules of 8 rows and steps of 2 chunks. Both are known to
// the compiler, and turning is an exclusive or of the lowest chunk bits, so a walk costs one instruction for each of
// the kTurned / 2 steps that differ; the rest is in the constant of the access.
template <class Tile>
struct Cursor {
    unsigned address;

    DEVICE unsigned at(int rows, int chunks) const {
        const int turned = chunks % Tile::kTurned;
        return (address ^ turned * kChunkBytes) + rows * Tile::kPitch + (chunks - turned) * kChunkBytes;
    }
};

// The cursor of a lane whose first access is `byte` of a chunk of a row; `tile` is a multiple of 128.
template <class Tile>
DEVICE Cursor<Tile> cursor(unsigned tile, int row, int chunk, int byte = 0) {
    return {tile + Tile::offset(row, chunk) + byte};
}

}  // namespace attention

// The tiles of keys and values on their way through shared memory, with their masks, for a block that copies for
// itself. While a tile is computed, the copies of the next `stages` - 1 are under way.
#pragma once

#include "attention/gather.cuh"
#include "attention/job.cuh"
#include "attention/mask.cuh"
#include "attention/tile.cuh"
#include "common/copy.cuh"

namespace attention {

// A key's column of the run-time weights, and its weight.
struct WeighedColumn {
    int column;
    float weight;
};

// Read anew each time, since keeping those of a tile takes more registers than there are.
DEVICE WeighedColumn load_weighed_column(unsigned shared) {
    WeighedColumn column;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(column.column), "=f"(column.weight)
                 : "r"(shared)
                 : "memory");
    return column;
}

using KeyTile = Tile<kPaddedWidth>;
// Values are read across their rows: 16-bit ones by ldmatrix, which turns them over, others word by word.
template <int kWidth>
using ValueTile = Tile<kWidth, sizeof(T) == 2 ? Access::whole_chunks : Access::even_odd>;

// Where everything lies, in bytes from the begin of shared memory; the row block holds the queries, then the results.
struct KeyTilesLayout {
    static constexpr int kLists = 1 + kOwnValues + kWeights;
    // At most so much do the masks and lists of the smallest shape take.
    static constexpr int kSmallLists = 576;

    int keys, values, masks, weights, lists, end;
    int key_stage, value_stage, mask_stage, weight_stage, list;
    // A tile's values take the place of its keys.
    bool taking_turns;

    // Lists run ahead of the tiles by `lead` and must not overwrite what is still read: one slot a stage, two at least.
    static constexpr int lead(Shape shape) { return larger(shape.stages - 1, 1); }
    static constexpr int slots(Shape shape) { return larger(shape.stages, 2); }

    static constexpr KeyTilesLayout of(Shape shape, int value_width) {
        KeyTilesLayout layout{};
        layout.key_stage = KeyTile::bytes(shape.keys);
        layout.value_stage = shape.keys * value_width * static_cast<int>(sizeof(T));
        layout.mask_stage = kMasks ? 4 * shape.rows * mask_words(shape.keys) : 0;
        layout.weight_stage = kWeights ? shape.keys * static_cast<int>(sizeof(WeighedColumn)) : 0;
        layout.list = 4 * shape.keys;
        layout.keys = shape.rows * larger(kPaddedWidth, value_width) * static_cast<int>(sizeof(T));
        layout.values = layout.keys + shape.stages * layout.key_stage;
        const int tiles_end = layout.values + shape.stages * layout.value_stage;
        // The smallest shape is to fit what a block gets without asking for more, of all but the widest vectors.
        const bool smallest = shape.rows == 16 && shape.keys == 16 && shape.stages == 1;
        layout.taking_turns = smallest && tiles_end + kSmallLists > 48 << 10;
        if (layout.taking_turns) layout.values = layout.keys;
        layout.masks =
            layout.taking_turns ? layout.keys + larger(layout.key_stage, layout.value_stage) : tiles_end;
        layout.weights = layout.masks + shape.stages * layout.mask_stage;
        layout.lists = layout.weights + shape.stages * layout.weight_stage;
        layout.end = layout.lists + slots(shape) * kLists * layout.list;
        return layout;
    }
};

template <int kNumber, class ValueChannels>
class KeyTiles {
public:
    static constexpr Shape kShape = kShapes[kNumber];
    static constexpr int kValueTileWidth = round_up(ValueChannels::kCount, 16);
    static constexpr KeyTilesLayout kLayout = KeyTilesLayout::of(kShape, kValueTileWidth);
    static constexpr int kKeyGranule = 16;

    DEVICE KeyTiles(const Operands& operands, const Job& job, unsigned char* shared)
        : operands_(operands), job_(job), shared_(shared), base_(shared_address(shared)),
          k_(held(operands.k + job.k_shift)), v_(held(operands.v + job.v_shift)),
          count_(ceil_div(job.key_count, kShape.keys)), ahead_(load_tile_line(operands, job.tile_begin)) {}

    DEVICE int count() const { return count_; }
    DEVICE int keys_in(int tile) const { return min(kShape.keys, job_.key_count - tile * kShape.keys); }
    DEVICE TileLine line(int tile) const { return load_tile_line(operands_, job_.tile_begin + tile); }

    DEVICE unsigned keys(int tile) const { return base_ + kLayout.keys + stage(tile) * kLayout.key_stage; }
    DEVICE unsigned values(int tile) const { return base_ + kLayout.values + stage(tile) * kLayout.value_stage; }
    DEVICE const unsigned* mask(int tile) const {
        return reinterpret_cast<const unsigned*>(shared_ + kLayout.masks + stage(tile) * kLayout.mask_stage);
    }
    DEVICE unsigned weights(int tile) const { return base_ + kLayout.weights + stage(tile) * kLayout.weight_stage; }

    // Starts the first tiles, with whatever the thread has copied before. Their lists are read where they stand.
    DEVICE void start() {
#pragma unroll
        for (int tile = 0; tile < KeyTilesLayout::lead(kShape); ++tile) {
            fill(tile, [](const int* list, int, int) { return GlobalEntries{list}; });
        }
    }

    // Until a tile has landed, for the whole block: the `stages` - 1 groups behind it, less the one that comes next.
    DEVICE void wait() const {
        wait_copies<larger(kShape.stages - 2, 0)>();
        __syncthreads();
    }

    // Between the two products of a tile, by the whole block: where values have no place of their own, they come now.
    DEVICE void turn_to_values(int tile) const {
        if constexpr (kLayout.taking_turns) {
            __syncthreads();
            const int first = tile * kShape.keys;
            const int* entries = kOwnValues ? operands_.values + job_.value_begin : operands_.keys + job_.key_begin;
            gather_values(tile, GlobalEntries{entries + first}, round_up(keys_in(tile), kKeyGranule), threadIdx.x);
            commit_copies();
            wait_copies<0>();
            __syncthreads();
        }
    }

    // While `tile` is computed: starts the tile that takes the place of the last one computed.
    DEVICE void refill_before(int tile) {
        if constexpr (kShape.stages > 1) refill(tile + kShape.stages - 1);
    }
    // With a single stage there is no other place than that of the tile itself, once all warps are done with it.
    DEVICE void refill_after(int tile) {
        if constexpr (kShape.stages == 1) {
            __syncthreads();
            refill(tile + 1);
        }
    }

private:
    DEVICE static unsigned stage(unsigned tile) { return kShape.stages == 1 ? 0 : tile % kShape.stages; }

    DEVICE unsigned char* slot(unsigned tile, int list) const {
        const unsigned number = tile % KeyTilesLayout::slots(kShape) * KeyTilesLayout::kLists + list;
        return shared_ + kLayout.lists + number * kLayout.list;
    }

    DEVICE void refill(int tile) {
        fill(tile, [this](const int*, int number, int list) {
            return SharedEntries{reinterpret_cast<const int*>(slot(number, list))};
        });
    }

    // `entries(piece, tile, list)` gives the entries of a tile: those that begin at `piece` in global memory.
    template <class Entries>
    DEVICE void fill(int tile, const Entries& entries) {
        const int thread = renewed(threadIdx.x);
        if (tile < count_) {
            const int first = tile * kShape.keys;
            const int count = round_up(keys_in(tile), kKeyGranule);
            const auto own = entries(operands_.keys + job_.key_begin + first, tile, 0);
            const auto other = kOwnValues ? entries(operands_.values + job_.value_begin + first, tile, 1) : own;
            gather<KeyChannels, KeyTile, kShape.keys, kThreads>(keys(tile), k_, own, count, thread);
            if constexpr (!kLayout.taking_turns) gather_values(tile, other, count, thread);
            if constexpr (kWeights) {
                fill_weights(tile, entries(operands_.columns + job_.key_begin + first, tile, 1 + kOwnValues), count);
            }
            if constexpr (kMasks) {
                if (ahead_.mask >= 0) {
                    const int words = round_up(job_.row_count, 16) * mask_words(kShape.keys);
                    copy_list<kThreads, kShape.rows * mask_words(kShape.keys)>(
                        shared_address(mask(tile)), operands_.masks + ahead_.mask, words, thread);
                }
                if (tile + 1 < count_) ahead_ = line(tile + 1);
            }
        }
        fetch_lists(tile + KeyTilesLayout::lead(kShape));
        commit_copies();
    }

    template <class Entries>
    DEVICE void gather_values(int tile, const Entries& entries, int count, int thread) const {
        gather<ValueChannels, ValueTile<kValueTileWidth>, kShape.keys, kThreads>(values(tile), v_, entries, count,
                                                                                 thread);
    }

    template <class Entries>
    DEVICE void fill_weights(int tile, const Entries& columns, int count) {
        unsigned char* begin = shared_ + kLayout.weights + stage(tile) * kLayout.weight_stage;
        WeighedColumn* places = reinterpret_cast<WeighedColumn*>(begin);
        for (int key = threadIdx.x; key < count; key += kThreads) {
            const int column = columns(key);
            places[key] = {column, column < 0 ? 0.f : __ldg(operands_.weight + column)};
        }
    }

    // The numbers of a tile's keys, which its gather then finds in shared memory.
    DEVICE void fetch_lists(int tile) const {
        if (tile >= count_) return;
        const int first = tile * kShape.keys;
        fetch_list(tile, 0, operands_.keys + job_.key_begin + first);
        if constexpr (kOwnValues) fetch_list(tile, 1, operands_.values + job_.value_begin + first);
        if constexpr (kWeights) fetch_list(tile, 1 + kOwnValues, operands_.columns + job_.key_begin + first);
    }
    DEVICE void fetch_list(int tile, int list, const int* entries) const {
        const int count = round_up(keys_in(tile), kKeyGranule);
        copy_list<kThreads, kShape.keys>(shared_address(slot(tile, list)), entries, count, threadIdx.x);
    }

    const Operands& operands_;
    const Job& job_;
    unsigned char* shared_;
    unsigned base_;
    const T *k_, *v_;
    int count_;
    TileLine ahead_;
};

}  // namespace attention

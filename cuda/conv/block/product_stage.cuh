// A stage on the matrix unit whose inputs lie in shared memory: warps share out its positions and outputs, and none
// waits for another. Weights come straight from memory, in the order in which the instruction takes them.
#pragma once

#include "common/vectors.cuh"
#include "conv/block/patch.cuh"

namespace fused {

constexpr int kWarpPositions = kGranule * kGranules, kWarpOutputs = kOutputBlock * kBlocks;

// Sums of 16 outputs (8 where a warp has no more) on their way to memory: positions lie side by side.
constexpr int kStagedOutputs = kBlocks == 1 ? 8 : 16, kStagedPitch = kWarpPositions + 4;
constexpr int kStagedBytes = 4 * kStagedOutputs * kStagedPitch;

using WarpSums = float[kGranules][kBlocks][4];

// y = activation(sum + bias + residual) of the last stage, by one warp through its own piece of shared memory.
class LastStore {
    static constexpr int kPositions = kStages[kLast].output.count();

public:
    // Neighbouring positions of a channel that are stored at once.
    static constexpr int kRun = power_in(kPositions, 8);

    DEVICE static void store(const Operands& operands, const Positions<kLast>& positions, const Part& part, int begin,
                             int first, float* staged, int lane, const WarpSums& sums) {
#pragma unroll
        for (int block = 0; block < kBlocks; block += kStagedOutputs / 8) {
            const int output = first + kOutputBlock * block, outputs = min(kStagedOutputs, part.output_count - output);
            if (outputs <= 0) break;
            __syncwarp();
#pragma unroll
            for (int i = 0; i < kStagedOutputs / 8 * kGranules * 4; ++i) {
                const int own = i / (4 * kGranules), granule = i / 4 % kGranules, sum = i % 4;
                const int row = kGranule * granule + sum / 2 * 8 + lane / 4, column = 8 * own + lane % 4 * 2 + sum % 2;
                staged[column * kStagedPitch + row] = sums[granule][block + own][sum];
            }
            __syncwarp();
            write(operands, positions, part.output_begin + output, outputs, begin, staged, lane);
        }
    }

private:
    DEVICE static void write(const Operands& operands, const Positions<kLast>& positions, int entry, int outputs,
                             int begin, const float* staged, int lane) {
        constexpr int kRuns = kWarpPositions / kRun;
#pragma unroll 1
        for (int item = lane; item < outputs * kRuns; item += 32) {
            const int output = item / kRuns, row = item % kRuns * kRun, position = begin + row;
            const int channel = __ldg(operands.outputs + entry + output);
            if (channel < 0 || position >= positions.end || position + kRun <= positions.begin) continue;
            const float bias = __ldg(operands.b + entry + output);
            const float* own = staged + output * kStagedPitch + row;
            const int at = channel * kPositions + position;
            if (position >= positions.begin && position + kRun <= positions.end) {
                write_run<kRun>(operands, at, own, bias);
            } else {
                for (int i = 0; i < kRun; ++i) {
                    if (position + i >= positions.begin && position + i < positions.end) {
                        write_run<1>(operands, at + i, own + i, bias);
                    }
                }
            }
        }
    }

    template <int kCount>
    DEVICE static void write_run(const Operands& operands, int at, const float* sums, float bias) {
        T residual[kCount], results[kCount];
        if constexpr (kResidual) load_vector(operands.residual + at, residual);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            float value = sums[i] + bias;
            if constexpr (kResidual) value += to_float(residual[i]);
            results[i] = converted<T>(activated<kStages[kLast].activation>(value));
        }
        store_vector(operands.y + at, results);
    }
};

template <int kStage>
class ProductStage {
    static constexpr Stage kOwn = kStages[kStage];
    static constexpr bool kIsLast = kStage == kLast;
    using From = Patch<kStage - 1>;

public:
    DEVICE ProductStage(const Operands& operands, const Job& job, const int4* parts, const From& from)
        : operands_(operands), job_(job), parts_(parts), from_(from), positions_(job) {
        begin_ = kIsLast ? positions_.begin / LastStore::kRun * LastStore::kRun : positions_.begin;
    }

    // `finish(part, first position, first output, sums)` receives the sums of every piece of work of this warp.
    template <class Finish>
    DEVICE void compute(const Finish& finish) const {
        const int warp = threadIdx.x / 32;
        const int tiles = (positions_.end - begin_ + kWarpPositions - 1) / kWarpPositions;
        int item = warp;
        for (int number = 0; number < job_.part_counts[kStage]; ++number) {
            const Part part = load_part(parts_, job_.first_part(kStage) + number);
            const int items = tiles * ((part.output_count + kWarpOutputs - 1) / kWarpOutputs);
            for (; item < items; item += kWarps) {
                const int begin = begin_ + item % tiles * kWarpPositions, first = item / tiles * kWarpOutputs;
                WarpSums sums = {};
                add(part, begin, first, sums);
                finish(part, begin, first, sums);
            }
            item -= items;
        }
    }

    DEVICE const Positions<kStage>& positions() const { return positions_; }

private:
    DEVICE void add(const Part& part, int begin, int first, WarpSums& sums) const {
        constexpr unsigned kWidth = kOwn.output.w;
        const int lane = threadIdx.x % 32, next_begin = rows_of<kStage>(job_).begin;
        const int blocks = (part.output_count + kOutputBlock - 1) / kOutputBlock;
        const int own = min(kBlocks, blocks - first / kOutputBlock), granules = (part.input_count + 15) / kGranule;
        const LanePlace place = rows_place(lane);
        unsigned rows[kGranules];
#pragma unroll
        for (int i = 0; i < kGranules; ++i) {
            // Rows beyond the job's positions are computed from the last one, and not stored.
            const unsigned at = min(max(begin + kGranule * i + place.row, positions_.begin), positions_.end - 1);
            const int first_tap = From::first_tap(at / kWidth, at % kWidth, next_begin);
            rows[i] = shared_address(from_.memory + first_tap + part.input_begin) + place.chunk * kChunkBytes;
        }
        const uint2* weights = reinterpret_cast<const uint2*>(operands_.w + part.weight_begin) +
                               first / kOutputBlock * 32 + lane;
#pragma unroll 1
        for (int tap = 0; tap < kOwn.kernel.count(); ++tap) {
            const unsigned shift = From::tap_shift(tap) * static_cast<int>(sizeof(T));
#pragma unroll 2
            for (int granule = 0; granule < granules; ++granule) {
                Operand<kElement, 2> columns[kBlocks];
#pragma unroll
                for (int block = 0; block < kBlocks; ++block) {
                    const uint2 words = block < own ? __ldg(weights + block * 32) : uint2{0, 0};
                    columns[block] = prepared<kElement>(weight_columns(words));
                }
                weights += blocks * 32;
                Operand<kElement, 4> pixels[kGranules];
#pragma unroll
                for (int i = 0; i < kGranules; ++i) {
                    pixels[i] = prepared<kElement>(load_rows(rows[i] + shift + granule * kStepBytes));
                }
#pragma unroll
                for (int block = 0; block < kBlocks; ++block) {
                    if (block >= own) break;
#pragma unroll
                    for (int i = 0; i < kGranules; ++i) multiply<kElement>(sums[i][block], pixels[i], columns[block]);
                }
            }
        }
    }

    const Operands& operands_;
    const Job& job_;
    const int4* parts_;
    const From& from_;
    Positions<kStage> positions_;
    int begin_;
};

// A stage in the middle, into the patch that the last one reads.
template <int kStage>
DEVICE void compute_products(const Operands& operands, const Job& job, const int4* parts,
                             const Patch<kStage - 1>& from, const Patch<kStage>& to) {
    const ProductStage<kStage> stage(operands, job, parts, from);
    stage.compute([&](const Part& part, int begin, int first, const WarpSums& sums) {
        const int end = stage.positions().end;
        store_patch(to, operands, part, first, threadIdx.x % 32, sums,
                    [&](int row) { return begin + row < end ? begin + row : -1; });
    });
}

// The last stage, into y; `staged` has kStagedBytes for every warp.
template <int kStage>
DEVICE void compute_last(const Operands& operands, const Job& job, const int4* parts, const Patch<kStage - 1>& from,
                         unsigned char* staged) {
    const ProductStage<kStage> stage(operands, job, parts, from);
    float* own = reinterpret_cast<float*>(staged + threadIdx.x / 32 * kStagedBytes);
    stage.compute([&](const Part& part, int begin, int first, const WarpSums& sums) {
        LastStore::store(operands, stage.positions(), part, begin, first, own, threadIdx.x % 32, sums);
    });
}

}  // namespace fused

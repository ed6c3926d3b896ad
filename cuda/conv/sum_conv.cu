// y = activation(sum of partial rows + bias + residual), by SumConv of docs/tables.md.
#include "common/activation.cuh"
#include "common/entry.cuh"

namespace sum {

constexpr Element kElement = Element::ELEMENT;
using T = Storage<kElement>;

constexpr bool kLast = LAYOUT_LAST != 0;
constexpr bool kResidual = RESIDUAL != 0;
constexpr Activation kActivation = Activation::ACTIVATION;
constexpr unsigned kChannels = OUTPUT_CHANNELS;
constexpr unsigned kPositions = POSITIONS;
constexpr unsigned kElements = kChannels * kPositions;
constexpr unsigned kThreads = 256;

// Distances of neighbouring slots and positions of `partial`.
constexpr unsigned kSlotStride = kLast ? 1 : kPositions;
constexpr unsigned kPositionStride = kLast ? SLOTS : 1;

static_assert(static_cast<long long>(OUTPUT_CHANNELS) * POSITIONS < 1ll << 31, "offsets of results have 31 bits");

// An element of the output: of which batch element, and its number there.
struct Place {
    unsigned batch, element;
};

// The grid counts elements of the whole batch, more than 32 bits hold; within a block they do.
DEVICE Place own_place() {
    const unsigned long long first = static_cast<unsigned long long>(blockIdx.x) * kThreads;
    const unsigned batch = static_cast<unsigned>(first / kElements);
    const unsigned element = static_cast<unsigned>(first % kElements) + threadIdx.x;
    return {batch + element / kElements, element % kElements};
}

// Loads are issued in fours before any is added; additions keep the order of the list.
DEVICE float sum_of_rows(const float* partial, const int* rows, int count) {
    float sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
        sum += __ldg(partial + static_cast<size_t>(__ldg(rows + i)) * kSlotStride);
    }
    return sum;
}

}  // namespace sum

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = 0;

// A thread computes one element, in the order of memory.
extern "C" __global__ void __launch_bounds__(sum::kThreads) sum_conv(
    const float* __restrict__ partial,
#if RESIDUAL
    const sum::T* __restrict__ residual,
#endif
    OTHER_TABLES(OTHERS_BEFORE) const float* __restrict__ b, const int* __restrict__ sum_begin,
    const int* __restrict__ sum_rows, OTHER_TABLES(OTHERS_AFTER) int batch, sum::T* __restrict__ y) {
    using namespace sum;
    const Place place = own_place();
    if (place.batch >= static_cast<unsigned>(batch)) return;
    const unsigned channel = kLast ? place.element % kChannels : place.element / kPositions;
    const unsigned position = kLast ? place.element / kChannels : place.element % kPositions;
    const float* rows = partial + static_cast<size_t>(place.batch) * SLOTS * kPositions +
                        static_cast<size_t>(position) * kPositionStride;
    const int begin = __ldg(sum_begin + channel);
    float sum = sum_of_rows(rows, sum_rows + begin, __ldg(sum_begin + channel + 1) - begin) + __ldg(b + channel);
    const size_t target = static_cast<size_t>(place.batch) * kElements + place.element;
#if RESIDUAL
    sum += to_float(__ldg(residual + target));
#endif
    y[target] = converted<T>(activated<kActivation>(sum));
}

// What the group convolution is specialised for: constants given on the compiler's command line, checked and named.
#pragma once

#include "common/activation.cuh"
#include "common/element.cuh"

namespace conv {

constexpr Element kElement = Element::ELEMENT;
using T = Storage<kElement>;

// A block computes up to `outputs` channels of `pixels` positions and walks its inputs `inputs` at a time, `stages`
// steps in flight.
struct Shape {
    int outputs, inputs, pixels, stages;
};

#define VARIANT(outputs, inputs, pixels, stages) Shape{outputs, inputs, pixels, stages},
constexpr Shape kShapes[] = {VARIANTS};
#undef VARIANT
constexpr int kShapeCount = sizeof(kShapes) / sizeof(Shape);

constexpr bool kLanes = PATH_LANES != 0;
constexpr bool kWarpgroups = PATH_WGMMA != 0;
constexpr int kWarps = WARPS;
constexpr int kProducers = kWarpgroups ? 128 : 0;
constexpr int kThreads = 32 * kWarps + kProducers;
// Pixels are multiplied in multiples of this; behind the last one they are zeros.
constexpr int kMultiplied = kWarpgroups ? 64 : 16;
// Threads that bring inputs to shared memory, and which of them this one is.
constexpr int kLoaders = kWarpgroups ? kProducers : kThreads;
DEVICE unsigned loader_number() { return kWarpgroups ? threadIdx.x % kLoaders : threadIdx.x; }
static_assert(!(kLanes && kWarpgroups), "a kernel has one path");

// Numbers of all three axes; convolutions over fewer have leading axes of size 1.
struct Axes {
    int d, h, w;
    constexpr int count() const { return d * h * w; }
};
constexpr Axes kInputSize{INPUT_SIZE}, kOutputSize{OUTPUT_SIZE}, kKernel{KERNEL};
constexpr Axes kStrides{STRIDES}, kDilations{DILATIONS};
// What lies in front of each axis; what lies behind follows from the output's size.
constexpr Axes kPads{PADS};
constexpr int kTaps = kKernel.count();
constexpr int kInputPositions = kInputSize.count(), kPositions = kOutputSize.count();

// Batch elements whose pixels are counted together.
constexpr int kImages = IMAGES;

constexpr bool kPrologue = PROLOGUE != 0;
constexpr bool kResidual = RESIDUAL != 0;
constexpr bool kExtras = EXTRAS != 0;
constexpr bool kSplit = SPLIT != 0;
constexpr Activation kActivation = Activation::ACTIVATION;
constexpr Activation kInputActivation = Activation::INPUT_ACTIVATION;
static_assert(!(kSplit && kExtras), "a partial result has one place");
static_assert(!kSplit || (!kResidual && kActivation == Activation::none), "only a sum of partial results is finished");

template <bool kFirst, class A, class B>
struct Choice {
    using type = A;
};
template <class A, class B>
struct Choice<false, A, B> {
    using type = B;
};

// What the results are stored as.
using Result = typename Choice<kSplit, float, T>::type;

// How a tensor lies in memory. Within a batch element offsets are below 2^31; over those of a group they may not be.
template <int kChannels_, int kPositions_>
struct Tensor {
    static constexpr int kChannels = kChannels_;
    static constexpr int kElements = kChannels_ * kPositions_;
    static constexpr bool kLast = LAYOUT_LAST != 0;
    static constexpr int kChannelStride = kLast ? 1 : kPositions_;
    static constexpr int kPositionStride = kLast ? kChannels_ : 1;
    static constexpr bool kFar = static_cast<long long>(kElements) * kImages >= 1ll << 31;
    using Offset = typename Choice<kFar, long long, int>::type;

    // Elements from the group's begin.
    DEVICE static Offset offset(int image, int channel, int position) {
        return static_cast<Offset>(image) * kElements + channel * kChannelStride + position * kPositionStride;
    }
};
using Input = Tensor<INPUT_CHANNELS, kInputPositions>;
using Output = Tensor<kSplit ? SLOTS : OUTPUT_CHANNELS, kPositions>;
constexpr bool kLast = LAYOUT_LAST != 0;

static_assert(static_cast<long long>(INPUT_CHANNELS) * kInputPositions < 1ll << 31, "offsets of inputs have 31 bits");
static_assert(static_cast<long long>(Output::kChannels) * kPositions < 1ll << 31, "offsets of results have 31 bits");

// The largest power of two, up to `most`, that divides a number.
constexpr int power_in(int number, int most) {
    return most == 1 || number % most == 0 ? most : power_in(number, most / 2);
}

}  // namespace conv

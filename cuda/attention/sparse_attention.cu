// y = softmax(scale * q . k + bias) v over the keys that each row needs, by the tables of docs/tables.md.
#include "attention/config.cuh"
#include "attention/job.cuh"
#include "attention/strip.cuh"
#include "common/entry.cuh"

namespace attention {

constexpr int shared_bytes(int shape = 0) {
    return shape == kShapeCount ? 0 : larger(strip_shared_bytes(kShapes[shape]), shared_bytes(shape + 1));
}

template <int kShape = 0>
DEVICE void compute(const Operands& operands, const Job& job, unsigned char* shared) {
    if (job.variant == kShape) {
        compute_strip<kShape>(operands, job, shared);
    } else if constexpr (kShape + 1 < kShapeCount) {
        compute<kShape + 1>(operands, job, shared);
    }
}

}  // namespace attention

// What a launch must give as dynamic shared memory; read from the compiled module.
extern "C" __device__ const int onnxopt_shared_bytes = attention::shared_bytes();

extern "C" __global__ void __launch_bounds__(attention::kThreads, RESIDENT) sparse_attention(
    const attention::T* __restrict__ q, const attention::T* __restrict__ k, const attention::T* __restrict__ v,
#if WEIGHTS
    const float* __restrict__ weight,
#endif
    OTHER_TABLES(OTHERS_BEFORE) const int* __restrict__ jobs, const int* __restrict__ rows,
    const int* __restrict__ results, const int* __restrict__ keys,
#if OWN_VALUES
    const int* __restrict__ values,
#endif
#if MASKS || BIASES
    const int* __restrict__ tiles,
#endif
#if MASKS
    const int* __restrict__ masks,
#endif
#if BIASES
    const attention::T* __restrict__ biases,
#endif
    const float* __restrict__ scales,
#if EXTRAS
    const int* __restrict__ extras,
#endif
#if WEIGHTS
    const int* __restrict__ columns, const int* __restrict__ diagonals, const float* __restrict__ epsilons,
#endif
    OTHER_TABLES(OTHERS_AFTER) int batch,
#if SPLIT
    float* __restrict__ partial, float* __restrict__ lse
#else
    attention::T* __restrict__ y
#endif
) {
    using namespace attention;
    extern __shared__ __align__(1024) unsigned char shared[];
    const unsigned element = blockIdx.x % static_cast<unsigned>(batch);
    const Job job = load_job(jobs, blockIdx.x / static_cast<unsigned>(batch));
    Operands operands{};
    operands.q = q + static_cast<size_t>(element) * kQ.elements;
    operands.k = k + static_cast<size_t>(element) * kK.elements;
    operands.v = v + static_cast<size_t>(element) * kV.elements;
    operands.rows = rows;
    operands.results = results;
    operands.keys = keys;
    operands.values = keys;
#if OWN_VALUES
    operands.values = values;
#endif
#if MASKS || BIASES
    operands.tiles = tiles;
#endif
#if MASKS
    operands.masks = masks;
#endif
#if BIASES
    operands.biases = biases;
#endif
    operands.scales = scales;
#if EXTRAS
    operands.extras = extras;
#endif
#if WEIGHTS
    operands.weight = weight + static_cast<size_t>(element) * kColumns;
    operands.columns = columns;
    operands.diagonals = diagonals;
    operands.epsilons = epsilons;
#endif
#if SPLIT
    operands.partial = partial + static_cast<size_t>(element) * SLOTS * kValueWidth;
    operands.lse = lse + static_cast<size_t>(element) * SLOTS;
#else
    operands.y = y + static_cast<size_t>(element) * kY.elements;
#endif
    compute(operands, job, shared);
}

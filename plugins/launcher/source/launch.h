// The arithmetic of a launch: the batch, sizes of outputs, grids and the workspace, none of which may overflow.
#ifndef ONNXOPT_LAUNCHER_LAUNCH_H
#define ONNXOPT_LAUNCHER_LAUNCH_H

#include <cstdint>
#include <vector>

#include "program.h"

namespace onnxopt {

using Sizes = std::vector<int64_t>;

// Both have no common divisor.
struct Ratio {
    int64_t numerator;
    int64_t denominator;
};

// The batch of an execution, 0 where the first input is empty. Throws Refusal where sizes of inputs or outputs are not
// those of the program for a whole batch, or where a grid would be too large.
int32_t checked_batch(Program const &program, std::vector<Sizes> const &inputs, std::vector<Sizes> const &outputs);

// The batch that the sizes of the first input make. Throws Refusal where it is not whole.
int32_t batch_of(Program const &program, Sizes const &first);

// Blocks of a kernel. Throws Refusal where a launch cannot have as many.
uint32_t blocks(Kernel const &kernel, int32_t batch);

// Where each part of the workspace begins, and its size behind the last one.
std::vector<uint64_t> workspace_offsets(Program const &program, int32_t batch);

// What the open size of an output is of the sizes of the first input that are not constant, `constant` being the
// product of those that are.
Ratio open_size(Program const &program, Output const &output, Sizes const &constant);

}  // namespace onnxopt

#endif

// What a plugin computes, read from its fields: tensors, kernels and how they are launched.
#ifndef ONNXOPT_LAUNCHER_PROGRAM_H
#define ONNXOPT_LAUNCHER_PROGRAM_H

#include <cstdint>
#include <string>
#include <vector>

#include "fields.h"
#include "images.h"

namespace onnxopt {

// As ONNX numbers the types of tensors.
enum class TensorType : int32_t { float32 = 1, int32 = 6, float16 = 10, bfloat16 = 16 };

// A kernel sees elements in row-major order, whatever the shape that holds them: `elements` for every batch element
// or, of a table, in all.
struct Input {
    TensorType type;
    bool table;
    int64_t elements;
};

// `elements` are those of one batch element; of the sizes at most one is -1, which then follows the batch.
struct Output {
    TensorType type;
    int64_t elements;
    std::vector<int32_t> sizes;
};

enum class ArgumentKind : int32_t { input = 0, batch = 1, output = 2, workspace = 3, unused = 4 };

struct Argument {
    ArgumentKind kind;
    std::size_t index;
};

// A kernel is launched with factor * ceil(batch * count / size) blocks.
struct Kernel {
    std::string entry;
    int64_t factor;
    int64_t count;
    int64_t size;
    uint32_t threads;
    uint32_t shared_bytes;
    std::vector<Argument> arguments;
};

// The kernels run one behind the other. The first input is no table: the batch is its elements divided by those of a
// batch element. `workspace` are the bytes of each part of the workspace for one.
struct Program {
    Contents contents;
    std::string name;
    std::vector<Input> inputs;
    std::vector<Output> outputs;
    std::vector<int64_t> workspace;
    std::vector<Kernel> kernels;
    std::vector<Image> images;
    // What tells it from every other program: its name, which has a hash of the configuration, and the checksum.
    std::string identity;
};

// Throws Refusal, with what was found and what is allowed, for fields that do not describe one.
Program read_program(std::vector<Field> const &fields);

}  // namespace onnxopt

#endif

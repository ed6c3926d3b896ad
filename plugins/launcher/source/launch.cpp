#include "launch.h"

#include <limits>
#include <numeric>

namespace onnxopt {

namespace {

constexpr int64_t largest = std::numeric_limits<int32_t>::max();
constexpr uint64_t part_alignment = 256;

// The product, or -1 where it does not fit or a size is negative.
int64_t product(Sizes const &sizes) {
    int64_t total = 1;
    for (int64_t const size : sizes) {
        if (size < 0 || __builtin_mul_overflow(total, size, &total)) {
            return -1;
        }
    }
    return total;
}

std::string shown(Sizes const &sizes) {
    std::string written;
    for (int64_t const size : sizes) {
        written += (written.empty() ? "" : " x ") + std::to_string(size);
    }
    return written.empty() ? "a single number" : written;
}

void check_elements(std::string const &what, Sizes const &found, int64_t elements, int64_t times) {
    // Both are below 2^31.
    if (product(found) != elements * times) {
        throw Refusal(what + " is " + shown(found) + ", expected " + std::to_string(elements) + " elements" +
                      (times == 1 ? "" : " for each of " + std::to_string(times) + " batch elements"));
    }
}

void check_output(std::string const &what, Output const &output, Sizes const &found, int32_t batch) {
    check_elements(what, found, output.elements, batch);
    bool fits = found.size() == output.sizes.size();
    for (std::size_t i = 0; fits && i < found.size(); ++i) {
        fits = output.sizes[i] < 0 || found[i] == output.sizes[i];
    }
    if (!fits) {
        throw Refusal(what + " is " + shown(found) + ", expected " +
                      shown(Sizes(output.sizes.begin(), output.sizes.end())) + ", where -1 follows the batch");
    }
}

}  // namespace

int32_t batch_of(Program const &program, Sizes const &first) {
    int64_t const elements = product(first);
    int64_t const each = program.inputs[0].elements;
    if (elements < 0 || elements % each != 0 || elements / each > largest) {
        throw Refusal("input 0 is " + shown(first) + ", expected a multiple of " + std::to_string(each) +
                      " elements, at most " + std::to_string(largest) + " times as many");
    }
    return static_cast<int32_t>(elements / each);
}

int32_t checked_batch(Program const &program, std::vector<Sizes> const &inputs, std::vector<Sizes> const &outputs) {
    if (inputs.size() != program.inputs.size() || outputs.size() != program.outputs.size()) {
        throw Refusal("there are " + std::to_string(inputs.size()) + " inputs and " + std::to_string(outputs.size()) +
                      " outputs, expected " + std::to_string(program.inputs.size()) + " and " +
                      std::to_string(program.outputs.size()));
    }
    int32_t const batch = batch_of(program, inputs[0]);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        Input const &input = program.inputs[i];
        check_elements("input " + std::to_string(i), inputs[i], input.elements, input.table ? 1 : batch);
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        check_output("output " + std::to_string(i), program.outputs[i], outputs[i], batch);
    }
    for (Kernel const &kernel : program.kernels) {
        if (batch > 0) {
            blocks(kernel, batch);
        }
    }
    return batch;
}

uint32_t blocks(Kernel const &kernel, int32_t batch) {
    // The first step cannot overflow: all three numbers are below 2^31.
    int64_t const groups = (batch * kernel.count + kernel.size - 1) / kernel.size;
    int64_t total = 0;
    if (batch < 1 || __builtin_mul_overflow(groups, kernel.factor, &total) || total > largest) {
        throw Refusal("a batch of " + std::to_string(batch) + " makes none or more than " + std::to_string(largest) +
                      " blocks of " + kernel.entry + "; use another batch");
    }
    return static_cast<uint32_t>(total);
}

std::vector<uint64_t> workspace_offsets(Program const &program, int32_t batch) {
    std::vector<uint64_t> offsets{0};
    for (int64_t const part : program.workspace) {
        // Batch and part are below 2^31 and parts are few, so that their sum fits 64 bits.
        uint64_t const bytes = static_cast<uint64_t>(batch) * static_cast<uint64_t>(part);
        offsets.push_back(offsets.back() + (bytes + part_alignment - 1) / part_alignment * part_alignment);
    }
    return offsets;
}

Ratio open_size(Program const &program, Output const &output, Sizes const &constant) {
    Sizes known{program.inputs[0].elements};
    for (int32_t const size : output.sizes) {
        known.push_back(size < 0 ? 1 : size);
    }
    Sizes given = constant;
    given.push_back(output.elements);
    Ratio const ratio{product(given), product(known)};
    if (ratio.numerator < 1 || ratio.denominator < 1) {
        throw Refusal("the sizes of input 0 or of an output are too large together, or 0");
    }
    int64_t const divisor = std::gcd(ratio.numerator, ratio.denominator);
    return {ratio.numerator / divisor, ratio.denominator / divisor};
}

}  // namespace onnxopt

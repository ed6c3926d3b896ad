// Reads fields and computes launches without TensorRT, for a build in which every access to memory is checked.
//
// Standard input is a list of requests, each a number of fields and for each field its name, type, length of data and
// data, then a number of batches and the batches. For each request a line is written: the refusal, or for each batch
// its grids and the end of the workspace. What the fields claim as their length is read apart from how much data there
// is, so that a wrong length shows as an access out of bounds.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "fields.h"
#include "images.h"
#include "launch.h"
#include "program.h"

namespace {

int64_t number() {
    int64_t value = 0;
    if (std::fread(&value, sizeof value, 1, stdin) != 1) {
        std::exit(0);
    }
    return value;
}

std::vector<uint8_t> block() {
    std::vector<uint8_t> data(static_cast<std::size_t>(number()));
    if (!data.empty() && std::fread(data.data(), data.size(), 1, stdin) != 1) {
        std::exit(1);
    }
    return data;
}

struct Given {
    std::string name;
    onnxopt::FieldType type;
    int32_t length;
    std::vector<uint8_t> data;
};

Given given() {
    std::vector<uint8_t> const name = block();
    auto const type = static_cast<onnxopt::FieldType>(number());
    auto const length = static_cast<int32_t>(number());
    return {std::string(name.begin(), name.end()), type, length, block()};
}

std::string launches(onnxopt::Program const &program, int64_t batch) {
    std::string found;
    std::vector<onnxopt::Sizes> inputs;
    std::vector<onnxopt::Sizes> outputs;
    for (onnxopt::Input const &input : program.inputs) {
        inputs.push_back(input.table ? onnxopt::Sizes{input.elements} : onnxopt::Sizes{batch, input.elements});
    }
    for (onnxopt::Output const &output : program.outputs) {
        onnxopt::Sizes sizes;
        onnxopt::Ratio const ratio = onnxopt::open_size(program, output, {program.inputs[0].elements});
        for (int32_t const size : output.sizes) {
            sizes.push_back(size < 0 ? batch * ratio.numerator / ratio.denominator : size);
        }
        outputs.push_back(sizes);
    }
    int32_t const checked = onnxopt::checked_batch(program, inputs, outputs);
    for (std::size_t i = 0; i < program.kernels.size(); ++i) {
        found += " " + std::to_string(onnxopt::blocks(program.kernels[i], checked));
        found += "@" + std::to_string(onnxopt::image_for(program.images, i, 89).architecture);
    }
    return found + " " + std::to_string(onnxopt::workspace_offsets(program, checked).back());
}

}  // namespace

int main() {
    while (true) {
        std::vector<Given> kept(static_cast<std::size_t>(number()));
        for (Given &field : kept) {
            field = given();
        }
        std::vector<int64_t> batches(static_cast<std::size_t>(number()));
        for (int64_t &batch : batches) {
            batch = number();
        }
        std::vector<onnxopt::Field> fields;
        for (Given const &field : kept) {
            uint8_t const *data = field.data.empty() ? nullptr : field.data.data();
            fields.push_back({field.name.c_str(), field.type, data, field.length});
        }
        std::string line;
        try {
            onnxopt::Program const program = onnxopt::read_program(fields);
            line = "ok";
            for (int64_t const batch : batches) {
                line += launches(program, batch);
            }
        } catch (onnxopt::Refusal const &refusal) {
            line = std::string("refused: ") + refusal.what();
        }
        std::puts(line.c_str());
    }
}

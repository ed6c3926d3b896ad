#include "program.h"

#include <algorithm>
#include <cctype>
#include <limits>
#include <utility>

namespace onnxopt {

namespace {

constexpr int32_t current_format = 1;
constexpr int32_t most_dimensions = 8;
constexpr std::size_t most_inputs = 256;
constexpr std::size_t most_outputs = 8;
constexpr std::size_t most_parts = 16;
constexpr std::size_t most_kernels = 8;
constexpr int32_t most_threads = 1024;
constexpr int32_t most_shared = 1 << 20;
constexpr int32_t largest = std::numeric_limits<int32_t>::max();

// Numbers of a field one after the other, each within its bounds.
class Reader {
public:
    Reader(Contents const &contents, char const *name) : name_(name), values_(numbers(contents, name)) {}

    int32_t next(char const *what, int32_t least, int32_t most) {
        std::string const label = std::string("'") + name_ + "': " + what + " ";
        if (place_ == values_.size()) {
            throw Refusal(label + "is missing, the field ends after " + std::to_string(place_) + " numbers");
        }
        int32_t const value = values_[place_++];
        if (value < least || value > most) {
            throw Refusal(label + "is " + std::to_string(value) + "; allowed: " + std::to_string(least) + " to " +
                          std::to_string(most));
        }
        return value;
    }

    bool more() const { return place_ < values_.size(); }

    void end() const {
        if (more()) {
            throw Refusal(std::string("'") + name_ + "' has " + std::to_string(values_.size() - place_) +
                          " numbers more than what it describes");
        }
    }

private:
    char const *name_;
    std::vector<int32_t> values_;
    std::size_t place_ = 0;
};

int32_t single(Contents const &contents, char const *name, int32_t least, int32_t most) {
    Reader reader(contents, name);
    int32_t const value = reader.next("the number", least, most);
    reader.end();
    return value;
}

TensorType read_type(Reader &reader) {
    int32_t const type = reader.next("a type", 1, 16);
    if (type != 1 && type != 6 && type != 10 && type != 16) {
        throw Refusal("a tensor has the type " + std::to_string(type) +
                      "; allowed: 1 (float32), 6 (int32), 10 (float16), 16 (bfloat16)");
    }
    return static_cast<TensorType>(type);
}

int32_t read_size(Reader &reader) {
    int32_t const size = reader.next("a size", -1, largest);
    if (size == 0) {
        throw Refusal("an output has a size of 0; allowed: 1 or more, and -1 for one that follows the batch");
    }
    return size;
}

std::vector<int32_t> read_sizes(Reader &reader) {
    std::vector<int32_t> sizes(static_cast<std::size_t>(reader.next("a number of dimensions", 1, most_dimensions)));
    std::generate(sizes.begin(), sizes.end(), [&reader] { return read_size(reader); });
    if (std::count(sizes.begin(), sizes.end(), -1) > 1) {
        throw Refusal("an output has several sizes that follow the batch; allowed: one");
    }
    return sizes;
}

std::vector<Input> read_inputs(Contents const &contents) {
    Reader reader(contents, "inputs");
    std::vector<Input> inputs;
    while (reader.more()) {
        TensorType const type = read_type(reader);
        bool const table = reader.next("whether an input is a table", 0, 1) == 1;
        inputs.push_back({type, table, reader.next("elements of an input", 1, largest)});
    }
    if (inputs.front().table) {
        throw Refusal("the first input is a table; expected a tensor of the model, which has the batch");
    }
    if (inputs.size() > most_inputs) {
        throw Refusal("there are " + std::to_string(inputs.size()) + " inputs; allowed: " +
                      std::to_string(most_inputs));
    }
    return inputs;
}

std::vector<Output> read_outputs(Contents const &contents) {
    Reader reader(contents, "outputs");
    std::vector<Output> outputs;
    while (reader.more()) {
        TensorType const type = read_type(reader);
        int32_t const elements = reader.next("elements for a batch element", 1, largest);
        outputs.push_back({type, elements, read_sizes(reader)});
    }
    if (outputs.size() > most_outputs) {
        throw Refusal("there are " + std::to_string(outputs.size()) + " outputs; allowed: " +
                      std::to_string(most_outputs));
    }
    return outputs;
}

std::vector<int64_t> read_workspace(Contents const &contents) {
    Reader reader(contents, "workspace");
    std::vector<int64_t> parts(static_cast<std::size_t>(reader.next("the number of parts", 0, most_parts)));
    for (int64_t &part : parts) {
        part = reader.next("bytes of a part", 1, largest);
    }
    reader.end();
    return parts;
}

bool is_name(std::string const &entry) {
    if (entry.empty() || entry.size() > 255 || std::isdigit(static_cast<unsigned char>(entry[0])) != 0) {
        return false;
    }
    return std::all_of(entry.begin(), entry.end(), [](unsigned char c) {
        return (c < 128 && std::isalnum(c) != 0) || c == '_';
    });
}

std::vector<std::string> read_entries(Contents const &contents) {
    std::string const joined = text(contents, "entries");
    std::vector<std::string> entries;
    std::size_t begin = 0;
    while (begin <= joined.size()) {
        std::size_t const end = std::min(joined.find(',', begin), joined.size());
        entries.push_back(joined.substr(begin, end - begin));
        if (!is_name(entries.back())) {
            throw Refusal("'entries' has the name " + quoted(entries.back()) +
                          "; allowed: letters, digits and underscores, at most 255, not beginning with a digit");
        }
        begin = end + 1;
    }
    if (entries.size() > most_kernels) {
        throw Refusal("there are " + std::to_string(entries.size()) + " kernels; allowed: 1 to " +
                      std::to_string(most_kernels));
    }
    return entries;
}

Argument read_argument(Reader &reader, Program const &program) {
    auto const kind = static_cast<ArgumentKind>(reader.next("the kind of an argument", 0, 4));
    std::size_t const limits[] = {program.inputs.size(), 1, program.outputs.size(), program.workspace.size(), 1};
    std::size_t const limit = limits[static_cast<std::size_t>(kind)];
    if (limit == 0) {
        throw Refusal("'arguments' names a part of the workspace, but there is none");
    }
    int32_t const index = reader.next("the index of an argument", 0, static_cast<int32_t>(limit) - 1);
    return {kind, static_cast<std::size_t>(index)};
}

std::vector<Kernel> read_kernels(Contents const &contents, Program const &program) {
    Reader launches(contents, "launches");
    Reader arguments(contents, "arguments");
    std::vector<Kernel> kernels;
    for (std::string const &entry : read_entries(contents)) {
        Kernel kernel{entry, 0, 0, 0, 0, 0, {}};
        kernel.factor = launches.next("a factor of a grid", 1, largest);
        kernel.count = launches.next("a count of a grid", 1, largest);
        kernel.size = launches.next("a size of a grid", 1, largest);
        kernel.threads = static_cast<uint32_t>(launches.next("the threads of a block", 1, most_threads));
        kernel.shared_bytes = static_cast<uint32_t>(launches.next("the shared memory of a block", 0, most_shared));
        int32_t const count = arguments.next("a number of arguments", 1, 1024);
        for (int32_t i = 0; i < count; ++i) {
            kernel.arguments.push_back(read_argument(arguments, program));
        }
        kernels.push_back(std::move(kernel));
    }
    launches.end();
    arguments.end();
    return kernels;
}

void check_outputs_are_written(Program const &program) {
    for (std::size_t index = 0; index < program.outputs.size(); ++index) {
        bool const written = std::any_of(program.kernels.begin(), program.kernels.end(), [index](Kernel const &kernel) {
            return std::any_of(kernel.arguments.begin(), kernel.arguments.end(), [index](Argument const &argument) {
                return argument.kind == ArgumentKind::output && argument.index == index;
            });
        });
        if (!written) {
            throw Refusal("no kernel is given output " + std::to_string(index));
        }
    }
}

}  // namespace

Program read_program(std::vector<Field> const &fields) {
    Program program{};
    program.contents = checked_contents(fields);
    Contents const &contents = program.contents;
    int32_t const format = single(contents, "format", 1, largest);
    if (format != current_format) {
        throw Refusal("the fields have the format " + std::to_string(format) + ", this library knows format " +
                      std::to_string(current_format) + "; a newer launcher library is needed");
    }
    program.name = text(contents, "operator");
    if (!is_name(program.name)) {
        throw Refusal("'operator' is " + quoted(program.name) + "; allowed: letters, digits and underscores");
    }
    program.inputs = read_inputs(contents);
    program.outputs = read_outputs(contents);
    program.workspace = read_workspace(contents);
    program.kernels = read_kernels(contents, program);
    check_outputs_are_written(program);
    program.images = read_images(bytes(contents, "code"), program.kernels.size());
    program.identity = program.name + "." + text(contents, "checksum");
    return program;
}

}  // namespace onnxopt

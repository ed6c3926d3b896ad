#include "plugin.h"

#include <string>
#include <utility>

#include "launch.h"
#include "log.h"

namespace onnxopt {

namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

DataType data_type(TensorType type) {
    switch (type) {
        case TensorType::float32: return DataType::kFLOAT;
        case TensorType::int32: return DataType::kINT32;
        case TensorType::float16: return DataType::kHALF;
        case TensorType::bfloat16: break;
    }
    return DataType::kBF16;
}

Sizes sizes_of(nvinfer1::Dims const &dims) {
    if (dims.nbDims < 0 || dims.nbDims > nvinfer1::Dims::MAX_DIMS) {
        throw Refusal("a tensor has " + std::to_string(dims.nbDims) + " dimensions");
    }
    return Sizes(dims.d, dims.d + dims.nbDims);
}

PluginField field(std::size_t place, Contents const &contents) {
    FieldRule const &rule = field_rules[place];
    std::vector<uint8_t> const &content = contents[place];
    auto const size = static_cast<int32_t>(content.size());
    return {rule.name, content.data(), tensorrt_type(rule.type), rule.type == FieldType::int32 ? size / 4 : size};
}

// The sizes of the first input in two parts: the constant ones, and the product of the others, null without any.
std::pair<Sizes, IDimensionExpr const *> constants_and_rest(DimsExprs const &first, IExprBuilder &builder) {
    Sizes constant;
    IDimensionExpr const *rest = nullptr;
    for (int32_t i = 0; i < first.nbDims; ++i) {
        IDimensionExpr const *size = first.d[i];
        if (size->isConstant()) {
            constant.push_back(size->getConstantValue());
        } else {
            rest = rest == nullptr ? size : builder.operation(DimensionOperation::kPROD, *rest, *size);
        }
    }
    return {constant, rest};
}

// The ratio of the rest. Factors of 1 are left out, so that a size that is the batch's own stays the same expression.
IDimensionExpr const *scaled(IDimensionExpr const *rest, Ratio const &ratio, IExprBuilder &builder) {
    if (rest == nullptr) {
        if (ratio.denominator != 1) {
            throw Refusal("input 0 does not have the elements of a whole batch");
        }
        return builder.constant(ratio.numerator);
    }
    IDimensionExpr const *size = rest;
    if (ratio.numerator != 1) {
        size = builder.operation(DimensionOperation::kPROD, *size, *builder.constant(ratio.numerator));
    }
    if (ratio.denominator != 1) {
        size = builder.operation(DimensionOperation::kFLOOR_DIV, *size, *builder.constant(ratio.denominator));
    }
    return size;
}

}  // namespace

PluginFieldType tensorrt_type(FieldType type) {
    switch (type) {
        case FieldType::int32: return PluginFieldType::kINT32;
        case FieldType::text: return PluginFieldType::kCHAR;
        case FieldType::bytes: return PluginFieldType::kINT8;
        case FieldType::other: break;
    }
    return PluginFieldType::kUNKNOWN;
}

KernelPlugin::KernelPlugin(Program program)
    : program_(std::make_shared<Program const>(std::move(program))),
      loaded_(std::make_shared<LoadedProgram>(program_)) {}

// What TensorRT was given pointers to belongs to the plugin that gave them.
KernelPlugin::KernelPlugin(KernelPlugin const &other)
    : nvinfer1::IPluginV3(other),
      nvinfer1::IPluginV3OneCore(other),
      nvinfer1::IPluginV3OneBuild(other),
      nvinfer1::IPluginV3OneRuntime(other),
      program_(other.program_),
      loaded_(other.loaded_) {}

nvinfer1::IPluginCapability *KernelPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore *>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild *>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime *>(this);
    }
    log_error(program_->name, "TensorRT asks for an interface that this library does not know");
    return nullptr;
}

KernelPlugin *KernelPlugin::clone() noexcept {
    return guarded<KernelPlugin *>(program_->name, nullptr, [this] { return new KernelPlugin(*this); });
}

nvinfer1::IPluginV3 *KernelPlugin::attachToContext(nvinfer1::IPluginResourceContext *) noexcept { return clone(); }

void KernelPlugin::check_counts(int32_t input_count, int32_t output_count) const {
    auto const inputs = static_cast<int32_t>(program_->inputs.size());
    auto const outputs = static_cast<int32_t>(program_->outputs.size());
    if (input_count != inputs || output_count != outputs) {
        throw Refusal("the node has " + std::to_string(input_count) + " inputs and " + std::to_string(output_count) +
                      " outputs, its fields " + std::to_string(inputs) + " and " + std::to_string(outputs));
    }
}

int32_t KernelPlugin::getNbOutputs() const noexcept { return static_cast<int32_t>(program_->outputs.size()); }

int32_t KernelPlugin::configurePlugin(
    DynamicPluginTensorDesc const *, int32_t input_count, DynamicPluginTensorDesc const *,
    int32_t output_count) noexcept {
    return guarded(program_->name, -1, [&] {
        check_counts(input_count, output_count);
        return 0;
    });
}

bool KernelPlugin::supportsFormatCombination(
    int32_t position, DynamicPluginTensorDesc const *tensors, int32_t input_count, int32_t output_count) noexcept {
    return guarded(program_->name, false, [&] {
        check_counts(input_count, output_count);
        if (position < 0 || position >= input_count + output_count) {
            throw Refusal("TensorRT asks for tensor " + std::to_string(position));
        }
        TensorType const type = position < input_count
                                    ? program_->inputs[static_cast<std::size_t>(position)].type
                                    : program_->outputs[static_cast<std::size_t>(position - input_count)].type;
        PluginTensorDesc const &found = tensors[position].desc;
        return found.type == data_type(type) && found.format == nvinfer1::TensorFormat::kLINEAR;
    });
}

int32_t KernelPlugin::getOutputDataTypes(
    DataType *outputs, int32_t output_count, DataType const *inputs, int32_t input_count) const noexcept {
    return guarded(program_->name, -1, [&] {
        check_counts(input_count, output_count);
        for (std::size_t i = 0; i < program_->inputs.size(); ++i) {
            if (inputs[i] != data_type(program_->inputs[i].type)) {
                throw Refusal("input " + std::to_string(i) + " has TensorRT's type " +
                              std::to_string(static_cast<int32_t>(inputs[i])) + ", expected " +
                              std::to_string(static_cast<int32_t>(data_type(program_->inputs[i].type))) +
                              "; build with the types that the model has");
            }
        }
        for (std::size_t i = 0; i < program_->outputs.size(); ++i) {
            outputs[i] = data_type(program_->outputs[i].type);
        }
        return 0;
    });
}

int32_t KernelPlugin::getOutputShapes(
    DimsExprs const *inputs, int32_t input_count, DimsExprs const *, int32_t, DimsExprs *outputs,
    int32_t output_count, IExprBuilder &builder) noexcept {
    return guarded(program_->name, -1, [&] {
        check_counts(input_count, output_count);
        auto const [constant, rest] = constants_and_rest(inputs[0], builder);
        for (std::size_t i = 0; i < program_->outputs.size(); ++i) {
            Output const &output = program_->outputs[i];
            outputs[i].nbDims = static_cast<int32_t>(output.sizes.size());
            for (std::size_t axis = 0; axis < output.sizes.size(); ++axis) {
                int32_t const size = output.sizes[axis];
                outputs[i].d[axis] = size < 0 ? scaled(rest, open_size(*program_, output, constant), builder)
                                              : builder.constant(size);
            }
        }
        return 0;
    });
}

std::size_t KernelPlugin::getWorkspaceSize(
    DynamicPluginTensorDesc const *inputs, int32_t input_count, DynamicPluginTensorDesc const *,
    int32_t output_count) const noexcept {
    return guarded(program_->name, std::size_t{0}, [&] {
        check_counts(input_count, output_count);
        return static_cast<std::size_t>(
            workspace_offsets(*program_, batch_of(*program_, sizes_of(inputs[0].max))).back());
    });
}

// What TensorRT keeps a measured time by.
char const *KernelPlugin::getTimingCacheID() noexcept { return program_->identity.c_str(); }

char const *KernelPlugin::getMetadataString() noexcept { return program_->name.c_str(); }

int32_t KernelPlugin::checked_batch_of(PluginTensorDesc const *inputs, PluginTensorDesc const *outputs) const {
    std::vector<Sizes> input_sizes;
    std::vector<Sizes> output_sizes;
    for (std::size_t i = 0; i < program_->inputs.size(); ++i) {
        input_sizes.push_back(sizes_of(inputs[i].dims));
    }
    for (std::size_t i = 0; i < program_->outputs.size(); ++i) {
        output_sizes.push_back(sizes_of(outputs[i].dims));
    }
    return checked_batch(*program_, input_sizes, output_sizes);
}

int32_t KernelPlugin::onShapeChange(
    PluginTensorDesc const *inputs, int32_t input_count, PluginTensorDesc const *outputs,
    int32_t output_count) noexcept {
    return guarded(program_->name, -1, [&] {
        check_counts(input_count, output_count);
        checked_batch_of(inputs, outputs);
        return 0;
    });
}

int32_t KernelPlugin::enqueue(
    PluginTensorDesc const *input_descriptions, PluginTensorDesc const *output_descriptions,
    void const *const *inputs, void *const *outputs, void *workspace, cudaStream_t stream) noexcept {
    return guarded(program_->name, -1, [&] {
        int32_t const batch = checked_batch_of(input_descriptions, output_descriptions);
        if (batch > 0) {
            loaded_->launch(batch, {inputs, outputs, workspace}, stream);
        }
        return 0;
    });
}

nvinfer1::PluginFieldCollection const *KernelPlugin::getFieldsToSerialize() noexcept {
    return guarded<nvinfer1::PluginFieldCollection const *>(program_->name, nullptr, [this] {
        fields_.clear();
        for (std::size_t place = 0; place < field_count; ++place) {
            fields_.push_back(field(place, program_->contents));
        }
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
        return &collection_;
    });
}

}  // namespace onnxopt

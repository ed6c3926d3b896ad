#include "host.h"

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace {

using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::IPluginCreatorV3One;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;

class Log final : public nvinfer1::ILogger {
public:
    void log(Severity, char const *message) noexcept override { lines_ += std::string(message) + "\n"; }
    char const *taken() {
        given_.swap(lines_);
        lines_.clear();
        return given_.c_str();
    }

private:
    std::string lines_;
    std::string given_;
};

class LogFinder final : public nvinfer1::ILoggerFinder {
public:
    explicit LogFinder(Log &log) : log_(log) {}
    nvinfer1::ILogger *findLogger() override { return &log_; }

private:
    Log &log_;
};

// A number that says of itself whether it is a constant.
class Expression final : public IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
public:
    Expression(int64_t value, bool constant) : value_(value), constant_(constant) { mImpl = this; }
    bool isConstant() const override { return constant_; }
    int64_t getConstantValue() const override { return constant_ ? value_ : -1; }
    bool isSizeTensor() const override { return false; }
    int64_t value() const { return value_; }
    bool constant() const { return constant_; }

private:
    int64_t value_;
    bool constant_;
};

// Computes at once what TensorRT would compute when it knows the sizes.
class Expressions final : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
public:
    Expressions() { mImpl = this; }

    IDimensionExpr const *constant(int64_t value) override { return made(value, true); }

    IDimensionExpr const *operation(
        nvinfer1::DimensionOperation operation, IDimensionExpr const &first, IDimensionExpr const &second) override {
        auto const &a = static_cast<Expression const &>(first);
        auto const &b = static_cast<Expression const &>(second);
        bool const known = a.constant() && b.constant();
        switch (operation) {
            case nvinfer1::DimensionOperation::kPROD: return made(a.value() * b.value(), known);
            case nvinfer1::DimensionOperation::kFLOOR_DIV: return made(a.value() / b.value(), known);
            default: return nullptr;
        }
    }

    IDimensionExpr const *declareSizeTensor(int32_t, IDimensionExpr const &, IDimensionExpr const &) override {
        return nullptr;
    }

    Expression const *made(int64_t value, bool known) {
        expressions_.push_back(std::make_unique<Expression>(value, known));
        return expressions_.back().get();
    }

private:
    std::vector<std::unique_ptr<Expression>> expressions_;
};

Log log_lines;
LogFinder log_finder(log_lines);
IPluginCreatorV3One *creator = nullptr;

template <typename Capability>
Capability *capability(void *plugin, PluginCapabilityType type) {
    return static_cast<Capability *>(static_cast<IPluginV3 *>(plugin)->getCapabilityInterface(type));
}

nvinfer1::IPluginV3OneBuild *build(void *plugin) {
    return capability<nvinfer1::IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

nvinfer1::IPluginV3OneRuntime *runtime(void *plugin) {
    return capability<nvinfer1::IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

PluginTensorDesc description(HostTensor const &tensor) {
    PluginTensorDesc found{};
    found.dims.nbDims = tensor.rank;
    std::copy_n(tensor.sizes, 8, found.dims.d);
    found.type = static_cast<nvinfer1::DataType>(tensor.type);
    found.format = static_cast<nvinfer1::TensorFormat>(tensor.format);
    found.scale = 1.0F;
    return found;
}

std::vector<PluginTensorDesc> descriptions(HostTensor const *tensors, int32_t count) {
    std::vector<PluginTensorDesc> found;
    std::transform(tensors, tensors + count, std::back_inserter(found), description);
    return found;
}

std::vector<DynamicPluginTensorDesc> dynamic_descriptions(HostTensor const *tensors, int32_t count) {
    std::vector<DynamicPluginTensorDesc> found;
    for (PluginTensorDesc const &known : descriptions(tensors, count)) {
        found.push_back({known, known.dims, known.dims, known.dims});
    }
    return found;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int32_t host_open(char const *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        log_lines.log(nvinfer1::ILogger::Severity::kERROR, dlerror());
        return -1;
    }
    using GetCreators = nvinfer1::IPluginCreatorInterface *const *(*)(int32_t &);
    auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    auto set_finder = reinterpret_cast<void (*)(nvinfer1::ILoggerFinder *)>(dlsym(library, "setLoggerFinder"));
    if (get_creators == nullptr || set_finder == nullptr) {
        log_lines.log(nvinfer1::ILogger::Severity::kERROR, "the library lacks getCreators or setLoggerFinder");
        return -1;
    }
    set_finder(&log_finder);
    int32_t count = 0;
    creator = static_cast<IPluginCreatorV3One *>(get_creators(count)[0]);
    return count == 1 ? 0 : -1;
}

EXPORTED int32_t host_open_in_registry(char const *tensorrt, char const *path) {
    void *library = dlopen(tensorrt, RTLD_NOW | RTLD_NOLOAD);
    void *found = library == nullptr ? nullptr : dlsym(library, "getPluginRegistry");
    if (found == nullptr) {
        log_lines.log(nvinfer1::ILogger::Severity::kERROR, "the process has not loaded TensorRT");
        return -1;
    }
    nvinfer1::IPluginRegistry *registry = reinterpret_cast<nvinfer1::IPluginRegistry *(*)()>(found)();
    if (registry->loadLibrary(path) == nullptr) {
        log_lines.log(nvinfer1::ILogger::Severity::kERROR, "the registry does not load the library");
        return -1;
    }
    creator = static_cast<IPluginCreatorV3One *>(registry->getCreator("OnnxoptKernel", "1", "onnxopt"));
    return creator == nullptr ? -1 : 0;
}

EXPORTED char const *host_log() { return log_lines.taken(); }

EXPORTED char const *host_field_names() {
    static std::string names;
    names.clear();
    nvinfer1::PluginFieldCollection const *fields = creator->getFieldNames();
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        names += std::string(fields->fields[i].name) + "\n";
    }
    return names.c_str();
}

EXPORTED void *host_create(char const *name, HostField const *fields, int32_t count, int32_t phase) {
    std::vector<nvinfer1::PluginField> given;
    for (int32_t i = 0; i < count; ++i) {
        given.emplace_back(
            fields[i].name, fields[i].data, static_cast<nvinfer1::PluginFieldType>(fields[i].type), fields[i].length);
    }
    nvinfer1::PluginFieldCollection const collection{count, given.data()};
    return creator->createPlugin(name, &collection, static_cast<nvinfer1::TensorRTPhase>(phase));
}

EXPORTED void *host_clone(void *plugin) { return static_cast<IPluginV3 *>(plugin)->clone(); }

EXPORTED void host_destroy(void *plugin) { delete static_cast<IPluginV3 *>(plugin); }

EXPORTED int32_t host_fields(void *plugin, HostField *fields, int32_t room) {
    nvinfer1::PluginFieldCollection const *found = runtime(plugin)->getFieldsToSerialize();
    if (found == nullptr || found->nbFields > room) {
        return -1;
    }
    for (int32_t i = 0; i < found->nbFields; ++i) {
        nvinfer1::PluginField const &field = found->fields[i];
        fields[i] = {field.name, field.data, static_cast<int32_t>(field.type), field.length};
    }
    return found->nbFields;
}

EXPORTED int32_t host_output_types(
    void *plugin, HostTensor const *inputs, int32_t count, int32_t *types, int32_t outputs) {
    std::vector<nvinfer1::DataType> given;
    std::vector<nvinfer1::DataType> found(static_cast<size_t>(outputs));
    for (PluginTensorDesc const &input : descriptions(inputs, count)) {
        given.push_back(input.type);
    }
    int32_t const result = build(plugin)->getOutputDataTypes(found.data(), outputs, given.data(), count);
    std::transform(found.begin(), found.end(), types, [](nvinfer1::DataType t) { return static_cast<int32_t>(t); });
    return result;
}

EXPORTED int32_t host_output_shapes(
    void *plugin, HostTensor const *inputs, int32_t count, HostTensor *outputs, int32_t room) {
    int32_t const made = build(plugin)->getNbOutputs();
    if (made > room) {
        return -1;
    }
    Expressions expressions;
    std::vector<DimsExprs> given(static_cast<size_t>(count));
    std::vector<DimsExprs> found(static_cast<size_t>(made));
    for (int32_t i = 0; i < count; ++i) {
        DimsExprs &shape = given[static_cast<size_t>(i)];
        shape.nbDims = inputs[i].rank;
        for (int32_t axis = 0; axis < inputs[i].rank; ++axis) {
            shape.d[axis] = expressions.made(inputs[i].sizes[axis], ((inputs[i].open >> axis) & 1) == 0);
        }
    }
    if (build(plugin)->getOutputShapes(given.data(), count, nullptr, 0, found.data(), made, expressions) != 0) {
        return -1;
    }
    for (int32_t i = 0; i < made; ++i) {
        DimsExprs const &shape = found[static_cast<size_t>(i)];
        outputs[i].rank = shape.nbDims;
        outputs[i].open = 0;
        for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
            auto const *size = static_cast<Expression const *>(shape.d[axis]);
            outputs[i].sizes[axis] = size->value();
            outputs[i].open |= size->constant() ? 0 : 1 << axis;
        }
    }
    return made;
}

EXPORTED int32_t host_supports(
    void *plugin, int32_t position, HostTensor const *tensors, int32_t inputs, int32_t outputs) {
    auto const given = dynamic_descriptions(tensors, inputs + outputs);
    return build(plugin)->supportsFormatCombination(position, given.data(), inputs, outputs) ? 1 : 0;
}

EXPORTED int32_t host_configure(void *plugin, HostTensor const *tensors, int32_t inputs, int32_t outputs) {
    auto const given = dynamic_descriptions(tensors, inputs + outputs);
    return build(plugin)->configurePlugin(given.data(), inputs, given.data() + inputs, outputs);
}

EXPORTED int64_t host_workspace(void *plugin, HostTensor const *tensors, int32_t inputs, int32_t outputs) {
    auto const given = dynamic_descriptions(tensors, inputs + outputs);
    return static_cast<int64_t>(
        build(plugin)->getWorkspaceSize(given.data(), inputs, given.data() + inputs, outputs));
}

EXPORTED char const *host_cache_id(void *plugin) { return build(plugin)->getTimingCacheID(); }

EXPORTED int32_t host_shape_change(void *plugin, HostTensor const *tensors, int32_t inputs, int32_t outputs) {
    auto const given = descriptions(tensors, inputs + outputs);
    return runtime(plugin)->onShapeChange(given.data(), inputs, given.data() + inputs, outputs);
}

EXPORTED int32_t host_enqueue(
    void *plugin, HostTensor const *tensors, int32_t inputs, int32_t outputs, void const *const *input_pointers,
    void *const *output_pointers, void *workspace, void *stream) {
    auto const given = descriptions(tensors, inputs + outputs);
    return runtime(plugin)->enqueue(
        given.data(), given.data() + inputs, input_pointers, output_pointers, workspace,
        static_cast<cudaStream_t>(stream));
}

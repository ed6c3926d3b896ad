#include "creator.h"

#include <string>
#include <vector>

#include "log.h"
#include "plugin.h"

namespace onnxopt {

namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr int32_t most_fields = 64;

FieldType our_type(PluginFieldType type) {
    for (FieldType const known : {FieldType::int32, FieldType::text, FieldType::bytes}) {
        if (tensorrt_type(known) == type) {
            return known;
        }
    }
    return FieldType::other;
}

std::vector<Field> our_fields(nvinfer1::PluginFieldCollection const *collection) {
    if (collection == nullptr || collection->fields == nullptr || collection->nbFields < 1 ||
        collection->nbFields > most_fields) {
        throw Refusal("TensorRT gave no fields, or more than " + std::to_string(most_fields));
    }
    std::vector<Field> fields;
    for (int32_t i = 0; i < collection->nbFields; ++i) {
        PluginField const &field = collection->fields[i];
        fields.push_back({field.name, our_type(field.type), field.data, field.length});
    }
    return fields;
}

}  // namespace

KernelCreator::KernelCreator() : fields_(), collection_{static_cast<int32_t>(field_count), fields_.data()} {
    for (std::size_t i = 0; i < field_count; ++i) {
        fields_[i] = PluginField(field_rules[i].name, nullptr, tensorrt_type(field_rules[i].type), 1);
    }
}

nvinfer1::IPluginV3 *KernelCreator::createPlugin(
    char const *name, nvinfer1::PluginFieldCollection const *fields, nvinfer1::TensorRTPhase) noexcept {
    return guarded<nvinfer1::IPluginV3 *>(name == nullptr ? plugin_name : name, nullptr, [fields] {
        return new KernelPlugin(read_program(our_fields(fields)));
    });
}

char const *KernelCreator::getPluginName() const noexcept { return plugin_name; }

char const *KernelCreator::getPluginVersion() const noexcept { return plugin_version; }

char const *KernelCreator::getPluginNamespace() const noexcept { return plugin_namespace; }

}  // namespace onnxopt

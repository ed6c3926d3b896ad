// Creates plugins from their fields, for a network as for an engine.
#ifndef ONNXOPT_LAUNCHER_CREATOR_H
#define ONNXOPT_LAUNCHER_CREATOR_H

#include <NvInferRuntime.h>

#include <array>

#include "fields.h"

namespace onnxopt {

class KernelCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    KernelCreator();

    nvinfer1::IPluginV3 *createPlugin(
        char const *name, nvinfer1::PluginFieldCollection const *fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const *getFieldNames() noexcept override { return &collection_; }
    char const *getPluginName() const noexcept override;
    char const *getPluginVersion() const noexcept override;
    char const *getPluginNamespace() const noexcept override;

private:
    std::array<nvinfer1::PluginField, field_count> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace onnxopt

#endif

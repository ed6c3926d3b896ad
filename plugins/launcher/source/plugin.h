// The plugin for all operators: what it computes is in its program.
#ifndef ONNXOPT_LAUNCHER_PLUGIN_H
#define ONNXOPT_LAUNCHER_PLUGIN_H

#include <NvInferRuntime.h>

#include <memory>
#include <vector>

#include "loaded.h"
#include "program.h"

namespace onnxopt {

constexpr char plugin_name[] = "OnnxoptKernel";
constexpr char plugin_version[] = "1";
constexpr char plugin_namespace[] = "onnxopt";

// What TensorRT calls a type of fields.
nvinfer1::PluginFieldType tensorrt_type(FieldType type);

class KernelPlugin final : public nvinfer1::IPluginV3,
                           public nvinfer1::IPluginV3OneCore,
                           public nvinfer1::IPluginV3OneBuild,
                           public nvinfer1::IPluginV3OneRuntime {
public:
    explicit KernelPlugin(Program program);
    KernelPlugin(KernelPlugin const &other);

    nvinfer1::IPluginCapability *getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    KernelPlugin *clone() noexcept override;

    char const *getPluginName() const noexcept override { return plugin_name; }
    char const *getPluginVersion() const noexcept override { return plugin_version; }
    char const *getPluginNamespace() const noexcept override { return plugin_namespace; }

    int32_t getNbOutputs() const noexcept override;
    int32_t configurePlugin(
        nvinfer1::DynamicPluginTensorDesc const *inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const *outputs, int32_t output_count) noexcept override;
    bool supportsFormatCombination(
        int32_t position, nvinfer1::DynamicPluginTensorDesc const *tensors, int32_t input_count,
        int32_t output_count) noexcept override;
    int32_t getOutputDataTypes(
        nvinfer1::DataType *outputs, int32_t output_count, nvinfer1::DataType const *inputs,
        int32_t input_count) const noexcept override;
    int32_t getOutputShapes(
        nvinfer1::DimsExprs const *inputs, int32_t input_count, nvinfer1::DimsExprs const *shape_inputs,
        int32_t shape_input_count, nvinfer1::DimsExprs *outputs, int32_t output_count,
        nvinfer1::IExprBuilder &builder) noexcept override;
    std::size_t getWorkspaceSize(
        nvinfer1::DynamicPluginTensorDesc const *inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const *outputs, int32_t output_count) const noexcept override;
    char const *getTimingCacheID() noexcept override;
    char const *getMetadataString() noexcept override;

    int32_t onShapeChange(
        nvinfer1::PluginTensorDesc const *inputs, int32_t input_count, nvinfer1::PluginTensorDesc const *outputs,
        int32_t output_count) noexcept override;
    int32_t enqueue(
        nvinfer1::PluginTensorDesc const *input_descriptions, nvinfer1::PluginTensorDesc const *output_descriptions,
        void const *const *inputs, void *const *outputs, void *workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3 *attachToContext(nvinfer1::IPluginResourceContext *context) noexcept override;
    nvinfer1::PluginFieldCollection const *getFieldsToSerialize() noexcept override;

private:
    // Clones share both, which outlive the last of them.
    std::shared_ptr<Program const> program_;
    std::shared_ptr<LoadedProgram> loaded_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};

    void check_counts(int32_t input_count, int32_t output_count) const;
    int32_t checked_batch_of(
        nvinfer1::PluginTensorDesc const *inputs, nvinfer1::PluginTensorDesc const *outputs) const;
};

}  // namespace onnxopt

#endif

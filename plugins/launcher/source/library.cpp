// The two functions that TensorRT looks for in a library of plugins.
#include <NvInferRuntime.h>

#include "creator.h"
#include "log.h"

#if NV_TENSORRT_MAJOR < 10
#error "the launcher needs the headers of TensorRT 10 or later"
#endif

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder *finder) {
    onnxopt::set_logger_finder(finder);
}

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface *const *getCreators(
    int32_t &count) {
    static onnxopt::KernelCreator creator;
    static nvinfer1::IPluginCreatorInterface *const creators[] = {&creator};
    count = 1;
    return creators;
}

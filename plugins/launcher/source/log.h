// Messages to TensorRT's logger, or to standard error where TensorRT has given none.
#ifndef ONNXOPT_LAUNCHER_LOG_H
#define ONNXOPT_LAUNCHER_LOG_H

#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace onnxopt {

void set_logger_finder(nvinfer1::ILoggerFinder *finder) noexcept;

void log_error(std::string const &who, std::string const &message) noexcept;

// The result of `work`, or `otherwise` and a message where it throws: nothing may be thrown into TensorRT.
template <typename Result, typename Work>
Result guarded(std::string const &who, Result otherwise, Work work) noexcept {
    try {
        return work();
    } catch (std::exception const &error) {
        log_error(who, error.what());
    } catch (...) {
        log_error(who, "failed for an unknown reason");
    }
    return otherwise;
}

}  // namespace onnxopt

#endif

#include "log.h"

#include <atomic>
#include <cstdio>

namespace onnxopt {

namespace {

std::atomic<nvinfer1::ILoggerFinder *> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder *finder) noexcept { logger_finder = finder; }

void log_error(std::string const &who, std::string const &message) noexcept {
    try {
        std::string const line = "onnxopt launcher: " + who + ": " + message;
        nvinfer1::ILoggerFinder *finder = logger_finder;
        nvinfer1::ILogger *logger = finder == nullptr ? nullptr : finder->findLogger();
        if (logger != nullptr) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
        } else {
            std::fprintf(stderr, "%s\n", line.c_str());
        }
    } catch (...) {
        std::fputs("onnxopt launcher: a message could not be written\n", stderr);
    }
}

}  // namespace onnxopt

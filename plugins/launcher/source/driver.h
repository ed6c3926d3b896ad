// The few functions of the CUDA driver that a launch needs, found when the first one happens: building and loading the
// library take no driver.
#ifndef ONNXOPT_LAUNCHER_DRIVER_H
#define ONNXOPT_LAUNCHER_DRIVER_H

#include <cstddef>
#include <string>

namespace onnxopt {

// Types and numbers of the driver's interface, which it keeps from version to version.
using CuResult = int;
using CuDevice = int;
using CuContext = void *;
using CuModule = void *;
using CuFunction = void *;
using CuStream = void *;

constexpr int cu_function_max_dynamic_shared = 8;
constexpr int cu_device_compute_major = 75;
constexpr int cu_device_compute_minor = 76;
constexpr int cu_device_shared_optin = 97;
constexpr int cu_jit_error_log_buffer = 5;
constexpr int cu_jit_error_log_bytes = 6;

struct Driver {
    CuResult (*cuCtxGetCurrent)(CuContext *);
    CuResult (*cuCtxGetDevice)(CuDevice *);
    CuResult (*cuDeviceGetAttribute)(int *, int, CuDevice);
    CuResult (*cuModuleLoadDataEx)(CuModule *, void const *, unsigned, int *, void **);
    CuResult (*cuModuleUnload)(CuModule);
    CuResult (*cuModuleGetFunction)(CuFunction *, CuModule, char const *);
    CuResult (*cuFuncSetAttribute)(CuFunction, int, int);
    CuResult (*cuLaunchKernel)(
        CuFunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CuStream, void **, void **);
    CuResult (*cuGetErrorString)(CuResult, char const **);
};

// The driver of this process. Throws Refusal where there is none, or it lacks one of the functions.
Driver const &driver();

// Throws Refusal, with the driver's own words, unless a call went well.
void check(Driver const &driver, CuResult result, std::string const &what);

}  // namespace onnxopt

#endif

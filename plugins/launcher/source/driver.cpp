#include "driver.h"

#include <dlfcn.h>

#include "fields.h"

namespace onnxopt {

namespace {

constexpr char library_name[] = "libcuda.so.1";

template <typename Function>
void find(void *library, char const *name, Function &function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) {
        throw Refusal(std::string(library_name) + " has no function " + name + "; install a newer NVIDIA driver");
    }
}

Driver load() {
    void *library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        char const *reason = dlerror();
        throw Refusal(std::string("the CUDA driver cannot be loaded: ") + (reason == nullptr ? library_name : reason) +
                      "; install an NVIDIA driver");
    }
    Driver found{};
    find(library, "cuCtxGetCurrent", found.cuCtxGetCurrent);
    find(library, "cuCtxGetDevice", found.cuCtxGetDevice);
    find(library, "cuDeviceGetAttribute", found.cuDeviceGetAttribute);
    find(library, "cuModuleLoadDataEx", found.cuModuleLoadDataEx);
    find(library, "cuModuleUnload", found.cuModuleUnload);
    find(library, "cuModuleGetFunction", found.cuModuleGetFunction);
    find(library, "cuFuncSetAttribute", found.cuFuncSetAttribute);
    find(library, "cuLaunchKernel", found.cuLaunchKernel);
    find(library, "cuGetErrorString", found.cuGetErrorString);
    return found;
}

}  // namespace

Driver const &driver() {
    // Where loading throws, the next call tries again.
    static Driver const found = load();
    return found;
}

void check(Driver const &driver, CuResult result, std::string const &what) {
    if (result == 0) {
        return;
    }
    char const *words = nullptr;
    driver.cuGetErrorString(result, &words);
    throw Refusal(what + ": " + (words == nullptr ? "unknown error" : words) + " (CUDA error " +
                  std::to_string(result) + ")");
}

}  // namespace onnxopt

#include "loaded.h"

#include <utility>

#include "launch.h"

namespace onnxopt {

namespace {

constexpr std::size_t jit_log_bytes = 4096;

CuContext current_context(Driver const &driver) {
    CuContext context = nullptr;
    check(driver, driver.cuCtxGetCurrent(&context), "the current CUDA context cannot be asked for");
    if (context == nullptr) {
        throw Refusal("no CUDA context is current in the thread that executes the engine");
    }
    return context;
}

int attribute(Driver const &driver, CuDevice device, int which) {
    int value = 0;
    check(driver, driver.cuDeviceGetAttribute(&value, which, device), "the GPU cannot be asked what it is");
    return value;
}

CuModule load_image(Driver const &driver, std::string const &entry, uint8_t const *image) {
    char words[jit_log_bytes] = {};
    int options[] = {cu_jit_error_log_buffer, cu_jit_error_log_bytes};
    void *values[] = {words, reinterpret_cast<void *>(sizeof words - 1)};
    CuModule module = nullptr;
    CuResult const result = driver.cuModuleLoadDataEx(&module, image, 2, options, values);
    std::string const details = words[0] == 0 ? "" : std::string(" (") + words + ")";
    check(driver, result, "the code of " + entry + " cannot be loaded" + details);
    return module;
}

}  // namespace

LoadedProgram::~LoadedProgram() {
    if (contexts_.empty()) {
        return;
    }
    // Modules belong to their context: one that is not current may be gone, and its modules with it.
    Driver const &cuda = driver();
    CuContext context = nullptr;
    if (cuda.cuCtxGetCurrent(&context) != 0) {
        return;
    }
    auto const found = contexts_.find(context);
    if (found != contexts_.end()) {
        for (LoadedKernel const &kernel : found->second) {
            cuda.cuModuleUnload(kernel.module);
        }
    }
}

std::vector<LoadedProgram::LoadedKernel> const &LoadedProgram::loaded_for(Driver const &driver) {
    CuContext const context = current_context(driver);
    std::lock_guard<std::mutex> const lock(mutex_);
    auto found = contexts_.find(context);
    if (found == contexts_.end()) {
        found = contexts_.emplace(context, load(driver)).first;
    }
    return found->second;
}

std::vector<LoadedProgram::LoadedKernel> LoadedProgram::load(Driver const &driver) const {
    CuDevice device = 0;
    check(driver, driver.cuCtxGetDevice(&device), "the GPU of the current context cannot be asked for");
    int const major = attribute(driver, device, cu_device_compute_major);
    int const minor = attribute(driver, device, cu_device_compute_minor);
    int const most_shared = attribute(driver, device, cu_device_shared_optin);
    std::vector<LoadedKernel> kernels;
    try {
        for (std::size_t i = 0; i < program_->kernels.size(); ++i) {
            kernels.push_back(load_kernel(driver, i, static_cast<uint32_t>(10 * major + minor), most_shared));
        }
    } catch (...) {
        for (LoadedKernel const &kernel : kernels) {
            driver.cuModuleUnload(kernel.module);
        }
        throw;
    }
    return kernels;
}

LoadedProgram::LoadedKernel LoadedProgram::load_kernel(
    Driver const &driver, std::size_t index, uint32_t capability, int most_shared) const {
    Kernel const &kernel = program_->kernels[index];
    Image const &image = image_for(program_->images, index, capability);
    if (kernel.shared_bytes > static_cast<uint32_t>(most_shared)) {
        throw Refusal(kernel.entry + " takes " + std::to_string(kernel.shared_bytes) +
                      " bytes of shared memory, this GPU gives a block " + std::to_string(most_shared) +
                      "; optimize the model for this GPU and build the engine again");
    }
    CuModule const module = load_image(driver, kernel.entry, bytes(program_->contents, "code").data() + image.offset);
    try {
        CuFunction function = nullptr;
        check(driver, driver.cuModuleGetFunction(&function, module, kernel.entry.c_str()),
              "the code has no kernel " + kernel.entry);
        check(driver,
              driver.cuFuncSetAttribute(
                  function, cu_function_max_dynamic_shared, static_cast<int>(kernel.shared_bytes)),
              kernel.entry + " is not given its " + std::to_string(kernel.shared_bytes) + " bytes of shared memory");
        return {module, function};
    } catch (...) {
        driver.cuModuleUnload(module);
        throw;
    }
}

void LoadedProgram::launch(int32_t batch, Pointers const &pointers, CuStream stream) {
    Driver const &cuda = driver();
    std::vector<LoadedKernel> const &loaded = loaded_for(cuda);
    std::vector<uint64_t> const offsets = workspace_offsets(*program_, batch);
    if (offsets.back() > 0 && pointers.workspace == nullptr) {
        throw Refusal("TensorRT gave no workspace, expected " + std::to_string(offsets.back()) + " bytes");
    }
    for (std::size_t i = 0; i < loaded.size(); ++i) {
        Kernel const &kernel = program_->kernels[i];
        std::vector<void const *> values;
        std::vector<void *> arguments;
        values.reserve(kernel.arguments.size());
        for (Argument const &argument : kernel.arguments) {
            switch (argument.kind) {
                case ArgumentKind::input: values.push_back(pointers.inputs[argument.index]); break;
                case ArgumentKind::output: values.push_back(pointers.outputs[argument.index]); break;
                case ArgumentKind::workspace:
                    values.push_back(static_cast<char *>(pointers.workspace) + offsets[argument.index]);
                    break;
                case ArgumentKind::batch:
                case ArgumentKind::unused: values.push_back(nullptr); break;
            }
            bool const number = argument.kind == ArgumentKind::batch;
            arguments.push_back(number ? static_cast<void *>(&batch) : static_cast<void *>(&values.back()));
        }
        check(cuda,
              cuda.cuLaunchKernel(
                  loaded[i].function, blocks(kernel, batch), 1, 1, kernel.threads, 1, 1, kernel.shared_bytes, stream,
                  arguments.data(), nullptr),
              kernel.entry + " cannot be launched");
    }
}

}  // namespace onnxopt

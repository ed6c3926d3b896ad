// A program's kernels on the GPUs of a process, loaded once for each CUDA context and shared by all clones of a plugin.
#ifndef ONNXOPT_LAUNCHER_LOADED_H
#define ONNXOPT_LAUNCHER_LOADED_H

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "driver.h"
#include "program.h"

namespace onnxopt {

// The pointers of one execution.
struct Pointers {
    void const *const *inputs;
    void *const *outputs;
    void *workspace;
};

class LoadedProgram {
public:
    explicit LoadedProgram(std::shared_ptr<Program const> program) : program_(std::move(program)) {}
    LoadedProgram(LoadedProgram const &) = delete;
    LoadedProgram &operator=(LoadedProgram const &) = delete;
    ~LoadedProgram();

    // Launch all kernels in the current context, loading them first where that has not happened there. Throws Refusal
    // where there is no driver, no context, no code for the GPU, too little shared memory, or the driver refuses.
    void launch(int32_t batch, Pointers const &pointers, CuStream stream);

private:
    struct LoadedKernel {
        CuModule module;
        CuFunction function;
    };

    std::vector<LoadedKernel> const &loaded_for(Driver const &driver);
    std::vector<LoadedKernel> load(Driver const &driver) const;
    LoadedKernel load_kernel(Driver const &driver, std::size_t index, uint32_t capability, int most_shared) const;

    std::shared_ptr<Program const> program_;
    std::mutex mutex_;
    std::map<CuContext, std::vector<LoadedKernel>> contexts_;
};

}  // namespace onnxopt

#endif

// Running a grid: blocks one after another, each from a clean state.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include "wgmma.h"

namespace emu {

// The layout of the request that Python fills in; all numbers are 64 bits wide so that no padding is in question.
struct Argument {
    void* data;
    uint64_t bytes;
    uint8_t* writes;
    uint64_t writable;
};

struct Request {
    uint64_t grid[3];
    uint64_t threads[3];
    uint64_t dynamic_shared;
    uint64_t order;
    int64_t steps;
    uint64_t argument_count;
    const Argument* arguments;
    uint64_t parameter_bytes;
    const uint8_t* parameters;
    uint64_t stack_bytes;
    uint64_t* counters;
};

inline void run_fiber(Fiber* fiber) {
    fiber->owner->run->kernel->function(*fiber);
    exit_thread(*fiber);
}

// Variables of the module follow the reserved windows, arguments follow them.
inline void map_windows(Run& run, const Request& request, std::vector<std::vector<uint8_t>>& storage) {
    const Kernel& kernel = *run.kernel;
    run.windows.resize(kFirstWindow + kernel.variable_count + request.argument_count);
    for (uint32_t i = 0; i < kernel.variable_count; ++i) {
        const ModuleVariable& variable = kernel.variables[i];
        storage.emplace_back(variable.size);
        if (variable.initial) std::memcpy(storage.back().data(), variable.initial, variable.size);
        run.windows[kFirstWindow + i] = {storage.back().data(), variable.size, nullptr, !variable.constant};
    }
    for (uint32_t i = 0; i < kernel.reference_count; ++i) {
        const ModuleReference& reference = kernel.references[i];
        std::memcpy(storage[reference.variable].data() + reference.offset, &reference.value, sizeof reference.value);
    }
    for (uint64_t i = 0; i < request.argument_count; ++i) {
        const Argument& argument = request.arguments[i];
        run.windows[kFirstWindow + kernel.variable_count + i] = {static_cast<uint8_t*>(argument.data), argument.bytes,
                                                                 argument.writes, argument.writable != 0};
    }
    run.parameters.assign(request.parameters, request.parameters + request.parameter_bytes);
}

// Each stack ends in a page that nothing may touch: an overflow is a fault instead of another thread's registers.
inline bool map_stacks(Run& run, size_t threads) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    run.stack_bytes = (run.stack_bytes + page - 1) / page * page;
    const size_t each = run.stack_bytes + page;
    run.stack_total = each * threads;
    void* memory = mmap(nullptr, run.stack_total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    run.stacks = static_cast<uint8_t*>(memory);
    for (size_t i = 0; i < threads; ++i) mprotect(run.stacks + i * each, page, PROT_NONE);
    return true;
}

inline void prepare_fibers(Run& run) {
    Block& block = run.block;
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    for (uint32_t i = 0; i < run.fibers.size(); ++i) {
        Fiber& f = run.fibers[i];
        uint8_t* local = f.local;
        f = Fiber{};
        f.position[0] = i % block.threads[0];
        f.position[1] = i / block.threads[0] % block.threads[1];
        f.position[2] = i / block.threads[0] / block.threads[1];
        f.index = i;
        f.lane = i % 32;
        f.launch = &block;
        f.owner = &block;
        f.warp = &block.warps[i / 32];
        f.warp->fibers[f.lane] = &f;
        f.warp->present |= 1u << f.lane;
        f.local = local;
        f.stack_pointer = new_stack(run.stacks + (i + 1) * (run.stack_bytes + page), &f, run_fiber);
        make_ready(f);
    }
}

inline void prepare_block(Run& run) {
    Block& block = run.block;
    const size_t bytes = size_t{block.static_shared} + block.dynamic_shared;
    block.shared.assign(bytes, 0xA5);
    block.shared_written.assign(bytes, 0);
    if (run.kernel->asynchronous_proxy) {
        block.proxy.assign(bytes, 0xA5);
        block.proxy_written.assign(bytes, 0);
        block.owner.assign(bytes, 0);
    }
    block.memory_barriers.clear();
    for (Barrier& barrier : block.barriers) barrier = Barrier{};
    block.ready_warps = 0;
    block.current_warp = 0;
    block.alive = static_cast<uint32_t>(run.fibers.size());
    block.progress = block.idle_progress = block.idle_rounds = 0;
    block.clock = 0;
    for (uint32_t i = 0; i < block.warps.size(); ++i) {
        Warp& warp = block.warps[i];
        warp.block = &block;
        warp.number = i;
        warp.present = warp.exited = warp.ready = warp.meeting_count = 0;
        reset_warpgroup(warp);
    }
    prepare_fibers(run);
}

inline void run_block(Run& run) {
    prepare_block(run);
    Fiber* first = next_fiber(run.block);
    switch_stack(&run.main_stack, first->stack_pointer);
    if (!run.failure->happened) check_ends(run);
}

inline void run_grid(Run& run, const Request& request) {
    Block& block = run.block;
    for (uint64_t z = 0; z < request.grid[2]; ++z) {
        for (uint64_t y = 0; y < request.grid[1]; ++y) {
            for (uint64_t x = 0; x < request.grid[0]; ++x) {
                block.block[0] = static_cast<uint32_t>(x);
                block.block[1] = static_cast<uint32_t>(y);
                block.block[2] = static_cast<uint32_t>(z);
                block.steps = request.steps;
                run_block(run);
                if (run.failure->happened) return;
            }
        }
    }
}

}  // namespace emu

// 0: done; 1: the failure says what happened; 2: no memory for the stacks.
extern "C" __attribute__((visibility("default"))) int emu_run(const emu::Request* request, emu::Failure* failure) {
    using namespace emu;
    const size_t threads = request->threads[0] * request->threads[1] * request->threads[2];
    std::vector<std::vector<uint8_t>> storage;
    storage.reserve(emu_kernel.variable_count);
    std::vector<uint8_t> local(threads * emu_kernel.local_bytes, 0xFF);
    auto run = std::make_unique<Run>();
    run->kernel = &emu_kernel;
    run->failure = failure;
    run->order = static_cast<uint32_t>(request->order);
    run->random = 0x9E3779B97F4A7C15ull * (request->order + 1);
    run->counters = request->counters;
    run->stack_bytes = request->stack_bytes;
    map_windows(*run, *request, storage);
    if (!map_stacks(*run, threads)) return 2;
    run->fibers.resize(threads);
    for (size_t i = 0; i < threads; ++i) run->fibers[i].local = local.data() + i * emu_kernel.local_bytes;
    Block& block = run->block;
    block.run = run.get();
    for (int i = 0; i < 3; ++i) {
        block.threads[i] = static_cast<uint32_t>(request->threads[i]);
        block.blocks[i] = static_cast<uint32_t>(request->grid[i]);
    }
    block.static_shared = emu_kernel.static_shared;
    block.dynamic_shared = static_cast<uint32_t>(request->dynamic_shared);
    block.warps.resize((threads + 31) / 32);
    run_grid(*run, *request);
    munmap(run->stacks, run->stack_total);
    return failure->happened ? 1 : 0;
}

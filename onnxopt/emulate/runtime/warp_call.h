// What a function that computes a warp-wide instruction is given. Included by matrix.h and warpgroup.h.
#pragma once

#include <cstdint>

namespace emu {

struct Warp;

// One instruction that the lanes of `lanes` execute together; entries of other lanes are null.
struct WarpCall {
    Warp* warp;
    uint32_t line;
    uint32_t lanes;
    const uint32_t* in[32];
    uint32_t* out[32];

    // Checked accesses to shared memory in the name of a lane. An error ends the run and does not return.
    void load_shared(int lane, uint32_t address, void* destination, uint32_t bytes) const;
    void store_shared(int lane, uint32_t address, const void* source, uint32_t bytes) const;
    // Ends the run with a message, in the name of a lane.
    [[noreturn]] void fail(int lane, const char* message) const;
};

// One wgmma.mma_async of one warp, when it is carried out.
struct WarpgroupCall {
    Warp* warp;
    uint32_t line;
    int rank;
    uint32_t (*d)[32];
    const uint32_t (*a)[32];
    uint64_t a_descriptor;
    uint64_t b_descriptor;
    bool scale_d;
    int32_t immediates[6];

    // Reads what the asynchronous proxy sees. An error ends the run and does not return.
    void read_shared(uint32_t address, void* destination, uint32_t bytes) const;
    [[noreturn]] void fail(const char* message) const;
};

}  // namespace emu

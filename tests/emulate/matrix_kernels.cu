// Kernels that do nothing but move matrices and multiply them, by the instructions themselves.

__device__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

#ifdef PRODUCT
// d = a b + c of one warp: a 16 x 16 and b 16 x 8 by ldmatrix from shared memory, d as each lane holds it.
extern "C" __global__ void multiply(const uint4* a, const uint4* b, const float4* c, float4* d) {
    __shared__ uint4 left[32], right[16];
    const unsigned lane = threadIdx.x;
    left[lane] = a[lane];
    if (lane < 16) right[lane] = b[lane];
    __syncwarp();
    unsigned x[4], y[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(left + lane % 16 * 2 + lane / 16)));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(y[0]), "=r"(y[1])
                 : "r"(shared_address(right + lane % 16)));
    float4 sum = c[lane];
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    d[lane] = sum;
}

#endif

#ifdef TRANSPOSE
// An 8 x 8 matrix of 16-bit elements, transposed three ways: by the load, between the lanes, by the store.
extern "C" __global__ void transpose(const uint4* a, uint4* by_load, uint4* by_move, uint4* by_store) {
    __shared__ uint4 rows[8], again[8];
    const unsigned lane = threadIdx.x;
    if (lane < 8) rows[lane] = a[lane];
    __syncwarp();
    unsigned x, y, z;
    const unsigned row = shared_address(rows + lane % 8), target = shared_address(again + lane % 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(x) : "r"(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(y) : "r"(row));
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(z) : "r"(y));
    reinterpret_cast<unsigned*>(by_load)[lane] = x;
    reinterpret_cast<unsigned*>(by_move)[lane] = z;
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(target), "r"(y) : "memory");
    __syncwarp();
    if (lane < 8) by_store[lane] = again[lane];
#else
    reinterpret_cast<unsigned*>(by_store)[lane] = x;
    (void)target;
#endif
}
#endif

#ifdef WARPGROUP
// d = a b of one warpgroup, 64 x 16 STEPS by 16 STEPS x 16: rows of 128 bytes, swizzled, both K-major.
__device__ unsigned long long descriptor(unsigned address) {
    return (address & 0x3ffff) >> 4 | 1ull << 16 | 1024ull >> 4 << 32 | 1ull << 62;
}

__device__ void put_swizzled(char* tile, const uint4* matrix, int chunks) {
    for (int i = threadIdx.x; i < chunks; i += 128) {
        const int row = i / 8, chunk = i % 8;
        *reinterpret_cast<uint4*>(tile + 128 * row + 16 * (chunk ^ row % 8)) = matrix[i];
    }
}

extern "C" __global__ void __launch_bounds__(128) multiply_warpgroup(const uint4* a, const uint4* b, float* d) {
    extern __shared__ __align__(1024) char tiles[];
    put_swizzled(tiles, a, 64 * 8);
    put_swizzled(tiles + 8192, b, 16 * 8);
#ifndef NO_PROXY_FENCE
    asm volatile("fence.proxy.async;" ::: "memory");
#endif
    __syncthreads();
    float sum[8];
    const unsigned long long left = descriptor(shared_address(tiles)), right = descriptor(shared_address(tiles + 8192));
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int step = 0; step < 4; ++step)
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %10, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k16.f32." KIND "." KIND
            " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, 0, 0; }"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]), "+f"(sum[6]),
              "+f"(sum[7])
            : "l"(left + 2 * step), "l"(right + 2 * step), "r"(step));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#ifndef NO_WAIT
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
    for (int i = 0; i < 8; ++i) d[8 * threadIdx.x + i] = sum[i];
}
#endif

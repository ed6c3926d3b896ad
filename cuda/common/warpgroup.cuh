// Products by four warps at once (wgmma, sm_90a): the instructions, how their operands lie in shared memory, and the
// registers that a block's warps share out among themselves.
#pragma once

#include "common/element.cuh"

constexpr int kWarpgroupThreads = 128;

// The number of this thread's warpgroup; the shuffle tells the compiler that its warp agrees.
DEVICE int warpgroup_number() {
    return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0);
}

// All warps of a warpgroup change together how many registers a thread of it has, 24 to 256 in eights. To take more
// waits until other warpgroups of the block have given enough.
template <int kRegisters>
DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Before the first product of a group: what this thread has written to accumulators and fragments is visible to it.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most kPending groups, the latest, are unfinished.
template <int kPending>
DEVICE void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define ONNXOPT_FOUR(n) "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])

// Products write registers behind the compiler's back: nothing may use an accumulator between the issue and the wait.
// This keeps its uses on their side of either.
template <int kBlocks>
DEVICE void pin(float (&sums)[kBlocks][4]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        asm volatile("" : ONNXOPT_FOUR(block)::"memory");
    }
}

DEVICE void store_word(unsigned shared, unsigned word) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared), "r"(word) : "memory");
}

// How a matrix of 16-bit elements lies in shared memory for wgmma: blocks of kBlock columns one after the other, each
// a column of rows of kPitch bytes. Read along its columns it is K-major, read across it is MN-major: keys and values
// lie alike.
//
// The 16-byte chunks of a row are exchanged by the address bits from 7 on. Eight neighbouring rows of one column of
// chunks, which is what the matrix unit reads at once, so lie in all 32 banks (for kBlock 64; in 4 rows of 128 bytes
// for 32, and so on), and so do the eight chunks of a row that eight neighbouring threads copy.
template <int kRows_, int kColumns_>
struct MatrixTile {
    static constexpr int kRows = kRows_, kColumns = kColumns_;
    static_assert(kRows % 8 == 0 && kColumns % 8 == 0, "tiles are made of 8 x 8 matrices");
    static constexpr int kBlock = kColumns % 64 == 0 ? 64 : kColumns % 32 == 0 ? 32 : kColumns % 16 == 0 ? 16 : 8;
    static constexpr int kPitch = 2 * kBlock;
    static constexpr int kBlockBytes = kRows * kPitch;
    static constexpr int kBytes = kBlockBytes * (kColumns / kBlock);
    static constexpr int kDepth = 16;  // elements along the sum of one product
    // Where the exchange of chunks starts anew: tiles begin at a multiple of it.
    static constexpr int kAlignment = 8 * kPitch;

    unsigned address;

    // Where the chunk of eight elements from column 8 * chunk on of a row lies.
    DEVICE unsigned chunk(int row, int chunk) const {
        constexpr int kBlockChunks = kBlock / 8;
        const int within = chunk % kBlockChunks;
        const int exchanged = within ^ (row * kPitch / 128 % kBlockChunks);
        return address + chunk / kBlockChunks * kBlockBytes + row * kPitch + exchanged * 16;
    }

    // The operand whose sum runs along the columns: 16 columns from column 16 * step on, all rows from `row` on.
    DEVICE unsigned long long along(int step, int row = 0) const {
        constexpr int kSteps = kBlock / kDepth;
        static_assert(kSteps > 0, "a product sums 16 columns");
        return descriptor(step / kSteps * kBlockBytes + row * kPitch + step % kSteps * 2 * kDepth, kBlockBytes);
    }

    // The operand whose sum runs down the rows: 16 rows from row 16 * step on, all columns from `column` on, a multiple
    // of the block.
    DEVICE unsigned long long across(int step, int column = 0) const {
        // Without exchange the two strides change their meaning; with one block there is no second one to tell.
        constexpr int kLeading = kBlock == 8 ? 8 * kPitch : kBlockBytes;
        static_assert(kBlock != 8 || kColumns == 8, "a narrow tile is one block wide");
        return descriptor(column / kBlock * kBlockBytes + step * kDepth * kPitch, kLeading);
    }

private:
    // Address, distance of blocks, distance of groups of eight rows, all in 16 bytes, and the kind of exchange.
    DEVICE unsigned long long descriptor(int offset, int leading) const {
        constexpr unsigned kExchange = kBlock == 64 ? 1 : kBlock == 32 ? 2 : kBlock == 16 ? 3 : 0;
        const unsigned low = (address + offset) >> 4 | static_cast<unsigned>(leading >> 4) << 16;
        const unsigned high = (8 * kPitch) >> 4 | kExchange << 30;
        return static_cast<unsigned long long>(high) << 32 | low;
    }
};

// One product of 64 rows, kColumns columns and depth 16 onto the sums of a warpgroup, in fp32. Warp w of the four has
// rows 16 * w to 16 * w + 15, and of these lane 4 * g + t rows g (elements 0 and 1) and g + 8 (2 and 3), of every block
// of eight columns 2 * t and 2 * t + 1. `accumulate` false starts from zero.
//   shared: both operands are descriptors; kAcrossA and kAcrossB say that MatrixTile::across made them.
//   fragment: the left one is in registers, as the sums of 16 columns lie, two neighbours a register.
template <int kColumns>
struct WarpgroupProduct;

// The accumulators' names in the instruction's text, and the operands that they stand for.
#define ONNXOPT_LIST_8 "%0,%1,%2,%3"
#define ONNXOPT_LIST_16 ONNXOPT_LIST_8 ",%4,%5,%6,%7"
#define ONNXOPT_LIST_32 ONNXOPT_LIST_16 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define ONNXOPT_LIST_48 ONNXOPT_LIST_32 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define ONNXOPT_LIST_64 ONNXOPT_LIST_48 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define ONNXOPT_LIST_80 ONNXOPT_LIST_64 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define ONNXOPT_LIST_96 ONNXOPT_LIST_80 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define ONNXOPT_LIST_112 ONNXOPT_LIST_96 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define ONNXOPT_LIST_128 ONNXOPT_LIST_112 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define ONNXOPT_LIST_144 ONNXOPT_LIST_128 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define ONNXOPT_LIST_160 ONNXOPT_LIST_144 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define ONNXOPT_LIST_176 ONNXOPT_LIST_160 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define ONNXOPT_LIST_192 ONNXOPT_LIST_176 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define ONNXOPT_LIST_208 ONNXOPT_LIST_192 ",%96,%97,%98,%99,%100,%101,%102,%103"
#define ONNXOPT_LIST_224 ONNXOPT_LIST_208 ",%104,%105,%106,%107,%108,%109,%110,%111"
#define ONNXOPT_LIST_240 ONNXOPT_LIST_224 ",%112,%113,%114,%115,%116,%117,%118,%119"
#define ONNXOPT_LIST_256 ONNXOPT_LIST_240 ",%120,%121,%122,%123,%124,%125,%126,%127"

#define ONNXOPT_SUMS_8 ONNXOPT_FOUR(0)
#define ONNXOPT_SUMS_16 ONNXOPT_FOUR(0), ONNXOPT_FOUR(1)
#define ONNXOPT_SUMS_32 ONNXOPT_SUMS_16, ONNXOPT_FOUR(2), ONNXOPT_FOUR(3)
#define ONNXOPT_SUMS_48 ONNXOPT_SUMS_32, ONNXOPT_FOUR(4), ONNXOPT_FOUR(5)
#define ONNXOPT_SUMS_64 ONNXOPT_SUMS_48, ONNXOPT_FOUR(6), ONNXOPT_FOUR(7)
#define ONNXOPT_SUMS_80 ONNXOPT_SUMS_64, ONNXOPT_FOUR(8), ONNXOPT_FOUR(9)
#define ONNXOPT_SUMS_96 ONNXOPT_SUMS_80, ONNXOPT_FOUR(10), ONNXOPT_FOUR(11)
#define ONNXOPT_SUMS_112 ONNXOPT_SUMS_96, ONNXOPT_FOUR(12), ONNXOPT_FOUR(13)
#define ONNXOPT_SUMS_128 ONNXOPT_SUMS_112, ONNXOPT_FOUR(14), ONNXOPT_FOUR(15)
#define ONNXOPT_SUMS_144 ONNXOPT_SUMS_128, ONNXOPT_FOUR(16), ONNXOPT_FOUR(17)
#define ONNXOPT_SUMS_160 ONNXOPT_SUMS_144, ONNXOPT_FOUR(18), ONNXOPT_FOUR(19)
#define ONNXOPT_SUMS_176 ONNXOPT_SUMS_160, ONNXOPT_FOUR(20), ONNXOPT_FOUR(21)
#define ONNXOPT_SUMS_192 ONNXOPT_SUMS_176, ONNXOPT_FOUR(22), ONNXOPT_FOUR(23)
#define ONNXOPT_SUMS_208 ONNXOPT_SUMS_192, ONNXOPT_FOUR(24), ONNXOPT_FOUR(25)
#define ONNXOPT_SUMS_224 ONNXOPT_SUMS_208, ONNXOPT_FOUR(26), ONNXOPT_FOUR(27)
#define ONNXOPT_SUMS_240 ONNXOPT_SUMS_224, ONNXOPT_FOUR(28), ONNXOPT_FOUR(29)
#define ONNXOPT_SUMS_256 ONNXOPT_SUMS_240, ONNXOPT_FOUR(30), ONNXOPT_FOUR(31)

#define ONNXOPT_SHARED(n, type, o0, o1, o2, o3, o4)                                                         \
    asm volatile(                                                                                           \
        "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " o2 ", 0;\n"                                   \
        "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" ONNXOPT_LIST_##n "}, " o0 ", " \
        o1 ", accumulate, 1, 1, " o3 ", " o4 ";\n}"                                                         \
        : ONNXOPT_SUMS_##n                                                                                  \
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kAcrossA ? 1 : 0), "n"(kAcrossB ? 1 : 0))

#define ONNXOPT_FRAGMENT(n, type, o0, o1, o2, o3, o4, o5, o6)                                                     \
    asm volatile(                                                                                                 \
        "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " o5 ", 0;\n"                                         \
        "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" ONNXOPT_LIST_##n "}, {" o0 "," o1    \
        "," o2 "," o3 "}, " o4 ", accumulate, 1, 1, " o6 ";\n}"                                                   \
        : ONNXOPT_SUMS_##n                                                                                        \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kAcrossB ? 1 : 0))

// The operands' numbers follow those of the accumulators.
#define ONNXOPT_WGMMA(n, o0, o1, o2, o3, o4, o5, o6)                                                          \
    template <>                                                                                               \
    struct WarpgroupProduct<n> {                                                                              \
        template <Element kElement, bool kAcrossA, bool kAcrossB>                                             \
        static DEVICE void shared(float (&sums)[n / 8][4], unsigned long long a, unsigned long long b,           \
                                  bool accumulate) {                                                          \
            if constexpr (kElement == Element::fp16) {                                                        \
                ONNXOPT_SHARED(n, "f16", o0, o1, o2, o3, o4);                                                 \
            } else {                                                                                          \
                ONNXOPT_SHARED(n, "bf16", o0, o1, o2, o3, o4);                                                \
            }                                                                                                 \
        }                                                                                                     \
        template <Element kElement, bool kAcrossB>                                                            \
        static DEVICE void fragment(float (&sums)[n / 8][4], const unsigned (&a)[4], unsigned long long b,       \
                                    bool accumulate) {                                                        \
            if constexpr (kElement == Element::fp16) {                                                        \
                ONNXOPT_FRAGMENT(n, "f16", o0, o1, o2, o3, o4, o5, o6);                                       \
            } else {                                                                                          \
                ONNXOPT_FRAGMENT(n, "bf16", o0, o1, o2, o3, o4, o5, o6);                                      \
            }                                                                                                 \
        }                                                                                                     \
    };

ONNXOPT_WGMMA(8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
ONNXOPT_WGMMA(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
ONNXOPT_WGMMA(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
ONNXOPT_WGMMA(48, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
ONNXOPT_WGMMA(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
ONNXOPT_WGMMA(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
ONNXOPT_WGMMA(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
ONNXOPT_WGMMA(112, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
ONNXOPT_WGMMA(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
ONNXOPT_WGMMA(144, "%72", "%73", "%74", "%75", "%76", "%77", "%78")
ONNXOPT_WGMMA(160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
ONNXOPT_WGMMA(176, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
ONNXOPT_WGMMA(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
ONNXOPT_WGMMA(208, "%104", "%105", "%106", "%107", "%108", "%109", "%110")
ONNXOPT_WGMMA(224, "%112", "%113", "%114", "%115", "%116", "%117", "%118")
ONNXOPT_WGMMA(240, "%120", "%121", "%122", "%123", "%124", "%125", "%126")
ONNXOPT_WGMMA(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef ONNXOPT_WGMMA
#undef ONNXOPT_FRAGMENT
#undef ONNXOPT_SHARED
#undef ONNXOPT_FOUR

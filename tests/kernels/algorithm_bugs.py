"""Bugs to plant into the kernels of the convolution algorithms, one at a time: each must be noticed on the CPU."""

from __future__ import annotations

from tests.kernels.planted_bugs import Bug

_FOLDER = "conv/algorithms"

BUGS = (
    Bug(
        "barrier in front of the next step",
        "product",
        f"{_FOLDER}/conv_product.cu",
        "        __syncthreads();\n        const int next",
        "        const int next",
    ),
    Bug(
        "copies are not waited for",
        "product",
        f"{_FOLDER}/conv_product.cu",
        "wait_copies<kStages - 2>();",
        "wait_copies<kStages>();",
    ),
    Bug(
        "depth one row too long",
        "product",
        f"{_FOLDER}/product_copies.cuh",
        "const bool present = depth < kDepth &&",
        "const bool present = depth <= kDepth &&",
    ),
    Bug(
        "rows of the neighbouring granule",
        "product",
        f"{_FOLDER}/conv_product.cu",
        "16 * granule + 8 * half",
        "16 * granule + 4 * half",
    ),
    Bug(
        "patch is overwritten while it is read",
        "direct",
        f"{_FOLDER}/conv_direct.cu",
        "if (first > 0) __syncthreads();",
        "",
    ),
    Bug(
        "dilation along the width is left out",
        "direct",
        f"{_FOLDER}/patch.cuh",
        "step + tap * kDilations.w",
        "step + tap",
    ),
    Bug(
        "a slice loses its last channel",
        "slices",
        f"{_FOLDER}/conv_slices.cu",
        "input < end;",
        "input < end - 1;",
    ),
    Bug(
        "padding in front of the height",
        "unfold",
        f"{_FOLDER}/geometry.cuh",
        "position.h * kStrides.h - kPads.h",
        "position.h * kStrides.h - kPads.w",
    ),
    Bug(
        "sign in the input's transform",
        "winograd",
        f"{_FOLDER}/winograd.cuh",
        "d[2 * kStride] = d2 - d1;",
        "d[2 * kStride] = d2 + d1;",
    ),
    Bug(
        "shift of the next tap",
        "kn2row",
        f"{_FOLDER}/conv_shift_add.cu",
        "place_in(kKernel, tap)",
        "place_in(kKernel, tap ^ 1)",
    ),
    Bug(
        "planes of the neighbouring input",
        "scalar",
        f"{_FOLDER}/conv_scalar.cu",
        "w + input)",
        "w + (input ^ 1))",
    ),
    Bug(
        "residual behind the activation",
        "scalar",
        f"{_FOLDER}/epilogue.cuh",
        "return activated<kActivation>(kResidual ? sum + added + residue : sum + added);",
        "return activated<kActivation>(sum + added) + residue;",
    ),
)

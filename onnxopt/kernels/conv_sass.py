"""What can be said about a convolution kernel's machine code without running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.cubin import capability
from onnxopt.kernels.sass import check_instructions, product_instructions


def check_conv_sass(compiled: CompiledKernel, kernel: Mapping[str, Any]) -> list[str]:
    """What the machine code of a convolution kernel has but must not have, or lacks; empty where all is well.

    ``kernel`` is that part of the configuration. There is no access to local memory; products are the matrix
    instructions of the path, multiply-adds in the ordinary lanes; from sm_80 on, ``mma`` and ``wgmma`` copy packed
    weights asynchronously, 16 bytes a time; 16-bit operands of ``mma`` are read by ldmatrix. Raises as
    :func:`onnxopt.kernels.sass.instructions` does.
    """
    path = kernel["variants"][0]["path"]
    wanted = product_instructions(compiled.architecture, kernel["element"], path)
    if path != "lanes" and capability(compiled.architecture) >= 80:
        wanted["LDGSTS"] = "weights are not copied asynchronously"
    return check_instructions(compiled, wanted)

"""One run of a kernel's PTX on the CPU for each order of lanes: the frame that checks of convolution kernels share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.launch import Launch
from onnxopt.verification.kernel_rule import Judgement

Array = npt.NDArray[Any]


def judged_runs(
    compiled: CompiledKernel,
    launch: Launch,
    names: Sequence[str],
    given: Mapping[str, Any],
    output: Callable[[], Array],
    judge: Callable[[Uninitialised], Judgement],
    orders: Sequence[int],
    cache: Path | None,
) -> tuple[Judgement, ...]:
    """A judgement of the output for each of ``orders``.

    ``names`` are the kernel's parameters, the last of which is its output; ``given`` has all others, and ``batch`` as a
    number. ``output`` makes a new output, whose elements count as unwritten. Raises
    :class:`onnxopt.OnnxOptError` with the PTX's line where the kernel reads or writes what it must not, diverges or
    does not end.
    """
    runner = build_cpu_kernel(compiled.ptx, compiled.source.entry, cache)
    values = {**given, "batch": np.int32(given["batch"])}
    judgements = []
    for order in orders:
        fresh = Uninitialised(output())
        runner.run(
            grid=(launch.grid, 1, 1),
            block=(launch.block, 1, 1),
            shared_bytes=launch.shared_bytes,
            arguments=[*(values[name] for name in names[:-1]), fresh],
            order=order,
        )
        judgements.append(judge(fresh))
    return tuple(judgements)

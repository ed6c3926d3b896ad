"""One run of a kernel's PTX on the CPU for each order of lanes: the frame that checks of convolution kernels share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.launch import Launch
from onnxopt.kernels.source import KernelSource, others_of
from onnxopt.verification.kernel_rule import Judgement

Array = npt.NDArray[Any]

OTHER = "other"
"""Stands in a list of parameters for a table of another kernel."""


def among_others(names: Sequence[str], tables: Collection[str], source: KernelSource) -> tuple[str, ...]:
    """A kernel's parameters with :data:`OTHER` for each table of other kernels that its source is compiled for.

    ``names`` are its own, with ``batch`` behind the inputs, of which ``tables`` come last.
    """
    before, after = others_of(source)
    batch = names.index("batch")
    first = next((place for place, name in enumerate(names[:batch]) if name in tables), batch)
    return (*names[:first], *[OTHER] * before, *names[first:batch], *[OTHER] * after, *names[batch:])


def no_table() -> Array:
    """What is given for :data:`OTHER`: memory without a byte, so that the run says who reads there."""
    return np.empty(0, np.uint8)


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

    ``names`` are the kernel's parameters, the last of which is its output; ``given`` has all others that are its own,
    and ``batch`` as a number. ``output`` makes a new output, whose elements count as unwritten. Raises
    :class:`onnxopt.OnnxOptError` with the PTX's line where the kernel reads or writes what it must not, diverges or
    does not end.
    """
    runner = build_cpu_kernel(compiled.ptx, compiled.source.entry, cache)
    values = {**given, OTHER: no_table(), "batch": np.int32(given["batch"])}
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

"""The CPU runner of PTX in place of a GPU: a dry run of a job, which shows everything but time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.measure.job.device import Launch

Array = npt.NDArray[Any]


class Emulated:
    """A device whose memory is NumPy's; kernels are given as PTX."""

    architecture = "emulated"

    def __init__(self, cache: Path | None = None, order: int = 0) -> None:
        self.cache, self.order = cache, order
        self._written: set[int] = set()

    def describe(self) -> dict[str, Any]:
        return {"gpu": "none: emulated on the CPU", "architecture": self.architecture}

    def upload(self, array: Array, *, output: bool = False) -> Any:
        copy = np.array(array, order="C")
        return Uninitialised(copy) if output else copy

    def download(self, handle: Any, like: Array) -> Array:
        array = handle.array if isinstance(handle, Uninitialised) else handle
        return np.array(array)

    def release(self) -> None:
        """Nothing: arrays are freed where nobody holds them."""

    def run(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            build_cpu_kernel(launch.code.decode(), launch.entry, self.cache).run(
                grid=(launch.grid, 1, 1),
                block=(launch.block, 1, 1),
                shared_bytes=launch.shared_bytes,
                arguments=[self._argument(value) for value in launch.arguments],
                order=self.order,
            )
            self._written |= {id(value) for value in launch.arguments if isinstance(value, Uninitialised)}

    def _argument(self, value: Any) -> Any:
        """What an earlier kernel has written is the next one's input."""
        return value.array if id(value) in self._written else value

    def microseconds(self, launches: Sequence[Launch], replays: int) -> list[float] | None:
        return None

"""What a bucket of strips costs in standard operators, in microseconds: a few rates, good enough to rank schedules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.target import CpuProfile, GpuProfile

# What batched products of at least so many rows reach of the CPU's peak; with fewer, proportionally less.
_PRODUCT_SHARE = 0.5
_FULL_ROWS = 16.0
# Softmax and Gather over short rows, against the long rows that the profile's rates were measured on.
_SHORT_ROW_SHARE = 0.36
_NODES_PER_BUCKET = 8
_NODE_US = 6.0


@dataclass(frozen=True)
class CpuRates:
    """Operations a microsecond for the whole CPU."""

    flops: float
    exponentials: float
    moved_bytes: float
    gathered_bytes: float
    peak_flops: float
    peak_exponentials: float

    @classmethod
    def of(cls, cpu: CpuProfile) -> CpuRates:
        """The rates that a CPU's profile implies for strips."""
        return cls(
            flops=cpu.fp32_flops * _PRODUCT_SHARE / 1e6,
            exponentials=cpu.exponentials_per_second * _SHORT_ROW_SHARE / 1e6,
            moved_bytes=cpu.memory_bytes_per_second / 1e6,
            gathered_bytes=cpu.gather_bytes_per_second * _SHORT_ROW_SHARE / 1e6,
            peak_flops=cpu.fp32_flops / 1e6,
            peak_exponentials=cpu.exponentials_per_second / 1e6,
        )

    def attention(
        self,
        strips: np.ndarray,
        rows: np.ndarray,
        keys: np.ndarray,
        width: int,
        value_width: int,
        masked: bool,
    ) -> np.ndarray:
        """Gather, score, normalise and combine ``strips`` strips of ``rows`` x ``keys``; arrays of equal length."""
        pairs = strips * rows * keys
        flops = 2.0 * pairs * (width + value_width) * np.maximum(1.0, _FULL_ROWS / np.maximum(rows, 1))
        gathered = 8.0 * strips * (rows + keys) * (width + value_width)
        result = flops / self.flops + pairs / self.exponentials + gathered / self.gathered_bytes
        if masked:
            result = result + 12.0 * pairs / self.moved_bytes
        return np.asarray(result + _NODES_PER_BUCKET * _NODE_US)

    def attention_bound(self, pairs: int, rows: int, width: int, value_width: int) -> float:
        """What ``pairs`` needed pairs take at peak rates: products and exponentials, and queries and results once."""
        arithmetic = 2.0 * pairs * (width + value_width) / self.peak_flops + pairs / self.peak_exponentials
        return max(arithmetic, 4.0 * rows * (width + value_width) / self.moved_bytes)


# An engine's kernels for a bucket: three gathers, two products, softmax; a mask joins the softmax.
_KERNELS_PER_BUCKET = 6
_ENGINE_PRODUCT_SHARE = 0.5
# Scores are written, read and written by the softmax, and read by the second product; a mask is read too.
_SCORE_PASSES = 4.0


@dataclass(frozen=True)
class GpuRates:
    """Operations a microsecond for the whole GPU, in a type of ``element_bytes``."""

    flops: float
    exponentials: float
    moved_bytes: float
    launch_us: float
    element_bytes: int

    @classmethod
    def of(cls, gpu: GpuProfile, element_bytes: int = 2) -> GpuRates:
        """The rates that a GPU's profile implies for strips that an engine computes kernel by kernel."""
        return cls(
            flops=gpu.fp16_flops * _ENGINE_PRODUCT_SHARE / 1e6,
            exponentials=gpu.exponentials_per_second / 1e6,
            moved_bytes=gpu.memory_bytes_per_second / 1e6,
            launch_us=gpu.launch_seconds * 1e6,
            element_bytes=element_bytes,
        )

    def attention(
        self,
        strips: np.ndarray,
        rows: np.ndarray,
        keys: np.ndarray,
        width: int,
        value_width: int,
        masked: bool,
    ) -> np.ndarray:
        """Gather, score, normalise and combine ``strips`` strips of ``rows`` x ``keys``; arrays of equal length."""
        pairs = strips * rows * keys
        gathered = 2.0 * strips * (rows + keys) * (width + value_width)
        passes = _SCORE_PASSES + (1.0 if masked else 0.0)
        arithmetic = 2.0 * pairs * (width + value_width) / self.flops + pairs / self.exponentials
        moved = self.element_bytes * (gathered + passes * pairs) / self.moved_bytes
        return np.asarray(arithmetic + moved + _KERNELS_PER_BUCKET * self.launch_us)

    def attention_bound(self, pairs: int, rows: int, width: int, value_width: int) -> float:
        """What ``pairs`` needed pairs take at peak rates: products and exponentials, and queries and results once."""
        arithmetic = 2.0 * pairs * (width + value_width) / (self.flops / _ENGINE_PRODUCT_SHARE)
        moved = self.element_bytes * rows * (width + value_width) / self.moved_bytes
        return max(arithmetic, pairs / self.exponentials, moved)

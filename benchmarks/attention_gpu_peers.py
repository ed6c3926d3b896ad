"""What our attention kernels are measured beside on a GPU: PyTorch's own attentions on the same queries and masks.

Peers get operands that already lie as they like them (batch x heads x rows x channels, contiguous), so that gathering
counts for us alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# A dense mask of more pairs is not made: it would need gigabytes.
MOST_PAIRS = 6_000_000_000


@dataclass(frozen=True)
class Logical:
    """An operator's attention without its tables: offsets of each head's queries, keys and values, and which pairs.

    ``needed`` is heads x queries x keys. ``bias`` says that some tiles add a bias, which peers add with the mask.
    """

    queries: Array
    keys: Array
    values: Array
    needed: Array
    biased: bool


def logical(kernel: Mapping[str, Any], tables: Mapping[str, Array]) -> Logical | str:
    """The attention that the tables describe, or why peers cannot compute it."""
    jobs = tables["jobs"]
    if kernel["weights"] or kernel["own_values"] or any(kernel[name][1] != 1 for name in "qkv"):
        return "run-time weights, values of their own, or channels first"
    jobs = jobs[jobs[:, 5] > 0]
    heads = [_Head(kernel, tables, jobs[jobs[:, 1] == head]) for head in range(kernel["heads"])]
    sizes = {(len(head.queries), len(head.keys)) for head in heads}
    if len(sizes) > 1:
        return "heads of different sizes"
    ((rows, keys),) = sizes
    if kernel["heads"] * rows * keys > MOST_PAIRS:
        return f"a dense mask of {kernel['heads'] * rows * keys:,} pairs"
    if any(head.repeated for head in heads):
        return "keys that a row needs several times"
    return Logical(
        np.stack([head.queries for head in heads]),
        np.stack([head.keys for head in heads]),
        np.stack([head.values for head in heads]),
        np.stack([head.needed() for head in heads]),
        bool(kernel["biases"]),
    )


class _Head:
    """One head's distinct queries and keys by their absolute offsets, and its jobs."""

    def __init__(self, kernel: Mapping[str, Any], tables: Mapping[str, Array], jobs: Array) -> None:
        self.kernel, self.tables, self.jobs = kernel, tables, jobs
        self.queries = np.unique(np.concatenate([self._rows(job) for job in jobs]))
        listed = [self._keys(job) for job in jobs]
        self.keys, first = np.unique(np.concatenate(listed), return_index=True)
        self.values = np.concatenate([own - job[9] + job[10] for own, job in zip(listed, jobs, strict=True)])[first]
        self.repeated = any(len(np.unique(own)) < len(own) for own in listed)

    def _rows(self, job: Array) -> Array:
        return self.tables["rows"][job[2] : job[2] + job[3]].astype(np.int64) + job[8]

    def _keys(self, job: Array) -> Array:
        return self.tables["keys"][job[4] : job[4] + job[5]].astype(np.int64) + job[9]

    def needed(self) -> Array:
        result = np.zeros((len(self.queries), len(self.keys)), bool)
        for job in self.jobs:
            rows = np.searchsorted(self.queries, self._rows(job))
            keys = np.searchsorted(self.keys, self._keys(job))
            result[rows[:, None], keys] |= _mask(self.kernel, self.tables, job)
        return result


def _mask(kernel: Mapping[str, Any], tables: Mapping[str, Array], job: Array) -> Array:
    """Rows x keys of a job: which pairs are needed."""
    variant, rows, keys = kernel["variants"][job[0]], int(job[3]), int(job[5])
    needed = np.ones((rows, keys), bool)
    for tile, first in enumerate(range(0, keys, variant["keys"])):
        begin = tables["tiles"][job[7] + tile, 0] if "tiles" in tables else -1
        if begin < 0:
            continue
        count = min(variant["keys"], keys - first)
        tall, wide, granule = (
            (count, variant["rows"], variant["key_granule"])
            if variant["swapped"]
            else (rows, variant["keys"], variant["row_granule"])
        )
        tall, words = -(-tall // granule) * granule, -(-wide // 32)
        stored = tables["masks"][begin : begin + tall * words].reshape(tall, words).astype("<i4")
        bits = np.unpackbits(stored.view(np.uint8), axis=1, bitorder="little").astype(bool)
        needed[:, first : first + count] = (bits.T if variant["swapped"] else bits)[:rows, :count]
    return needed


def peers(
    torch: Any, work: Logical, operands: Any, kernel: Mapping[str, Any], device: str
) -> Iterator[tuple[str, Any]]:
    """Names and functions without arguments, each one attention of PyTorch; the ones that cannot run are left out.

    The mask of a dense attention is additive and in the compute type; FlexAttention gets a block mask.
    """
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(kernel["element"], torch.float32)
    q, k, v = (_gathered(torch, *pair, device, kind) for pair in _pairs(work, operands, kernel))
    scale = kernel["width"] ** -0.5
    needed = torch.from_numpy(work.needed).to(device)[None]
    additive = torch.zeros(needed.shape, dtype=kind, device=device).masked_fill_(~needed, float("-inf"))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    backends = torch.nn.attention.SDPBackend
    for name, backend, mask in (
        ("SDPA flash, dense, no mask", backends.FLASH_ATTENTION, None),
        ("SDPA cuDNN, dense, no mask", backends.CUDNN_ATTENTION, None),
        ("SDPA cuDNN, additive mask", backends.CUDNN_ATTENTION, additive),
        ("SDPA efficient, additive mask", backends.EFFICIENT_ATTENTION, additive),
        ("SDPA math, additive mask", backends.MATH, additive),
    ):
        yield name, _with_backend(torch, backend, lambda mask=mask: sdpa(q, k, v, attn_mask=mask, scale=scale))
    yield "FlexAttention, block mask", _flex(torch, q, k, v, needed, scale)


def _pairs(work: Logical, operands: Any, kernel: Mapping[str, Any]) -> list[tuple[Array, Array, int]]:
    return [
        (operands.q, work.queries, kernel["width"]),
        (operands.k, work.keys, kernel["width"]),
        (operands.v, work.values, kernel["value_width"]),
    ]


def _gathered(torch: Any, tensor: Array, offsets: Array, width: int, device: str, kind: Any) -> Any:
    """Batch x heads x rows x channels, contiguous."""
    places = offsets[..., None] + np.arange(width)
    return torch.from_numpy(np.ascontiguousarray(tensor[:, places])).to(device=device, dtype=kind)


def _with_backend(torch: Any, backend: Any, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.nn.attention.sdpa_kernel(backend):
            return call()

    return run


def _flex(torch: Any, q: Any, k: Any, v: Any, needed: Any, scale: float) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    allowed = needed[0]

    def mask_of(batch: Any, head: Any, row: Any, key: Any) -> Any:
        return allowed[head, row, key]

    heads, rows, keys = allowed.shape
    blocks = create_block_mask(mask_of, 1, heads, rows, keys, device=str(q.device))
    compiled = torch.compile(flex_attention) if q.is_cuda else flex_attention
    return lambda: compiled(q, k, v, block_mask=blocks, scale=scale)

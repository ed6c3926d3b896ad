"""Planning a block of convolutions for one kernel: which components share a job, how many rows, in which shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np

from onnxopt.discover.conv_site import IntArray
from onnxopt.errors import InputError
from onnxopt.plan.block.bundles import bundle, components, within
from onnxopt.plan.block.cost import BlockCost
from onnxopt.plan.block.tables import block_stages
from onnxopt.plan.block.types import BlockSchedule, BlockShape, BlockStage, Bundle
from onnxopt.plan.block.work import BlockWork
from onnxopt.plan.roofline import SMALL_SHARED_BYTES
from onnxopt.target.figures import GpuProfile
from onnxopt.target.variant import Element

# What a thread holds of one step, in eights of positions of x.
_MOST_PIECES = 4
_MOST_POSITIONS = 256
# A shape within the shared memory that every launch may have is taken where it is slower by no more than this.
_SMALL_SHARE = 1.02
# Numbers of bundles that are tried; more jobs than this have no multiprocessor of their own.
_BUNDLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)


class BlockPlans:
    """The best schedules of blocks, planned once for all that are of equal structure."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Element, int, int, int], list[BlockSchedule]] = {}

    def best(self, work: BlockWork, gpu: GpuProfile, element: Element, batch: int, top: int) -> list[BlockSchedule]:
        """As :func:`plan_block`; profiles of the GPU may differ in the shared memory of a block, and nothing else."""
        key = work.structure(), element, gpu.shared_memory_per_block_bytes, batch, top
        if key not in self._known:
            self._known[key] = plan_block(work, gpu, element, batch, top)
        return self._known[key]


def plan_block(work: BlockWork, gpu: GpuProfile, element: Element, batch: int, top: int = 1) -> list[BlockSchedule]:
    """The best schedules of a block, best first, ``top`` at most.

    Numbers of components a job, every number of rows that makes another number of jobs, and every shape are compared.
    Raises InputError where none fits the GPU.
    """
    if element not in ("fp16", "bf16"):
        raise InputError(f"blocks compute in fp16 or bf16, and not in {element}")
    cost, found = BlockCost(gpu, element), []
    groups = components(work)
    first = work.stages[0]
    prologue = first.input_scales is not None or first.input_activation != "none"
    moved = _moved_us(work, gpu, batch)
    whole = {together: _joined(work, groups, together) for together in _counts(len(groups))}
    cut: dict[tuple[int, int], tuple[tuple[Bundle, ...], tuple[BlockStage, ...]]] = {}
    for shape in _shapes():
        for together, uncut in whole.items():
            key = together, shape.outputs
            if key not in cut:
                own = tuple(within(item, shape.outputs) for item in uncut)
                cut[key] = own, block_stages(work, own)
            bundles, stages = cut[key]
            parts = max(sum(map(len, own.stages)) for own in bundles)
            for rows in _rows(stages[-1].output_size[0]):
                time, resident = cost.launch_us(shape, rows, stages, bundles, batch, prologue)
                if not resident:
                    continue
                small = cost.resources(shape, rows, parts, stages).shared_memory_bytes <= SMALL_SHARED_BYTES
                predicted = max(time, gpu.launch_seconds * 1e6 + moved)
                rank = predicted if small else predicted * _SMALL_SHARE
                # Blocks that a multiprocessor holds are counted on up to what the jobs are enough for.
                wanted = -(-batch * len(bundles) * -(-stages[-1].output_size[0] // rows) // gpu.multiprocessors)
                schedule = BlockSchedule(
                    shape,
                    rows,
                    min(resident, wanted),
                    bundles,
                    element,
                    predicted,
                    max(moved, gpu.launch_seconds * 1e6),
                )
                # Of equal times the one with the fewest jobs moves the fewest bytes.
                found.append((round(rank, 9), -together, -rows, shape, schedule))
    if not found:
        raise InputError("no job of it fits a multiprocessor's shared memory")
    found.sort(key=lambda item: item[:4])
    return [replace(item[4], compared=len(found)) for item in found[:top]]


def _joined(work: BlockWork, groups: list[IntArray], together: int) -> tuple[Bundle, ...]:
    """Bundles of so many components each."""
    joined = [np.concatenate(groups[n : n + together]) for n in range(0, len(groups), together)]
    return tuple(bundle(work, outputs) for outputs in joined)


def _shapes() -> Iterator[BlockShape]:
    for warps in (4, 8):
        for columns in (1, 2, 4):
            for granules in (1, 2):
                for blocks in (1, 2, 4):
                    for step in (32, 64, 128):
                        shape = BlockShape(warps, columns, granules, blocks, step)
                        pieces = -(-step * shape.positions // (8 * shape.threads))
                        if 32 <= shape.positions <= _MOST_POSITIONS and pieces <= _MOST_PIECES:
                            yield shape


def _counts(components: int) -> list[int]:
    """Components of a job: those that make so many bundles or the next fewer."""
    return sorted({-(-components // bundles) for bundles in _BUNDLES if bundles <= components})


def _rows(height: int) -> list[int]:
    return sorted({-(-height // tiles) for tiles in range(1, height + 1)})


def _moved_us(work: BlockWork, gpu: GpuProfile, batch: int) -> float:
    """The time of the bytes that must move once."""
    last, first = work.last, work.stages[0]
    made = len(last.sums) * prod(last.output_size) * (2 if last.residual else 1)
    read = len(set(work.sources[0][work.sources[0] >= 0].tolist())) * prod(first.size)
    weights = sum(int(work.links(n).sum()) * prod(s.weights.shape[2:]) for n, s in enumerate(work.stages))
    return 2 * (batch * (made + read) + weights) / gpu.memory_bytes_per_second * 1e6

"""What a block of convolutions costs on a GPU by one kernel, for a shape, a number of rows and a cut by channels.

A job's time is the sum of its stages', each of which waits for the one before. Products, instructions of the ordinary
lanes and bytes from L2 are shared by the jobs on one multiprocessor; waiting for memory is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from onnxopt.plan.block.types import BlockShape, BlockStage, Bundle, Sizes, shared_bytes
from onnxopt.plan.roofline import (
    BLOCK_START_CYCLES,
    LOAD_LATENCY_CYCLES,
    TILE_CYCLES,
    Rates,
    launch_blocks,
    rates,
)
from onnxopt.target.figures import GpuProfile
from onnxopt.target.variant import Element, Resources

# Instructions of the ordinary lanes, counted in the compiled kernel: of eight positions that the first stage brings and
# leaves, by how many come at once, of each of them behind a prologue, of a step of products with its operands, of eight
# channels of a tap, of a result that goes to the next stage, and of one that goes to y.
_PIECE_OPS = {8: 24.0, 4: 28.0, 2: 36.0, 1: 56.0}
_PROLOGUE_OPS, _PRODUCT_OPS, _TAP_OPS, _RESULT_OPS, _STORE_OPS = 4.5, 12.0, 18.0, 5.0, 8.0
# A wait at a barrier of the whole block, and what the operands of one step of products take from shared memory.
_BARRIER_CYCLES, _OPERAND_CYCLES = 60.0, 36.0
_BYTES = 2
# What compiled kernels take beside their sums and what a thread holds of a step.
_BASE_REGISTERS, _CHANNELWISE_REGISTERS, _REGISTER_UNIT, _MOST_REGISTERS = 72, 136, 8, 255


@dataclass(frozen=True)
class StageTime:
    """One stage of one job: what it keeps busy and what it waits for, in microseconds."""

    busy: float
    chain: float


@dataclass(frozen=True)
class BlockCost:
    """Predicted times on one GPU in fp16 or bf16."""

    gpu: GpuProfile
    element: Element

    @cached_property
    def _rates(self) -> Rates:
        return rates(self.gpu, "mma", self.element)

    def resources(self, shape: BlockShape, rows: int, parts: int, stages: tuple[BlockStage, ...]) -> Resources:
        """What a block of threads takes, estimated."""
        held = 4 * -(-shape.step * shape.positions // (8 * shape.threads))
        registers = _BASE_REGISTERS + 4 * shape.granules * shape.blocks + held
        if any(stage.path == "channelwise" for stage in stages):
            registers = max(registers, _CHANNELWISE_REGISTERS)
        registers = min(_MOST_REGISTERS, -(-registers // _REGISTER_UNIT) * _REGISTER_UNIT)
        return Resources(registers, shared_bytes(shape, rows, parts, stages), shape.threads)

    def resident(self, resources: Resources) -> int:
        """Jobs on one multiprocessor; 0 where none fits."""
        return launch_blocks(self.gpu, [resources])

    def launch_us(
        self,
        shape: BlockShape,
        rows: int,
        stages: tuple[BlockStage, ...],
        bundles: tuple[Bundle, ...],
        batch: int,
        prologue: bool,
    ) -> tuple[float, int]:
        """The predicted time of a launch, and the jobs that its multiprocessors hold; infinite where none fits."""
        parts = max(sum(len(own) for own in bundle.stages) for bundle in bundles)
        resident = self.resident(self.resources(shape, rows, parts, stages))
        if resident == 0:
            return float("inf"), 0
        height = stages[-1].output_size[0]
        tiles = -(-height // rows)
        sizes = [bundle.sizes for bundle in bundles]
        known = {own: self.job(shape, rows, stages, own, prologue) for own in set(sizes)}
        times = [known[own] for own in sizes]
        longest = max(time.chain for time in times)
        jobs = batch * tiles * len(bundles)
        together = min(resident, -(-jobs // self.gpu.multiprocessors))
        rounds = -(-jobs // (together * self.gpu.multiprocessors))
        busy = sum(time.busy for time in times) / len(times)
        return self.gpu.launch_seconds * 1e6 + rounds * max(longest, together * busy), resident

    def job(
        self, shape: BlockShape, rows: int, stages: tuple[BlockStage, ...], sizes: Sizes, prologue: bool
    ) -> StageTime:
        """The time of a job with ``rows`` rows, none of them outside of the image, and parts of some ``sizes``."""
        cycles = self._rates.cycles
        busy, chain, found = 0.0, BLOCK_START_CYCLES.value + 2 * LOAD_LATENCY_CYCLES.value, []
        for number in range(len(stages) - 1, -1, -1):
            found.append((number, min(rows, stages[number].output_size[0])))
            rows = stages[number].rows_before(rows)
        for number, own in reversed(found):
            time = self._stage(shape, own, stages, number, sizes[number], prologue)
            busy += time.busy
            chain += time.chain * cycles + _BARRIER_CYCLES
        return StageTime(busy, max(chain / cycles, busy))

    def _stage(
        self,
        shape: BlockShape,
        rows: int,
        stages: tuple[BlockStage, ...],
        number: int,
        parts: tuple[tuple[int, int], ...],
        prologue: bool,
    ) -> StageTime:
        stage, rate = stages[number], self._rates
        positions, taps = rows * stage.output_size[1], prod(stage.kernel)
        if stage.path == "channelwise":
            vectors = positions * sum(-(-outputs // 8) for outputs, _ in parts)
            busy = vectors * (taps * _TAP_OPS + 8 * _RESULT_OPS) / rate.lanes
            # Lanes alone do not hide one another's waits with few warps.
            return StageTime(busy, max(busy * 4 / min(4, shape.warps), LOAD_LATENCY_CYCLES.value / rate.cycles) + busy)
        computed = sum(_up(outputs, 8) * _up(inputs, 16) for outputs, inputs in parts)
        ends = _STORE_OPS if number == len(stages) - 1 else _RESULT_OPS
        results = positions * sum(outputs for outputs, _ in parts) * ends / rate.lanes
        if number == 0:
            return self._first(shape, positions, stages, parts, prologue, results)
        tile = 16 * shape.granules
        tiles = -(-positions // tile)
        products = 2.0 * tiles * tile * taps * computed / rate.matrix
        # Pieces of work of all warps: each waits once for weights, and for operands at every step.
        items = [tiles * -(-outputs // (8 * shape.blocks)) for outputs, _ in parts]
        steps = sum(n * taps * _up(inputs, 16) // 16 for n, (_, inputs) in zip(items, parts, strict=True))
        issue = steps * 32 * (_PRODUCT_OPS + 2 * shape.granules * shape.blocks) / rate.lanes
        rounds, own = -(-sum(items) // shape.warps), steps / max(1, sum(items))
        wait = rounds * (LOAD_LATENCY_CYCLES.value + own * _OPERAND_CYCLES) / rate.cycles
        weights = _BYTES * taps * computed / rate.l2_bytes
        busy = max(products, issue + results, weights)
        return StageTime(busy, max(busy * 4 / min(4, shape.warps), wait) + results)

    def _first(
        self,
        shape: BlockShape,
        positions: int,
        stages: tuple[BlockStage, ...],
        parts: tuple[tuple[int, int], ...],
        prologue: bool,
        results: float,
    ) -> StageTime:
        rate, run = self._rates, _run(prod(stages[0].input_size))
        tiles = -(-positions // shape.positions)
        steps = tiles * sum(max(1, -(-inputs // shape.step)) for _, inputs in parts)
        pieces = tiles * sum(_up(inputs, 16) for _, inputs in parts) * shape.positions / 8
        moving = pieces * (_PIECE_OPS[run] + (8 * _PROLOGUE_OPS if prologue else 0.0)) / rate.lanes
        granules = sum(_up(inputs, 16) // 16 for _, inputs in parts)
        issue = tiles * granules * shape.warps * 32 * (_PRODUCT_OPS + 2 * shape.granules * shape.blocks) / rate.lanes
        computed = sum(_up(outputs, 8) * _up(inputs, 16) for outputs, inputs in parts)
        products = 2.0 * tiles * shape.positions * computed / rate.matrix
        read = _BYTES * sum(positions * inputs for _, inputs in parts) + tiles * _BYTES * computed
        busy = max(products, moving + issue + results, read / rate.l2_bytes)
        # A step's inputs come while the one before is multiplied, but no sooner than memory answers.
        wait = steps * max(LOAD_LATENCY_CYCLES.value, TILE_CYCLES.value + shape.step / 16 * _OPERAND_CYCLES)
        return StageTime(busy, max(busy * 4 / min(4, shape.warps), wait / rate.cycles) + results)


def _run(positions: int) -> int:
    """Neighbouring positions of a channel that are read at once."""
    return next(run for run in (8, 4, 2, 1) if positions % run == 0)


def _up(count: int, granule: int) -> int:
    return -(-count // granule) * granule

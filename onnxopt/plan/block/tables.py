"""From a schedule of a block of convolutions to the tables that its kernel reads; ``docs/tables.md`` says more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxopt.discover.conv_site import IntArray
from onnxopt.plan.block.bundles import INPUT_GRANULE, OUTPUT_GRANULE
from onnxopt.plan.block.types import (
    BLOCK_JOB_COLUMNS,
    PART_WIDTH,
    BlockKernel,
    BlockSchedule,
    BlockStage,
    BlockTables,
    Bundle,
    Path,
    StagePart,
)
from onnxopt.plan.block.work import BlockWork
from onnxopt.plan.tables.compute_type import compute_type, in_type
from onnxopt.plan.tables.pieces import NoTables, Pool
from onnxopt.plan.tables.work import ConvWork

_AXES = 2
# Eight slots between two positions keep neighbouring positions in different banks.
_SLOT_MARGIN = 8


def block_tables(work: BlockWork, schedule: BlockSchedule) -> BlockTables:
    """The tables of a block by its schedule, which is taken to be valid.

    Raises :class:`NoTables` where the tables cannot describe it.
    """
    if schedule.element not in ("fp16", "bf16"):
        raise NoTables(f"blocks compute in fp16 or bf16, and not in {schedule.element}")
    return _Builder(work, schedule).build()


def block_stages(work: BlockWork, bundles: Sequence[Bundle]) -> tuple[BlockStage, ...]:
    """The stages of the configuration, with as many slots as the largest bundle needs."""
    layouts = [slots_of(work, bundle) for bundle in bundles]
    stages = []
    for number, stage in enumerate(work.stages):
        last = number == len(work.stages) - 1
        slots = 0 if last else max(layout[number][1] for layout in layouts) + _SLOT_MARGIN
        stages.append(_stage(stage, path_of(work, number), slots))
    return tuple(stages)


def path_of(work: BlockWork, number: int) -> Path:
    """How a stage is computed; the first and the last one on the matrix unit."""
    between = 0 < number < len(work.stages) - 1
    return "channelwise" if between and work.is_channelwise(number) else "products"


def slots_of(work: BlockWork, bundle: Bundle) -> list[tuple[dict[int, int], int]]:
    """For every stage but the last the slot of each of its outputs that a bundle computes, and how many there are.

    The inputs of a part of the next stage stand side by side from a multiple of 16 on; a channelwise stage leaves
    every channel in the slot that it comes from.
    """
    result: list[tuple[dict[int, int], int]] = []
    for number in range(len(work.stages) - 1, 0, -1):
        sources, slots = work.sources[number], dict[int, int]()
        if path_of(work, number) == "channelwise":
            behind, count = result[-1]
            for part in bundle.stages[number]:
                for output, given in zip(part.outputs.tolist(), part.inputs.tolist(), strict=True):
                    if given >= 0:
                        slots[int(sources[given])] = behind[output]
        else:
            count = 0
            for part in bundle.stages[number]:
                for place, given in enumerate(part.inputs.tolist()):
                    slots[int(sources[given])] = count + place
                count += _up(len(part.inputs), INPUT_GRANULE)
        result.append((slots, count))
    return result[::-1]


@dataclass
class _Builder:
    work: BlockWork
    schedule: BlockSchedule
    lines: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        prologue = [np.dtype(np.float32)] * 2 if self.prologue else []
        int32, float32 = np.dtype(np.int32), np.dtype(np.float32)
        self.outputs = Pool([int32, float32], [-1, 0])
        self.inputs = Pool([int32, *prologue], [-1, *[0] * len(prologue)])
        self.dtype = compute_type(self.schedule.element)
        self.w = Pool([self.dtype], [0])

    @property
    def prologue(self) -> bool:
        """Whether inputs are scaled, shifted or activated."""
        first = self.work.stages[0]
        return first.input_scales is not None or first.input_activation != "none"

    def build(self) -> BlockTables:
        jobs = []
        height = _axes(self.work.last.output_size, 1)[0]
        for bundle in self.schedule.bundles:
            begin, counts = len(self.lines), [len(parts) for parts in bundle.stages]
            self._bundle(bundle)
            counts += [0] * (3 - len(counts))
            jobs += [
                [row, min(self.schedule.rows, height - row), begin, *counts, 0, 0]
                for row in range(0, height, self.schedule.rows)
            ]
        inputs, outputs = self.inputs.arrays(), self.outputs.arrays()
        return BlockTables(
            kernel=self._kernel(),
            w=self.w.arrays()[0],
            b=outputs[1],
            jobs=np.array(jobs, np.int32).reshape(-1, len(BLOCK_JOB_COLUMNS)),
            parts=np.array(self.lines, np.int32).reshape(-1, PART_WIDTH),
            outputs=outputs[0],
            inputs=inputs[0],
            input_scales=inputs[1] if self.prologue else None,
            input_shifts=inputs[2] if self.prologue else None,
        )

    def _bundle(self, bundle: Bundle) -> None:
        layout = slots_of(self.work, bundle)
        for number, parts in enumerate(bundle.stages):
            stage, sources = self.work.stages[number], self.work.sources[number]
            bias = np.zeros(len(stage.weights)) if stage.bias is None else stage.bias
            last = number == len(bundle.stages) - 1
            for part in parts:
                places = self.work.targets[part.outputs] if last else _looked_up(layout[number][0], part.outputs)
                begin = self.outputs.add(places, bias[part.outputs], granule=OUTPUT_GRANULE)
                if number == 0:
                    given = self.inputs.add(sources[part.inputs], *self._prologue(part.inputs), granule=INPUT_GRANULE)
                else:
                    slots = layout[number - 1][0]
                    given = slots[int(sources[part.inputs[0]])] if len(part.inputs) and part.inputs[0] >= 0 else 0
                    if path_of(self.work, number) == "channelwise":
                        given = int(places[0])
                weight = self.w.add(in_type(self._packed(number, part).reshape(-1), self.dtype))
                self.lines.append([begin, len(part.outputs), given, len(part.inputs), weight, 0, 0, 0])

    def _prologue(self, inputs: IntArray) -> list[np.ndarray]:
        if not self.prologue:
            return []
        first = self.work.stages[0]
        count = first.weights.shape[1]
        scales = np.ones(count) if first.input_scales is None else first.input_scales
        shifts = np.zeros(count) if first.input_shifts is None else first.input_shifts
        return [scales[inputs], shifts[inputs]]

    def _packed(self, number: int, part: StagePart) -> np.ndarray:
        """Weights in the order in which the kernel reads them."""
        stage = self.work.stages[number]
        taps = prod(stage.weights.shape[2:])
        high = _up(len(part.outputs), OUTPUT_GRANULE)
        if path_of(self.work, number) == "channelwise":
            packed = np.zeros((taps, high))
            own = np.where(part.inputs >= 0, part.inputs, 0)
            chosen = stage.weights[part.outputs, own].reshape(len(own), taps) * (part.inputs >= 0)[:, None]
            packed[:, : len(own)] = chosen.T
            return packed
        wide = _up(len(part.inputs), INPUT_GRANULE)
        packed = np.zeros((taps, high, wide))
        chosen = stage.weights[np.ix_(part.outputs, part.inputs)].reshape(len(part.outputs), len(part.inputs), taps)
        packed[:, : len(part.outputs), : len(part.inputs)] = chosen.transpose(2, 0, 1)
        # Input 16 g + 8 h + 2 t + e of output 8 n + r is number e + 2 h of lane 4 r + t.
        split = packed.reshape(taps, high // 8, 8, wide // 16, 2, 4, 2)
        return np.ascontiguousarray(split.transpose(0, 3, 1, 2, 5, 4, 6))

    def _kernel(self) -> BlockKernel:
        first, last = self.work.stages[0], self.work.last
        return BlockKernel(
            element=self.schedule.element,
            shape=self.schedule.shape,
            rows=self.schedule.rows,
            parts=max(sum(len(parts) for parts in bundle.stages) for bundle in self.schedule.bundles),
            input_channels=first.channels,
            output_channels=len(last.sums),
            stages=block_stages(self.work, self.schedule.bundles),
            input_activation=first.input_activation,
            prologue=self.prologue,
            residual=last.residual,
        )


def _stage(work: ConvWork, path: Path, slots: int) -> BlockStage:
    rank = len(work.size)
    return BlockStage(
        path=path,
        activation=work.activation,
        input_size=_axes(work.size, 1),
        output_size=_axes(work.output_size, 1),
        kernel=_axes(work.weights.shape[2:], 1),
        strides=_axes(work.strides, 1),
        dilations=_axes(work.dilations, 1),
        pads=_axes(work.pads[:rank], 0),
        slots=slots,
    )


def _axes(values: Sequence[int], fill: int) -> tuple[int, ...]:
    return (fill,) * (_AXES - len(values)) + tuple(int(v) for v in values)


def _looked_up(slots: dict[int, int], outputs: IntArray) -> IntArray:
    return np.array([slots.get(output, -1) for output in outputs.tolist()], np.int64)


def _up(count: int, granule: int) -> int:
    return -(-count // granule) * granule

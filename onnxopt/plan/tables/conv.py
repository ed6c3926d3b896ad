"""From a schedule of a convolution to the tables that its kernel reads; ``docs/tables.md`` says what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from onnxopt.discover.conv_site import IntArray
from onnxopt.plan.schedule import ConvSchedule
from onnxopt.plan.tables.compute_type import compute_type, in_type
from onnxopt.plan.tables.conv_types import CONV_JOB_COLUMNS, ConvKernel, ConvTables, SumTables
from onnxopt.plan.tables.pieces import MOST_ENTRIES, NoTables, Pool
from onnxopt.plan.tables.work import ConvWork

_AXES = 3
_COLUMN = {name: index for index, name in enumerate(CONV_JOB_COLUMNS)}


def conv_tables(work: ConvWork, schedule: ConvSchedule, *, images: int = 1) -> ConvTables:
    """The tables of a convolution by its schedule, which is taken to be valid.

    The schedule's pixel tiles count the positions of ``images`` batch elements. Outputs that are in no part have no
    inputs: jobs of their own write their bias. Raises :class:`NoTables` with the reason where the tables cannot
    describe it.
    """
    if len(work.size) > _AXES:
        raise NoTables(f"a convolution over {len(work.size)} axes; kernels know 1 to {_AXES}")
    if min(work.output_size) < 1:
        raise NoTables(f"the kernel {list(work.weights.shape[2:])} is larger than its padded input {list(work.size)}")
    wrong = np.flatnonzero((work.reads < -1) | (work.reads >= work.channels))
    if wrong.size:
        raise NoTables(f"input {wrong[0]} reads channel {work.reads[wrong[0]]}, of {work.channels}")
    for word, channels, size in (
        ("input", work.channels, work.size),
        ("output", len(work.sums), work.output_size),
    ):
        if channels * prod(size) > MOST_ENTRIES:
            raise NoTables(f"a batch element of its {word} has more than {MOST_ENTRIES:,} elements")
    return _Builder(work, schedule, images).build()


@dataclass
class _Builder:
    work: ConvWork
    schedule: ConvSchedule
    images: int
    channels_of: dict[int, list[int]] = field(default_factory=dict)
    lines: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        work = self.work
        prologue = [np.dtype(np.float32)] * 2 if self.prologue else []
        int32 = np.dtype(np.int32)
        self.outputs = Pool([int32, np.dtype(np.float32)], [-1, 0])
        self.inputs = Pool([int32, *prologue], [-1, *[0] * len(prologue)])
        self.extras = Pool.of_int32(-1, width=2)
        self.dtype = compute_type(self.schedule.element)
        self.w = Pool([self.dtype], [0])
        self.bias = np.zeros(len(work.weights)) if work.bias is None else work.bias
        parts = np.bincount(
            np.concatenate([*(p.outputs for p in self.schedule.parts), np.empty(0, np.int64)]).astype(np.int64),
            minlength=len(work.weights),
        )
        sums = work.sums
        self.split = bool(np.any(sums.sum(axis=1) > 1) or np.any(parts[sums.any(axis=0)] > 1))
        self.slots = 0
        self.rows_of: dict[int, list[int]] = {}
        for channel, output in np.argwhere(sums).tolist():
            self.channels_of.setdefault(output, []).append(channel)
        idle = np.flatnonzero(parts == 0)
        self.idle = idle[[int(o) in self.channels_of for o in idle]] if len(idle) else idle

    @property
    def prologue(self) -> bool:
        """Whether inputs are scaled, shifted or activated."""
        work = self.work
        return work.input_scales is not None or work.input_shifts is not None or work.input_activation != "none"

    @property
    def pixels(self) -> int:
        """Output positions that are computed together."""
        return self.images * prod(self.work.output_size)

    def build(self) -> ConvTables:
        parts = [self._part(p.outputs, p.inputs, p.variant) for p in self.schedule.parts]
        jobs = [self._job(parts[part], tile) for part, tile in self.schedule.jobs.tolist()]
        if not self.split:
            jobs += self._constant_jobs()
        inputs = self.inputs.arrays()
        outputs = self.outputs.arrays()
        kernel = self._kernel()
        return ConvTables(
            kernel=kernel,
            w=self.w.arrays()[0],
            b=None if self.split else outputs[1],
            jobs=np.array(jobs, np.int64).reshape(-1, len(CONV_JOB_COLUMNS)).astype(np.int32),
            outputs=outputs[0],
            inputs=inputs[0],
            input_scales=inputs[1] if self.prologue else None,
            input_shifts=inputs[2] if self.prologue else None,
            extras=None if self.extras.empty else self.extras.arrays()[0],
            sum=self._sum(kernel) if self.split else None,
        )

    def _part(self, outputs: IntArray, inputs: IntArray, number: int) -> np.ndarray:
        """The line of a part's jobs, without their pixels."""
        work, variant = self.work, self.schedule.variants[number]
        line = np.zeros(len(CONV_JOB_COLUMNS), np.int64)
        places, extras = self._places(outputs)
        bias = np.where(np.asarray(places) >= 0, self.bias[outputs], 0) if not self.split else np.zeros(len(outputs))
        own = self._prologue(inputs)
        high, wide = _up(len(outputs), variant.output_granule), _up(len(inputs), variant.input_granule)
        taps = prod(work.weights.shape[2:])
        packed = np.zeros((taps, high, wide), np.float64)
        chosen = work.weights[np.ix_(outputs, inputs)].reshape(len(outputs), len(inputs), taps)
        packed[:, : len(outputs), : len(inputs)] = chosen.transpose(2, 0, 1)
        values = {
            "variant": number,
            "output_begin": self.outputs.add(np.array(places), bias, granule=variant.output_granule),
            "output_count": len(outputs),
            "input_begin": self.inputs.add(work.reads[inputs], *own, granule=variant.input_granule),
            "input_count": len(inputs),
            "weight_begin": self.w.add(in_type(packed.reshape(-1), self.dtype)),
            "extra_begin": self.extras.add(np.array(extras)) if extras else 0,
            "extra_count": len(extras),
        }
        for name, value in values.items():
            line[_COLUMN[name]] = value
        return line

    def _places(self, outputs: IntArray) -> tuple[list[int], list[tuple[int, int]]]:
        """Where each output of a part goes, and the further channels of those that y repeats."""
        places: list[int] = []
        extras: list[tuple[int, int]] = []
        for index, output in enumerate(outputs.tolist()):
            channels = self.channels_of.get(output, [])
            if self.split:
                places.append(self.slots if channels else -1)
                if channels:
                    self.rows_of.setdefault(output, []).append(self.slots)
                    self.slots += 1
                continue
            places.append(channels[0] if channels else -1)
            extras += [(index, channel) for channel in channels[1:]]
        return places, extras

    def _prologue(self, inputs: IntArray) -> list[np.ndarray]:
        if not self.prologue:
            return []
        work = self.work
        count = work.weights.shape[1]
        scales = np.ones(count) if work.input_scales is None else work.input_scales
        shifts = np.zeros(count) if work.input_shifts is None else work.input_shifts
        return [scales[inputs], shifts[inputs]]

    def _job(self, part: np.ndarray, tile: int) -> np.ndarray:
        line = part.copy()
        size = self.schedule.variants[int(line[_COLUMN["variant"]])].pixels
        line[_COLUMN["pixel_begin"]] = tile * size
        line[_COLUMN["pixel_count"]] = min(size, self.pixels - tile * size)
        return line

    def _constant_jobs(self) -> list[np.ndarray]:
        """Jobs without inputs: outputs that are in no part, and channels of y that nothing is added into."""
        variant = self.schedule.variants[0]
        tiles = range(-(-self.pixels // variant.pixels))
        none = np.empty(0, np.int64)
        jobs = []
        for begin in range(0, len(self.idle), variant.outputs):
            part = self._part(self.idle[begin : begin + variant.outputs], none, 0)
            jobs += [self._job(part, tile) for tile in tiles]
        zeros = np.flatnonzero(~self.work.sums.any(axis=1))
        for begin in range(0, len(zeros), variant.outputs):
            own = zeros[begin : begin + variant.outputs]
            line = np.zeros(len(CONV_JOB_COLUMNS), np.int64)
            line[_COLUMN["output_begin"]] = self.outputs.add(own, np.zeros(len(own)), granule=variant.output_granule)
            line[_COLUMN["output_count"]] = len(own)
            jobs += [self._job(line, tile) for tile in tiles]
        return jobs

    def _sum(self, kernel: ConvKernel) -> SumTables:
        sums = self.work.sums
        rows = [
            sorted(row for output in np.flatnonzero(own).tolist() for row in self.rows_of.get(output, []) * own[output])
            for own in sums
        ]
        begins = np.cumsum([0] + [len(own) for own in rows])
        flat = np.array([row for own in rows for row in own] or [0], np.int32)
        bias = (sums @ self.bias).astype(np.float32)
        kept = ("element", "layout", "output_channels", "output_size", "activation", "residual", "slots")
        settings: Mapping[str, Any] = {name: kernel.to_json()[name] for name in kept}
        return SumTables(settings, bias, begins.astype(np.int32), flat)

    def _kernel(self) -> ConvKernel:
        work = self.work
        rank = len(work.size)

        def axes(values: Sequence[int], fill: int) -> tuple[int, ...]:
            return (fill,) * (_AXES - rank) + tuple(values)

        return ConvKernel(
            element=self.schedule.element,
            variants=self.schedule.variants,
            layout=work.layout,
            input_channels=work.channels,
            output_channels=len(work.sums),
            input_size=axes(work.size, 1),
            output_size=axes(work.output_size, 1),
            kernel=axes(work.weights.shape[2:], 1),
            strides=axes(work.strides, 1),
            dilations=axes(work.dilations, 1),
            pads=axes(work.pads[:rank], 0),
            images=self.images,
            activation=work.activation,
            input_activation=work.input_activation,
            prologue=self.prologue,
            residual=work.residual,
            extras=not self.extras.empty,
            slots=self.slots if self.split else 0,
        )


def _up(count: int, granule: int) -> int:
    return -(-count // granule) * granule

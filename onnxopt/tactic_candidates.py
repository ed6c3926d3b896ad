"""The next best schedules of a site that is written: what else an engine may choose for the same operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, TypeVar

from onnxopt.convolution_kernels import conv_choices
from onnxopt.decide import BlockSource, ConvSource, PluginSource
from onnxopt.errors import InputError
from onnxopt.kernel_plans import described
from onnxopt.plan.attention_resources import AttentionShape
from onnxopt.plan.block import block_tables
from onnxopt.plan.group_conv_resources import conv_resources
from onnxopt.plan.roofline import SMALL_SHARED_BYTES
from onnxopt.plan.tables import (
    AttentionTables,
    ConvTables,
    MergeTables,
    NoTables,
    SumTables,
    attention_tables,
    conv_tables,
)
from onnxopt.site_reports import SCHEDULES_TRIED, Planning
from onnxopt.target import GpuProfile
from onnxopt.validate import (
    validate_attention_contents,
    validate_attention_launch,
    validate_conv_contents,
    validate_conv_launch,
)
from onnxopt.validate.block_contents import validate_block_contents
from onnxopt.validate.block_launch import validate_block_launch

Source = PluginSource | ConvSource | BlockSource
_Tables = TypeVar("_Tables", AttentionTables, ConvTables)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A schedule of a site with its tables; ``variants`` are the shapes of its kernel as `plan.json` has them."""

    source: Source
    predicted_us: float
    variants: tuple[str, ...]

    @property
    def operator(self) -> str:
        """The operator of the plugin form that it would be."""
        return self.source.tables.operator()


def candidates(planning: Planning, source: Source, limit: int | None = None) -> Iterator[Candidate]:
    """The best schedules of a site, best first, within ``limit`` bytes of shared memory a block if that is given.

    Nothing is planned before the first is asked for. Where no kernel fits the limit there are none.
    """
    gpu = planning.judge.target.need_gpu_profile()
    limited = gpu if limit is None else replace(gpu, shared_memory_per_block_bytes=limit)
    try:
        if isinstance(source, PluginSource):
            yield from _attention(_within(planning, limited), source)
        elif isinstance(source, ConvSource):
            yield from _convolution(_within(planning, limited), source)
        else:
            yield from _block(planning, limited, source)
    except InputError:
        return


def second_operator(source: Source) -> str:
    """The operator that works on with what the first makes, empty where there is none."""
    second = _second(source)
    return "" if second is None else second[0]


def planned_shared(source: Source) -> int:
    """Shared memory of a block in bytes, at most, as the planner counts it before a compiler is asked."""
    if isinstance(source, BlockSource):
        return source.tables.kernel.shared_bytes
    kernel = source.tables.kernel
    if isinstance(source, ConvSource):
        taps = prod(source.tables.kernel.kernel)
        return max(conv_resources(v, taps, kernel.element).shared_memory_bytes for v in source.tables.kernel.variants)
    own = source.tables.kernel
    shapes = (AttentionShape(variant, own.width, own.value_width, own.element) for variant in own.variants)
    return max(shape.resources().shared_memory_bytes for shape in shapes)


def is_small(shared_bytes: int) -> bool:
    """Whether every launch may have so much shared memory, without asking for more."""
    return shared_bytes <= SMALL_SHARED_BYTES


def prove(site: str, source: Source) -> None:
    """Prove tables as those of a written operator are: they address what exists, and say what the site computes.

    Raises :class:`onnxopt.validate.PlanError`.
    """
    kernel, tables = source.tables.kernel.to_json(), source.tables.arrays()
    if isinstance(source, BlockSource):
        validate_block_launch(kernel, tables)
        validate_block_contents(source.work, source.tables)
        return
    second = _second(source)
    pair = None if second is None else second[1:]
    if isinstance(source, ConvSource):
        validate_conv_launch(kernel, tables, pair)
        validate_conv_contents(source.work, source.tables, site)
    else:
        validate_attention_launch(kernel, tables, pair)
        validate_attention_contents(source.site, source.tables, source.shapes)


def _second(source: Source) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    tables = source.tables
    second: MergeTables | SumTables | None = None
    if isinstance(tables, AttentionTables):
        second = tables.merge
    elif isinstance(tables, ConvTables):
        second = tables.sum
    return None if second is None else (second.operator(), dict(second.kernel), dict(second.arrays()))


def _within(planning: Planning, gpu: GpuProfile) -> Planning:
    assert planning.kernels is not None
    return replace(planning, kernels=replace(planning.kernels, gpu=gpu))


def _attention(planning: Planning, source: PluginSource) -> Iterator[Candidate]:
    kernels = planning.kernels_for(source.site.q.sources[0].tensor)
    assert kernels is not None
    for schedule in kernels.attention(source.site, SCHEDULES_TRIED):
        made = _tables(partial(attention_tables, source.site, schedule, shapes=source.shapes))
        if made is not None:
            own = replace(source, tables=made, resident=schedule.resident)
            yield Candidate(own, schedule.forecast.predicted_us, tuple(described(schedule)["variants"]))


def _convolution(planning: Planning, source: ConvSource) -> Iterator[Candidate]:
    for choice in conv_choices(planning, source.site, SCHEDULES_TRIED, source.fusion):
        made = _tables(partial(conv_tables, choice.work, choice.schedule, images=choice.images))
        if made is not None:
            own = replace(source, work=choice.work, tables=made, resident=choice.schedule.resident)
            yield Candidate(own, choice.microseconds, tuple(described(choice.schedule)["variants"]))


def _block(planning: Planning, gpu: GpuProfile, source: BlockSource) -> Iterator[Candidate]:
    element, batch = source.tables.kernel.element, planning.judge.graph.batch
    for schedule in planning.blocks.best(source.work, gpu, element, batch, SCHEDULES_TRIED):
        made = block_tables(source.work, schedule)
        variants = (f"{len(made.jobs)} x {schedule.shape.describe()}",)
        yield Candidate(replace(source, tables=made, resident=schedule.resident), schedule.predicted_us, variants)


def _tables(make: Callable[[], _Tables]) -> _Tables | None:
    """Tables of a schedule, None where none can hold what its kernel needs."""
    try:
        return make()
    except NoTables:
        return None

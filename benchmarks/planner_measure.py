"""Plans of a layer on one GPU, with the time that planning took, beside what other methods make of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.planner_layers import AttentionLayer, ConvLayer, Layer
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.plan.attention import filled_rows
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.attention_kernel import moved_bytes, plan_attention_kernel
from onnxopt.plan.baselines import Baseline, attention_baselines
from onnxopt.plan.conv_baselines import conv_baselines
from onnxopt.plan.group_conv import plan_group_conv
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.plan_cache import PlanCache
from onnxopt.plan.schedule import AttentionSchedule, ConvSchedule, Objective
from onnxopt.target.figures import GpuProfile

ELEMENT: Literal["fp16"] = "fp16"


@dataclass(frozen=True)
class Plan:
    """What came out under one objective; ``gap`` is proven, ``free_gap`` against what holds for any strips (-1: none).

    ``value`` and ``bound`` are computed pairs or microseconds, as the objective says. ``seconds`` passed while
    planning, of which the processor worked for ``cpu_seconds``.
    """

    computed: int
    predicted_us: float
    value: float
    bound: float
    gap: float
    free_gap: float
    order: str
    solver: str
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Result:
    """One layer on one GPU; without ``waste`` and ``time`` where it cannot be planned, ``note`` saying why."""

    layer: str
    kind: Literal["attention", "conv"]
    models: tuple[str, ...]
    target: str
    needed: int
    waste: Plan | None = None
    time: Plan | None = None
    baselines: tuple[Baseline, ...] = ()
    note: str = ""

    @property
    def planned(self) -> bool:
        """Whether there are plans."""
        return self.waste is not None and self.time is not None


def measured(layer: Layer, gpu: GpuProfile, target: str, *, fixed_only: bool = False) -> Result:
    """Both plans of a layer and its baselines; with ``fixed_only`` only what needs no other plan than that for time."""
    kind: Literal["attention", "conv"] = "attention" if isinstance(layer, AttentionLayer) else "conv"
    result = Result(layer.name, kind, layer.models, target, layer.needed)
    try:
        fast = planned(layer, gpu, "time")
        few = fast if fixed_only else planned(layer, gpu, "waste")
        return replace(result, waste=few, time=fast, baselines=baselines(layer, gpu, with_greedy=not fixed_only))
    except InputError as problem:
        return replace(result, note=str(problem))


def planned(layer: Layer, gpu: GpuProfile, objective: Objective) -> Plan:
    """The best plan of a layer, timed with everything that depends on the layer or the GPU."""
    begin, cpu = time.perf_counter(), time.process_time()
    schedule = schedule_of(layer, gpu, objective)
    spent, cpu = time.perf_counter() - begin, time.process_time() - cpu
    proof = schedule.proof
    free = (proof.value - proof.free_bound) / proof.value if proof.free_bound else -1.0
    order = schedule.order if isinstance(schedule, ConvSchedule) else schedule.parts[0].order
    predicted = schedule.forecast.predicted_us
    return Plan(
        schedule.computed, predicted, proof.value, proof.bound, proof.gap, free, order, proof.solver, spent, cpu
    )


def schedule_of(layer: Layer, gpu: GpuProfile, objective: Objective) -> AttentionSchedule | ConvSchedule:
    """The best schedule of a layer."""
    if isinstance(layer, ConvLayer):
        return plan_group_conv(
            layer.site,
            layer.links,
            GroupConvCost.of(gpu, layer.taps, layer.positions, ELEMENT),
            objective=objective,
            element=ELEMENT,
            moved_bytes=layer.moved_bytes,
        )[0]
    cost = AttentionCost.of(gpu, layer.site.head_dim, layer.site.v.width, ELEMENT)
    return plan_attention_kernel(layer.site, cost, objective, ELEMENT)[0]


def baselines(layer: Layer, gpu: GpuProfile, *, with_greedy: bool) -> tuple[Baseline, ...]:
    """What other methods make of a layer."""
    if isinstance(layer, ConvLayer):
        cost = GroupConvCost.of(gpu, layer.taps, layer.positions, ELEMENT)
        return conv_baselines(layer.links, layer.groups, cost, layer.moved_bytes)
    own = AttentionCost.of(gpu, layer.site.head_dim, layer.site.v.width, ELEMENT)
    floor = own.launch_us + own.bytes_floor_us(moved_bytes(layer.site, filled_rows(layer.site), ELEMENT))
    return attention_baselines(layer.site, own, floor, with_greedy=with_greedy)


def seconds_from_cache(layers: Sequence[AttentionLayer], gpu: GpuProfile, folder: Path) -> dict[str, float]:
    """How long the plan of each layer takes from a plan cache in ``folder``, made there before, with its validation.

    Every reading is by a planner of its own, so that nothing comes from memory.
    """
    result = {}
    for layer in layers:
        KernelPlanner(gpu, "time", ELEMENT, cache=PlanCache(folder)).attention(layer.site)
        again = KernelPlanner(gpu, "time", ELEMENT, cache=PlanCache(folder))
        begin = time.perf_counter()
        again.attention(layer.site)
        result[layer.name] = time.perf_counter() - begin
    return result

"""Planning a convolution for the group-convolution kernel: which outputs share a block, in which shape, in which order.

Under the objective *time* parts are strips of an order of the outputs, found and bounded by the same exact search as
those of an attention. Under *waste* the parts are those with the fewest computed connections of all partitions, with a
bound that holds whatever the order; shapes and resident blocks are then chosen for time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from onnxopt.discover.conv_site import BoolArray, ConvSite
from onnxopt.errors import InputError
from onnxopt.plan.conv_strips import ConvShape, ConvStrips, output_lists
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.intervals import LONGEST, intervals_at, rows_of
from onnxopt.plan.makespan import launch_order, makespan
from onnxopt.plan.order_choice import chosen_orders
from onnxopt.plan.partition import Part, Partition, partition
from onnxopt.plan.schedule import ConvPart, ConvSchedule, Forecast, Objective, Proof
from onnxopt.plan.strip_orders import Order, Setting
from onnxopt.plan.strip_prices import PriceTable, padded
from onnxopt.plan.strip_search import distinct, fastest
from onnxopt.plan.strip_space import StripSpace
from onnxopt.plan.strips import coded
from onnxopt.target.variant import Element

SIZE_LIMIT = 1 << 27
# Parts beyond this many outputs save nothing on the matrix unit's rounding.
_WASTE_OUTPUTS = 64


@dataclass(frozen=True)
class _Candidate:
    """Parts with their shapes under a setting, and what their blocks are predicted to take, without the launch."""

    parts: tuple[Part, ...]
    shapes: tuple[ConvShape, ...]
    setting: Setting
    order: str
    durations: np.ndarray
    span_us: float


@dataclass(frozen=True)
class _Task:
    """What is planned: the connections of a site, and their cost."""

    site: ConvSite
    links: BoolArray
    cost: GroupConvCost
    moved_bytes: float

    @property
    def floor_us(self) -> float:
        """What a launch takes whatever its parts."""
        return self.cost.launch_us + self.cost.bytes_floor_us(self.moved_bytes)

    def total_us(self, span_us: float) -> float:
        """The predicted time of a launch whose blocks end after ``span_us``."""
        return max(self.floor_us, self.cost.launch_us + span_us)

    def slots(self, setting: Setting) -> int:
        """Blocks that run at the same time."""
        return setting.resident * self.cost.gpu.multiprocessors


def plan_group_conv(
    site: ConvSite,
    links: BoolArray,
    cost: GroupConvCost,
    *,
    objective: Objective,
    element: Element,
    moved_bytes: float,
    top: int = 1,
) -> tuple[ConvSchedule, ...]:
    """Schedules for the connections ``links`` (outputs x inputs) of a site, the best first, ``top`` at most.

    ``moved_bytes`` are those that the convolution reads and writes once. The first schedule's proof holds for the
    space that its certificate names; the others share its bound. Raises InputError for connections that are none or
    too many.
    """
    _check(site, links)
    task = _Task(site, links, cost, moved_bytes)
    plan = _by_waste if objective == "waste" else _by_time
    return tuple(_schedule(task, c, proof, objective, element) for c, proof in plan(task, max(1, top)))


def _check(site: ConvSite, links: BoolArray) -> None:
    node = f"node '{site.node.name}' (Conv)"
    if links.ndim != 2 or links.size > SIZE_LIMIT:
        shape = " x ".join(f"{n:,}" for n in links.shape)
        raise InputError(
            f"{node}: {shape} channel connections are too many to plan; allowed: {SIZE_LIMIT:,}. "
            "The site can only be kept as it is"
        )
    if not links.any():
        raise InputError(
            f"{node}: none of its {links.shape[0]} outputs is connected to any input; all its weights are zero. "
            "Replace the convolution by its bias, or check that the weights were exported"
        )


def _by_time(task: _Task, top: int) -> list[tuple[_Candidate, Proof]]:
    lists = output_lists(task.links)
    rows = np.flatnonzero(task.links.any(axis=1))
    codes = coded(lists)
    strips = ConvStrips(task.cost)
    table = PriceTable(strips, "time")
    others: tuple[Order, ...] = ()
    if _is_channelwise(task):
        # Outputs share an input or nothing at all; no other order brings anything together.
        together = rows[np.argsort(lists.row_list[rows], kind="stable")]
        # They may be parted anywhere: a block of the ordinary lanes takes an output or two.
        everywhere = intervals_at(together, lists, codes, np.arange(len(rows) + 1), _longest(strips))
        orders: tuple[Order, ...] = (Order.of("equal inputs", 1, everywhere, True),)
    else:
        orders, others = chosen_orders(rows, lists, codes, (None, None), 1, True, table)
    space = StripSpace([orders], strips, "time", task.floor_us, table)
    found = fastest(space, [others])
    result = []
    for cut in distinct(found.cuts, top):
        order, prices = cut.orders[0], space.prices(cut.orders[0], cut.setting)
        parts, shapes, times = [], [], []
        for end, step in cut.intervals[0]:
            outputs = rows_of(order.intervals, end, step)
            shape = int(order.shape[end, step])
            parts.append(Part(outputs, np.flatnonzero(task.links[outputs].any(axis=0))))
            shapes.append(space.variants[int(prices.variant[shape])])
            times.append(float(prices.microseconds[shape]))
        span = cut.microseconds - task.cost.launch_us
        candidate = _Candidate(tuple(parts), tuple(shapes), cut.setting, order.name, np.array(times), span)
        proof = Proof(
            cut.microseconds,
            min(found.bound, cut.microseconds),
            "shortest path",
            "optimal" if cut.microseconds <= found.bound * (1 + 1e-9) else "feasible",
            found.passes,
            f"every cut of {len(orders)} orders into parts of up to {LONGEST} outputs, outputs with equal inputs in "
            "eights, with every mixture of variants of equal threads and tiles of positions, and the numbers of "
            "resident blocks tried; makespans by dual feasible functions",
        )
        result.append((candidate, proof))
    return result


def _longest(strips: ConvStrips) -> int:
    return min(LONGEST, max(shape.rows for shape in strips.variants()))


def _by_waste(task: _Task, top: int) -> list[tuple[_Candidate, Proof]]:
    """The parts with the fewest computed connections, under every setting that can hold them, the fastest first."""
    channelwise = _is_channelwise(task)
    strips = ConvStrips(task.cost, ("lanes",) if channelwise else ("mma", "wgmma"))
    shapes = strips.variants()
    tall, wide = shapes[0].row_granule, shapes[0].key_granule
    found = _channelwise(task) if channelwise and tall == wide == 1 else _fewest(task, shapes, tall, wide)
    widest = max(len(part.outputs) for part in found.parts)
    space = StripSpace([], strips, "waste", task.floor_us)
    candidates = []
    for setting in space.settings():
        allowed = [shapes[number] for number in space.allowed(setting)]
        if any(shape.rows >= widest for shape in allowed):
            candidates.append(_shaped(task, strips, found.parts, setting, allowed))
    candidates.sort(key=lambda c: c.span_us)
    proof = Proof(found.value, found.bound, found.solver, found.status, found.nodes, found.certificate, found.bound)
    return [(candidate, proof) for candidate in candidates[:top]]


def _is_channelwise(task: _Task) -> bool:
    return bool((task.links.sum(axis=1) <= 1).all())


def _fewest(task: _Task, shapes: Sequence[ConvShape], tall: int, wide: int) -> Partition:
    def computed(outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return np.asarray(padded(outputs, tall) * padded(inputs, wide))

    return partition(task.links, computed, min(_WASTE_OUTPUTS, max(shape.rows for shape in shapes)))


def _channelwise(task: _Task) -> Partition:
    """One input an output: nothing is computed that is not needed."""
    most = min(variant.outputs for variant in task.cost.variants())
    parts = []
    for channel in np.flatnonzero(task.links.any(axis=0)):
        outputs = np.flatnonzero(task.links[:, channel])
        pieces = np.array_split(outputs, ceil(len(outputs) / most))
        parts += [Part(piece, np.array([channel])) for piece in pieces]
    value = float(task.links.sum())
    return Partition(tuple(parts), value, value, "none", "optimal", 0, "nothing is computed that is not needed")


def _shaped(
    task: _Task, strips: ConvStrips, parts: tuple[Part, ...], setting: Setting, allowed: Sequence[ConvShape]
) -> _Candidate:
    """The fastest allowed shape for every part, and the makespan."""
    outputs = np.array([len(part.outputs) for part in parts])
    inputs = np.array([len(part.inputs) for part in parts])
    times = np.full((len(allowed), len(parts)), np.inf)
    for number, shape in enumerate(allowed):
        fits = outputs <= shape.rows
        times[number, fits] = strips.strip_us(shape, outputs[fits], inputs[fits], setting.resident, False)
    best = times.argmin(axis=0)
    durations = times[best, np.arange(len(parts))]
    blocks = np.array([allowed[number].blocks for number in best])
    span = makespan(durations, blocks, task.slots(setting))
    return _Candidate(parts, tuple(allowed[number] for number in best), setting, "parts", durations, span)


def _schedule(task: _Task, candidate: _Candidate, proof: Proof, objective: Objective, element: Element) -> ConvSchedule:
    """The candidate as a schedule, with its blocks in the order of their launch."""
    variants = tuple(sorted({shape.variant for shape in candidate.shapes}))
    parts, computed = [], 0
    for part, shape in zip(candidate.parts, candidate.shapes, strict=True):
        parts.append(ConvPart(part.outputs, part.inputs, variants.index(shape.variant)))
        rows = ceil(len(part.outputs) / shape.row_granule) * shape.row_granule
        computed += rows * ceil(len(part.inputs) / shape.key_granule) * shape.key_granule
    # The blocks of all groups do what the jobs of one say.
    tiles = np.array([task.cost.tiles(shape.variant) for shape in candidate.shapes])
    owner = np.repeat(np.arange(len(parts)), tiles)
    tile = np.arange(len(owner)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    durations = candidate.durations[owner]
    # A packing of the blocks of one group is none of all groups.
    alone = task.cost.groups == 1
    order = launch_order(durations, task.slots(candidate.setting)) if alone else np.argsort(-durations, kind="stable")
    jobs = np.stack([owner, tile], axis=1)[order]
    needed = int(task.links.sum())
    predicted = task.total_us(candidate.span_us)
    bound = min(predicted, task.cost.bound_us(needed, task.moved_bytes))
    forecast = Forecast(predicted, bound, task.cost.uncertainty_of(variants), task.cost.measured)
    return ConvSchedule(
        objective,
        element,
        variants,
        candidate.setting.resident,
        tuple(parts),
        jobs.astype(np.int32),
        candidate.order,
        needed,
        computed,
        forecast,
        proof,
    )

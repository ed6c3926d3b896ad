"""Partitions of a convolution that others use, priced by the same cost model: what ours is compared with.

What a method leaves open goes in its favour: the fewest connections and the least time may come from different
shapes of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from onnxopt.discover.attention_site import KeyLists
from onnxopt.discover.conv_site import BoolArray, ConvSite, IntArray
from onnxopt.plan.baselines import GREEDY_ORDERS, Baseline
from onnxopt.plan.greedy_blocks import greedy_blocks
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.makespan import makespan
from onnxopt.plan.orders import row_orders
from onnxopt.plan.strips import coded
from onnxopt.target.variant import ConvVariant

_FIXED_OUTPUTS = 64


@dataclass(frozen=True)
class Parts:
    """Parts by their numbers of outputs and inputs, and how many there are of each kind."""

    outputs: IntArray
    inputs: IntArray
    counts: IntArray

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]]) -> Parts:
        """Equal (outputs, inputs) counted together."""
        kinds, counts = np.unique(np.array(pairs, np.int64).reshape(-1, 2), axis=0, return_counts=True)
        return cls(kinds[:, 0], kinds[:, 1], counts.astype(np.int64))


def written_groups(site: ConvSite) -> Parts:
    """The groups of a site's nodes, as they are written."""
    pairs = []
    for part in site.parts:
        outputs, width = part.live.shape
        pairs += [(outputs // part.groups, width)] * part.groups
    return Parts.of(pairs)


def conv_baselines(links: BoolArray, groups: Parts, cost: GroupConvCost, moved_bytes: float) -> tuple[Baseline, ...]:
    """What simple partitions of the connections ``links`` (outputs x inputs) would compute, and how long it takes.

    *Dense*: every output with every input. *As written*: ``groups``. *Parts of 64 outputs* in the model's order, each
    with the inputs that it needs. *Greedy*: blocks grown from three orders; where an output is in several of them, a
    second launch adds up, of which nothing but the launch itself is charged. All are padded to the matrix unit, but
    for convolutions whose outputs have one input each, which run without it.
    """
    live = links[links.any(axis=1)]
    greedy, repeated, divided = _greedy(live)
    methods = {
        "dense": Parts.of([links.shape]),
        "as written": groups,
        f"parts of {_FIXED_OUTPUTS}": _fixed(live),
    }
    channelwise = bool((live.sum(axis=1) == 1).all())
    granule = (1, 1) if channelwise and any(v.path == "lanes" for v in cost.variants()) else (8, 16)
    exact = [
        Baseline(name, _computed(parts, granule), _least_us(parts, cost, moved_bytes))
        for name, parts in methods.items()
    ]
    adding = cost.launch_us if divided else 0.0
    total = _least_us(greedy, cost, moved_bytes) + adding
    return (*exact, Baseline("greedy blocks", _computed(greedy, granule), total, repeated, adding))


def _fixed(live: BoolArray) -> Parts:
    cuts = [live[begin : begin + _FIXED_OUTPUTS] for begin in range(0, len(live), _FIXED_OUTPUTS)]
    return Parts.of([(len(own), int(own.any(axis=0).sum())) for own in cuts])


def _greedy(live: BoolArray) -> tuple[Parts, int, bool]:
    """The blocks of the order with which the fewest connections are computed.

    With them, how many needed ones are repeated, and whether any output is in several blocks.
    """
    distinct, owner = np.unique(live, axis=0, return_inverse=True)
    places, keys = np.nonzero(distinct)
    offsets = np.searchsorted(places, np.arange(len(distinct) + 1))
    lists = KeyLists(owner.reshape(-1).astype(np.int32), offsets.astype(np.int64), keys.astype(np.int32))
    orders = row_orders(np.arange(len(live)), lists, coded(lists))
    members = csr_matrix(distinct.astype(np.int64))
    options = []
    for name in [name for name in GREEDY_ORDERS if name in orders] or orders:
        blocks = greedy_blocks(members, lists.row_list[orders[name]])
        if blocks is not None:
            parts = Parts.of(list(zip(blocks.rows.tolist(), blocks.columns.tolist(), strict=True)))
            divided = bool((blocks.covers() > 1).any())
            options.append((_computed(parts, (8, 16)), int(blocks.needed.sum() - live.sum()), divided, parts))
    _, repeated, divided, parts = min(options, key=lambda option: option[0])
    return parts, repeated, divided


def _computed(parts: Parts, granule: tuple[int, int]) -> int:
    tall, wide = granule
    return int((-(-parts.outputs // tall) * tall * (-(-parts.inputs // wide) * wide) * parts.counts).sum())


def _least_us(parts: Parts, cost: GroupConvCost, moved_bytes: float) -> float:
    """The least time over all shapes of the kernel that may share a launch, each part by the best of them."""
    spans = (_span(parts, cost, variants, resident) for variants, resident in _mixtures(cost))
    return cost.launch_us + max(cost.bytes_floor_us(moved_bytes), min(spans))


def _mixtures(cost: GroupConvCost) -> Iterator[tuple[list[ConvVariant], int]]:
    kinds = sorted({(variant.path, variant.threads) for variant in cost.variants()})
    for kind in kinds:
        own = {v: cost.occupancy([v]) for v in cost.variants() if (v.path, v.threads) == kind}
        for resident in range(1, max(own.values()) + 1):
            yield [variant for variant, most in own.items() if most >= resident], resident


def _span(parts: Parts, cost: GroupConvCost, variants: Sequence[ConvVariant], resident: int) -> float:
    """The makespan of all tiles of positions of all parts; parts too large for a shape are cut."""
    work, durations, counts = [], [], []
    for variant in variants:
        full, rest = np.divmod(parts.outputs, variant.outputs)
        whole = cost.part_us(variant, np.full_like(rest, variant.outputs), parts.inputs, resident)
        last = np.where(rest > 0, cost.part_us(variant, rest, parts.inputs, resident), 0.0)
        blocks = parts.counts * cost.blocks(variant)
        durations.append(np.stack([whole, last]))
        counts.append(np.stack([full * blocks, (rest > 0) * blocks]))
        work.append((durations[-1] * counts[-1]).sum(axis=0))
    best = np.stack(work).argmin(axis=0)
    places = np.arange(len(best))
    times = np.stack(durations)[best, :, places].reshape(-1)
    amounts = np.stack(counts)[best, :, places].reshape(-1)
    lengths, inverse = np.unique(times, return_inverse=True)
    summed = np.bincount(inverse.reshape(-1), weights=amounts, minlength=len(lengths)).astype(np.int64)
    return makespan(lengths, summed, resident * cost.gpu.multiprocessors)

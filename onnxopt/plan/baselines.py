"""Planners that others use, priced by the same cost model: what ours is compared with.

What a method leaves open goes in its favour: the fewest pairs and the least time may come from different settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from onnxopt.discover.attention_site import AttentionSite, KeyLists
from onnxopt.plan.attention import filled_rows
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.baseline_jobs import Jobs, Launch, fastest_us, launched, mixtures, residents
from onnxopt.plan.greedy_blocks import Blocks, greedy_blocks
from onnxopt.plan.orders import row_orders
from onnxopt.plan.strip_prices import padded
from onnxopt.plan.strips import CodedLists, coded
from onnxopt.plan.unions import union_sizes
from onnxopt.target.variant import AttentionVariant

TILE_SIZES = (64, 128)
# Orders from which the published artifact extracts its blocks.
GREEDY_ORDERS = ("hierarchical", "column signatures", "reverse Cuthill-McKee")


@dataclass(frozen=True)
class Baseline:
    """What a method computes (pairs of query and key, or connections, over all heads) and how long it takes.

    ``repeated`` counts needed ones that are computed again after the first time; 0 for an exact cover. Of the time,
    ``merging_us`` go into putting partial results together.
    """

    method: str
    computed: int
    predicted_us: float
    repeated: int = 0
    merging_us: float = 0.0


@dataclass(frozen=True)
class _Pattern:
    """The heads that share one pattern, with the rows that are computed in the model's order."""

    heads: int
    lists: KeyLists
    codes: CodedLists
    orders: dict[str, np.ndarray]
    biased: bool


def attention_baselines(
    site: AttentionSite, cost: AttentionCost, floor_us: float, *, with_greedy: bool = True
) -> tuple[Baseline, ...]:
    """What fixed tiles, every fixed shape and greedy extraction would make of a site.

    ``floor_us`` is what launching and moving the site's bytes takes, whatever the plan. *Tiles*: the matrix of the
    model's own rows and keys in square tiles, of which those with a needed pair are computed. *Fixed shape*: strips of
    equal height with gathered keys, all by one shape of the kernel; the best shape, in the model's order and in the
    best one. Both cover exactly. *Greedy*: blocks grown from three orders, and a second launch that merges the results
    of rows that are in several; that repeated pairs would have to be masked is not charged.
    """
    patterns = [_pattern(site, number) for number in range(len(site.lists))]
    results = [_tiles(patterns, cost, floor_us, size) for size in TILE_SIZES]
    results.append(_fixed_shape("fixed shape", patterns, cost, floor_us, own_order=True))
    results.append(_fixed_shape("fixed shape, best order", patterns, cost, floor_us, own_order=False))
    greedy = _greedy(patterns, cost, floor_us) if with_greedy else None
    return (*results, greedy) if greedy else tuple(results)


def _pattern(site: AttentionSite, number: int) -> _Pattern:
    lists, rows = site.lists[number], filled_rows(site)
    codes = coded(lists)
    heads = np.flatnonzero(site.head_lists == number)
    orders = row_orders(rows, lists, codes, site.query_tokens, site.key_tokens)
    return _Pattern(len(heads), lists, codes, orders, bool((site.head_bias[heads] >= 0).any()))


def _members(codes: CodedLists) -> csr_matrix:
    """Lists x keys: which keys are in which list. A key that a list repeats counts as several."""
    columns = np.unique(codes.codes, return_inverse=True)[1].reshape(-1)
    count = len(codes.offsets) - 1
    width = int(columns.max(initial=-1)) + 1
    return csr_matrix((np.ones(len(columns), np.int64), columns, codes.offsets), shape=(count, width))


def _tiles(patterns: Sequence[_Pattern], cost: AttentionCost, floor_us: float, size: int) -> Baseline:
    jobs = [_tile_strips(pattern, size) for pattern in patterns]
    together = Jobs.together(jobs)
    # A tile is computed whole, its rows and keys beyond the matrix's end as well.
    computed = int((size * together.keys * together.counts).sum())
    launches = (
        launched(cost, [variant], resident, together)
        for variant in _square_variants(cost, size)
        for resident in residents(cost.occupancy([variant]))
    )
    return Baseline(f"tiles of {size}x{size}", computed, max(floor_us, cost.launch_us + fastest_us(launches)))


def _tile_strips(pattern: _Pattern, size: int) -> Jobs:
    """For every ``size`` rows a block that walks the tiles in which any pair is needed."""
    members = _members(pattern.codes)
    owner = pattern.lists.row_list[pattern.orders["as is"]]
    blocks, widths = -(-len(owner) // size), -(-members.shape[1] // size)
    places = (members.indptr, members.indices // size)
    by_tile = csr_matrix((members.data, places[1], places[0]), shape=(members.shape[0], widths))
    by_tile.sum_duplicates()
    block = np.arange(len(owner)) // size
    amount = csr_matrix((np.ones(len(owner), np.int64), (block, owner)), shape=(blocks, members.shape[0]))
    pairs = (amount @ by_tile).tocsr()
    tiles = np.diff(pairs.indptr)
    rows = np.minimum(size, len(owner) - size * np.arange(blocks))
    full = np.asarray(pairs.sum(axis=1)).reshape(-1) == rows * tiles * size
    used = tiles > 0
    return Jobs.of(rows[used], tiles[used] * size, ~full[used] | pattern.biased, pattern.heads)


def _square_variants(cost: AttentionCost, size: int) -> list[AttentionVariant]:
    """Kernels with ``size`` rows a block and ``size`` keys a step, or half and a quarter of them where none fits."""
    for keys in (size, size // 2, size // 4):
        shapes = [AttentionVariant("mma", size, keys, warps, s) for warps in (size // 32, size // 16) for s in (1, 2)]
        if cost.gpu.architecture != "sm_75":
            shapes += [AttentionVariant("mma", size, keys, warps, 3) for warps in (size // 32, size // 16)]
        if cost.gpu.architecture == "sm_90" and cost.element in ("fp16", "bf16"):
            shapes += [AttentionVariant("wgmma", size, keys, size // 16, stages) for stages in (2, 3)]
        fitting = [shape for shape in shapes if cost.occupancy([shape])]
        if fitting:
            return fitting
    return []


def _fixed_shape(
    method: str, patterns: Sequence[_Pattern], cost: AttentionCost, floor_us: float, own_order: bool
) -> Baseline:
    """The least pairs and the least time that any single shape reaches."""
    variants = cost.variants()
    heights = sorted({variant.rows for variant in variants})
    known = [
        {name: _even_strips(pattern, order, heights) for name, order in pattern.orders.items()}
        if not own_order
        else {"as is": _even_strips(pattern, pattern.orders["as is"], heights)}
        for pattern in patterns
    ]
    computed = min(
        sum(min(int(jobs[v.rows].padded(v).sum()) for jobs in orders.values()) for orders in known) for v in variants
    )
    fastest = fastest_us(_shape_launches(known, cost))
    return Baseline(method, computed, max(floor_us, cost.launch_us + fastest))


def _even_strips(pattern: _Pattern, order: np.ndarray, heights: Sequence[int]) -> dict[int, Jobs]:
    """The strips of an order cut every ``height`` rows, for each of several heights."""
    owner = pattern.lists.row_list[order]
    unions = union_sizes(owner, pattern.codes, max(heights))
    total = np.concatenate([[0], np.cumsum(np.diff(pattern.codes.offsets)[owner])])
    result = {}
    for height in heights:
        first = np.arange(0, len(order), height)
        rows = np.minimum(height, len(order) - first)
        keys = unions[first, rows - 1].astype(np.int64)
        masked = (total[first + rows] - total[first] != rows * keys) | pattern.biased
        result[height] = Jobs.of(rows, keys, masked, pattern.heads)
    return result


def _shape_launches(known: Sequence[dict[str, dict[int, Jobs]]], cost: AttentionCost) -> Iterator[Launch]:
    """Every launch of a single shape; several patterns are each taken in the order with the least work."""
    for variant in cost.variants():
        for resident in residents(cost.occupancy([variant])):
            own = [[heights[variant.rows] for heights in orders.values()] for orders in known]
            if len(own) > 1:
                least = (
                    min(jobs, key=lambda j: float(j.durations(cost, variant, resident) @ j.counts)) for jobs in own
                )
                own = [[Jobs.together(list(least))]]
            for jobs in own[0]:
                yield launched(cost, [variant], resident, jobs)


def _greedy(patterns: Sequence[_Pattern], cost: AttentionCost, floor_us: float) -> Baseline | None:
    """Blocks of every pattern from the order with which least is computed, each a job of the best shape for it."""
    jobs, repeated, rows, pieces = [], 0, 0, 1
    granules = sorted({(v.row_granule, v.key_granule) for v in cost.variants()})
    computed = 0
    for pattern in patterns:
        members = _members(pattern.codes)
        options = []
        for name in GREEDY_ORDERS:
            order = pattern.orders.get(name)
            blocks = greedy_blocks(members, pattern.lists.row_list[order]) if order is not None else None
            if blocks is not None:
                options.append((_padded_blocks(blocks, granules), blocks))
        if not options:
            # Where no order changes anything, the model's own is left.
            blocks = greedy_blocks(members, pattern.lists.row_list[pattern.orders["as is"]])
            if blocks is None:
                return None
            options.append((_padded_blocks(blocks, granules), blocks))
        area, blocks = min(options, key=lambda option: option[0])
        needed = int(pattern.lists.lengths[pattern.orders["as is"]].sum())
        computed += pattern.heads * area
        repeated += pattern.heads * (int(blocks.needed.sum()) - needed)
        jobs.append(Jobs.of(blocks.rows, blocks.columns, ~blocks.full | pattern.biased, pattern.heads))
        covers = blocks.covers()
        rows += pattern.heads * int((covers > 1).sum())
        pieces = max(pieces, int(covers.max()))
    together = Jobs.together(jobs)
    fastest = fastest_us(launched(cost, variants, resident, together) for variants, resident in mixtures(cost))
    merging = cost.merge_us(rows, pieces)
    total = max(floor_us, cost.launch_us + fastest) + merging
    return Baseline("greedy blocks", computed, total, repeated, merging)


def _padded_blocks(blocks: Blocks, granules: Sequence[tuple[int, int]]) -> int:
    areas = [padded(blocks.rows, tall) * padded(blocks.columns, wide) for tall, wide in granules]
    return int(np.min(areas, axis=0).sum())

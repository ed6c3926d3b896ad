"""Schedules cut by hand, for tests of what reads them: any strips, no search and no claims of quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists
from onnxopt.plan.schedule import AttentionSchedule, Forecast, PatternSchedule, Proof
from onnxopt.plan.strips import Strip, coded, make_strip
from onnxopt.target.variant import AttentionVariant, Element

SMALL = AttentionVariant("mma", 16, 32, 1, 2)
TALL = AttentionVariant("mma", 64, 48, 4, 2)
WIDE = AttentionVariant("mma", 32, 128, 4, 3)
SWAPPED = AttentionVariant("mma", 24, 64, 4, 2, swapped=True)
GROUPED = AttentionVariant("wgmma", 64, 128, 4, 2)
VARIANTS = (SMALL, TALL, WIDE, SWAPPED, GROUPED)

Cut = Callable[[np.ndarray], list[np.ndarray]]


def filled(site: AttentionSite) -> np.ndarray:
    """The rows that a schedule computes."""
    return np.flatnonzero(~site.empty) if site.empty_kind is EmptyRow.ZERO else np.arange(site.rows)


def scheduled(
    site: AttentionSite,
    variants: Sequence[AttentionVariant] = (SMALL,),
    *,
    seed: int | None = None,
    split_keys: int = 0,
    element: Element = "fp32",
) -> AttentionSchedule:
    """A schedule of fixed strips or, with a seed, of random rows, variants and jobs; keys split where asked."""
    rng = np.random.default_rng(seed)
    parts = []
    for number, lists in enumerate(site.lists):
        heads = tuple(np.flatnonzero(site.head_lists == number).tolist())
        # A part may hold any of the heads of a pattern.
        groups = (heads[:1], heads[1:]) if seed is not None and seed % 2 else (heads,)
        chooser = None if seed is None else rng
        parts += [_part(site, lists, number, own, variants, chooser, split_keys) for own in groups if own]
    jobs = [(p, s, h) for p, part in enumerate(parts) for s in range(len(part.strips)) for h in part.heads]
    table = np.array(jobs, np.int32).reshape(-1, 3)
    if seed is not None:
        table = rng.permutation(table)
    needed = computed = 0
    for part in parts:
        lengths = site.lists[part.lists].lengths
        needed += len(part.heads) * int(lengths[filled(site)].sum())
        computed += len(part.heads) * sum(
            _area(s, variants[v]) for s, v in zip(part.strips, part.variants, strict=True)
        )
    return AttentionSchedule(
        site.id,
        "waste",
        element,
        tuple(variants),
        1,
        tuple(parts),
        table,
        split_keys,
        needed,
        computed,
        Forecast(10.0, 1.0, 0.3, False),
        Proof(float(computed), 0.0, "none", "feasible", 0, "cut by hand; 0 is a bound of everything"),
    )


def _part(
    site: AttentionSite,
    lists: KeyLists,
    number: int,
    heads: tuple[int, ...],
    variants: Sequence[AttentionVariant],
    rng: np.random.Generator | None,
    split_keys: int,
) -> PatternSchedule:
    rows = filled(site)
    codes = coded(lists)
    if rng is not None:
        rows = rng.permutation(rows)
    strips: list[Strip] = []
    chosen: list[int] = []
    first = 0
    while first < len(rows):
        variant = int(rng.integers(len(variants))) if rng is not None else len(strips) % len(variants)
        size = variants[variant].rows if rng is None else int(rng.integers(1, variants[variant].rows + 1))
        strip = make_strip(rows[first : first + size], lists, codes)
        first += size
        if rng is not None:
            strip = Strip(strip.rows, rng.permutation(strip.keys), strip.full)
        pieces = _split(strip, split_keys)
        strips += pieces
        chosen += [variant] * len(pieces)
    return PatternSchedule(heads, number, "as is", tuple(strips), tuple(chosen))


def _split(strip: Strip, most: int) -> list[Strip]:
    if not most or len(strip.keys) <= most:
        return [strip]
    return [
        Strip(strip.rows, strip.keys[begin : begin + most], strip.full) for begin in range(0, len(strip.keys), most)
    ]


def _area(strip: Strip, variant: AttentionVariant) -> int:
    rows = -(-len(strip.rows) // variant.row_granule) * variant.row_granule
    return rows * -(-len(strip.keys) // variant.key_granule) * variant.key_granule

"""Schedules that compute their site are accepted, however they are cut; whatever is spoilt in one is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists
from onnxopt.plan.schedule import AttentionSchedule, PatternSchedule
from onnxopt.plan.strips import Strip
from onnxopt.target.variant import AttentionVariant
from onnxopt.validate import PlanError, validate_attention_schedule
from tests.plan.schedules import SMALL, VARIANTS, scheduled
from tests.plan.sites import Wish, key_lists, made_site

Spoil = Callable[[AttentionSchedule, int], AttentionSchedule]


def with_part(schedule: AttentionSchedule, change: Callable[[PatternSchedule], PatternSchedule]) -> AttentionSchedule:
    return replace(schedule, parts=(change(schedule.parts[0]), *schedule.parts[1:]))


def with_strip(schedule: AttentionSchedule, number: int, change: Callable[[Strip], Strip]) -> AttentionSchedule:
    def changed(part: PatternSchedule) -> PatternSchedule:
        strips = list(part.strips)
        strips[number % len(strips)] = change(strips[number % len(strips)])
        return replace(part, strips=tuple(strips))

    return with_part(schedule, changed)


def with_jobs(schedule: AttentionSchedule, change: Callable[[np.ndarray], np.ndarray]) -> AttentionSchedule:
    return replace(schedule, jobs=change(schedule.jobs))


def put(array: np.ndarray, place: tuple[int, ...], value: int) -> np.ndarray:
    result = np.array(array)
    result[place] = value
    return result


SPOILT: dict[str, Spoil] = {
    "a query dropped": lambda s, n: with_strip(s, n, lambda t: replace(t, rows=t.rows[1:])),
    "a query twice": lambda s, n: with_strip(s, n, lambda t: replace(t, rows=np.append(t.rows, t.rows[0]))),
    "a query that is none": lambda s, n: with_strip(s, n, lambda t: replace(t, rows=t.rows + 1000)),
    "a negative query": lambda s, n: with_strip(s, n, lambda t: replace(t, rows=t.rows - 1000)),
    "a key dropped": lambda s, n: with_strip(s, n, lambda t: replace(t, keys=np.delete(t.keys, n % len(t.keys)))),
    "a key too often": lambda s, n: with_strip(s, n, lambda t: replace(t, keys=np.append(t.keys, [t.keys[0]] * 4))),
    "a key that is none": lambda s, n: with_strip(s, n, lambda t: replace(t, keys=np.append(t.keys, 1000))),
    "a negative key": lambda s, n: with_strip(s, n, lambda t: replace(t, keys=np.append(t.keys, -1))),
    "a strip dropped": lambda s, n: with_part(s, lambda p: replace(p, strips=p.strips[1:], variants=p.variants[1:])),
    "a strip twice": lambda s, n: with_part(
        s, lambda p: replace(p, strips=(*p.strips, p.strips[0]), variants=(*p.variants, p.variants[0]))
    ),
    "a strip without variant": lambda s, n: with_part(s, lambda p: replace(p, variants=p.variants[1:])),
    "a variant that is none": lambda s, n: with_part(s, lambda p: replace(p, variants=(99, *p.variants[1:]))),
    "a variant too small": lambda s, n: replace(s, variants=tuple(replace(v, rows=0) for v in s.variants)),
    "no variants": lambda s, n: replace(s, variants=()),
    "a head dropped": lambda s, n: with_part(s, lambda p: replace(p, heads=p.heads[1:])),
    "a head twice": lambda s, n: with_part(s, lambda p: replace(p, heads=(*p.heads, p.heads[0]))),
    "a head that is none": lambda s, n: with_part(s, lambda p: replace(p, heads=(*p.heads, 1000))),
    "lists of another pattern": lambda s, n: with_part(s, lambda p: replace(p, lists=p.lists + 1)),
    "a part dropped": lambda s, n: replace(s, parts=s.parts[1:]),
    "a part twice": lambda s, n: replace(s, parts=(*s.parts, s.parts[0])),
    "a job dropped": lambda s, n: with_jobs(s, lambda j: np.delete(j, n % len(j), axis=0)),
    "a job twice": lambda s, n: with_jobs(s, lambda j: np.concatenate([j, j[:1]])),
    "a job of another part": lambda s, n: with_jobs(s, lambda j: put(j, (0, 0), 99)),
    "a job of another strip": lambda s, n: with_jobs(s, lambda j: put(j, (0, 1), 9999)),
    "a job of another head": lambda s, n: with_jobs(s, lambda j: put(j, (0, 2), -1)),
    "jobs of another shape": lambda s, n: with_jobs(s, lambda j: j[:, :2]),
    "needed miscounted": lambda s, n: replace(s, needed=s.needed + 1),
    "computed miscounted": lambda s, n: replace(s, computed=s.computed - 1),
    "another site": lambda s, n: replace(s, site="attention-7"),
    "a bound above the value": lambda s, n: replace(s, proof=replace(s.proof, bound=s.proof.value + 1)),
    "a bound that is NaN": lambda s, n: replace(s, proof=replace(s.proof, bound=float("nan"))),
    "another value": lambda s, n: replace(s, proof=replace(s.proof, value=s.proof.value + 8)),
    "no certificate": lambda s, n: replace(s, proof=replace(s.proof, certificate="")),
    "a negative time": lambda s, n: replace(s, forecast=replace(s.forecast, predicted_us=-1.0)),
    "no residency": lambda s, n: replace(s, resident=0),
}


@pytest.mark.parametrize("split", [0, 11])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 9), number=st.integers(0, 50))
def test_whatever_is_spoilt_is_found(spoil: Spoil, split: int, seed: int, number: int) -> None:
    site, _ = made_site(Wish(heads=3, rows=20, keys=30, own_patterns=bool(seed % 2), most=1 + seed % 3), seed)
    schedule = scheduled(site, VARIANTS, seed=seed, split_keys=split)
    validate_attention_schedule(site, schedule)
    with pytest.raises(PlanError, match=r"^attention-0"):
        validate_attention_schedule(site, spoil(schedule, number))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0, 1, 5, 16]), st.sampled_from([None, *EmptyRow]))
def test_any_cut_is_valid(seed: int, split: int, empty: EmptyRow | None) -> None:
    site, _ = made_site(Wish(heads=3, rows=25, keys=40, own_patterns=True, most=1 + seed % 3, empty=empty), seed)
    validate_attention_schedule(site, scheduled(site, VARIANTS, seed=seed, split_keys=split))


def plain(lists: KeyLists, keys: int) -> AttentionSite:
    """A site of one head with these key lists."""
    site, _ = made_site(Wish(heads=1))
    rows = len(lists.row_list)
    nothing = np.zeros((1, rows), bool)
    vectors = np.arange(keys)[None]
    return replace(
        site,
        rows=rows,
        lists=(lists,),
        key_vectors=vectors,
        value_vectors=vectors,
        empty=nothing[0],
        head_empty=nothing,
    )


def cut(
    site: AttentionSite, strips: list[Strip], variant: AttentionVariant = SMALL, split: int = 0
) -> AttentionSchedule:
    """The schedule of given strips of a site with one head."""
    base = scheduled(site, (variant,), split_keys=split)
    part = replace(base.parts[0], strips=tuple(strips), variants=(0,) * len(strips))
    jobs = np.array([(0, s, 0) for s in range(len(strips))], np.int32)
    computed = sum(16 * -(-len(s.rows) // 16) * 16 * -(-len(s.keys) // 16) for s in strips)
    proof = replace(base.proof, value=float(computed))
    return replace(base, parts=(part,), jobs=jobs, computed=computed, proof=proof)


def strip(rows: list[int], keys: list[int], full: bool = False) -> Strip:
    return Strip(np.array(rows), np.array(keys, np.int32), full)


def test_the_message_names_query_and_key() -> None:
    site = plain(key_lists(np.array([[1, 1, 0], [0, 1, 2]])), 3)
    validate_attention_schedule(site, cut(site, [strip([0, 1], [2, 0, 1, 2])]))
    with pytest.raises(PlanError, match="part 0, strip 0, query 1: the strip has key 2 1 times, expected 2"):
        validate_attention_schedule(site, cut(site, [strip([0, 1], [2, 0, 1])]))
    with pytest.raises(PlanError, match="query 1: the strip is marked full with 4 keys, but the query needs 3"):
        validate_attention_schedule(site, cut(site, [strip([0, 1], [2, 0, 1, 2], True)]))
    with pytest.raises(PlanError, match="query 0: the strip has key 0 2 times, expected 1"):
        validate_attention_schedule(site, cut(site, [strip([0, 1], [2, 0, 1, 2, 0])]))


def test_a_row_is_in_several_strips_only_where_keys_are_split() -> None:
    site = plain(key_lists(np.array([[1, 1, 2]])), 3)
    halves = [strip([0], [0, 2]), strip([0], [1, 2])]
    validate_attention_schedule(site, cut(site, halves, split=2))
    with pytest.raises(PlanError, match="query 0 is in 2 strips, though no list is split"):
        validate_attention_schedule(site, cut(site, halves))
    with pytest.raises(PlanError, match="strip 0: 3 keys, though lists are split at 2"):
        validate_attention_schedule(site, cut(site, [strip([0], [0, 1, 2]), strip([0], [2])], split=2))
    with pytest.raises(PlanError, match=r"query 0: 1 of its uses of key 2 are in none of its strips \[0, 1\]"):
        validate_attention_schedule(site, cut(site, [strip([0], [0, 2]), strip([0], [1])], split=2))
    with pytest.raises(PlanError, match="strip 1: it has key 0 1 times, but its rows take it 0 times"):
        validate_attention_schedule(site, cut(site, [strip([0], [0, 2]), strip([0], [1, 2, 0])], split=3))


def test_rows_of_a_split_strip_may_need_different_parts_of_it() -> None:
    site = plain(key_lists(np.array([[1, 1, 1, 0], [0, 1, 1, 1]])), 4)
    strips = [strip([0, 1], [0, 1, 3]), strip([0, 1], [2], True)]
    validate_attention_schedule(site, cut(site, strips, split=3))
    with pytest.raises(PlanError, match="strip 0, query 0: the strip is marked full with 3 keys"):
        validate_attention_schedule(site, cut(site, [replace(strips[0], full=True), strips[1]], split=3))


def test_a_row_of_zeros_is_in_no_strip() -> None:
    site, _ = made_site(Wish(empty=EmptyRow.ZERO))
    schedule = scheduled(site)
    validate_attention_schedule(site, schedule)
    spoilt = with_strip(schedule, 0, lambda t: replace(t, rows=np.append(t.rows, 2)))
    with pytest.raises(PlanError, match="query 2 is in 1 strips, expected 0"):
        validate_attention_schedule(site, spoilt)


def test_an_attention_over_96_x_96_tokens_is_looked_at_in_full() -> None:
    side, reach = 96, 10
    around = np.clip(np.arange(side), reach, side - reach - 1)
    row = (around[:, None] + np.arange(-reach, reach + 1)).astype(np.int64)
    keys = (row[:, None, :, None] * side + row[None, :, None, :]).reshape(side * side, -1)
    length = keys.shape[1]
    lists = KeyLists(np.arange(side * side), np.arange(side * side + 1) * length, keys.reshape(-1).astype(np.int32))
    site = plain(lists, side * side)
    schedule = scheduled(site, (AttentionVariant("mma", 64, 64, 4, 2),))
    validate_attention_schedule(site, schedule)
    last = len(schedule.parts[0].strips) - 1
    lost = with_strip(schedule, last, lambda t: replace(t, keys=t.keys[:-1]))
    with pytest.raises(PlanError, match=f"strip {last}, query"):
        validate_attention_schedule(site, lost)

"""Plans that the planner makes are valid; whatever is spoilt in one is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.errors import VerificationError
from onnxopt.plan.attention import AttentionPlan, HeadPlan
from onnxopt.plan.strips import Strip
from onnxopt.validate import PlanError, validate_attention_plan
from tests.lower.masked_attention import Pattern, masked_attention
from tests.validate.cases import AttentionCase, attention_cases, patterns

Spoil = Callable[[AttentionPlan, int], AttentionPlan]


def with_part(plan: AttentionPlan, change: Callable[[HeadPlan], HeadPlan]) -> AttentionPlan:
    return replace(plan, parts=(change(plan.parts[0]), *plan.parts[1:]))


def with_strip(plan: AttentionPlan, number: int, change: Callable[[Strip], Strip]) -> AttentionPlan:
    def changed(part: HeadPlan) -> HeadPlan:
        strips = list(part.strips)
        strips[number % len(strips)] = change(strips[number % len(strips)])
        return replace(part, strips=tuple(strips))

    return with_part(plan, changed)


def with_buckets(plan: AttentionPlan, number: int, **fields: object) -> AttentionPlan:
    def changed(part: HeadPlan) -> HeadPlan:
        buckets = list(part.buckets)
        own = buckets[number % len(buckets)]
        values = {k: v(own) if callable(v) else v for k, v in fields.items()}
        buckets[number % len(buckets)] = replace(own, **values)  # type: ignore[arg-type]
        return replace(part, buckets=tuple(buckets))

    return with_part(plan, changed)


def drop_key(strip: Strip, at: int) -> Strip:
    return replace(strip, keys=np.delete(strip.keys, at % len(strip.keys)))


def with_key(strip: Strip, key: int) -> Strip:
    return replace(strip, keys=np.append(strip.keys, key))


SPOILT: dict[str, Spoil] = {
    "a query dropped": lambda p, n: with_strip(p, n, lambda s: replace(s, rows=s.rows[1:])),
    "a query twice": lambda p, n: with_strip(p, n, lambda s: replace(s, rows=np.append(s.rows, s.rows[0]))),
    "a query that is none": lambda p, n: with_strip(p, n, lambda s: replace(s, rows=s.rows + 1000)),
    "a negative query": lambda p, n: with_strip(p, n, lambda s: replace(s, rows=s.rows - 1000)),
    "a key dropped": lambda p, n: with_strip(p, n, lambda s: drop_key(s, n)),
    "a key twice": lambda p, n: with_strip(p, n, lambda s: with_key(s, int(s.keys[n % len(s.keys)]))),
    "a key that is none": lambda p, n: with_strip(p, n, lambda s: with_key(s, 1000)),
    "a negative key": lambda p, n: with_strip(p, n, lambda s: with_key(s, -1)),
    "a bucket too low": lambda p, n: with_buckets(p, n, rows=lambda b: b.rows - 1),
    "a bucket too narrow": lambda p, n: with_buckets(p, n, keys=lambda b: b.keys - 1),
    "a strip in no bucket": lambda p, n: with_buckets(p, n, strips=lambda b: b.strips[1:]),
    "a strip in a bucket twice": lambda p, n: with_buckets(p, n, strips=lambda b: (*b.strips, b.strips[0])),
    "a strip that is none": lambda p, n: with_buckets(p, n, strips=lambda b: (*b.strips, 1000)),
    "a head dropped": lambda p, n: with_part(p, lambda part: replace(part, heads=part.heads[1:])),
    "a head twice": lambda p, n: with_part(p, lambda part: replace(part, heads=(*part.heads, part.heads[0]))),
    "a head that is none": lambda p, n: with_part(p, lambda part: replace(part, heads=(*part.heads, 1000))),
    "a part twice": lambda p, n: replace(p, parts=(*p.parts, p.parts[n % len(p.parts)])),
    "a part dropped": lambda p, n: replace(p, parts=p.parts[1:]),
    "needed miscounted": lambda p, n: replace(p, needed=p.needed - 1),
    "computed miscounted": lambda p, n: replace(p, computed=p.computed + 1),
    "another site": lambda p, n: replace(p, site="attention-9"),
}


def case_of(pattern: Pattern, batch: int | None = 1) -> AttentionCase:
    (case,) = attention_cases(masked_attention(pattern, batch=batch))
    return case


@settings(max_examples=60, deadline=None, derandomize=True)
@given(patterns(), st.sampled_from([1, None]))
def test_any_plan_is_valid(pattern: Pattern, batch: int | None) -> None:
    for objective in ("time", "waste"):
        (case,) = attention_cases(masked_attention(pattern, batch=batch), objective)
        validate_attention_plan(case.site, case.plan)


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(pattern=patterns(), number=st.integers(0, 50))
def test_whatever_is_spoilt_is_found(spoil: Spoil, pattern: Pattern, number: int) -> None:
    case = case_of(pattern)
    with pytest.raises(PlanError, match=r"^attention-0"):
        validate_attention_plan(case.site, spoil(case.plan, number))


def block(rows: int, keys: int) -> np.ndarray:
    return np.ones((1, rows, keys), bool)


def test_a_strip_that_masks_is_not_full() -> None:
    live = block(8, 8)
    live[0, 3, 5] = False
    case = case_of(Pattern(live, 1, np.arange(8), 8))
    strip = next(n for n, s in enumerate(case.plan.parts[0].strips) if not s.full)
    spoilt = with_strip(case.plan, strip, lambda s: replace(s, full=True))
    with pytest.raises(PlanError, match="query 3: the strip is marked full with 8 keys, but the query needs 7"):
        validate_attention_plan(case.site, spoilt)


def test_keys_that_are_needed_several_times_are_counted() -> None:
    case = case_of(Pattern(block(4, 6), 1, np.array([0, 1, 1, 1, 2, 2]), 4))
    spoilt = with_strip(case.plan, 0, lambda s: drop_key(s, 2))
    with pytest.raises(PlanError, match="query 0: the strip has key 1 2 times, expected 3"):
        validate_attention_plan(case.site, spoilt)


def test_a_row_of_zeros_is_in_no_strip() -> None:
    live = block(6, 6)
    live[0, 2] = False
    case = case_of(Pattern(live, 1, np.arange(6), 6, guard=True))
    assert case.site.empty.tolist() == [False, False, True, False, False, False]
    validate_attention_plan(case.site, case.plan)
    spoilt = with_strip(case.plan, 0, lambda s: replace(s, rows=np.append(s.rows, 2)))
    with pytest.raises(PlanError, match="query 2 is in 1 strips, expected 0"):
        validate_attention_plan(case.site, spoilt)


def test_heads_of_different_patterns_are_not_exchanged() -> None:
    live = np.stack([np.tri(6, dtype=bool), np.tri(6, dtype=bool).T])
    case = case_of(Pattern(live, 2, np.arange(6), 6))
    assert len(case.plan.parts) == 2
    first, second = case.plan.parts
    exchanged = (replace(first, heads=second.heads), replace(second, heads=first.heads))
    with pytest.raises(PlanError, match="head 1 is planned by key lists 0, but has 1"):
        validate_attention_plan(case.site, replace(case.plan, parts=exchanged))


def test_the_error_says_that_nothing_was_written() -> None:
    assert issubclass(PlanError, VerificationError)

"""Schedules for the attention kernel: proved for samples and exported models, and the same every time."""

from __future__ import annotations

import heapq
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists
from onnxopt.errors import InputError
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.attention_kernel import plan_attention_kernel
from onnxopt.plan.schedule import AttentionSchedule, Objective
from onnxopt.plan.strips import count_needed
from onnxopt.sites import discover
from onnxopt.target import load_target
from onnxopt.target.variant import Element
from onnxopt.validate.attention_schedule import validate_attention_schedule
from samples import SAMPLES, build
from tests.corpus_tags import every_tag
from tests.lower.masked_attention import Pattern, masked_attention
from tests.plan.patterns import (
    any_rows,
    band,
    chunk_windows,
    hidden_blocks,
    key_lists,
    neighbourhoods,
    random_mask,
    site_of,
)
from tests.validate.cases import patterns

OBJECTIVES: tuple[Objective, ...] = ("time", "waste")
TARGETS = ("sm_75", "sm_80", "sm_89", "sm_90")
SMALLER = {"dense_masked": {"tokens": 128, "dim": 32, "heads": 2}}
ATTENTION = [name for name in SAMPLES if build(name, **SMALLER.get(name, {})).attention]
CORPUS = (
    "vit_mask_plain.dynamo.op18",
    "dyvit_s_07.dynamo.op18",
    "swin_tiny_224.legacy.op17",
    "vil_tiny_224_exact.dynamo.op18",
)


def cost_of(site: AttentionSite, target: str, element: Element = "fp16") -> AttentionCost:
    return AttentionCost.of(load_target(target).need_gpu_profile(), site.head_dim, site.v.width, element)


def check(site: AttentionSite, cost: AttentionCost, schedule: AttentionSchedule) -> None:
    """What holds for every schedule, whatever the site."""
    validate_attention_schedule(site, schedule)
    proof, forecast = schedule.proof, schedule.forecast
    assert 0.0 <= proof.gap < 1.0
    assert proof.free_bound <= proof.value
    assert proof.status == ("optimal" if proof.value <= proof.bound * (1 + 1e-9) else "feasible")
    assert proof.value == (forecast.predicted_us if schedule.objective == "time" else schedule.computed)
    assert forecast.bound_us <= forecast.predicted_us
    assert schedule.waste >= 1.0
    # All variants can be one launch, as many blocks of which share a multiprocessor as it says.
    assert cost.occupancy(schedule.variants) >= schedule.resident
    assert sorted({number for part in schedule.parts for number in part.variants}) == list(
        range(len(schedule.variants))
    )
    simulated = simulated_us(site, cost, schedule)
    assert simulated <= forecast.predicted_us * (1 + 1e-9)
    # Packing may end a little earlier than it says, and nothing ends before its bytes have moved.
    everything = site.heads * (site.rows + site.key_vectors.shape[1]) * (site.head_dim + site.v.width) * 4.0
    assert forecast.predicted_us <= max(simulated * 1.02, cost.launch_us + cost.bytes_floor_us(everything))


def simulated_us(site: AttentionSite, cost: AttentionCost, schedule: AttentionSchedule) -> float:
    """When the launch ends if each block goes to the place that is free first, in the order of jobs."""
    durations: list[list[float]] = []
    split_rows, most = 0, 1
    for part in schedule.parts:
        biased = bool((site.head_bias[list(part.heads)] >= 0).any())
        # Pieces of a split list all count as long as the longest of them.
        longest: dict[bytes, int] = {}
        for strip in part.strips:
            rows = strip.rows.tobytes()
            longest[rows] = max(longest.get(rows, 0), len(strip.keys))
        durations.append([])
        for strip, number in zip(part.strips, part.variants, strict=True):
            shape = np.array([len(strip.rows)]), np.array([longest[strip.rows.tobytes()]])
            masked = biased or not strip.full
            time = cost.strip_us(schedule.variants[number], *shape, schedule.resident, masked)
            durations[-1].append(float(time[0]))
        pieces = np.bincount(np.concatenate([strip.rows for strip in part.strips]))
        split_rows += int((pieces > 1).sum()) * len(part.heads)
        most = max(most, int(pieces.max()))
    free = [0.0] * (schedule.resident * cost.gpu.multiprocessors)
    for number, strip_number, _ in schedule.jobs.tolist():
        heapq.heappush(free, heapq.heappop(free) + durations[number][strip_number])
    return cost.launch_us + max(free) + cost.merge_us(split_rows, most)


def planned(
    site: AttentionSite, target: str, objective: Objective, element: Element = "fp16", top: int = 1
) -> AttentionSchedule:
    cost = cost_of(site, target, element)
    schedules = plan_attention_kernel(site, cost, objective, element, top)
    assert 1 <= len(schedules) <= top
    for schedule in schedules:
        check(site, cost, schedule)
    values = [schedule.proof.value for schedule in schedules]
    assert values == sorted(values)
    differences = {
        (s.variants, s.resident, s.split_keys, tuple((p.order, len(p.strips)) for p in s.parts)) for s in schedules
    }
    assert len(differences) == len(schedules)
    return schedules[0]


def different(sites: Sequence[AttentionSite]) -> Iterator[AttentionSite]:
    """Sites whose plans may differ: layers repeat one another."""
    known = set()
    for site in sites:
        tables = [(own.row_list.tobytes(), own.offsets.tobytes(), own.keys.tobytes()) for own in site.lists]
        key = (site.head_dim, site.v.width, site.head_lists.tobytes(), (site.head_bias >= 0).tobytes(), *tables)
        if key not in known:
            known.add(key)
            yield site


@pytest.mark.parametrize("name", ATTENTION)
def test_samples_are_planned_and_proved(name: str) -> None:
    target = TARGETS[ATTENTION.index(name) % len(TARGETS)]
    for site in different(discover(build(name, **SMALLER.get(name, {})).model).attention):
        for objective in OBJECTIVES:
            planned(site, target, objective, top=3)


def check_model(path: Path, targets: Sequence[str]) -> None:
    for site in different(discover(onnx.load(path)).attention):
        for target in targets:
            for objective in OBJECTIVES:
                planned(site, target, objective)


@pytest.mark.corpus
@pytest.mark.parametrize("tag", CORPUS)
def test_exported_models_are_planned_and_proved(tag: str, corpus_model: Callable[[str], Path]) -> None:
    check_model(corpus_model(tag), [TARGETS[CORPUS.index(tag)]])


@pytest.mark.corpus_all
@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
@pytest.mark.parametrize("tag", every_tag())
def test_every_exported_model_is_planned_and_proved(tag: str, target: str, corpus_model: Callable[[str], Path]) -> None:
    check_model(corpus_model(tag), [target])


@settings(max_examples=30)
@given(patterns(), st.sampled_from(TARGETS), st.sampled_from(OBJECTIVES))
def test_any_mask_is_planned_and_proved(pattern: Pattern, target: str, objective: Objective) -> None:
    for site in discover(masked_attention(pattern)).attention:
        planned(site, target, objective)


@settings(max_examples=20)
@given(any_rows, any_rows, st.integers(1, 3), st.booleans(), st.sampled_from(OBJECTIVES))
def test_heads_of_several_patterns_share_a_launch(
    first: list[list[int]], second: list[list[int]], heads: int, biased: bool, objective: Objective
) -> None:
    rows = min(len(first), len(second))
    lists = [key_lists(first[:rows]), key_lists(second[:rows])]
    site = site_of(lists, 12, [1, *[0] * heads, 1], biased=biased)
    schedule = planned(site, "sm_90", objective)
    assert schedule.needed == count_needed([site.lists_of(head) for head in range(site.heads)])
    assert sorted(h for part in schedule.parts for h in part.heads) == list(range(heads + 2))


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32", "fp32"])
def test_every_type_is_planned(element: Element) -> None:
    site = site_of([band(80, 6)], 80, [0] * 2)
    for target in ("sm_90", "sm_120"):
        assert planned(site, target, "time", element).element == element


@pytest.mark.parametrize(
    ("name", "lists", "keys"),
    [
        ("neighbourhoods", neighbourhoods(24, 7, 1), 577),
        ("chunks", chunk_windows(42, 7), 1765),
        ("random", random_mask(150, 180, 0.1), 180),
        ("band", band(400, 15), 400),
    ],
)
def test_plans_beat_strips_of_sixty_four_rows_in_the_order_of_rows(name: str, lists: KeyLists, keys: int) -> None:
    site = site_of([lists], keys, [0, 0])
    schedule = planned(site, "sm_80", "waste")
    rows = np.arange(site.rows)
    plain = 0
    for begin in range(0, site.rows, 64):
        own = rows[begin : begin + 64]
        united = len(np.unique(np.concatenate([lists.list(int(c)) for c in lists.row_list[own]])))
        plain += 2 * 64 * (-(-united // 16) * 16)
    assert schedule.computed < plain
    assert schedule.proof.gap == 0.0


@pytest.mark.parametrize("target", TARGETS)
def test_hidden_blocks_cost_nothing_but_their_own(target: str) -> None:
    lists, _ = hidden_blocks(20, 16, 32)
    schedule = planned(site_of([lists], 640), target, "waste")
    assert schedule.waste == 1.0 and schedule.proof.gap == 0.0
    assert schedule.proof.free_bound == schedule.computed


@pytest.mark.parametrize("tokens", [197, 138, 97, 68])
@pytest.mark.parametrize("target", TARGETS)
def test_dense_attention_of_awkward_lengths_is_planned(tokens: int, target: str) -> None:
    site = site_of([key_lists([list(range(tokens))] * tokens)], tokens, [0] * 6, width=64)
    for objective in OBJECTIVES:
        schedule = planned(site, target, objective)
        assert all(strip.full for part in schedule.parts for strip in part.strips)
    # No granule is smaller than 8 queries and 16 keys.
    assert schedule.computed == 6 * -(-tokens // 8) * 8 * -(-tokens // 16) * 16


@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
def test_one_query_of_very_many_keys_is_split(target: str) -> None:
    everything = KeyLists(np.zeros(1, np.int32), np.array([0, 65_537]), np.arange(65_537, dtype=np.int32))
    site = site_of([everything], 65_537, [0] * 3)
    split = planned(site, target, "time")
    assert split.split_keys > 0 and len(split.jobs) == 3 * len(split.parts[0].strips) > 3
    whole = planned(site, target, "waste")
    assert whole.split_keys == 0
    assert split.forecast.predicted_us < whole.forecast.predicted_us / 3


def test_a_few_long_lists_are_split_among_many_short_ones() -> None:
    everything = list(range(6000))
    site = site_of([key_lists([everything] * 2 + [[i, i + 1, 5000] for i in range(90)])], 6000)
    schedule = planned(site, "sm_80", "time", top=4)
    assert schedule.split_keys > 0
    # Repeated keys are dealt out with the others.
    repeated = site_of([key_lists([sorted(everything * 2)] * 3 + [everything])], 6000)
    assert planned(repeated, "sm_80", "time").split_keys > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_site_without_any_pair_is_refused_by_name(objective: Objective) -> None:
    empty = site_of([key_lists([[], [], []])], 4)
    with pytest.raises(InputError, match="softmax.*no query has a key"):
        plan_attention_kernel(empty, cost_of(empty, "sm_80"), objective)
    zero = replace(
        site_of([key_lists([[0], [1]])], 4),
        empty=np.ones(2, bool),
        head_empty=np.ones((1, 2), bool),
        empty_kind=EmptyRow.ZERO,
    )
    with pytest.raises(InputError, match="softmax.*no query has a key"):
        plan_attention_kernel(zero, cost_of(zero, "sm_80"), objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("mask_value", [-np.inf, -100.0])
@pytest.mark.parametrize("guard", [False, True])
def test_rows_that_are_empty_in_some_heads_only(guard: bool, mask_value: float, objective: Objective) -> None:
    live = np.zeros((2, 5, 4), bool)
    live[:, 0, 0] = live[0, 1, 1] = live[1, 2, 2] = live[:, 4, 3] = True
    model = masked_attention(Pattern(live, 2, np.arange(4), 6, mask_value=mask_value, guard=guard))
    (site,) = discover(model).attention
    assert site.head_empty.any(axis=0).sum() == 3 and site.empty.sum() == 1
    planned(site, "sm_80", objective)


@pytest.mark.parametrize(("target", "width"), [("T4", 256), ("L4", 160), ("H200", 8)])
@pytest.mark.parametrize("element", ["fp16", "fp32"])
def test_so_many_rows_that_cuts_lie_far_apart(target: str, width: int, element: Element) -> None:
    # The tallest strips of wide heads are short on some of these GPUs.
    alike = KeyLists(np.zeros(36_000, np.int32), np.array([0, 48]), np.arange(48, dtype=np.int32))
    planned(site_of([alike], 48, width=width), target, "time", element)


DIGEST = """
import hashlib
from tests.plan.test_attention_kernel import cost_of, plan_attention_kernel, repeatable_sites
digest = hashlib.sha256()
for site in repeatable_sites():
    for objective in ("time", "waste"):
        for schedule in plan_attention_kernel(site, cost_of(site, "sm_90"), objective, top=2):
            digest.update(repr(schedule).encode())
            digest.update(schedule.jobs.tobytes())
            for part in schedule.parts:
                digest.update(repr(part.variants).encode())
                for strip in part.strips:
                    digest.update(strip.rows.tobytes() + strip.keys.tobytes() + bytes([strip.full]))
print(digest.hexdigest())
"""


def repeatable_sites() -> list[AttentionSite]:
    return [
        site_of([neighbourhoods(8, 3), random_mask(64, 64, 0.2)], 64, [0, 1, 1]),
        site_of([key_lists([list(range(5000)), [1, 2]])], 5000),
    ]


def in_another_process(code: str, seed: str) -> str:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_plans_are_the_same_in_every_process() -> None:
    assert in_another_process(DIGEST, "1") == in_another_process(DIGEST, "2")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_site_is_planned_the_same_way(objective: Objective) -> None:
    site = site_of([chunk_windows(28, 7)], 785, [0] * 2)
    first, second = (planned(site, "sm_89", objective) for _ in range(2))
    assert repr(first) == repr(second)
    assert np.array_equal(first.jobs, second.jobs)
    for a, b in zip(first.parts[0].strips, second.parts[0].strips, strict=True):
        assert np.array_equal(a.rows, b.rows) and np.array_equal(a.keys, b.keys)
    assert first.parts[0].variants == second.parts[0].variants


LARGE = """
import resource
from tests.plan.patterns import chunk_windows, site_of
from tests.corpus_tags import every_tag
from tests.plan.test_attention_kernel import planned
site = site_of([chunk_windows(256, 8)], 65_537, [0] * 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for objective in ("time", "waste"):
    planned(site, "sm_90", objective)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_sixty_five_thousand_tokens_take_little_memory() -> None:
    megabytes = int(in_another_process(LARGE, "0"))
    assert megabytes < 2048

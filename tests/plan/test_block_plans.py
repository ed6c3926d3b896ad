"""Plans of blocks: parts that are joined pair by pair, and schedules that blocks of equal structure share."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.plan.block import planning
from onnxopt.plan.block.bundles import INPUT_GRANULE, OUTPUT_GRANULE, _merged
from onnxopt.plan.block.types import StagePart
from onnxopt.plan.roofline import SMALL_SHARED_BYTES
from onnxopt.target import load_target
from tests.kernels.block_cases import BlockWish, made_block

Part = tuple[int, frozenset[int]]


def cost(outputs: int, inputs: int) -> int:
    return -(-outputs // OUTPUT_GRANULE) * OUTPUT_GRANULE * (-(-inputs // INPUT_GRANULE) * INPUT_GRANULE) + 64


def saved(first: Part, second: Part) -> int:
    apart = cost(first[0], len(first[1])) + cost(second[0], len(second[1]))
    return apart - cost(first[0] + second[0], len(first[1] | second[1]))


@given(st.lists(st.tuples(st.integers(1, 20), st.frozensets(st.integers(0, 60), min_size=1)), min_size=1, max_size=9))
def test_joined_parts_hold_everything_and_no_further_pair_saves(wishes: list[Part]) -> None:
    ends = np.cumsum([count for count, _ in wishes])
    parts = [
        StagePart(np.arange(end - count, end), np.array(sorted(inputs)))
        for end, (count, inputs) in zip(ends, wishes, strict=True)
    ]
    found = _merged(parts)
    assert sorted(np.concatenate([part.outputs for part in found]).tolist()) == list(range(ends[-1]))
    for part in found:
        own = [wish for before, wish in zip(parts, wishes, strict=True) if before.outputs[0] in part.outputs]
        assert set(part.inputs.tolist()) == set().union(*(inputs for _, inputs in own))
    left = [(len(part.outputs), frozenset(part.inputs.tolist())) for part in found]
    assert all(saved(first, second) <= 0 for first, second in combinations(left, 2))


def test_blocks_of_equal_structure_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = load_target("sm_80").need_gpu_profile()
    limited = replace(gpu, shared_memory_per_block_bytes=SMALL_SHARED_BYTES)
    planned: list[int] = []
    plan_block = planning.plan_block
    monkeypatch.setattr(planning, "plan_block", lambda *given: planned.append(1) or plan_block(*given))
    plans = planning.BlockPlans()
    first, second = (made_block(BlockWish(), seed) for seed in (0, 0))
    assert plans.best(first, gpu, "fp16", 2, 2) is plans.best(second, gpu, "fp16", 2, 2)
    assert len(planned) == 1
    small = plans.best(first, limited, "fp16", 2, 2)
    assert len(planned) == 2
    assert small[0].predicted_us >= plans.best(first, gpu, "fp16", 2, 2)[0].predicted_us

"""Convolution schedules that compute their site are accepted; whatever is spoilt in one is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.plan.schedule import ConvPart, ConvSchedule
from onnxopt.plan.tables import ConvWork
from onnxopt.validate import PlanError, validate_conv_schedule
from tests.plan.conv_schedules import MMA, VARIANTS, conv_scheduled, links_of

Spoil = Callable[[ConvSchedule], ConvSchedule]
PIXELS = 100


def work_of(seed: int = 0, outputs: int = 40, inputs: int = 30) -> ConvWork:
    """A pointwise convolution with random connections over 10 x 10 positions; one output has none."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((outputs, inputs, 1, 1)) * (rng.random((outputs, inputs, 1, 1)) < 0.4)
    weights[:, 3] = 1.0
    weights[outputs // 2] = 0.0
    return ConvWork(weights, None, inputs, (10, 10), np.arange(inputs), (1, 1), (1, 1), (0, 0, 0, 0))


def with_part(schedule: ConvSchedule, number: int = 0, **fields: object) -> ConvSchedule:
    parts = list(schedule.parts)
    own = parts[number]
    values = {name: value(getattr(own, name)) if callable(value) else value for name, value in fields.items()}
    parts[number] = replace(own, **values)  # type: ignore[arg-type]
    return replace(schedule, parts=tuple(parts))


def with_jobs(schedule: ConvSchedule, change: Callable[[np.ndarray], np.ndarray]) -> ConvSchedule:
    return replace(schedule, jobs=change(np.array(schedule.jobs)))


SPOILT: dict[str, Spoil] = {
    "an output dropped": lambda s: with_part(s, outputs=lambda o: o[1:]),
    "an output twice": lambda s: with_part(s, outputs=lambda o: np.append(o, o[0])),
    "an output that is none": lambda s: with_part(s, outputs=lambda o: np.append(o[1:], 1000)),
    "a negative output": lambda s: with_part(s, outputs=lambda o: np.append(o[1:], -1)),
    "an input dropped": lambda s: with_part(s, inputs=lambda i: i[1:]),
    "an input twice": lambda s: with_part(s, inputs=lambda i: np.append(i, i[0])),
    "an input that is none": lambda s: with_part(s, inputs=lambda i: np.append(i, 1000)),
    "a variant that is none": lambda s: with_part(s, variant=7),
    "a variant too small": lambda s: replace(s, variants=tuple(replace(v, outputs=0) for v in s.variants)),
    "no variants": lambda s: replace(s, variants=()),
    "a part dropped": lambda s: replace(s, parts=s.parts[:-1]),
    "a part twice": lambda s: replace(s, parts=(*s.parts, s.parts[0])),
    "a part without outputs": lambda s: with_part(s, outputs=np.empty(0, np.int64)),
    "a job dropped": lambda s: with_jobs(s, lambda j: j[1:]),
    "a job twice": lambda s: with_jobs(s, lambda j: np.concatenate([j, j[:1]])),
    "a job of no part": lambda s: with_jobs(s, lambda j: np.concatenate([j, [[99, 0]]])),
    "a tile too many": lambda s: with_jobs(s, lambda j: np.concatenate([j, [[0, j[j[:, 0] == 0, 1].max() + 1]]])),
    "a negative tile": lambda s: with_jobs(s, lambda j: np.concatenate([j, [[0, -1]]])),
    "jobs of another shape": lambda s: with_jobs(s, lambda j: j[:, :1]),
    "needed miscounted": lambda s: replace(s, needed=s.needed + 1),
    "computed miscounted": lambda s: replace(s, computed=s.computed + 1),
    "a bound above the value": lambda s: replace(s, proof=replace(s.proof, bound=s.proof.value + 1)),
    "another value": lambda s: replace(s, proof=replace(s.proof, value=s.proof.value / 2)),
    "no residency": lambda s: replace(s, resident=0),
}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.integers(1, 4), st.sampled_from([None, PIXELS]))
def test_any_cut_is_valid(seed: int, pieces: int, pixels: int | None) -> None:
    work = work_of(seed)
    validate_conv_schedule(links_of(work), conv_scheduled(work, VARIANTS, seed=seed, pieces=pieces), pixels=pixels)


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 50), pieces=st.integers(1, 3))
def test_whatever_is_spoilt_is_found(spoil: Spoil, seed: int, pieces: int) -> None:
    work = work_of(seed)
    schedule = conv_scheduled(work, VARIANTS, seed=seed, pieces=pieces)
    with pytest.raises(PlanError, match=r"^conv-3"):
        validate_conv_schedule(links_of(work), spoil(schedule), pixels=PIXELS, name="conv-3")


def parts_of(*parts: tuple[list[int], list[int]]) -> tuple[ConvPart, ...]:
    return tuple(ConvPart(np.array(outputs), np.array(inputs), 0) for outputs, inputs in parts)


def test_the_message_names_output_and_input() -> None:
    links = np.array([[1, 1, 0], [0, 1, 1]], bool)
    base = conv_scheduled(replace(work_of(), weights=links[:, :, None, None] * 1.0), (MMA,))
    jobs = np.array([(p, t) for p in range(2) for t in range(2)], np.int32)

    def judged(*parts: tuple[list[int], list[int]]) -> None:
        made = replace(base, parts=parts_of(*parts), jobs=jobs, computed=256, proof=replace(base.proof, value=256.0))
        validate_conv_schedule(links, made, pixels=PIXELS)

    judged(([0], [0, 1]), ([1], [1, 2]))
    judged(([0], [0]), ([1, 0], [1, 2]))
    with pytest.raises(PlanError, match="output 0 is connected to input 1 in 2 parts, expected 1"):
        judged(([0], [0, 1]), ([0, 1], [1, 2]))
    with pytest.raises(PlanError, match="output 1 is connected to input 2 in 0 parts, expected 1"):
        judged(([0], [0, 1]), ([1], [1]))
    with pytest.raises(PlanError, match="part 0: none of its outputs is connected to input 2"):
        judged(([0], [0, 1, 2]), ([1], [1, 2]))


def test_tiles_must_agree_on_the_number_of_positions() -> None:
    work = work_of()
    schedule = conv_scheduled(work, (MMA,))
    lost = with_jobs(schedule, lambda j: j[~((j[:, 0] == 1) & (j[:, 1] == 1))])
    with pytest.raises(PlanError, match="cover different numbers of positions"):
        validate_conv_schedule(links_of(work), lost)
    with pytest.raises(PlanError, match="pixel tile 1 of part 1 is in no job"):
        validate_conv_schedule(links_of(work), lost, pixels=PIXELS)

"""Schedules for the group-convolution kernel: valid, proved, the same every time, and near their bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.discover.conv_site import BoolArray, ConvSite
from onnxopt.discover.convolution import find_convolutions
from onnxopt.errors import InputError
from onnxopt.model.graph import view
from onnxopt.plan.group_conv import plan_group_conv
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.schedule import ConvSchedule, Objective
from onnxopt.sites import discover
from onnxopt.target import load_target
from onnxopt.validate.conv_schedule import validate_conv_schedule
from samples import convolution_grouped as grouped

SOME = ("shufflenet1_g3.legacy.op17", "condensenet_c10_g4_train.legacy.op17", "resnext50_32x4d.legacy.op17")
POSITIONS = 28 * 28


def costs(taps: int = 1, positions: int = POSITIONS) -> GroupConvCost:
    return GroupConvCost.of(load_target("sm_90").need_gpu_profile(), taps, positions, "fp16", ())


@pytest.fixture(scope="module")
def site() -> ConvSite:
    return find_convolutions(view(grouped.resnext().model, batch=1))[0][0]


def planned(
    site: ConvSite, links: BoolArray, objective: Objective = "waste", taps: int = 1, top: int = 1
) -> tuple[ConvSchedule, ...]:
    found = plan_group_conv(
        site,
        links,
        costs(taps),
        objective=objective,
        element="fp16",
        moved_bytes=2.0 * POSITIONS * sum(links.shape),
        top=top,
    )
    for schedule in found:
        validate_conv_schedule(links, schedule, pixels=POSITIONS)
    return found


def blocks(count: int, outputs: int, inputs: int) -> BoolArray:
    links = np.kron(np.eye(count), np.ones((outputs, inputs))) > 0
    rng = np.random.default_rng(count)
    return np.asarray(links[rng.permutation(len(links))][:, rng.permutation(links.shape[1])])


def test_hidden_groups_waste_nothing(site: ConvSite) -> None:
    (schedule,) = planned(site, blocks(8, 32, 48))
    assert schedule.waste == 1.0
    assert schedule.proof.gap == 0.0
    assert schedule.proof.status == "optimal"


def test_depthwise_convolutions_leave_the_matrix_unit(site: ConvSite) -> None:
    (schedule,) = planned(site, blocks(96, 1, 1), taps=9)
    assert {variant.path for variant in schedule.variants} == {"lanes"}
    assert schedule.waste == 1.0
    (doubled,) = planned(site, blocks(64, 2, 1), taps=9)
    assert doubled.waste == 1.0


def test_dense_convolutions_are_cut_into_tiles_of_outputs(site: ConvSite) -> None:
    links = np.ones((256, 128), bool)
    (schedule,) = planned(site, links)
    assert schedule.waste == 1.0
    assert all(len(part.inputs) == 128 for part in schedule.parts)
    (fast,) = planned(site, links, "time")
    assert fast.forecast.predicted_us <= schedule.forecast.predicted_us
    assert fast.proof.bound <= fast.proof.value
    assert fast.proof.value == fast.forecast.predicted_us


@pytest.mark.parametrize("objective", ["time", "waste"])
def test_different_plans_on_request_the_best_first(site: ConvSite, objective: Objective) -> None:
    found = planned(site, blocks(4, 60, 30), objective, top=4)
    times = [schedule.forecast.predicted_us for schedule in found]
    assert len(found) == 4
    assert times == sorted(times)
    assert len({(s.variants, s.resident, s.jobs.tobytes(), len(s.parts)) for s in found}) == 4


@pytest.mark.parametrize("objective", ["time", "waste"])
def test_the_same_site_gives_the_same_schedule(site: ConvSite, objective: Objective) -> None:
    links = np.random.default_rng(3).random((48, 64)) < 0.3
    (first,), (second,) = planned(site, links, objective), planned(site, links, objective)
    assert first.jobs.tobytes() == second.jobs.tobytes()
    assert first.proof == second.proof
    for a, b in zip(first.parts, second.parts, strict=True):
        assert (a.outputs.tobytes(), a.inputs.tobytes(), a.variant) == (
            b.outputs.tobytes(),
            b.inputs.tobytes(),
            b.variant,
        )


def test_time_never_loses_to_waste(site: ConvSite) -> None:
    for links in (blocks(3, 80, 20), blocks(32, 4, 4), np.random.default_rng(0).random((64, 96)) < 0.3):
        (fast,), (tight,) = planned(site, links, "time"), planned(site, links, "waste")
        assert fast.forecast.predicted_us <= tight.forecast.predicted_us * (1 + 1e-9)
        assert tight.computed <= fast.computed


def test_outputs_without_inputs_are_left_out(site: ConvSite) -> None:
    links = np.zeros((40, 40), bool)
    links[5:21, 8:40] = True
    (schedule,) = planned(site, links)
    assert sorted(np.concatenate([part.outputs for part in schedule.parts]).tolist()) == list(range(5, 21))


def test_no_connections_are_an_error_that_names_the_node(site: ConvSite) -> None:
    with pytest.raises(
        InputError, match=f"'{site.node.name}'.*none of its 8 outputs.*Replace the convolution by its bias"
    ):
        planned(site, np.zeros((8, 8), bool))


def test_too_many_connections_are_an_error_with_figures(site: ConvSite) -> None:
    huge = np.broadcast_to(np.True_, (1 << 14, 1 << 14))
    with pytest.raises(InputError, match="16,384 x 16,384.*allowed: 134,217,728"):
        planned(site, huge)


@pytest.mark.corpus
@pytest.mark.parametrize("tag", SOME)
def test_layers_of_exported_models_are_proved(tag: str, corpus_model: Callable[[str], Path]) -> None:
    gaps: dict[bytes, float] = {}
    for site in discover(onnx.load(corpus_model(tag))).convolutions:
        links = site.links()
        key = np.packbits(links).tobytes() + bytes(str(links.shape), "ascii")
        if links.any() and key not in gaps:
            gaps[key] = planned(site, links, taps=int(np.prod(site.kernel)))[0].proof.gap
    found = np.array(list(gaps.values()))
    assert (found <= 0.005).mean() >= 0.95
    assert found.max() <= 0.02

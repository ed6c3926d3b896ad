"""Plans cover every connection, find hidden structure exactly, and say why a site is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.discover.conv_site import ChannelPath
from onnxopt.discover.convolution import find_convolutions
from onnxopt.model.graph import view
from onnxopt.plan.conv_cost import ConvShape, conv_seconds, transposed_seconds
from onnxopt.plan.conv_parts import input_classes, layouts
from onnxopt.plan.convolution import ConvPlan, plan_convolutions
from onnxopt.target import CpuProfile, load_target
from samples import convolution_grouped as grouped
from samples import convolution_pruned as pruned
from samples.truth import Sample


@pytest.fixture(scope="module")
def cpu() -> CpuProfile:
    profile = load_target("cpu").cpu
    assert profile is not None
    return profile


def in_place(channels: int) -> ChannelPath:
    return ChannelPath("x", "x", channels, np.arange(channels), None, (), (), ())


def plans(sample: Sample, cpu: CpuProfile, margin: float = 1.1) -> list[ConvPlan]:
    graph = view(sample.model, batch=2)
    return plan_convolutions(find_convolutions(graph)[0], graph, cpu, margin=margin)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(0, 10_000))
def test_every_layout_covers_every_connection_once(outputs: int, inputs: int, density: float, seed: int) -> None:
    links = np.random.default_rng(seed).random((outputs, inputs)) < density
    for layout in layouts(links, np.arange(inputs), in_place(outputs)):
        written = layout.outputs[layout.outputs >= 0]
        assert sorted(written.tolist()) == list(range(outputs))
        covered = np.zeros_like(links)
        for row, columns in zip(layout.outputs, layout.inputs, strict=True):
            covered[np.ix_(row[row >= 0], columns[columns >= 0])] = True
        assert not (links & ~covered).any()
        assert layout.computed >= links.sum()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))
def test_hidden_equal_blocks_have_no_waste(groups: int, outputs: int, inputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    links = np.kron(np.eye(groups, dtype=bool), np.ones((outputs, inputs), bool))
    links = links[rng.permutation(len(links))][:, rng.permutation(links.shape[1])]
    first = next(layouts(links, np.arange(links.shape[1]), in_place(len(links))))
    assert first.groups == groups
    assert first.computed == links.sum()


def test_classes_ignore_outputs_without_inputs() -> None:
    links = np.array([[1, 0], [0, 0], [1, 0], [0, 1]], bool)
    assert [c.tolist() for c in input_classes(links)] == [[0, 2], [3]]


def test_pruned_layer_with_learned_groups_is_rewritten_without_waste(cpu: CpuProfile) -> None:
    sample = pruned.condensenet_train(channels=256, growth=64, size=14, layers=1)
    plan = plans(sample, cpu)[0]
    assert plan.decision == "rewrite"
    assert plan.predicted_gain > 1.1
    assert (plan.needed, plan.waste) == (128 * 64, 1.0)
    assert plan.inputs == ("x",)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (pruned.pruned_random(out_channels=48, in_channels=64), "distinct input sets among 48 outputs"),
        (grouped.dense_cnn(), "dense: every output uses every input"),
        (grouped.depthwise_multiplier(), "depthwise: every output has one input"),
    ],
    ids=["random", "dense", "depthwise"],
)
def test_sites_without_gain_are_kept_with_the_reason(sample: Sample, reason: str, cpu: CpuProfile) -> None:
    plan = plans(sample, cpu)[0]
    assert plan.decision == "keep", plan.reason
    assert reason in plan.reason


def test_rewritten_stretches_do_not_overlap(cpu: CpuProfile) -> None:
    seen: set[str] = set()
    for plan in plans(pruned.condensenet_converted(), cpu, margin=0.0):
        names = {node.output[0] for node in (*plan.lead.nodes, *plan.tail.nodes)}
        assert not names & seen
        seen |= names


def test_narrowing_convolution_is_cheaper_transposed(cpu: CpuProfile) -> None:
    narrow = ConvShape(groups=4, group_inputs=8, group_outputs=2, taps=9, positions=112 * 112, row=112)
    wide = ConvShape(groups=4, group_inputs=2, group_outputs=8, taps=9, positions=112 * 112, row=112)
    assert transposed_seconds(narrow, cpu) < conv_seconds(narrow, cpu)
    assert transposed_seconds(wide, cpu) > conv_seconds(wide, cpu)

"""Tables of convolutions mean what the convolution computes, with the channel movement around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxopt.discover.conv_site import ConvSite
from onnxopt.lower.convolution import site_weights
from onnxopt.plan.tables import ConvTables, ConvWork, NoTables, conv_tables, conv_work
from onnxopt.plan.tables.work import geometry
from onnxopt.sites import discover
from onnxopt.validate import PlanError, validate_conv_contents, validate_conv_launch, validate_conv_schedule
from samples import SAMPLES, build
from samples.reference import run
from tests.plan.computed import convolved
from tests.plan.conv_schedules import LANES, MMA, VARIANTS, conv_scheduled, links_of

CUTS: dict[str, dict[str, Any]] = {
    "in order": {},
    "any parts": {"variants": VARIANTS, "seed": 1},
    "split inputs": {"variants": VARIANTS, "seed": 2, "pieces": 3},
    "folded images": {"variants": (MMA, LANES), "seed": 3, "images": 2},
}
CONVOLUTIONS = [
    "shufflenet_v1",
    "shufflenet_v1_late",
    "shuffle_gather",
    "shuffle_matmul",
    "shufflenet_v2",
    "resnext",
    "dense_cnn",
    "grouped_conv1d",
    "grouped_conv2d",
    "grouped_conv3d",
    "depthwise_multiplier",
    "split_convolutions",
    "condensenet_train",
    "condensenet_converted",
    "condensenet_v2",
    "pruned_random",
    "pruned_3x3",
]


def tables_of(work: ConvWork, cut: dict[str, Any]) -> ConvTables:
    """Tables by a schedule that is checked first."""
    schedule = conv_scheduled(work, **cut)
    images = cut.get("images", 1)
    validate_conv_schedule(links_of(work), schedule, pixels=images * int(np.prod(work.output_size)))
    tables = conv_tables(work, schedule, images=images)
    validate_conv_contents(work, tables)
    return tables


def close(got: NDArray[Any], wanted: NDArray[Any], within: float = 1e-5) -> bool:
    return bool(np.abs(got.reshape(wanted.shape) - wanted).max() <= within * np.abs(wanted).max())


def site_work(site: ConvSite, weights: NDArray[Any], bias: NDArray[Any] | None, size: tuple[int, ...]) -> ConvWork:
    """A site with as much of the movement around it as needs no operation in between."""
    relu = [step.node.op_type for step in site.before.steps] == ["Relu"]
    lead = site.before if site.before.mix is None and (relu or not site.before.steps) else None
    work = conv_work(site, weights, bias, size, lead, None if site.after.steps else site.after)
    return replace(work, input_activation="relu") if relu else work


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_tables_compute_the_convolutions_of_samples(name: str, cut: dict[str, Any]) -> None:
    assert name in SAMPLES
    sample = build(name, **({"batch": None} if name != "dense_cnn" else {}))
    found = discover(sample.model)
    for site in found.convolutions:
        shape = found.graph.shape(site.input) or ()
        work = site_work(site, *site_weights(site, found.graph), shape[2:])
        moved = work.channels != site.in_channels or not np.array_equal(work.reads, np.arange(work.channels))
        reads_source = moved or work.input_activation == "relu"
        source = site.before.source if reads_source else site.input
        target = site.output if work.mix is None else site.after.target
        x, y = run(sample.model, sample.draw(0, 3), [source, target])
        assert close(convolved(tables_of(work, cut), x), y), site.node.name


def conv_model(work: ConvWork, **attributes: Any) -> onnx.ModelProto:
    """The convolution of a work, without the movement around it, as a model."""
    weights = [numpy_helper.from_array(work.weights.astype(np.float32), "w")]
    names = ["x", "w"]
    if work.bias is not None:
        weights.append(numpy_helper.from_array(work.bias.astype(np.float32), "b"))
        names.append("b")
    channels = work.weights.shape[1]
    graph = helper.make_graph(
        [helper.make_node("Conv", names, ["y"], name="conv", **attributes)],
        "conv",
        [helper.make_tensor_value_info("x", 1, ["batch", channels, *work.size])],
        [helper.make_tensor_value_info("y", 1, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def expected(work: ConvWork, x: NDArray[Any], residual: NDArray[Any] | None = None) -> NDArray[Any]:
    """The work by ONNX Runtime's Conv, with the movement and the fused operations in NumPy."""
    taken = np.concatenate([x, np.zeros_like(x[:, :1])], axis=1)[:, work.reads]
    ones = [1] * len(work.size)
    if work.input_scales is not None and work.input_shifts is not None:
        taken = taken * work.input_scales.reshape(-1, *ones) + work.input_shifts.reshape(-1, *ones)
    taken = _activated(work.input_activation, taken)
    model = conv_model(work, strides=work.strides, dilations=work.dilations, pads=work.pads)
    (y,) = run(model, {"x": taken.astype(np.float32)}, ["y"])
    y = np.einsum("co,bo...->bc...", work.sums.astype(np.float64), y)
    return _activated(work.activation, y if residual is None else y + residual)


def _activated(kind: str, x: NDArray[Any]) -> NDArray[Any]:
    return {
        "none": lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "hardswish": lambda: x * np.clip(x + 3, 0, 6) / 6,
        "silu": lambda: x / (1 + np.exp(-x)),
    }[kind]()


@st.composite
def works(draw: st.DrawFn) -> ConvWork:
    """Any convolution of 1 to 3 axes, with channels repeated, skipped, zero and added up."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.integers(1, 3))
    outputs, inputs, channels = (draw(st.integers(1, 40)) for _ in range(3))

    def axes(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(low, high + 1, rank).tolist())

    kernel, dilations, strides = axes(1, 3), axes(1, 2), axes(1, 3)
    pads = axes(0, 2) + axes(0, 2)
    size = tuple(d * (k - 1) + int(rng.integers(1, 5)) for k, d in zip(kernel, dilations, strict=True))
    weights = rng.standard_normal((outputs, inputs, *kernel)).astype(np.float32)
    weights *= (rng.random((outputs, inputs)) < draw(st.sampled_from([0.2, 0.6, 1.0]))).reshape(
        outputs, inputs, *[1] * rank
    )
    mix = None
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["gather", "sum"]))
        mix = np.zeros((draw(st.integers(1, 40)), outputs), np.int64)
        times = 1 if kind == "gather" else 3
        for channel in range(len(mix)):
            np.add.at(mix[channel], rng.integers(0, outputs, rng.integers(0, times + 1)), 1)
    scaled = draw(st.booleans())
    return ConvWork(
        weights=weights,
        bias=rng.standard_normal(outputs).astype(np.float32) if draw(st.booleans()) else None,
        channels=channels,
        size=size,
        reads=rng.integers(-1 if draw(st.booleans()) else 0, channels, inputs),
        strides=strides,
        dilations=dilations,
        pads=pads,
        mix=mix,
        activation=draw(st.sampled_from(["none", "relu", "hardswish", "silu"])),
        input_activation=draw(st.sampled_from(["none", "relu"])),
        input_scales=rng.standard_normal(inputs).astype(np.float32) if scaled else None,
        input_shifts=rng.standard_normal(inputs).astype(np.float32) if scaled else None,
        residual=draw(st.booleans()),
        layout=draw(st.sampled_from(["first", "last"])),
    )


@settings(max_examples=80, deadline=None)
@given(works(), st.integers(0, 9), st.sampled_from([1, 1, 3]), st.sampled_from([1, 2]))
def test_tables_compute_any_convolution(work: ConvWork, seed: int, pieces: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    tables = tables_of(work, {"variants": VARIANTS, "seed": seed, "pieces": pieces, "images": images})
    x = rng.standard_normal((3, work.channels, *work.size)).astype(np.float32)
    residual = rng.standard_normal((3, len(work.sums), *work.output_size)) if work.residual else None
    wanted = expected(work, x, residual)
    if work.layout == "last":
        x = np.moveaxis(x, 1, -1)
        residual = None if residual is None else np.moveaxis(residual, 1, -1)
        wanted = np.moveaxis(wanted, 1, -1)
    got = convolved(tables, x, residual).reshape(wanted.shape)
    assert np.abs(got - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


def plain_work(**fields: Any) -> ConvWork:
    """A 3x3 convolution of 20 outputs and 18 inputs over 6 x 5 positions."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((20, 18, 3, 3)) * (rng.random((20, 18)) < 0.5)[:, :, None, None]
    bias = rng.standard_normal(20)
    work = ConvWork(weights, bias, 18, (6, 5), np.arange(18), (1, 1), (1, 1), (1, 1, 1, 1))
    return replace(work, **fields)


def test_a_repeated_channel_is_an_extra_and_a_missing_one_a_job_without_inputs() -> None:
    mix = np.zeros((6, 20), np.int64)
    mix[[0, 1, 2, 4], [3, 3, 5, 0]] = 1
    tables = tables_of(plain_work(mix=mix), {})
    assert tables.extras is not None and tables.extras.shape[1] == 2
    assert np.count_nonzero(tables.jobs[:, 4] == 0) == 1
    assert tables.sum is None


def test_an_output_in_several_parts_is_added_up_in_a_second_operator() -> None:
    tables = tables_of(plain_work(), {"pieces": 2, "seed": 0})
    assert tables.sum is not None and tables.b is None
    assert tables.operator().startswith("GroupConv_")
    assert tables.sum.operator().startswith("SumConv_")
    assert tables.kernel.slots == tables.sum.sum_begin[-1] == 40


def test_parts_of_many_pixels_share_their_weights() -> None:
    tables = tables_of(plain_work(), {"variants": (LANES,)})
    assert len(tables.jobs) == 5
    assert len(set(tables.jobs[:, 5].tolist())) == 5
    wide = tables_of(plain_work(size=(40, 40)), {"variants": (LANES,)})
    assert len(wide.w) == len(tables.w)
    assert len(wide.jobs) == 5 * 50


@pytest.mark.parametrize(("element", "kind"), [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")])
def test_weights_are_in_the_compute_type(element: Any, kind: str) -> None:
    tables = tables_of(plain_work(), {"element": element})
    assert tables.w.dtype.name == kind
    assert tables.b is not None and tables.b.dtype == np.float32


def test_weights_below_the_normal_range_of_the_type_are_rounded_and_accepted() -> None:
    small = plain_work(weights=plain_work().weights * 1e-6, mix=np.ones((1, 20), np.int64))
    tables = tables_of(small, {"element": "fp16"})
    with pytest.raises(PlanError, match="channel 0 takes input"):
        validate_conv_contents(small, replace(tables, w=tables.w * 2))


def test_equal_input_gives_equal_tables() -> None:
    first, again, other = (tables_of(plain_work(), {"variants": VARIANTS, "seed": seed}) for seed in (1, 1, 2))
    assert first.configuration() == again.configuration()
    assert first.operator() == again.operator() != other.operator()


def test_what_tables_cannot_hold_is_refused_with_the_reason() -> None:
    work = plain_work()
    with pytest.raises(NoTables, match="input 2 reads channel 18, of 18"):
        conv_tables(replace(work, reads=np.array([0, 1, 18] + [0] * 15)), conv_scheduled(work))
    with pytest.raises(NoTables, match=r"the kernel \[3, 3\] is larger than its padded input \[1, 1\]"):
        small = replace(work, size=(1, 1), pads=(0, 0, 0, 0))
        conv_tables(small, conv_scheduled(work))
    with pytest.raises(NoTables, match="over 4 axes"):
        conv_tables(replace(work, size=(1, 1, 6, 5), weights=work.weights[:, :, None, None]), conv_scheduled(work))
    with pytest.raises(NoTables, match="a batch element of its input has more than 2,147,483,647 elements"):
        conv_tables(replace(work, size=(60000, 60000)), conv_scheduled(work))


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_automatic_padding_is_what_onnx_runtime_does(mode: str, stride: int) -> None:
    work = plain_work(bias=None, size=(9, 8))
    model = conv_model(work, auto_pad=mode, strides=[stride, stride], kernel_shape=[3, 3])
    strides, dilations, pads = geometry(model.graph.node[0], (3, 3), work.size)
    work = replace(work, strides=strides, dilations=dilations, pads=pads)
    x = np.random.default_rng(0).standard_normal((2, 18, 9, 8)).astype(np.float32)
    (y,) = run(model, {"x": x}, ["y"])
    assert y.shape[2:] == work.output_size
    assert close(convolved(tables_of(work, {}), x), y)


def spoilt(tables: ConvTables, name: str, change: Callable[[NDArray[Any]], object]) -> ConvTables:
    array = np.array(getattr(tables, name))
    change(array)
    return replace(tables, **{name: array})


def added(*place: int, by: int = 1) -> Callable[[NDArray[Any]], object]:
    def change(array: NDArray[Any]) -> None:
        array[place] += by

    return change


Spoil = Callable[[ConvTables], ConvTables]
SPOILT: dict[str, Spoil] = {
    "an input one further": lambda t: spoilt(t, "inputs", added(0)),
    "an input that is none": lambda t: spoilt(t, "inputs", added(0, by=99)),
    "an input that becomes zeros": lambda t: spoilt(t, "inputs", lambda a: a.__setitem__(0, -1)),
    "an output elsewhere": lambda t: spoilt(t, "outputs", added(0)),
    "an output lost": lambda t: spoilt(t, "outputs", lambda a: a.__setitem__(0, -1)),
    "outputs exchanged": lambda t: spoilt(t, "outputs", lambda a: a.__setitem__(slice(0, 2), a[1::-1].copy())),
    "a weight": lambda t: spoilt(t, "w", added(0)),
    "a bias": lambda t: spoilt(t, "b", added(0)),
    "a job dropped": lambda t: replace(t, jobs=t.jobs[1:]),
    "a job twice": lambda t: replace(t, jobs=np.concatenate([t.jobs, t.jobs[:1]])),
    "a variant that is none": lambda t: spoilt(t, "jobs", added(0, 0, by=9)),
    "outputs from elsewhere": lambda t: spoilt(t, "jobs", added(0, 1, by=4)),
    "an output too many": lambda t: spoilt(t, "jobs", added(0, 2)),
    "an output left out": lambda t: spoilt(t, "jobs", added(0, 2, by=-1)),
    "inputs from elsewhere": lambda t: spoilt(t, "jobs", added(0, 3, by=4)),
    "an input left out": lambda t: spoilt(t, "jobs", added(0, 4, by=-1)),
    "weights from elsewhere": lambda t: spoilt(t, "jobs", added(0, 5, by=4)),
    "weights beyond the pool": lambda t: spoilt(t, "jobs", added(0, 5, by=10**6)),
    "pixels from elsewhere": lambda t: spoilt(t, "jobs", added(0, 6)),
    "a pixel too many": lambda t: spoilt(t, "jobs", added(0, 7)),
    "a pixel left out": lambda t: spoilt(t, "jobs", added(0, 7, by=-1)),
    "a reserved column": lambda t: spoilt(t, "jobs", added(0, 11)),
    "an extra elsewhere": lambda t: spoilt(t, "extras", added(0, 1)),
    "an extra of another output": lambda t: spoilt(t, "extras", added(0, 0)),
    "a table missing": lambda t: replace(t, extras=None),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_changed_entry_is_noticed(spoil: Spoil) -> None:
    mix = np.eye(24, 20, dtype=np.int64)
    mix[20, 4] = mix[21, 4] = mix[22, 7] = 1
    work = plain_work(mix=mix)
    tables = tables_of(work, {})
    x = np.random.default_rng(0).standard_normal((2, 18, 6, 5)).astype(np.float32)
    wanted = expected(work, x)
    assert close(convolved(tables, x), wanted)
    changed = spoil(tables)
    with pytest.raises(PlanError):
        validate_conv_launch(changed.configuration()["kernel"], changed.arrays())
        validate_conv_contents(work, changed)
    try:
        got = convolved(changed, x)
    except PlanError:
        return
    assert not close(got, wanted)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sum_rows", added(0)),
        ("sum_rows", added(0, by=999)),
        ("sum_begin", added(1)),
        ("sum_begin", added(-1, by=5)),
        ("b", added(0)),
    ],
)
def test_a_changed_sum_is_noticed(name: str, change: Callable[[NDArray[Any]], object]) -> None:
    work = plain_work()
    tables = tables_of(work, {"pieces": 2})
    x = np.random.default_rng(0).standard_normal((2, 18, 6, 5)).astype(np.float32)
    wanted = expected(work, x)
    assert close(convolved(tables, x), wanted)
    assert tables.sum is not None
    array = np.array(getattr(tables.sum, name))
    change(array)
    changed = replace(tables, sum=replace(tables.sum, **{name: array}))
    with pytest.raises(PlanError):
        after = changed.sum
        assert after is not None
        pair = (after.configuration()["kernel"], after.arrays())
        validate_conv_launch(changed.configuration()["kernel"], changed.arrays(), pair)
        validate_conv_contents(work, changed)
    try:
        got = convolved(changed, x)
    except PlanError:
        return
    assert not close(got, wanted)

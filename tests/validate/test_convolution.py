"""Planned and written convolutions are those of their sites; whatever is spoilt in one is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxopt.lower.rewrite import Rewrite
from onnxopt.plan.conv_parts import Layout
from onnxopt.plan.conv_time import Form
from onnxopt.plan.convolution import ConvPlan
from onnxopt.validate import PlanError, validate_conv_plan, validate_conv_weights
from samples import SAMPLES, build
from samples.builder import GraphBuilder
from tests.validate.cases import ConvCase, conv_cases, nodes_of, table_of, with_node, with_table

SpoilPlan = Callable[[ConvPlan, Layout], ConvPlan]
SpoilForm = Callable[[Rewrite, NodeProto], Rewrite]
CONV_SAMPLES = [name for name in SAMPLES if build(name).convolutions]


def check(case: ConvCase) -> None:
    validate_conv_plan(case.plan)
    if case.rewrite is not None:
        validate_conv_weights(case.plan, case.rewrite, case.graph)


@st.composite
def hidden_blocks(draw: st.DrawFn, *, moved: bool = False) -> onnx.ModelProto:
    """A convolution whose parts are hidden by permutations, between gathers and channelwise operations.

    With ``moved`` all of these are there, so that everything in the written form matters.
    """
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    blocks = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=4))
    outputs = sum(o for o, _ in blocks) + (0 if moved else draw(st.integers(0, 2)))
    inputs = sum(i for _, i in blocks) + (0 if moved else draw(st.integers(0, 2)))
    links = np.zeros((outputs, inputs), bool)
    row = column = 0
    for o, i in blocks:
        links[row : row + o, column : column + i] = True
        row, column = row + o, column + i
    links = links[rng.permutation(outputs)][:, rng.permutation(inputs)]
    kernel = draw(st.sampled_from([1, 3]))
    weight = rng.uniform(0.5, 1.5, (outputs, inputs, kernel, kernel)) * links[:, :, None, None]

    def sometimes() -> bool:
        return moved or draw(st.booleans())

    g = GraphBuilder("hidden", seed=seed, batch=draw(st.sampled_from([1, None])))
    channels = inputs if moved else draw(st.integers(1, 12))
    tensor = g.input("x", channels, 5, 4)
    if sometimes():
        tensor = g.op("Add", tensor, g.constant(rng.standard_normal((channels, 1, 1)).astype(np.float32)))
    index = rng.permutation(inputs) if moved else rng.integers(0, channels, inputs)
    tensor = g.op("Relu", g.op("Gather", tensor, g.constant(index.astype(np.int64)), axis=1))
    constants = [g.constant(weight.astype(np.float32))]
    if sometimes():
        constants.append(g.constant(rng.standard_normal(outputs).astype(np.float32)))
    tensor = g.op("Conv", tensor, *constants, pads=[kernel // 2] * 4)
    if sometimes():
        order = rng.permutation(outputs)
        tensor = g.op("Gather", tensor, g.constant(order.astype(np.int64)), axis=1)
    if sometimes():
        tensor = g.op("Mul", tensor, g.constant(rng.uniform(1, 2, (outputs, 1, 1)).astype(np.float32)))
    g.output("y", tensor, outputs, 5, 4)
    return g.model()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(hidden_blocks(), st.sampled_from([("direct",), ("transposed",)]))
def test_any_plan_and_form_is_valid(model: onnx.ModelProto, forms: tuple[Form, ...]) -> None:
    for case in conv_cases(model, forms):
        check(case)


@pytest.mark.parametrize("forms", [("direct",), ("transposed",)])
@pytest.mark.parametrize("name", CONV_SAMPLES)
def test_published_patterns_are_planned_and_written_right(name: str, forms: tuple[Form, ...]) -> None:
    for batch in (1, None):
        for case in conv_cases(build(name, batch=batch).model, forms):
            check(case)


def planned(model: onnx.ModelProto, forms: tuple[Form, ...] = ("direct",)) -> tuple[ConvPlan, Rewrite, ConvCase]:
    """The one convolution of a model, which is rewritten."""
    (case,) = conv_cases(model, forms)
    if case.rewrite is None:
        reject()
    return case.plan, case.rewrite, case


def with_outputs(plan: ConvPlan, layout: Layout, outputs: np.ndarray) -> ConvPlan:
    return replace(plan, layout=replace(layout, outputs=outputs))


def with_inputs(plan: ConvPlan, layout: Layout, inputs: np.ndarray) -> ConvPlan:
    return replace(plan, layout=replace(layout, inputs=inputs))


def with_first(channels: np.ndarray, value: int) -> np.ndarray:
    changed = channels.copy()
    changed[0, 0] = value
    return changed


def widened(channels: np.ndarray) -> np.ndarray:
    """The same with one more channel a group: the first, once more."""
    return np.concatenate([channels, channels[:, :1]], axis=1)


SPOILT_PLANS: dict[str, SpoilPlan] = {
    "an output dropped": lambda p, x: with_outputs(p, x, with_first(x.outputs, -1)),
    "an output twice": lambda p, x: with_outputs(p, x, widened(x.outputs)),
    "an output that is none": lambda p, x: with_outputs(p, x, with_first(x.outputs, 99)),
    "an input dropped": lambda p, x: with_inputs(p, x, with_first(x.inputs, -1)),
    "an input twice": lambda p, x: with_inputs(p, x, widened(x.inputs)),
    "an input that is none": lambda p, x: with_inputs(p, x, with_first(x.inputs, 99)),
    "a negative input": lambda p, x: with_inputs(p, x, with_first(x.inputs, -2)),
    "a group dropped": lambda p, x: replace(p, layout=Layout(x.outputs[1:], x.inputs[1:])),
    "a group without inputs": lambda p, x: with_inputs(p, x, x.inputs[1:]),
    "needed miscounted": lambda p, x: replace(p, needed=p.needed + 1),
    "computed miscounted": lambda p, x: replace(p, computed=p.computed - 1),
    "no layout": lambda p, x: replace(p, layout=None),
    "a layout of what is kept": lambda p, x: replace(p, decision="keep"),
    "a lead that is too short": lambda p, x: replace(p, lead=replace(p.lead, origin=p.lead.origin[1:])),
    "a lead from nowhere": lambda p, x: replace(p, lead=replace(p.lead, origin=p.lead.origin + 99)),
    "a tail from nowhere": lambda p, x: replace(p, tail=replace(p.tail, origin=p.tail.origin - 99)),
}


@pytest.mark.parametrize("spoil", SPOILT_PLANS.values(), ids=SPOILT_PLANS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(model=hidden_blocks())
def test_whatever_is_spoilt_in_a_plan_is_found(spoil: SpoilPlan, model: onnx.ModelProto) -> None:
    plan, _, _ = planned(model)
    assert plan.layout is not None
    with pytest.raises(PlanError):
        validate_conv_plan(spoil(plan, plan.layout))


def swapped(rewrite: Rewrite, node: NodeProto, position: int = 1) -> Rewrite:
    """Two different rows of a table exchanged."""
    values = table_of(rewrite, node, position)
    other = [i for i in range(len(values)) if not np.array_equal(values[i], values[0])]
    if not other:
        reject()
    values[[0, other[-1]]] = values[[other[-1], 0]]
    return with_table(rewrite, node, values, position)


def changed(rewrite: Rewrite, node: NodeProto, position: int, change: Callable[[np.ndarray], object]) -> Rewrite:
    values = table_of(rewrite, node, position)
    change(values)
    return with_table(rewrite, node, values, position)


def bend_weight(values: np.ndarray) -> None:
    place = tuple(int(i) for i in np.argwhere(values)[-1])
    values[place] = np.nextafter(values[place], np.float32(0))


def bend_bias(values: np.ndarray) -> None:
    # Outputs that only fill up a group have a bias of 0 and are not read.
    place = int(np.flatnonzero(values)[0])
    values[place] = np.nextafter(values[place], np.float32(9))


def wake(rewrite: Rewrite, node: NodeProto) -> Rewrite:
    """A pair that is not connected, or only padding, gets a weight; outputs that fill up a group do not count."""
    values = table_of(rewrite, node)
    rows = np.flatnonzero(values.any(axis=(1, 2, 3)))
    dead = [(int(r), int(i)) for r in rows for i in np.flatnonzero(~values[r].any(axis=(1, 2)))]
    if not dead:
        reject()
    values[(*dead[0], 0, 0)] = 1e-30
    return with_table(rewrite, node, values)


def around(rewrite: Rewrite, kind: str, last: bool = False) -> NodeProto:
    found = nodes_of(rewrite, kind)
    if not found:
        reject()
    return found[-1 if last else 0]


def set_pads(node: NodeProto) -> None:
    kept = [a for a in node.attribute if a.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", [2, 2, 2, 2])])


SPOILT_FORMS: dict[str, SpoilForm] = {
    "weights bent": lambda r, n: changed(r, n, 1, bend_weight),
    "weights of two outputs swapped": lambda r, n: swapped(r, n),
    "weights mirrored": lambda r, n: changed(r, n, 1, lambda w: w.__setitem__(slice(None), w[..., ::-1, ::-1].copy())),
    "a dead pair connected": wake,
    "biases bent": lambda r, n: changed(r, n, 2, bend_bias),
    "no bias": lambda r, n: with_node(r, n, lambda x: x.input.pop()),
    "two inputs swapped": lambda r, n: swapped(r, around(r, "Gather")),
    "two outputs swapped": lambda r, n: swapped(r, around(r, "Gather", last=True)),
    "an input that is none": lambda r, n: changed(r, around(r, "Gather"), 1, lambda v: v.__setitem__(0, 99)),
    "an output from the end": lambda r, n: changed(r, around(r, "Gather", True), 1, lambda v: v.__setitem__(0, -1)),
    "constants before it swapped": lambda r, n: swapped(r, around(r, "Add")),
    "constants behind it swapped": lambda r, n: swapped(r, around(r, "Mul")),
    "an activation left out": lambda r, n: replace(r, nodes=tuple(x for x in r.nodes if x.op_type != "Relu")),
    "another activation": lambda r, n: with_node(r, around(r, "Relu"), lambda x: setattr(x, "op_type", "Abs")),
    "other padding": lambda r, n: with_node(r, n, set_pads),
    "other groups": lambda r, n: with_node(r, n, lambda x: setattr(x.attribute[0], "i", x.attribute[0].i + 1)),
    "another target": lambda r, n: replace(r, replaces=("elsewhere",)),
    "a node too many": lambda r, n: replace(r, nodes=(*r.nodes, helper.make_node("Relu", ["y"], ["z"]))),
    "nodes missing": lambda r, n: replace(r, nodes=r.nodes[:1]),
    "a table missing": lambda r, n: replace(r, tables=()),
}


@pytest.mark.parametrize("spoil", SPOILT_FORMS.values(), ids=SPOILT_FORMS)
# Not every form has what is to be spoilt (a Gather behind it, say); the models that have none do not count.
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(model=hidden_blocks(moved=True))
def test_whatever_is_spoilt_in_a_form_is_found(spoil: SpoilForm, model: onnx.ModelProto) -> None:
    plan, rewrite, case = planned(model)
    spoilt = spoil(rewrite, around(rewrite, "Conv"))
    # A mirrored kernel of one tap is the same.
    assume(contents(spoilt) != contents(rewrite))
    with pytest.raises(PlanError):
        validate_conv_weights(plan, spoilt, case.graph)


def contents(rewrite: Rewrite) -> list[object]:
    """What a rewrite says, whatever its tables are called."""
    tables = {t.name: numpy_helper.to_array(t).tolist() for t in rewrite.tables}
    nodes = [[n.op_type, str(n.attribute), *(tables.get(i, i) for i in n.input), *n.output] for n in rewrite.nodes]
    return [*nodes, rewrite.replaces]


def grouped(kernel: int, pads: list[int], bias: bool = True) -> onnx.ModelProto:
    """A convolution of four groups behind a shuffle."""
    g = GraphBuilder("grouped", seed=3)
    x = g.op("Gather", g.input("x", 8, 9, 7), g.constant(np.array([7, 5, 3, 1, 0, 2, 4, 6], np.int64)), axis=1)
    constants = [g.weight(8, 2, kernel, kernel), *([g.weight(8)] if bias else [])]
    y = g.op("Conv", x, *constants, group=4, pads=pads)
    g.output("y", y, 8, 9 + pads[0] + pads[2] + 1 - kernel, 7 + pads[1] + pads[3] + 1 - kernel)
    return g.model()


def test_a_transposed_form_is_read_with_its_taps_turned() -> None:
    plan, rewrite, case = planned(grouped(3, [0, 1, 1, 2]), ("transposed",))
    node = around(rewrite, "ConvTranspose")
    validate_conv_weights(plan, rewrite, case.graph)
    mirrored = changed(rewrite, node, 1, lambda w: w.__setitem__(slice(None), w[..., ::-1].copy()))
    for spoilt in (swapped(rewrite, node), mirrored, with_node(rewrite, node, set_pads)):
        with pytest.raises(PlanError):
            validate_conv_weights(plan, spoilt, case.graph)


def test_weights_of_another_type_are_found() -> None:
    plan, rewrite, case = planned(grouped(1, [0] * 4, bias=False))
    node = around(rewrite, "Conv")
    spoilt = with_table(rewrite, node, table_of(rewrite, node).astype(np.float64))
    with pytest.raises(PlanError, match="weights are float64, expected float32"):
        validate_conv_weights(plan, spoilt, case.graph)


def test_low_precision_weights_are_compared_exactly() -> None:
    model = grouped(1, [0] * 4)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    plan, rewrite, case = planned(model)
    validate_conv_weights(plan, rewrite, case.graph)
    node = around(rewrite, "Conv")

    def bend(values: np.ndarray) -> None:
        values[0, 0] = np.nextafter(values[0, 0], np.float16(9))

    with pytest.raises(PlanError, match="has the weight"):
        validate_conv_weights(plan, changed(rewrite, node, 1, bend), case.graph)


def test_sums_of_weights_may_be_rounded_and_no_more() -> None:
    cases = [c for c in conv_cases(build("condensenet_v2").model) if c.plan.tail.mix is not None and c.rewrite]
    assert cases
    for case in cases:
        assert case.rewrite is not None
        check(case)
        node = around(case.rewrite, "Conv")
        spoilt = changed(case.rewrite, node, 1, lambda w: w.__imul__(np.float32(1.001)))
        with pytest.raises(PlanError):
            validate_conv_weights(case.plan, spoilt, case.graph)

"""What is fused with a convolution, and where fusing would be wrong: each against the values of the model itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxopt.discover.conv_fusion import ConvFusion, ConvFusions
from onnxopt.plan.tables import conv_tables
from onnxopt.sites import discover
from samples.builder import GraphBuilder
from samples.convolution import batch_norm, conv, hard_swish, shuffle
from samples.reference import run
from tests.lower.conv_plugin_models import work_of
from tests.plan.computed import convolved
from tests.plan.conv_schedules import conv_scheduled

CHANNELS, SIZE = 12, (5, 4)
Write = Callable[[GraphBuilder, str], str]


def grouped(g: GraphBuilder, x: str) -> str:
    """A 3 x 3 convolution in 3 groups."""
    return conv(g, x, CHANNELS, CHANNELS, (3, 3), groups=3)[0]


def model_of(write: Write, batch: int | None = None) -> onnx.ModelProto:
    """What ``write`` makes of the input x."""
    g = GraphBuilder("fusion", seed=1, batch=batch)
    made = write(g, g.input("x", CHANNELS, *SIZE))
    g.output("y", made, CHANNELS, *SIZE)
    return g.model()


def fused(model: onnx.ModelProto, borders: frozenset[str] = frozenset()) -> list[ConvFusion]:
    """The fusion of every convolution in turn; each is checked to compute the model's own tensor."""
    found = discover(model)
    fusions = ConvFusions(found.graph, borders)
    shape = [3, CHANNELS, *SIZE]
    if model.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        shape[0] = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    feeds = {"x": np.random.default_rng(5).standard_normal(shape).astype(np.float32) * 3}
    result = []
    for site in found.convolutions:
        fusion = fusions.fusion(site)
        assert fusion is not None
        fusions.take(fusion)
        work = work_of(site, fusion, found.graph)
        names = [fusion.lead.source, fusion.target, *([fusion.residual] if fusion.residual else [])]
        x, wanted, *residual = run(model, feeds, names)
        got = convolved(conv_tables(work, conv_scheduled(work)), x, residual[0] if residual else None)
        assert np.abs(got.reshape(wanted.shape) - wanted).max() <= 2e-5 * np.abs(wanted).max()
        result.append(fusion)
    return result


def kinds(fusion: ConvFusion) -> list[str]:
    """The operators that are fused, without the one that names the model's output."""
    return [node.op_type for node in fusion.nodes if node.op_type != "Identity"]


def scalar(g: GraphBuilder, value: float) -> str:
    return g.constant(np.array(value, np.float32))


def by_channel(g: GraphBuilder) -> str:
    return g.constant(g.rng.uniform(0.5, 1.5, (CHANNELS, 1, 1)))


def scattered(g: GraphBuilder, x: str) -> str:
    """Channels added up by a 0/1 matrix, some not at all."""
    matrix = np.zeros((CHANNELS, CHANNELS), np.float32)
    for channel in range(CHANNELS - 1):
        matrix[g.rng.choice(CHANNELS, channel % 4, replace=False), channel] = 1
    rows = g.transpose(g.reshape(x, g.rows(1), CHANNELS, SIZE[0] * SIZE[1]), 0, 2, 1)
    moved = g.transpose(g.op("MatMul", rows, g.constant(matrix)), 0, 2, 1)
    return g.reshape(moved, g.rows(1), CHANNELS, *SIZE)


def mixed(g: GraphBuilder, x: str) -> str:
    return shuffle(g, x, CHANNELS, 3, SIZE, "reshape")


ACTIVATIONS: dict[str, tuple[Write, str]] = {
    "none": (lambda g, x: x, "none"),
    "relu": (lambda g, x: g.op("Relu", x), "relu"),
    "clip at 0": (lambda g, x: g.op("Clip", x, scalar(g, 0.0)), "relu"),
    "max with 0": (lambda g, x: g.op("Max", scalar(g, 0.0), x), "relu"),
    "hard swish": (lambda g, x: g.op("HardSwish", x), "hardswish"),
    "hard swish in four": (hard_swish, "hardswish"),
    "hard swish by hard sigmoid": (
        lambda g, x: g.op("Mul", g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x),
        "hardswish",
    ),
    "swish": (lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)), "silu"),
}


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize(("write", "kind"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_what_scales_shifts_and_activates_behind_is_fused(write: Write, kind: str, batch: int | None) -> None:
    def model(g: GraphBuilder, x: str) -> str:
        normalised = batch_norm(g, grouped(g, x), CHANNELS)
        return write(g, g.op("Sub", g.op("Mul", normalised, by_channel(g)), by_channel(g)))

    (fusion,) = fused(model_of(model, batch))
    assert (fusion.activation, fusion.residual) == (kind, None)
    assert (fusion.lead.source, fusion.target) == ("x", "y") and not fusion.lead.nodes


@pytest.mark.parametrize(("write", "kind"), ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("first", [True, False])
def test_a_residual_is_fused_with_its_activation(write: Write, kind: str, first: bool) -> None:
    def model(g: GraphBuilder, x: str) -> str:
        made = batch_norm(g, mixed(g, grouped(g, x)), CHANNELS)
        return write(g, g.op("Add", *((made, x) if first else (x, made))))

    (fusion,) = fused(model_of(model))
    assert (fusion.activation, fusion.residual, fusion.inputs) == (kind, "x", ("x",))
    assert kinds(fusion)[:5] == ["Reshape", "Transpose", "Reshape", "BatchNormalization", "Add"]


def test_an_activation_is_fused_across_a_shuffle() -> None:
    (fusion,) = fused(model_of(lambda g, x: mixed(g, g.op("Relu", batch_norm(g, grouped(g, x), CHANNELS)))))
    assert fusion.activation == "relu" and fusion.tail.is_permutation and not fusion.tail.is_identity


def test_sums_of_channels_are_fused_with_a_residual() -> None:
    (fusion,) = fused(model_of(lambda g, x: g.op("Relu", g.op("Add", scattered(g, grouped(g, x)), x))))
    assert fusion.tail.mix is not None and fusion.tail.mix.sum(axis=1).max() == 3
    assert (fusion.residual, fusion.activation) == ("x", "relu")


@pytest.mark.parametrize(("write", "kind"), list(ACTIVATIONS.values())[1:], ids=list(ACTIVATIONS)[1:])
def test_a_gather_with_what_follows_it_is_fused_in_front(write: Write, kind: str) -> None:
    order = np.array([3, 3, 0, 7, 1, 11, 2, 2, 2, 9, 10, 4])

    def model(g: GraphBuilder, x: str) -> str:
        moved = g.op("Gather", x, g.constant(order), axis=1)
        return grouped(g, write(g, batch_norm(g, moved, CHANNELS)))

    (fusion,) = fused(model_of(model))
    assert fusion.input_function.activation == kind
    assert (fusion.lead.source, fusion.lead.origin.tolist()) == ("x", order.tolist())


def test_what_a_neighbour_has_taken_is_left_to_it() -> None:
    def model(g: GraphBuilder, x: str) -> str:
        return grouped(g, g.op("Relu", batch_norm(g, mixed(g, grouped(g, x)), CHANNELS)))

    first, second = fused(model_of(model))
    assert kinds(first) == ["Reshape", "Transpose", "Reshape", "BatchNormalization", "Relu"]
    assert not kinds(second) and second.lead.source == first.target


def test_of_two_that_are_added_up_the_first_has_the_sum() -> None:
    def model(g: GraphBuilder, x: str) -> str:
        one, other = grouped(g, x), grouped(g, x)
        return g.op("Relu", g.op("Add", one, other))

    first, second = fused(model_of(model))
    assert kinds(first) == ["Add", "Relu"] and first.residual == second.target
    assert not second.nodes


def _outside(g: GraphBuilder, value: str) -> None:
    g.output(f"z{len(g.arrays)}", value, CHANNELS, *SIZE)


def _shown(g: GraphBuilder, x: str) -> str:
    made = grouped(g, x)
    _outside(g, made)
    return g.op("Relu", made)


def _read_twice(g: GraphBuilder, x: str) -> str:
    made = grouped(g, x)
    return g.op("Add", g.op("Relu", made), g.op("Abs", made))


def _gated_by_another(g: GraphBuilder, x: str) -> str:
    return g.op("Mul", grouped(g, x), g.op("Sigmoid", x))


def _broadcast(g: GraphBuilder, x: str) -> str:
    return g.op("Add", grouped(g, x), g.op("GlobalAveragePool", x))


def _twice_itself(g: GraphBuilder, x: str) -> str:
    made = grouped(g, x)
    return g.op("Add", made, made)


def _nearly_swish(g: GraphBuilder, x: str) -> str:
    made = grouped(g, x)
    return g.op("Mul", made, g.op("Sigmoid", g.op("Mul", made, scalar(g, 1.702))))


def _nearly_hard_swish(g: GraphBuilder, x: str) -> str:
    made = grouped(g, x)
    gate = g.op("Clip", g.op("Add", made, scalar(g, 2.0)), scalar(g, 0.0), scalar(g, 6.0))
    return g.op("Div", g.op("Mul", made, gate), scalar(g, 6.0))


def _half_a_hard_swish(g: GraphBuilder, x: str) -> str:
    made = grouped(g, x)
    gate = g.op("Clip", g.op("Add", made, scalar(g, 3.0)), scalar(g, 0.0), scalar(g, 6.0))
    return g.op("Mul", made, gate)


def _scaled_late(g: GraphBuilder, x: str) -> str:
    return g.op("Mul", g.op("Relu", grouped(g, x)), by_channel(g))


def _normalised_by_nothing(g: GraphBuilder, x: str) -> str:
    ones, negative = g.constant(np.ones(CHANNELS)), g.constant(-np.ones(CHANNELS))
    return g.op("Relu", g.op("BatchNormalization", grouped(g, x), ones, ones, ones, negative))


def _repeated(g: GraphBuilder, x: str) -> str:
    order = np.array([0, 0, *range(2, CHANNELS)])
    return batch_norm(g, g.op("Gather", grouped(g, x), g.constant(order), axis=1), CHANNELS)


def _normalised_sums(g: GraphBuilder, x: str) -> str:
    return batch_norm(g, scattered(g, grouped(g, x)), CHANNELS)


ENDS: dict[str, tuple[Write, list[str]]] = {
    "the model gives it": (_shown, []),
    "another reads it": (_read_twice, []),
    "gated by another tensor": (_gated_by_another, []),
    "a sum that is broadcast": (_broadcast, []),
    "added to itself": (_twice_itself, []),
    "nearly a swish": (_nearly_swish, []),
    "nearly a hard swish": (_nearly_hard_swish, []),
    "six times a hard swish": (_half_a_hard_swish, []),
    "a bound above": (lambda g, x: g.op("Clip", grouped(g, x), scalar(g, 0.0), scalar(g, 6.0)), []),
    "another activation": (lambda g, x: g.op("LeakyRelu", grouped(g, x)), []),
    "an activation in front of a sum": (lambda g, x: g.op("Add", g.op("Relu", grouped(g, x)), x), ["Relu"]),
    "an activation in front of a scale": (_scaled_late, ["Relu"]),
    "a shuffle behind a sum": (lambda g, x: mixed(g, g.op("Add", grouped(g, x), x)), ["Add"]),
    "a scale behind a sum": (lambda g, x: g.op("Mul", g.op("Add", grouped(g, x), x), by_channel(g)), ["Add"]),
    "a repeated channel with two scales": (_repeated, ["Gather"]),
    "sums of channels with scales": (
        _normalised_sums,
        ["Reshape", "Transpose", "MatMul", "Transpose", "Reshape"],
    ),
    "statistics that are none": (_normalised_by_nothing, []),
    "pooling": (
        lambda g, x: g.op("MaxPool", grouped(g, x), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("write", "wanted"), ENDS.values(), ids=ENDS)
def test_fusion_ends_behind(write: Write, wanted: list[str]) -> None:
    (fusion,) = fused(model_of(write))
    assert kinds(fusion) == wanted


def _front(inner: Write) -> Write:
    return lambda g, x: grouped(g, inner(g, x))


def _front_read_twice(g: GraphBuilder, x: str) -> str:
    active = g.op("Relu", mixed(g, x))
    return g.op("Add", grouped(g, active), g.op("Abs", active))


def _front_zeros(g: GraphBuilder, x: str) -> str:
    pads = g.constant(np.array([0, 2, 0, 0, 0, 0, 0, 0], np.int64))
    return grouped(g, g.op("Pad", g.slice(x, 1, 2), pads))


FRONTS: dict[str, tuple[Write, list[str]]] = {
    "the model's input": (_front(lambda g, x: g.op("Relu", x)), ["Relu"]),
    "what an engine fuses into what is before": (_front(lambda g, x: g.op("Relu", g.op("Softmax", x, axis=1))), []),
    "the same in front of a shuffle": (
        _front(lambda g, x: mixed(g, g.op("Relu", g.op("Softmax", x, axis=1)))),
        ["Reshape", "Transpose", "Reshape"],
    ),
    "another reads it": (_front_read_twice, []),
    "another activation": (_front(lambda g, x: g.op("LeakyRelu", mixed(g, x))), []),
    "two activations": (_front(lambda g, x: g.op("Relu", g.op("HardSwish", mixed(g, x)))), []),
    "channels of zeros": (_front_zeros, []),
    "sums of channels": (_front(scattered), []),
    "pooling": (
        _front(lambda g, x: g.op("Relu", g.op("AveragePool", x, kernel_shape=[1, 1]))),
        ["Relu"],
    ),
}


@pytest.mark.parametrize(("write", "wanted"), FRONTS.values(), ids=FRONTS)
def test_fusion_ends_in_front(write: Write, wanted: list[str]) -> None:
    (fusion,) = fused(model_of(write))
    assert [node.op_type for node in fusion.lead.nodes] == wanted


def test_nothing_is_fused_across_a_border() -> None:
    model = model_of(lambda g, x: g.op("Relu", mixed(g, grouped(g, g.op("Relu", mixed(g, x))))))
    (whole,) = fused(model)
    assert len(kinds(whole)) == 8
    names = {node.op_type: node.output[0] for node in model.graph.node}
    inner = next(node.input[0] for node in model.graph.node if node.op_type == "Conv")
    for border, count in ((inner, 4), (names["Conv"], 4), ("y", 8)):
        (fusion,) = fused(model, frozenset([border]))
        assert len(kinds(fusion)) == count


def test_the_largest_number_of_a_type_is_no_bound() -> None:
    model = model_of(lambda g, x: g.op("Clip", grouped(g, x), scalar(g, 0.0), scalar(g, 3.4028234663852886e38)))
    assert fused(model)[0].activation == "relu"


def test_two_readers_of_parts_of_one_tensor_are_one_convolution() -> None:
    def model(g: GraphBuilder, x: str) -> str:
        parts = g.split_op("Split", x, g.constant(np.array([6, 6], np.int64)), outputs=2, axis=1)
        made = [conv(g, part, 6, 6, (1, 1), groups=2)[0] for part in parts]
        return g.op("Relu", g.concat(1, *made))

    (fusion,) = fused(model_of(model))
    assert (fusion.lead.source, fusion.activation) == ("x", "relu")


def test_constants_of_the_model_are_not_changed() -> None:
    model = model_of(lambda g, x: batch_norm(g, grouped(g, x), CHANNELS))
    before = [numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer]
    fused(model)
    after = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))

"""Which layers belong to which site: by metadata, else by names, shared ones together, the rest as other."""

from __future__ import annotations

import random

import pytest
from onnx import TensorProto, helper

from onnxopt.measure.trtexec_files import LayerTime
from onnxopt.measure.trtexec_layers import (
    EngineLayers,
    LayerGroup,
    compare_layers,
    optimised_owners,
    original_owners,
)
from onnxopt.plan_document import PlanSite

_BEFORE = {"a": "s0", "b": "s1", "c": "s2", "x": None, "x_1": None, "PWN(y)": "s2"}
_AFTER = {"onnxopt/s0/conv": "s0", "onnxopt/s1/conv": "s1", "onnxopt/s2/conv": "s2", "x": None}
_ORDER = ("s0", "s1", "s2")


def _engine(*layers: tuple[str, float] | tuple[str, float, tuple[str, ...]]) -> EngineLayers:
    times = tuple(LayerTime(layer[0], layer[1], layer[1]) for layer in layers)
    return EngineLayers(times, {layer[0]: layer[2] for layer in layers if len(layer) == 3})


def _sites_of(layer: str, nodes: tuple[str, ...] = ()) -> tuple[str, ...]:
    difference = compare_layers(_engine((layer, 1.0, nodes)), _engine(), (_BEFORE, _AFTER), _ORDER)
    return tuple(site for group in difference.groups for site in group.sites)


@pytest.mark.parametrize(
    ("layer", "sites"),
    [
        ("a", ("s0",)),
        ("a + x", ("s0",)),
        ("x + x_1", ()),
        ("a || b", ("s0", "s1")),
        ("PWN(a, x)", ("s0",)),
        ("PWN(PWN(x), c)", ("s2",)),
        ("PWN(y)", ("s2",)),
        ("Reformatting CopyNode for Input Tensor 0 to b + x", ("s1",)),
        ("Reformatting CopyNode for Output Tensor 1 to c", ("s2",)),
        ("a_3", ("s0",)),
        ("x_1", ()),
        ("ab", ()),
        ("{ForeignNode[a...a]}", ("s0",)),
        ("{ForeignNode[a...c]}", ()),
        ("{ForeignNode[a...x]}", ()),
        ("(Unnamed Layer* 12) [Shuffle]", ()),
    ],
)
def test_names_say_whose_a_layer_is(layer: str, sites: tuple[str, ...]) -> None:
    assert _sites_of(layer) == sites


def test_metadata_goes_before_the_name() -> None:
    assert _sites_of("a", ("b",)) == ("s1",)
    assert _sites_of("__myl_Conv_myl0_1", ("x", "c")) == ("s2",)
    assert _sites_of("a", ("unknown",)) == ("s0",)


def test_sites_that_share_a_layer_are_compared_together() -> None:
    before = _engine(("a + x", 1.0), ("b", 2.0), ("b + c", 4.0), ("x_1", 8.0), ("{ForeignNode[a...x]}", 16.0))
    after = _engine(("onnxopt/s0/conv", 0.5), ("onnxopt/s1/conv", 0.25), ("onnxopt/s2/conv", 0.25), ("x", 3.0))
    difference = compare_layers(before, after, (_BEFORE, _AFTER), _ORDER)
    assert difference.groups == (
        LayerGroup(("s0",), ("a + x",), ("onnxopt/s0/conv",), 1.0, 0.5, shared=1),
        LayerGroup(("s1", "s2"), ("b", "b + c"), ("onnxopt/s1/conv", "onnxopt/s2/conv"), 6.0, 0.5),
    )
    assert difference.other == LayerGroup((), ("x_1", "{ForeignNode[a...x]}"), ("x",), 24.0, 3.0)
    assert difference.unresolved == 1


@pytest.mark.parametrize("seed", range(20))
def test_every_layer_counts_once(seed: int) -> None:
    numbers = random.Random(seed)
    sides = []
    for owners in (_BEFORE, _AFTER):
        names = [" + ".join(numbers.sample(sorted(owners), numbers.randint(1, 2))) for _ in range(12)]
        sides.append(_engine(*((name, numbers.random()) for name in names)))
    difference = compare_layers(sides[0], sides[1], (_BEFORE, _AFTER), _ORDER)
    groups = (*difference.groups, difference.other)
    for side, names, sums in (
        (sides[0], [n for g in groups for n in g.original], sum(g.original_ms for g in groups)),
        (sides[1], [n for g in groups for n in g.optimised], sum(g.optimised_ms for g in groups)),
    ):
        assert sorted(names) == sorted(time.name for time in side.times)
        assert sums == pytest.approx(sum(time.mean for time in side.times))
    members = [site for group in difference.groups for site in group.sites]
    assert len(members) == len(set(members))


def test_owners_follow_the_plan_and_the_names_of_a_rewrite() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["t"], name="first"),
        helper.make_node("Relu", ["t"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w"], ["u"]),
        helper.make_node("Relu", ["u"], ["y"], name="last"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    sites = [
        PlanSite("s0", "conv", "rewrite", "", ("first",), {"fused": ["relu", "gone", 3]}),
        PlanSite("s1", "conv", "rewrite", "", ("u",), {"computed_by": "s0"}),
        PlanSite("s2", "conv", "keep", "", ("last",), {}),
    ]
    joined = {"first": "s0", "relu": "s0", "node_of_u": "s0", "last": None}
    assert original_owners(model, sites, {"s0"}, fused=True) == joined
    apart = {"first": "s0", "relu": None, "node_of_u": "s1", "last": None}
    assert original_owners(model, sites, {"s0", "s1"}, fused=False) == apart
    for node, name in zip(nodes, ("onnxopt/s0/conv", "onnxopt/s0/cast/0", "", "last"), strict=True):
        node.name = name
    renamed = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    found = {"onnxopt/s0/conv": "s0", "onnxopt/s0/cast/0": "s0", "node_of_u": None, "last": None}
    assert optimised_owners(renamed) == found

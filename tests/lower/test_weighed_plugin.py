"""Attention whose keys have run-time weights as an operator: what the model did, what its tables say, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.errors import InputError
from onnxopt.lower.plugin import PluginWriter
from onnxopt.lower.plugin_nodes import plugin_sites
from onnxopt.lower.region_body import NoBody
from onnxopt.lower.rewrite import apply_rewrites, is_plugin_node
from onnxopt.model.graph import Graph
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import attention_tables
from onnxopt.sites import discover
from onnxopt.target.variant import Element
from onnxopt.validate import validate_attention_contents, validate_attention_launch
from onnxopt.verification import verify_rewritten
from tests.discover.test_key_weights import masks
from tests.discover.weighed_attention import CHANNELS, FORMS, TOKENS, weighed_attention
from tests.lower.plugin_models import by_reference, in_plugin_form
from tests.lower.test_plugin import assert_close, run, tensors_around
from tests.plan.schedules import VARIANTS, scheduled


def cut(site: AttentionSite) -> AttentionSchedule:
    return scheduled(site, VARIANTS, seed=1)


def narrow(element: Element) -> Callable[[AttentionSite], AttentionSchedule]:
    return lambda site: scheduled(site, VARIANTS, seed=1, element=element)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_the_same_and_so_do_its_tables(form: str, batch: int | None) -> None:
    kind, body = FORMS[form]
    model = weighed_attention(kind, body, batch)
    written = in_plugin_form(model, cut)
    onnx.checker.check_model(written, full_check=True)
    (plugin,) = plugin_sites(written)
    validate_attention_launch(plugin.attention.kernel, plugin.attention.tables, None)
    read, made = tensors_around(plugin)
    count = batch or 3
    x = np.random.default_rng(4).standard_normal((count, TOKENS, CHANNELS)).astype(np.float32)
    for mask in masks(kind, count, 5):
        feeds: dict[str, NDArray[Any]] = {"x": x, "mask": mask}
        values = run(written, feeds, [*read, made])
        (wanted,) = run(model, feeds, ["y"]).values()
        assert_close(wanted, values[made].reshape(wanted.shape))
        assert_close(by_reference(plugin, values), values[made])


def test_the_weights_stand_where_the_operator_wants_them() -> None:
    model = in_plugin_form(weighed_attention(*FORMS["padding"]), cut)
    (plugin,) = plugin_sites(model)
    (node,) = (node for node in model.graph.node if is_plugin_node(node))
    (function,) = model.functions
    assert list(function.input)[:5] == ["q", "k", "v", "weight", "jobs"]
    assert list(function.input)[-4:] == ["scales", "columns", "diagonals", "epsilons"]
    assert [name for name in function.input if name not in plugin.attention.tables] == ["q", "k", "v", "weight"]
    assert plugin.attention.operands["weight"] == node.input[list(function.input).index("weight")]
    front = [n.op_type for n in model.graph.node if n.name.startswith("onnxopt/") and "/weight" in n.name]
    assert front == ["Reshape", "Not", "Cast"]


def test_weights_elsewhere_are_refused() -> None:
    def swapped(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if is_plugin_node(node))
        for names in (model.functions[0].input, node.input):
            names[3], names[4] = names[4], names[3]

    def left_out(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if is_plugin_node(node))
        for names in (model.functions[0].input, node.input):
            del names[3]

    for change in (swapped, left_out):
        model = in_plugin_form(weighed_attention(*FORMS["policy"]), cut)
        change(model)
        with pytest.raises(InputError, match="its inputs are not those of its body"):
            plugin_sites(model)


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32"])
def test_narrower_kernels_verify(element: Element) -> None:
    model = weighed_attention(*FORMS["policy"])
    written = in_plugin_form(model, narrow(element))
    report = verify_rewritten(model, written, draws=1)
    assert report.passed, report.explain()


def test_the_batch_is_asked_for_where_the_part_asks_a_tensor_outside() -> None:
    """As old exporters write a reshape whose batch is open."""
    model = weighed_attention(*FORMS["policy"])
    graph = model.graph
    place = next(n for n, node in enumerate(graph.node) if node.output[0] == "y")
    graph.node[place].input[1] = "asked"
    asking = [
        helper.make_node("Shape", ["doubled"], ["sizes_of_x"]),
        helper.make_node("Gather", ["sizes_of_x", "none"], ["first_of_x"], axis=0),
        helper.make_node("Concat", ["first_of_x", "rest"], ["asked"], axis=0),
    ]
    for node in reversed(asking):
        graph.node.insert(place, node)
    graph.node.insert(0, helper.make_node("Add", ["x", "x"], ["doubled"]))
    graph.node.insert(1, helper.make_node("Sub", ["doubled", "x"], ["same"]))
    next(node for node in graph.node if node.output[0] == "parted").input[0] = "same"
    graph.initializer.append(numpy_helper.from_array(np.array([TOKENS, CHANNELS]), "rest"))
    onnx.checker.check_model(model, full_check=True)
    written = in_plugin_form(model, cut)
    for count in (1, 3):
        x = np.random.default_rng(6).standard_normal((count, TOKENS, CHANNELS)).astype(np.float32)
        feeds: dict[str, NDArray[Any]] = {"x": x, "mask": masks("float", count, 7)[3]}
        assert_close(run(model, feeds, ["y"])["y"], run(written, feeds, ["y"])["y"])


def seen(model: onnx.ModelProto) -> tuple[Graph, AttentionSite]:
    found = discover(model)
    (site,) = found.attention
    return found.graph, site


def written_by(writer: PluginWriter, site: AttentionSite) -> None:
    schedule = cut(site)
    writer.lower(site, schedule, attention_tables(site, schedule), None)


def test_a_part_that_no_function_can_hold_is_said_to_be_none() -> None:
    graph, site = seen(weighed_attention(*FORMS["policy"]))
    (source,) = site.k.sources
    two = replace(site, k=replace(site.k, sources=(source, source)))
    for changed, reason in (
        (two, "the vectors of k stand in 2 tensors"),
        (replace(site, batch=5), "the first axis of .* does not run over the batch"),
    ):
        with pytest.raises(NoBody, match=reason):
            PluginWriter(graph).lower(changed, cut(site), attention_tables(site, cut(site)), None)
    assert site.weights is not None
    elsewhere = replace(site, weights=replace(site.weights, tensor="parted"))
    with pytest.raises(NoBody, match="it needs 'mask' of the model as well"):
        PluginWriter(graph).lower(elsewhere, cut(site), attention_tables(site, cut(site)), None)


def test_nodes_with_graphs_or_of_other_domains_are_kept() -> None:
    model = weighed_attention(*FORMS["policy"])
    branch = parser.parse_graph("branch () => (float[N, 7, 4] chosen) { chosen = Identity (plain) }")
    place = next(n for n, node in enumerate(model.graph.node) if node.output[0] == "y")
    model.graph.node[place].output[0] = "plain"
    model.graph.node.append(helper.make_node("If", ["always"], ["y"], then_branch=branch, else_branch=branch))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    graph, site = seen(model)
    with pytest.raises(NoBody, match=r"its node 'y' \(If\) has a graph of its own"):
        written_by(PluginWriter(graph), replace(site, output="y"))


def test_a_body_is_not_shared_by_sites_that_read_otherwise() -> None:
    graph, site = seen(weighed_attention(*FORMS["policy"]))
    writer = PluginWriter(graph)
    written_by(writer, site)
    (source,) = site.k.sources
    other = replace(site, id="other", k=replace(site.k, sources=(replace(source, tensor="scores"),)))
    with pytest.raises(NoBody, match="another site has the same operator, and reads q and k from one tensor"):
        written_by(writer, other)


def test_two_sites_with_one_operator_share_a_body() -> None:
    model = weighed_attention(*FORMS["policy"])
    graph, site = seen(model)
    writer = PluginWriter(graph)
    schedule = cut(site)
    tables = attention_tables(site, schedule)
    validate_attention_contents(site, tables)
    first, body = writer.lower(site, schedule, tables, None)
    again, none = writer.lower(site, schedule, tables, None)
    assert body is not None and none is None
    assert first.functions == again.functions
    assert apply_rewrites(model, [first]).functions[0].doc_string == first.functions[0].doc_string

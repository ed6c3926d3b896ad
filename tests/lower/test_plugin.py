"""The plugin form computes what the model did, and what its tables say, whatever the site and the schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.shape_inference import infer_shapes

from onnxopt.discover.attention_site import AttentionSite, EmptyRow
from onnxopt.lower.plugin import PluginWriter
from onnxopt.lower.plugin_nodes import PluginSite, plugin_sites
from onnxopt.lower.rewrite import apply_rewrites, is_own_node, is_plugin_node
from onnxopt.model.graph import view
from onnxopt.sites import discover
from onnxopt.target.variant import Element
from onnxopt.verification import verify_rewritten
from onnxopt.verification.sessions import opened, with_outputs
from samples import build
from tests.discover.reference import attend
from tests.lower.plugin_models import Cut, by_reference, in_plugin_form, lowered, made_up, model_of
from tests.plan.schedules import SMALL, TALL, VARIANTS, scheduled
from tests.plan.sites import Wish, made_site, tensors_of

CUTS: dict[str, Cut] = {
    "whole keys": lambda site: scheduled(site, VARIANTS, seed=1),
    "split keys": lambda site: scheduled(site, (TALL, SMALL), split_keys=19),
}
SAMPLES = (
    "swin_padded", "longformer2d", "regionvit_masked", "neighbourhood", "masked_vit", "per_head_masks", "cross",
    "empty_uniform", "empty_unmasked", "empty_zero", "empty_nan",
)  # fmt: skip


def run(model: onnx.ModelProto, feeds: dict[str, NDArray[Any]], names: list[str]) -> dict[str, NDArray[Any]]:
    with opened(with_outputs(model, names), threads=1) as runner:
        return runner.run(feeds, names)


def tensors_around(plugin: PluginSite) -> tuple[list[str], str]:
    """What a site's operators read of the model, and what they give."""
    last = plugin.merge or plugin.attention
    return list(dict.fromkeys(plugin.attention.operands.values())), last.outputs[0]


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_compute_the_same_and_so_do_their_tables(name: str, cut: Cut) -> None:
    sample = build(name, batch=None)
    model = in_plugin_form(sample.model, cut)
    onnx.checker.check_model(model, full_check=True)
    report = verify_rewritten(sample.model, model, draws=1)
    assert report.passed, report.explain()
    feeds = sample.draw(7, 2)
    sites = plugin_sites(model)
    assert len(sites) == len(sample.attention)
    for plugin in sites:
        read, made = tensors_around(plugin)
        values = run(model, feeds, [*read, made])
        assert_close(by_reference(plugin, values), values[made])


def assert_close(wanted: NDArray[Any], got: NDArray[Any], within: float = 1e-5) -> None:
    wanted = wanted.reshape(got.shape)
    assert np.array_equal(np.isnan(wanted), np.isnan(got))
    largest = np.nanmax(np.abs(wanted), initial=0.0) or 1.0
    assert np.nanmax(np.abs(wanted - got), initial=0.0) <= within * largest


WISHES = {
    "packed": Wish(),
    "separate": Wish(packed=False, value_width=8),
    "grouped-query heads": Wish(heads=4, packed=False, grouped=True),
    "channels first": Wish(channels_first=True, batch=2),
    "channels first, windows": Wish(channels_first=True, packed=False, rows=10, keys=14, batch=2),
    "two sources": Wish(packed=False, two_sources=True, scattered=True, batch=2),
    "scattered phantoms": Wish(phantoms=True, scattered=True),
    "repeated keys": Wish(most=3, own_patterns=True, bias=True, heads=3),
    "all of the output": Wish(repeats=True, zeros=True, scattered=True, packed=False, rows=20),
    "zero": Wish(empty=EmptyRow.ZERO, bias=True, repeats=True),
    "nan": Wish(empty=EmptyRow.NAN, bias=True, own_patterns=True, heads=3),
    "uniform": Wish(empty=EmptyRow.UNIFORM, bias=True, own_patterns=True),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_made_up_sites_compute_their_contract(wish: Wish, cut: Cut) -> None:
    site, shapes = made_site(wish)
    model = made_up(site, shapes, cut)
    onnx.checker.check_model(model, full_check=True)
    feeds = {name: values.astype(np.float32) for name, values in tensors_of(site, shapes).items()}
    (plugin,) = plugin_sites(model)
    read, made = tensors_around(plugin)
    own = [name for name in read if name not in feeds]
    values = run(model, feeds, [*own, made]) | feeds
    assert_close(attend(site, feeds), values[made])
    assert_close(by_reference(plugin, values), values[made])


@pytest.mark.parametrize("batch", [1, 2, None])
def test_shapes_are_known_with_and_without_the_bodies(batch: int | None) -> None:
    sample = build("regionvit_masked", batch=batch)
    for cut in CUTS.values():
        model = in_plugin_form(sample.model, cut)
        declared = {value.name: value.type for value in (*model.graph.value_info, *model.graph.output)}
        made = [name for node in model.graph.node if is_plugin_node(node) for name in node.output]
        assert set(made) <= set(declared)
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.graph.value_info[:]
        inferred = infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
        known = {v.name: v.type.tensor_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
        seen = view(bare, batch=batch or 2)
        for name in made:
            wanted = declared[name].tensor_type
            assert known[name].elem_type == wanted.elem_type == seen.element_type(name)
            first, *rest = wanted.shape.dim
            assert [d.dim_value for d in rest] == [d.dim_value for d in known[name].shape.dim[1:]]
            assert list((seen.shape(name) or ())[1:]) == [d.dim_value for d in rest]
            assert first.dim_value == (known[name].shape.dim[0].dim_value if batch else 0)


def test_inputs_stand_in_the_order_of_the_operator() -> None:
    model = in_plugin_form(build("swin").model, CUTS["whole keys"])
    functions = {f.name: f for f in model.functions}
    for node in model.graph.node:
        if is_plugin_node(node):
            assert is_own_node(node) and node.domain == "onnxopt"
            assert list(functions[node.op_type].input)[:5] == ["q", "k", "v", "jobs", "rows"]
            assert len(node.input) == len(functions[node.op_type].input)
            assert {a.name: helper.get_attribute_value(a) for a in node.attribute} == {
                "plugin_namespace": b"onnxopt",
                "plugin_version": b"1",
            }
    assert {o.domain: o.version for o in model.opset_import}["onnxopt"] == 1


def test_equal_sites_share_a_body_and_the_same_input_gives_the_same_bytes() -> None:
    sample = build("longformer2d")
    first, again = (
        in_plugin_form(sample.model, CUTS["split keys"]).SerializeToString(deterministic=True) for _ in "12"
    )
    assert first == again
    site, shapes = made_site(Wish())
    twice = _model_twice(site, shapes)
    assert len(twice.functions) == 1
    assert len([node for node in twice.graph.node if is_plugin_node(node)]) == 2
    onnx.checker.check_model(twice, full_check=True)


def _model_twice(site: AttentionSite, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Two sites that are equal but for the shape of what they give."""
    model = model_of(site, shapes)
    flat = (site.output_shape[0], 1, *site.output_shape[1:])
    other = replace(site, id="attention-1", output="z", output_shape=flat)
    zeros = onnx.numpy_helper.from_array(np.zeros(flat, np.float32))
    model.graph.node.append(helper.make_node("Constant", [], ["z"], value=zeros))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, flat))
    graph = view(model, batch=site.batch)
    writer = PluginWriter(graph)
    result = apply_rewrites(model, [lowered(writer, own, scheduled(own), graph) for own in (site, other)])
    feeds = {name: values.astype(np.float32) for name, values in tensors_of(site, shapes).items()}
    values = run(result, feeds, ["y", "z"])
    assert np.array_equal(values["y"].reshape(-1), values["z"].reshape(-1))
    return result


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32"])
@pytest.mark.parametrize("name", ["masked_vit", "empty_nan"])
def test_another_compute_type_has_casts_around_it(name: str, element: Element) -> None:
    sample = build(name, batch=None)
    cuts: tuple[Cut, ...] = (
        lambda site: scheduled(site, element=element),
        lambda site: scheduled(site, (TALL, SMALL), split_keys=19, element=element),
    )
    for cut in cuts:
        model = in_plugin_form(sample.model, cut)
        onnx.checker.check_model(model, full_check=True)
        casts = [n for n in model.graph.node if n.op_type == "Cast" and is_own_node(n)]
        assert bool(casts) == (element != "tf32")
        report = verify_rewritten(sample.model, model, draws=1)
        assert report.passed, report.explain()
        for plugin in plugin_sites(model):
            assert plugin.attention.kernel["element"] == element
            if element == "bf16":  # the runtime that this is run in has no arrays of bfloat16
                continue
            read, made = tensors_around(plugin)
            values = run(model, sample.draw(7, 2), [*read, made])
            # The pool of biases is in the compute type, the body's are not.
            assert_close(by_reference(plugin, values), values[made], 4e-3 if element == "fp16" else 1e-5)


def test_a_model_in_half_precision_has_no_casts() -> None:
    sample = build("swin", batch=None)
    model = _in_half(sample.model)
    (first, *_) = discover(model).attention
    assert discover(model).graph.element_type(first.output) == TensorProto.FLOAT16
    result = in_plugin_form(model, lambda site: scheduled(site, element="fp16"))
    assert not any(n.op_type == "Cast" and is_own_node(n) for n in result.graph.node)
    report = verify_rewritten(model, result, draws=1)
    assert report.passed, report.explain()


def _in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every float in half precision."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).clip(-6e4, 6e4).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*half.graph.input, *half.graph.output, *half.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


def test_rounding_hides_no_wrong_mask() -> None:
    sample = build("neighbourhood")
    model = in_plugin_form(sample.model, lambda site: scheduled(site, element="fp16"))
    (function,) = model.functions
    masks = [n for n in function.node if n.op_type == "Constant" and np.isneginf(_value(n)).any()]
    values = _value(masks[0]).copy()
    live = np.argwhere(np.isfinite(values))
    values[tuple(live[len(live) // 2])] = -np.inf
    masks[0].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(values, masks[0].output[0]))
    report = verify_rewritten(sample.model, model, draws=1)
    assert not report.passed
    assert "rounding is not the cause" in " ".join(report.notes)


def _value(node: onnx.NodeProto) -> NDArray[Any]:
    array = onnx.numpy_helper.to_array(node.attribute[0].t)
    return array if array.dtype == np.float32 else np.zeros(1)

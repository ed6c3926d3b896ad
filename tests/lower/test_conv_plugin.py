"""Convolutions in the plugin form compute what the model did, and what their tables say; anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.shape_inference import infer_shapes

from onnxopt.decide import ConvSource, SiteReport
from onnxopt.errors import InputError
from onnxopt.lower.plugin_convolutions import plugin_convolutions
from onnxopt.lower.plugin_nodes import plugin_sites
from onnxopt.lower.rewrite import is_own_node, is_plugin_node
from onnxopt.model.graph import view
from onnxopt.target.variant import Element
from onnxopt.validate import PlanError
from onnxopt.verification import verify_rewritten
from onnxopt.verification.sessions import opened, with_outputs
from onnxopt.written import prove_written
from samples import Sample, build
from samples.builder import GraphBuilder
from samples.convolution import batch_norm, conv
from tests.lower.conv_plugin_models import by_reference, in_plugin_form, tensors_around
from tests.plan.conv_schedules import LANES, MMA

# What one kernel can hold: shapes of one path and one number of warps.
SHAPES = (MMA, replace(MMA, outputs=64, inputs=32, pixels=32, stages=3))
CUTS: dict[str, dict[str, Any]] = {
    "any parts": {"variants": SHAPES, "seed": 1},
    "split inputs": {"variants": SHAPES, "seed": 2, "pieces": 3},
    "summed before": {"summed": True},
    "folded images": {"variants": (LANES, replace(LANES, outputs=8)), "seed": 3, "images": 3},
}
EVERYWHERE = (
    "shufflenet_v1", "shuffle_matmul", "shufflenet_v2", "resnext", "grouped_conv1d", "grouped_conv3d",
    "depthwise_multiplier", "split_convolutions", "condensenet_train", "pruned_3x3",
)  # fmt: skip
CASES = [(name, "any parts") for name in EVERYWHERE] + [
    (name, cut) for name in ("condensenet_converted", "condensenet_v2") for cut in CUTS
]


def made(name: str, batch: int | None) -> Sample:
    return build(name, **({} if name == "dense_cnn" else {"batch": batch}))


def run(model: onnx.ModelProto, feeds: dict[str, NDArray[Any]], names: list[str]) -> dict[str, NDArray[Any]]:
    with opened(with_outputs(model, names), threads=1) as runner:
        return runner.run(feeds, names)


def assert_tables_agree(model: onnx.ModelProto, feeds: dict[str, NDArray[Any]], within: float = 1e-5) -> None:
    """The bodies' results are what the tables say, by their reference."""
    for plugin in plugin_convolutions(model):
        read, result = tensors_around(plugin)
        own = [name for name in read if name not in feeds]
        values = run(model, feeds, [*own, result]) | feeds
        wanted = by_reference(plugin, values)
        got = values[result].reshape(wanted.shape)
        assert np.abs(wanted - got).max() <= within * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "cut"), CASES)
def test_samples_compute_the_same_and_so_do_their_tables(name: str, cut: str) -> None:
    batch = 3 if cut == "folded images" else None
    sample = made(name, batch)
    model, sources = in_plugin_form(sample.model, **CUTS[cut])
    onnx.checker.check_model(model, full_check=True)
    report = verify_rewritten(sample.model, model, draws=1)
    assert report.passed, report.explain()
    written = plugin_convolutions(model)
    assert [plugin.site for plugin in written] == list(sources) and not plugin_sites(model)
    assert any(plugin.convolution.kernel["images"] == 3 for plugin in written) == (batch == 3)
    assert_tables_agree(model, sample.draw(7, 3))


def residual_model(batch: int | None = None) -> onnx.ModelProto:
    """A block whose residual comes behind a sum of channels, and one behind a plain convolution."""
    g = GraphBuilder("residuals", seed=2, batch=batch)
    x = g.input("x", 8, 4, 3)
    matrix = g.constant((g.rng.random((8, 8)) < 0.4).astype(np.float32))
    first = conv(g, x, 8, 8, (1, 1), groups=2)[0]
    first = g.op("Relu", g.op("Add", x, g.op("Einsum", first, matrix, equation="bchw,cd->bdhw")))
    second = batch_norm(g, conv(g, first, 8, 8, (3, 3), groups=4)[0], 8)
    g.output("y", g.op("HardSwish", g.op("Add", second, first)), 8, 4, 3)
    return g.model()


@pytest.mark.parametrize("cut", CUTS)
def test_residuals_stand_in_their_place(cut: str) -> None:
    original = residual_model(3 if cut == "folded images" else None)
    model, _ = in_plugin_form(original, **CUTS[cut])
    onnx.checker.check_model(model, full_check=True)
    assert verify_rewritten(original, model, draws=1).passed
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8, 4, 3)).astype(np.float32)}
    assert_tables_agree(model, feeds)
    first, second = plugin_convolutions(model)
    assert ("residual" in first.convolution.operands) == (first.sum is None)
    holder = second.sum or second.convolution
    assert holder.operands["residual"] == (first.sum or first.convolution).outputs[0]


@pytest.mark.parametrize("batch", [1, 2, None])
def test_shapes_are_known_with_and_without_the_bodies(batch: int | None) -> None:
    for cut in ("any parts", "split inputs"):
        model, _ = in_plugin_form(residual_model(batch), **CUTS[cut])
        declared = {value.name: value.type for value in (*model.graph.value_info, *model.graph.output)}
        names = [name for node in model.graph.node if is_plugin_node(node) for name in node.output]
        assert set(names) <= set(declared)
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.graph.value_info[:]
        inferred = infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
        known = {v.name: v.type.tensor_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
        seen = view(bare, batch=batch or 2)
        for name in names:
            wanted = declared[name].tensor_type
            assert known[name].elem_type == wanted.elem_type == seen.element_type(name)
            first, *rest = wanted.shape.dim
            assert [d.dim_value for d in rest] == [d.dim_value for d in known[name].shape.dim[1:]]
            assert list((seen.shape(name) or ())[1:]) == [d.dim_value for d in rest]
            assert first.dim_value == (batch or 0)


def test_names_and_inputs_are_those_of_the_contract() -> None:
    whole, _ = in_plugin_form(residual_model())
    split, _ = in_plugin_form(residual_model(), **CUTS["split inputs"])
    nodes = [n for model in (whole, split) for n in model.graph.node if is_plugin_node(n)]
    functions = {f.name: list(f.input) for model in (whole, split) for f in model.functions}
    assert [n.name for n in nodes[-4:]] == [f"onnxopt/conv-{i}/{half}" for i in (0, 1) for half in ("conv", "sum")]
    inputs = {node.name: functions[node.op_type] for node in nodes}
    plain = [functions[n.op_type] for n in nodes if "residual" in functions[n.op_type] and "w" in functions[n.op_type]]
    assert plain == [["x", "residual", "w", "b", "jobs", "outputs", "inputs"]]
    assert inputs["onnxopt/conv-1/conv"] == ["x", "w", "jobs", "outputs", "inputs"]
    assert inputs["onnxopt/conv-1/sum"] == ["partial", "residual", "b", "sum_begin", "sum_rows"]
    for node in nodes:
        assert node.domain == "onnxopt" and is_own_node(node)
        assert {a.name: helper.get_attribute_value(a) for a in node.attribute} == {
            "plugin_namespace": b"onnxopt",
            "plugin_version": b"1",
        }


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32"])
@pytest.mark.parametrize("cut", ["any parts", "split inputs"])
def test_another_compute_type_has_casts_around_it(cut: str, element: Element) -> None:
    sample = made("condensenet_v2", None)
    model, _ = in_plugin_form(sample.model, element=element, **CUTS[cut])
    onnx.checker.check_model(model, full_check=True)
    casts = [n for n in model.graph.node if n.op_type == "Cast" and is_own_node(n)]
    assert bool(casts) == (element != "tf32")
    report = verify_rewritten(sample.model, model, draws=1)
    assert report.passed, report.explain()
    for plugin in plugin_convolutions(model):
        assert plugin.convolution.kernel["element"] == element
    if element != "bf16":  # the runtime that this is run in has no arrays of bfloat16
        assert_tables_agree(model, sample.draw(7, 2), 5e-3 if element == "fp16" else 1e-5)


def test_rounding_hides_no_wrong_weight() -> None:
    sample = made("resnext", None)
    model, _ = in_plugin_form(sample.model, element="fp16")
    weights = [n.attribute[0].t for f in model.functions for n in f.node if n.op_type == "Constant"]
    largest = max((t for t in weights if t.data_type == onnx.TensorProto.FLOAT), key=lambda t: len(t.raw_data))
    values = numpy_helper.to_array(largest).copy()
    values[0] *= -1
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    report = verify_rewritten(sample.model, model, draws=1)
    assert not report.passed and "rounding is not the cause" in " ".join(report.notes)


def test_a_body_computes_no_more_than_the_groups_need() -> None:
    g = GraphBuilder("depthwise", seed=3, batch=None)
    made_by, _ = conv(g, g.input("x", 160, 3, 3), 160, 160, (3, 3), groups=160)
    g.output("y", made_by, 160, 3, 3)
    model, _ = in_plugin_form(g.model(), variants=(LANES,))
    (function,) = model.functions
    (node,) = [n for n in function.node if n.op_type == "Conv"]
    assert {a.name: a.i for a in node.attribute}["group"] == 160


def test_the_same_input_gives_the_same_bytes_and_equal_sites_share_a_body() -> None:
    sample = made("condensenet_converted", None)
    first, again = (in_plugin_form(sample.model)[0].SerializeToString(deterministic=True) for _ in "12")
    assert first == again
    g = GraphBuilder("twice", seed=4, batch=None)
    x = g.input("x", 4, 3, 3)
    weight = g.weight(4, 2, 1, 1)
    tensor = g.op("Conv", g.op("Conv", x, weight, group=2), weight, group=2)
    g.output("y", tensor, 4, 3, 3)
    model, _ = in_plugin_form(g.model())
    assert len(model.functions) == 1 and len(plugin_convolutions(model)) == 2


def _changed(name: str, position: int) -> Callable[[onnx.ModelProto], None]:
    """Change an entry of the first table of that name."""

    def change(model: onnx.ModelProto) -> None:
        functions = {f.name: list(f.input) for f in model.functions}
        node = next(n for n in model.graph.node if is_plugin_node(n) and name in functions[n.op_type])
        table = node.input[functions[node.op_type].index(name)]
        tensor = next(t for t in model.graph.initializer if t.name == table)
        values = numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[position] += 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def _dropped(prefix: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        kept = [n for n in model.graph.node if not n.op_type.startswith(prefix)]
        del model.graph.node[:]
        model.graph.node.extend(kept)

    return change


def _without_residual(model: onnx.ModelProto) -> None:
    for function in model.functions:
        function.doc_string = function.doc_string.replace('"residual":true', '"residual":false')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed("w", 0), "its tables or its configuration are not those that it is named after"),
        (_changed("jobs", 3), "its tables or its configuration are not those"),
        (_changed("sum_rows", 0), "its tables or its configuration are not those"),
        (_dropped("SumConv"), "a sum belongs to split outputs"),
        (_dropped("GroupConv"), "nothing makes its partial rows"),
        (_without_residual, "is no constant of the model|not those that it is named after"),
    ],
)
def test_a_changed_model_is_refused(change: Callable[[onnx.ModelProto], None], message: str) -> None:
    model, _ = in_plugin_form(residual_model(), **CUTS["split inputs"])
    change(model)
    with pytest.raises(InputError, match=f"node 'onnxopt/.*({message})"):
        plugin_convolutions(model)


@pytest.mark.parametrize("cut", ["any parts", "split inputs"])
def test_a_written_file_is_proved_against_its_sites(cut: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model, sources = in_plugin_form(residual_model(), **CUTS[cut])
    onnx.save(model, path)

    def report(name: str, source: ConvSource) -> SiteReport:
        return SiteReport(name, "conv", {}, "rewrite", "", plugin=source)

    assert prove_written(path, [report(*item) for item in sources.items()]) == 2
    source = sources["conv-1"]
    wrong = {
        "takes input": replace(source.work, weights=source.work.weights * 2),
        "the bias of channel": replace(source.work, bias=np.ones(8)),
        "activation is hardswish": replace(source.work, activation="relu"),
        "residual is True": replace(source.work, residual=False),
    }
    for message, work in wrong.items():
        with pytest.raises(PlanError, match=f"conv-1: .*{message}"):
            prove_written(path, [report("conv-1", replace(source, work=work))])
    with pytest.raises(PlanError, match="conv-1: the file has another kernel's configuration"):
        prove_written(path, [report("conv-1", sources["conv-0"])])
    with pytest.raises(PlanError, match="the operator of conv-9 is not in the file"):
        prove_written(path, [report("conv-9", source)])

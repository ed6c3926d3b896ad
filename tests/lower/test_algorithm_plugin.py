"""Layers as steps of an algorithm: what is written, what it computes, and how it is read back and proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxopt.decide import AlgorithmSource, SiteReport
from onnxopt.discover.conv_fusion import ConvFusions
from onnxopt.errors import InputError
from onnxopt.lower.algorithm_layouts import join_layouts
from onnxopt.lower.algorithm_nodes import PluginAlgorithm, plugin_algorithms
from onnxopt.lower.algorithm_plugin import step_fusion
from onnxopt.lower.plugin_convolutions import plugin_convolutions
from onnxopt.lower.plugin_nodes import FIRST_OPERANDS, RESIDUAL
from onnxopt.plan.algorithms.steps import ALGORITHMS
from onnxopt.plan.algorithms.tables import algorithm_tables
from onnxopt.sites import discover
from onnxopt.target.variant import Element
from onnxopt.validate import PlanError
from onnxopt.validate.algorithm_written import Step, validate_algorithm_contents, validate_algorithm_launch
from onnxopt.validate.reference_algorithms import step_output
from onnxopt.verification import draw_inputs
from onnxopt.verification.sessions import opened, with_outputs
from onnxopt.verification.winograd import verify_written
from onnxopt.written import prove_written
from samples.builder import GraphBuilder
from samples.convolution import batch_norm, conv, shuffle
from tests.lower.algorithm_models import in_steps, two_layers

STEPS = {
    "scalar_matrix": ["ConvScalar"],
    "kn2row": ["ConvProduct", "ConvShiftAdd"],
    "im2col": ["ConvUnfold", "ConvProduct"],
    "direct": ["ConvDirect"],
    "depthwise": ["ConvSlices", "SumConv"],
    "winograd_2x2": ["WinogradInput", "ConvProduct", "WinogradOutput"],
    "winograd_4x4": ["WinogradInput", "ConvProduct", "WinogradOutput"],
}


def _steps(site: PluginAlgorithm) -> list[Step]:
    return [(step.configuration["operator"], step.kernel, step.tables) for step in site.steps]


@pytest.mark.parametrize("element", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_steps_compute_the_layer_and_are_read_back(name: str, element: Element, tmp_path: Path) -> None:
    model = two_layers(None)
    result, sources = in_steps(model, name, element)
    onnx.checker.check_model(result, full_check=True)
    sites = plugin_algorithms(result)
    assert [site.site for site in sites] == ["conv-0", "conv-1"]
    assert [[s.configuration["operator"] for s in site.steps] for site in sites] == [STEPS[name]] * 2
    assert plugin_convolutions(result) == ()
    # Normalisation, activation and residual are in the steps.
    assert {node.op_type for node in result.graph.node if node.domain == ""} <= {"Cast"}
    assert [site.steps[-1].kernel["residual"] for site in sites] == [False, True]
    report = verify_written(model, result, draws=1)
    assert report.passed, report.explain()
    assert any("Winograd" in note for note in report.notes) == name.startswith("winograd")
    path = tmp_path / "model.onnx"
    onnx.save(result, path)
    assert prove_written(path, [_report(site, source) for site, source in sources.items()]) == 2


def _report(site: str, source: AlgorithmSource) -> SiteReport:
    return SiteReport(site, "conv", {}, "rewrite", "", plugin=source)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_the_tables_say_is_what_the_bodies_compute(name: str) -> None:
    model, _ = in_steps(two_layers(), name)
    feed = draw_inputs(model, seed=1, batch=1)
    steps = [step for site in plugin_algorithms(model) for step in site.steps]
    read = [tensor for step in steps for tensor in step.operands.values()]
    names = [n for n in dict.fromkeys([*read, *(s.outputs[0] for s in steps)]) if n not in feed]
    made = {output.name for output in model.graph.output}
    with opened(with_outputs(model, [n for n in names if n not in made]), threads=1) as runner:
        tensors: Mapping[str, Any] = {**feed, **runner.run(feed, names)}
    for step in steps:
        given = {**step.tables, **{name: tensors[tensor] for name, tensor in step.operands.items()}}
        if RESIDUAL in given:
            given[RESIDUAL] = given[RESIDUAL].reshape(1, 20, -1)
        if step.configuration["operator"] == "SumConv":
            given["partial"] = given["partial"].reshape(1, step.kernel["slots"], -1)
        expected = step_output(step.configuration["operator"], step.kernel, given)
        found = np.asarray(tensors[step.outputs[0]], np.float64).reshape(expected.shape)
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("axes", [(11,), (3, 5, 4)])
@pytest.mark.parametrize("name", ALGORITHMS[:5])
def test_one_and_three_axes(name: str, axes: tuple[int, ...]) -> None:
    model = two_layers(1, axes)
    result, _ = in_steps(model, name)
    assert verify_written(model, result, draws=1).passed


def test_strides_padding_and_slices_that_are_not_even() -> None:
    g = GraphBuilder("uneven", seed=0)
    weights = g.weight(7, 37, 3, 2, scale=0.1)
    made = g.op("Conv", g.input("x", 37, 11, 9), weights, strides=[2, 3], pads=[1, 0, 2, 1], dilations=[1, 2])
    g.output("y", g.op("HardSwish", made), 7, 6, 3)
    model = g.model()
    for name in ALGORITHMS[:5]:
        result, sources = in_steps(model, name)
        assert sources["conv-0"].work.activation == "hardswish"
        assert verify_written(model, result, draws=1).passed, name


def test_equal_steps_share_a_body_and_other_shapes_are_restored() -> None:
    """The unfolding of equal layers is one operator; a product of the same weights over other axes is reshaped."""
    result, _ = in_steps(two_layers(), "im2col")
    unfold = [n.op_type for n in result.graph.node if n.op_type.startswith("ConvUnfold")]
    assert len(unfold) == 2 and len(set(unfold)) == 1 and len(result.functions) == 3
    g = GraphBuilder("shared", seed=0)
    weights = g.weight(8, 8, 1, 1)
    first = g.op("Conv", g.input("x", 8, 2, 6), weights)
    turned = g.op("Reshape", first, g.constant(np.array([0, 8, 6, 2])))
    g.output("y", g.op("Conv", turned, weights), 8, 6, 2)
    model = g.model()
    result, _ = in_steps(model, "im2col")
    assert len(result.functions) == 1 and [n.op_type for n in result.graph.node].count("Reshape") == 2
    assert verify_written(model, result, draws=1).passed


def test_only_what_steps_can_do_is_fused() -> None:
    g = GraphBuilder("moved", seed=0)
    x = g.op("Relu", batch_norm(g, g.input("x", 12, 5, 5), 12))
    made = g.op("Relu", conv(g, x, 12, 12, (3, 3))[0])
    g.output("y", shuffle(g, made, 12, 3, (5, 5), "reshape"), 12, 5, 5)
    found = discover(g.model())
    (site,) = found.convolutions
    whole = ConvFusions(found.graph).fusion(site)
    assert whole is not None and whole.tail.moves
    fusion = step_fusion(found.graph, site, whole)
    assert (fusion.lead.source, fusion.target, fusion.nodes) == (site.input, site.output, ())
    result, _ = in_steps(g.model(), "direct")
    assert [n.op_type for n in result.graph.node if n.domain == ""].count("Relu") == 2
    assert verify_written(g.model(), result, draws=1).passed


def _altered(name: str, table: str, change: Callable[[np.ndarray], np.ndarray]) -> tuple[Any, list[Step]]:
    result, sources = in_steps(two_layers(), name)
    steps = _steps(plugin_algorithms(result)[1])
    altered: list[Step] = [
        (o, k, {n: change(a.copy()) if n == table else a for n, a in t.items()}) for o, k, t in steps
    ]
    return sources["conv-1"].work, altered


def _bump(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    flat[np.flatnonzero(flat)[0]] *= np.float32(1.5)
    return array


@pytest.mark.parametrize("name", ALGORITHMS)
def test_another_weight_or_bias_is_found(name: str) -> None:
    for table, message in (("w", "weights differ"), ("b", "the bias of channel 0")):
        work, steps = _altered(name, table, _bump)
        validate_algorithm_launch(steps)
        with pytest.raises(PlanError, match=message):
            validate_algorithm_contents(work, steps)
    work, steps = _altered(name, "none", _bump)
    validate_algorithm_contents(work, steps)


def test_tables_and_steps_that_do_not_fit_are_refused() -> None:
    _, steps = _altered("im2col", "w", lambda array: array[..., :-1])
    with pytest.raises(PlanError, match="'w' has [0-9,]+ entries, expected"):
        validate_algorithm_launch(steps)
    _, steps = _altered("depthwise", "sum_rows", lambda array: array[::-1].copy())
    with pytest.raises(PlanError, match="do not add up 2 slices of 20 channels"):
        validate_algorithm_launch(steps)
    _, steps = _altered("kn2row", "none", _bump)
    operator, kernel, tables = steps[0]
    with pytest.raises(PlanError, match="ConvProduct makes .* ConvShiftAdd reads"):
        validate_algorithm_launch([(operator, {**kernel, "positions": 1}, tables), steps[1]])
    work, steps = _altered("direct", "none", _bump)
    operator, kernel, tables = steps[0]
    with pytest.raises(PlanError, match=r"pads is \[0, 0, 0\], expected \[1, 1\]"):
        validate_algorithm_contents(work, [(operator, {**kernel, "pads": [0, 0, 0]}, tables)])


def test_a_model_whose_nodes_are_not_what_they_say_is_refused(tmp_path: Path) -> None:
    result, sources = in_steps(two_layers(), "im2col")
    missing = onnx.ModelProto()
    missing.CopyFrom(result)
    # The product reads the columns of the other layer.
    products = [n for n in missing.graph.node if n.op_type.startswith("ConvProduct")]
    products[1].input[0] = products[0].input[0]
    with pytest.raises(InputError, match="site 'conv-1': ConvUnfold, ConvProduct are not the steps"):
        plugin_algorithms(missing)
    changed = onnx.ModelProto()
    changed.CopyFrom(result)
    tensor = next(t for t in changed.graph.initializer if t.name in products[1].input)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    with pytest.raises(InputError, match="are not those that it is named after"):
        plugin_algorithms(changed)
    path = tmp_path / "model.onnx"
    onnx.save(result, path)
    other = AlgorithmSource(
        sources["conv-0"].site,
        sources["conv-0"].fusion,
        sources["conv-0"].work,
        "direct",
        algorithm_tables("direct", sources["conv-0"].work, "fp32"),
    )
    with pytest.raises(PlanError, match="conv-0: the file has other steps"):
        prove_written(path, [_report("conv-0", other)])
    with pytest.raises(PlanError, match="the operator of conv-9 is not in the file"):
        prove_written(path, [_report("conv-9", sources["conv-0"])])


def test_winograd_is_judged_by_its_own_rule() -> None:
    """In fp16 it breaks the numeric rule; an error beyond its own bound is found, and so is one anywhere else."""
    model = two_layers()
    result, _ = in_steps(model, "winograd_4x4", "fp16")
    report = verify_written(model, result, draws=1)
    assert report.passed and "measured and not judged" in report.notes[-1]
    assert [draw.reference for draw in report.draws][-1] == "the layers as in the original, by Winograd's rule"
    wrong = onnx.ModelProto()
    wrong.CopyFrom(result)
    for function in wrong.functions:
        for node in function.node:
            if function.name.startswith("ConvProduct") and node.op_type == "Constant":
                value = numpy_helper.to_array(node.attribute[0].t)
                if value.dtype == np.float32:
                    node.attribute[0].t.CopyFrom(numpy_helper.from_array(value * 3, node.attribute[0].t.name))
    report = verify_written(model, wrong, draws=1)
    assert not report.passed and report.first_bad_site is not None
    assert report.first_bad_site.site == "conv-0" and "the bound is" in report.explain()


def test_a_winograd_layer_within_its_bound_may_still_be_too_far_off() -> None:
    """The bound of the worst case is far; a plain implementation is not."""
    model = two_layers()
    result, _ = in_steps(model, "winograd_4x4", "fp16")
    for function in result.functions:
        for node in function.node:
            if function.name.startswith("WinogradOutput") and node.op_type == "Constant":
                value = numpy_helper.to_array(node.attribute[0].t)
                if value.shape == (20, 1):
                    node.attribute[0].t.CopyFrom(numpy_helper.from_array(value + 0.02, node.attribute[0].t.name))
    report = verify_written(model, result, draws=1)
    assert not report.passed and report.worst is not None
    assert "root mean square" in report.worst.reason


def test_transposes_that_undo_one_another_go() -> None:
    def transpose(name: str, source: str, perm: list[int]) -> onnx.NodeProto:
        return onnx.helper.make_node("Transpose", [source], [name], name=f"onnxopt/conv-{name}", perm=perm)

    first, last = [0, 3, 1, 2], [0, 2, 3, 1]
    nodes = [
        transpose("0/layout/x", "x", last),
        onnx.helper.make_node("Relu", ["0/layout/x"], ["a"], name="a"),
        transpose("0/layout/y", "a", first),
        transpose("1/layout/x", "0/layout/y", last),
        onnx.helper.make_node("Relu", ["1/layout/x"], ["b"], name="b"),
        transpose("1/layout/y", "b", first),
        onnx.helper.make_node("Neg", ["1/layout/y"], ["c"], name="c"),
        transpose("2/layout/x", "1/layout/y", last),
        transpose("2/layout/y", "2/layout/x", last),
    ]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in ("c", "2/layout/y")]
    graph = onnx.helper.make_graph(nodes, "g", [onnx.helper.make_empty_tensor_value_info("x")], outputs)
    model = onnx.helper.make_model(graph)
    # The first pair goes whole; of the second what something else reads stays.
    assert join_layouts(model) == 3
    assert [(n.op_type, *n.input) for n in model.graph.node] == [
        ("Transpose", "x"),
        ("Relu", "0/layout/x"),
        ("Relu", "a"),
        ("Transpose", "b"),
        ("Neg", "1/layout/y"),
        ("Transpose", "b"),
    ]


def test_every_step_has_its_first_operand() -> None:
    assert set(FIRST_OPERANDS) == {operator for steps in STEPS.values() for operator in steps}

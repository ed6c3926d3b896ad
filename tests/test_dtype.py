"""`--dtype`: a whole model in another type, through inspect, optimize, verify and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from onnxopt import api
from onnxopt.cli import app
from onnxopt.decide import found_attention
from onnxopt.deploy.manifest import check_manifest
from onnxopt.errors import InputError, VerificationError
from onnxopt.lower.rewrite import is_plugin_node
from onnxopt.model.convert import Precision, convert, element_of
from onnxopt.model.graph import view
from onnxopt.model.read import read_model
from onnxopt.plan_document import read_plan
from onnxopt.sites import Findings, discover
from samples import build as sample
from tests.corpus_tags import every_tag

CorpusModel = Callable[[str], Path]

SOME = (
    "vil_tiny_224.dynamo.op18",
    "nat_3layer.legacy.op17",
    "dyvit_s_policy.dynamo.op18",
    "shufflenet1_g3_megvii.dynamo.op18.dyn",
)
needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="the extra 'rtx' (tensorrt-rtx) is not installed"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dtype") / "model.onnx"
    path.write_bytes(sample("neighbourhood").to_bytes())
    return path


def optimized(model: Path, name: str, **options: object) -> api.OptimizeResult:
    given = {"target": "sm_90", "cache": model.parent / "cache", **options}
    return api.optimize(model, model.parent / name, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def half(model: Path) -> api.OptimizeResult:
    return optimized(model, "half", dtype="fp16")


def own_casts(path: Path) -> list[str]:
    nodes = onnx.load(path).graph.node
    return [n.name for n in nodes if n.op_type == "Cast" and n.name.startswith("onnxopt/")]


def test_both_forms_are_in_the_type_without_casts_around_their_sites(half: api.OptimizeResult) -> None:
    assert [m.verification.passed for m in half.models if m.verification] == [True, True]
    before = onnx.load(half.inspection.path)
    for written in half.models:
        after = onnx.load(half.package / written.file)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert own_casts(half.package / written.file) == []
    plugin = onnx.load(half.package / "model.onnx")
    graph = view(plugin)
    operators = [node for node in plugin.graph.node if is_plugin_node(node)]
    assert operators and all(graph.element_type(n.output[0]) == TensorProto.FLOAT16 for n in operators)


def test_plan_manifest_and_report_say_the_type(half: api.OptimizeResult) -> None:
    plan = json.loads((half.package / "plan.json").read_text())
    assert plan["model"]["dtype"] == "fp16" and {s["dtype"] for s in plan["sites"] if "dtype" in s} == {"fp16"}
    assert read_plan(half.package / "plan.json").dtype == "fp16"
    assert check_manifest(half.package).source.dtype == "fp16"
    assert "converted to" in (half.package / "report.html").read_text()


def test_a_package_is_verified_against_the_float32_original(model: Path, half: api.OptimizeResult) -> None:
    report = api.verify(model, half.package)
    assert report.passed and [name for name, _ in report.models] == ["model.onnx", "model.portable.onnx"]
    assert report.reference == "original"
    assert all("float32 original" in each.notes[-1] for _, each in report.models)


def test_a_damaged_model_in_the_type_does_not_verify(model: Path, half: api.OptimizeResult, tmp_path: Path) -> None:
    damaged = onnx.load(half.package / "model.portable.onnx")
    tensor = max(damaged.graph.initializer, key=lambda t: int(np.prod(t.dims)) * (t.data_type == TensorProto.FLOAT16))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 2] += np.float16(1)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(damaged, tmp_path / "damaged.onnx")
    assert not api.verify(model, tmp_path / "damaged.onnx").passed


def test_the_same_input_gives_the_same_bytes(model: Path, half: api.OptimizeResult) -> None:
    again = optimized(model, "again", dtype="fp16", verify=False)
    for entry in check_manifest(half.package).files:
        assert (half.package / entry.path).read_bytes() == (again.package / entry.path).read_bytes(), entry.path


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_inputs_and_outputs_get_the_type_where_asked(model: Path, dtype: Precision) -> None:
    result = optimized(model, f"io-{dtype}", form="portable", dtype=dtype, convert_io=True)
    assert result.verification is not None and result.verification.passed
    graph = onnx.load(result.package / "model.portable.onnx").graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds == {element_of(dtype)}
    assert not any(node.op_type == "Cast" for node in graph.node)


def test_kernels_may_compute_in_another_type_than_the_model(model: Path) -> None:
    result = optimized(model, "mixed", form="plugin", dtype="fp16", kernel_dtype="bf16")
    assert result.verification is not None and result.verification.passed
    assert result.sites[0].planned["dtype"] == "bf16"
    assert own_casts(result.package / "model.onnx")


def test_float32_converts_nothing(model: Path) -> None:
    result = optimized(model, "wide", form="portable", dtype="fp32", verify=False)
    assert result.inspection.dtype is None
    sites = api.inspect(model, target="sm_90", dtype="fp32", cache=model.parent / "cache").sites
    assert sites[0].planned["dtype"] == "fp32"
    assert "dtype" not in json.loads((result.package / "plan.json").read_text())["model"]
    assert "dtype" not in json.loads((result.package / "manifest.json").read_text())["source"]


def test_inspect_shows_the_sites_of_the_converted_model(model: Path) -> None:
    cache = model.parent / "cache"
    found = api.inspect(model, target="sm_90", dtype="bf16", cache=cache)
    plain = api.inspect(model, target="sm_90", kernel_dtype="bf16", cache=cache)
    assert found.to_json()["model"]["dtype"] == "bf16" and found.opset == 22
    assert [s.found for s in found.sites] == [s.found for s in plain.sites]
    assert {s.planned["dtype"] for s in found.sites if s.kind == "attention"} == {"bf16"}


def overflowing() -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["a"], name="up"),
        helper.make_node("Div", ["a", "c"], ["y"], name="down"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(np.float32(65504), "c")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_model_that_leaves_the_range_of_fp16_is_refused_and_bf16_takes_it(tmp_path: Path) -> None:
    onnx.save(overflowing(), tmp_path / "model.onnx")

    def in_type(dtype: Precision) -> api.OptimizeResult:
        folder = tmp_path / "out"
        return api.optimize(tmp_path / "model.onnx", folder, target="sm_90", form="portable", dtype=dtype)

    with pytest.raises(VerificationError, match="first happens in .*'up'.*Take --dtype bf16"):
        in_type("fp16")
    assert not (tmp_path / "out").exists()
    verification = in_type("bf16").verification
    assert verification is not None and verification.passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "tf32"}, "a model cannot be converted to 'tf32'.*kernels compute in it with --kernel-dtype tf32"),
        ({"dtype": "int8"}, "--dtype allows fp16, bf16 and fp32$"),
        ({"convert_io": True}, "--convert-io is about a model that is converted; add --dtype fp16"),
        ({"target": "cpu", "dtype": "bf16"}, "ONNX Runtime has no kernels for bf16 on a CPU"),
        ({"target": "sm_75", "dtype": "bf16"}, r"NVIDIA T4 \(sm_75\) do not take 'bf16'"),
    ],
)
def test_what_is_not_possible_is_said_at_once(model: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        optimized(model, "refused", **options)
    assert not (model.parent / "refused").exists()


def test_a_model_that_was_converted_is_not_converted_again(model: Path, tmp_path: Path) -> None:
    onnx.save(convert(read_model(model), "fp16"), tmp_path / "half.onnx")
    with pytest.raises(InputError, match="it holds float16 already"):
        api.inspect(tmp_path / "half.onnx", target="sm_90", dtype="bf16")


def test_the_commands_take_the_options(model: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["inspect", str(model), "--target", "sm_90", *words])

    assert json.loads(run("--dtype", "fp16", "--json").stdout)["model"]["dtype"] == "fp16"
    mixed = run("--dtype", "fp16", "--convert-io", "--kernel-dtype", "tf32")
    assert mixed.exit_code == 0 and "model.onnx in fp16: opset" in mixed.stdout
    refused = run("--dtype", "tf32")
    assert refused.exit_code == 2 and "'tf32' is not one of" in refused.stderr


def facts(findings: Findings) -> tuple[list[object], ...]:
    """What was found, but for the names of nodes."""
    attention = [{k: v for k, v in found_attention(s).items() if k != "nodes"} for s in findings.attention]
    convolutions = [(s.pattern, s.connections, s.groups, s.in_channels, s.out_channels) for s in findings.convolutions]
    return [*attention], [*convolutions], [(r.op, r.reason) for r in findings.refusals]


def same_sites(path: Path, precision: Precision) -> None:
    before = read_model(path)
    after = convert(before, precision)
    onnx.checker.check_model(after, full_check=True)
    assert facts(discover(after)) == facts(discover(before))


@pytest.mark.corpus
@pytest.mark.parametrize("tag", SOME)
def test_a_sample_has_the_same_sites_in_fp16(tag: str, corpus_model: CorpusModel) -> None:
    same_sites(corpus_model(tag), "fp16")


@pytest.mark.corpus
@pytest.mark.parametrize("tag", SOME[:2])
def test_a_sample_has_the_same_sites_in_bf16(tag: str, corpus_model: CorpusModel) -> None:
    same_sites(corpus_model(tag), "bf16")


@pytest.mark.corpus_all
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("tag", every_tag())
def test_every_model_has_the_same_sites(tag: str, precision: Precision, corpus_model: CorpusModel) -> None:
    same_sites(corpus_model(tag), precision)


def built(path: Path, folder: Path, precision: Precision) -> None:
    """Converted, rewritten, verified, and built by TensorRT-RTX with inputs and outputs as they were."""
    options = {"target": "sm_89", "form": "portable", "engine": "rtx", "measure": False}
    result = api.optimize(path, folder, dtype=precision, cache=folder.parent / "cache", **options)  # type: ignore[arg-type]
    assert result.verification is not None and result.verification.passed
    assert result.engine is not None and result.engine.path.stat().st_size == result.engine.bytes
    assert {tensor.dtype for tensor in (*result.engine.inputs, *result.engine.outputs)} == {"FLOAT"}


@pytest.mark.corpus
@needs_rtx
def test_one_is_built_in_fp16(corpus_model: CorpusModel, tmp_path: Path) -> None:
    built(corpus_model("nat_3layer.legacy.op17"), tmp_path / "package", "fp16")


@pytest.mark.corpus_all
@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("tag", every_tag())
def test_every_model_is_built(tag: str, precision: Precision, corpus_model: CorpusModel, tmp_path: Path) -> None:
    built(corpus_model(tag), tmp_path / "package", precision)

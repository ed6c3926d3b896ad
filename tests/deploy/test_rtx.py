"""Engines by TensorRT-RTX: what is built, what is refused and why, and that a crash leaves nothing behind."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.deploy import rtx
from onnxopt.deploy.batch_range import BatchRange
from onnxopt.deploy.operators import foreign_nodes
from onnxopt.deploy.rtx import build_engine
from onnxopt.deploy.tensorrt_build import BuildProgress
from onnxopt.errors import InputError, MissingError
from onnxopt.lower.compat import lower_for_parsers

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="the extra 'rtx' is not installed")


def _model(operator: str = "Relu", domain: str = "", shape: tuple[int | str, ...] = (1, 4, 8, 8)) -> onnx.ModelProto:
    """A convolution and an operator of choice."""
    weights = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["c"], ["y"], name="last", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@needs_rtx
def test_an_engine_is_built_and_described(tmp_path: Path) -> None:
    out = tmp_path / "small.engine"
    seen: list[BuildProgress] = []
    info = build_engine(_model(), arch="sm_89", out=out, progress=seen.append)
    data = out.read_bytes()
    assert (info.path, info.architecture, info.max_batch) == (out, "sm_89", None)
    assert (info.bytes, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert info.layers >= 2
    assert [(t.name, t.dtype, t.shape) for t in info.inputs] == [("x", "FLOAT", (1, 4, 8, 8))]
    assert [t.name for t in info.outputs] == ["y"]
    assert any(state.steps > 0 and state.step == state.steps for state in seen)
    assert all(0 <= state.step <= state.steps for state in seen)
    assert _leftovers(tmp_path) == ["small.engine"]


@needs_rtx
def test_a_dynamic_batch_gets_a_range_and_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(shape=("n", 4, 8, 8)), path)
    info = build_engine(path, arch="sm_120", out=tmp_path / "m.engine", batch=BatchRange(1, 2, 4))
    assert info.max_batch == 4
    assert info.inputs[0].shape == (-1, 4, 8, 8)


def test_a_batch_for_a_model_with_a_fixed_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="'small' has a fixed batch; leave out --batch"):
        build_engine(_model(), arch="sm_89", out=tmp_path / "e", batch=BatchRange())


@needs_rtx
def test_another_dynamic_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'x' has the shape \[1, 4, -1, 8\]"):
        build_engine(_model(shape=(1, 4, "h", 8)), arch="sm_89", out=tmp_path / "e")
    assert _leftovers(tmp_path) == []


@needs_rtx
def test_what_the_parser_refuses_is_listed_with_node_and_operator(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot parse .*'small'(.|\n)*'last' \(Det\): unsupported node"):
        build_engine(_model("Det"), arch="sm_89", out=tmp_path / "e")
    assert _leftovers(tmp_path) == []


@needs_rtx
def test_what_the_builder_refuses_is_shown_with_its_reason_and_a_way_out(tmp_path: Path) -> None:
    model = _model()
    weights = numpy_helper.from_array(np.ones((8, 8), np.float32), "v")
    model.graph.initializer.append(weights)
    model.graph.node.append(helper.make_node("MatMul", ["y", "v"], ["z"], name="product"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    with pytest.raises(InputError, match=r"cannot build .*'small'(.|\n)*'product'(.|\n)*from sm_80 on"):
        build_engine(model, arch="sm_75", out=tmp_path / "e")
    assert _leftovers(tmp_path) == []


@needs_rtx
def test_an_existing_engine_survives_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "e"
    out.write_bytes(b"before")
    with pytest.raises(InputError):
        build_engine(_model("Det"), arch="sm_89", out=out)
    assert out.read_bytes() == b"before"


@needs_rtx
def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def stop(state: BuildProgress) -> None:
        if state.steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(_model(), arch="sm_89", out=tmp_path / "e", progress=stop)
    assert _leftovers(tmp_path) == []


@needs_rtx
def test_weights_in_another_file_reach_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(), path, save_as_external_data=True, size_threshold=0, location="m.data")
    out = tmp_path / "out"
    out.mkdir()
    assert build_engine(path, arch="sm_89", out=out / "e").bytes > 0
    assert _leftovers(out) == ["e"]


@pytest.mark.parametrize("arch", ["sm_90", "sm_100", "cpu", "sm_87", "SM89", ""])
def test_other_architectures_list_what_is_allowed(tmp_path: Path, arch: str) -> None:
    with pytest.raises(InputError, match=r"allowed: sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"):
        build_engine(_model(), arch=arch, out=tmp_path / "e")


def test_a_missing_library_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'onnxopt\[rtx\]'"):
        build_engine(_model(), arch="sm_89", out=tmp_path / "e")


@pytest.mark.parametrize(("operator", "domain"), [("Conv_1", "onnxopt"), ("Gelu", "com.microsoft"), ("Nonsense", "")])
def test_nodes_that_are_not_standard_never_reach_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str, domain: str
) -> None:
    monkeypatch.setattr(rtx, "find_spec", lambda name: object())
    monkeypatch.setattr(rtx, "run_worker", lambda *a: pytest.fail("the model was handed over"))
    with pytest.raises(InputError, match=rf"'last' \({domain}.*{operator}\).*portable form"):
        build_engine(_model(operator, domain), arch="sm_89", out=tmp_path / "e")


def _function(name: str, domain: str, inner: str = "Relu") -> onnx.FunctionProto:
    body = [helper.make_node(inner, ["a"], ["b"], name="inner")]
    return helper.make_function(domain, name, ["a"], ["b"], body, [helper.make_opsetid("", 18)])


def test_functions_of_the_model_are_fine_but_plugin_operators_with_bodies_are_not() -> None:
    model = _model("Twice", "com.example")
    assert foreign_nodes(model) == ["'last' (com.example::Twice)"]
    model.functions.append(_function("Twice", "com.example"))
    assert foreign_nodes(model) == []
    model.functions[0].node[0].op_type = "Nonsense"
    assert foreign_nodes(model) == ["'inner' (Nonsense)"]
    plugin = _model("Conv_1", "onnxopt")
    plugin.functions.append(_function("Conv_1", "onnxopt"))
    assert foreign_nodes(plugin) == ["'last' (onnxopt::Conv_1)"]


def test_nodes_in_subgraphs_are_looked_at() -> None:
    branch = helper.make_graph(
        [helper.make_node("Odd", [], ["o"], name="odd", domain="com.example")],
        "branch",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])],
    )
    model = _model()
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    assert foreign_nodes(model) == ["'odd' (com.example::Odd)"] * 2


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("import os; os.abort()", InputError, "crashed \\(SIGABRT\\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", MissingError, "out of memory"),
        ("raise ValueError('boom')", InputError, "exit code 1(.|\\n)*ValueError: boom"),
        ("", InputError, "exit code 0"),
    ],
)
def test_a_crash_of_the_library_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(rtx, "find_spec", lambda name: object())
    script = f'print(\'{{"event": "stage", "name": "parsing"}}\', flush=True)\n{code}'
    monkeypatch.setattr(rtx, "module_command", lambda module: [sys.executable, "-c", script])
    with pytest.raises(error, match=words) as caught:
        build_engine(_model(), arch="sm_89", out=tmp_path / "e")
    assert "parsing" in str(caught.value)
    assert "Nothing was written" in str(caught.value)
    assert _leftovers(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="there is no folder"):
        build_engine(_model(), arch="sm_89", out=tmp_path / "none" / "e")


@needs_rtx
@pytest.mark.corpus
def test_an_export_that_the_parser_refuses_builds_after_lowering(
    tmp_path: Path, corpus_model: Callable[[str], Path]
) -> None:
    model = onnx.load(corpus_model("regionvit_tiny_224.dynamo.op18.dyn"))
    with pytest.raises(InputError, match=r"'node_col2im' \(Col2Im\): unsupported node"):
        build_engine(model, arch="sm_89", out=tmp_path / "e")
    assert lower_for_parsers(model) == (3, [])
    assert build_engine(model, arch="sm_89", out=tmp_path / "e").max_batch == 8

"""The model for the launcher library: what stands in it, what is refused, and the commands that go with it.

Needs no headers of TensorRT: what the library makes of the model is for ``test_launcher.py``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxopt.deploy import doctor
from onnxopt.deploy.batch_range import BatchRange
from onnxopt.deploy.commands_file import COMMANDS, commands_text, write_commands
from onnxopt.deploy.engine_operators import EngineOperator, Grid
from onnxopt.deploy.launcher import HEADER, LIBRARY, build_launcher, find_headers, find_launcher, main
from onnxopt.deploy.launcher_fields import checksum, launcher_fields
from onnxopt.deploy.launcher_model import LAUNCHER_MODEL, launcher_model, write_launcher_model
from onnxopt.errors import InputError, MissingError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.launch import MERGE_WARPS
from onnxopt.kernels.source import with_others
from onnxopt.lower.plugin_nodes import OPERATORS, plugin_nodes
from tests.deploy.lean_packages import MODELS
from tests.deploy.test_launcher_fields import compiled, program
from tests.deploy.test_operator_specs import operators_of

Kernels = dict[str, list[CompiledKernel]]


def described(family: str) -> tuple[onnx.ModelProto, tuple[EngineOperator, ...], Kernels]:
    """A model in the plugin form, its operators, and kernels for them that hold no code."""
    model = MODELS[family]()
    operators = operators_of(model)
    kernels = {operator.name: [compiled("sm_80"), compiled("sm_90a")] for operator in operators}
    return model, operators, kernels


def fields_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node, an int8 tensor as its bytes."""
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.raw_data if isinstance(value, onnx.TensorProto) else value for name, value in found.items()}


@pytest.mark.parametrize("family", ["group", "sum", "im2col"])
def test_every_operator_becomes_a_node_without_a_body(family: str) -> None:
    model, operators, kernels = described(family)
    found = launcher_model(model, operators, kernels)
    before, after = list(model.graph.node), list(found.graph.node)
    assert [list(node.output) for node in after] == [list(node.output) for node in before]
    assert [list(node.input) for node in after] == [list(node.input) for node in before]
    assert not [function for function in found.functions if function.domain == "onnxopt"]
    assert found.graph.initializer == model.graph.initializer
    assert (found.graph.input, found.graph.output) == (model.graph.input, model.graph.output)
    own = [node for node in after if node.domain == "onnxopt"]
    assert {node.op_type for node in own} == {"OnnxoptKernel"}
    assert len(own) == len(plugin_nodes(model, OPERATORS))
    for node in own:
        fields = fields_of(node)
        assert (fields["plugin_namespace"], fields["plugin_version"]) == (b"onnxopt", b"1")
        assert len(fields["inputs"]) == 3 * len(node.input)


def test_split_attention_is_one_node_with_two_kernels() -> None:
    model, operators, kernels = described("split")
    first, second = plugin_nodes(model, OPERATORS)
    found = launcher_model(model, operators, kernels)
    (node,) = [node for node in found.graph.node if node.domain == "onnxopt"]
    attention, merge = operators
    assert list(node.output) == list(second.outputs)
    assert list(node.input)[:3] == list(first.operands.values())
    assert len(node.input) == 3 + len(attention.tables) + len(merge.tables)
    assert not set(first.outputs) & {value.name for value in found.graph.value_info}
    fields = fields_of(node)
    slots, width = first.kernel["slots"], first.kernel["value_width"]
    assert fields["workspace"] == [2, 4 * slots * width, 4 * slots]
    lines = len(second.tables["merges"])
    assert fields["launches"][5:] == [1, lines, MERGE_WARPS, 32 * MERGE_WARPS, 0]
    assert fields["entries"] == b"sparse_attention,merge_attention"
    # The merge reads both parts, its own table behind those of the first kernel, and the batch.
    tables = 3 + len(attention.tables)
    assert fields["arguments"][-11:] == [5, 3, 0, 3, 1, 0, tables, 1, 0, 2, 0]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    written = [write_launcher_model(tmp_path, *described("scalar")).read_bytes() for _ in range(2)]
    assert written[0] == written[1]
    assert (tmp_path / LAUNCHER_MODEL).is_file()


def test_a_kernel_among_others_is_given_nothing_for_their_tables() -> None:
    model, operators, kernels = described("scalar")
    among = {
        name: [replace(kernel, source=with_others(kernel.source, 0, 3)) for kernel in compiled_for]
        for name, compiled_for in kernels.items()
    }
    arguments = fields_of(launcher_model(model, operators, among).graph.node[0])["arguments"]
    own = len(operators[0].operands) + len(operators[0].tables)
    assert arguments[0] == own + 3 + 1 + 1
    assert arguments[1 + 2 * own : 1 + 2 * (own + 4)] == [4, 0, 4, 0, 4, 0, 1, 0]


Change = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, o, k: (m, o[1:], k), "nothing describes its operator"),
        (lambda m, o, k: (m, o, {}), "has no machine code"),
        (lambda m, o, k: (m, o, {name: [*made, made[0]] for name, made in k.items()}), "given twice for sm_80"),
        (
            lambda m, o, k: (m, (replace(o[0], tactics=(replace(o[0].tactics[0], tables=1),)), *o[1:]), k),
            "other tables",
        ),
        (lambda m, o, k: (m, o, {name: [compiled("sm_1")] for name in k}), "a kernel is for 'sm_1'"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: Change, words: str) -> None:
    with pytest.raises(InputError, match=words):
        launcher_model(*change(*described("group")))


def test_partial_results_that_something_else_reads_are_refused() -> None:
    model, operators, kernels = described("split")
    first, _ = plugin_nodes(model, OPERATORS)
    model.graph.output.append(onnx.helper.make_tensor_value_info(first.outputs[1], onnx.TensorProto.FLOAT, None))
    with pytest.raises(InputError, match="something beside its merge reads its partial results"):
        launcher_model(model, operators, kernels)


def test_the_checksum_is_that_of_names_lengths_and_contents() -> None:
    fields = {"format": (1, -1), "operator": "ab", "code": b"\7\0"}
    text = b"format\0" + struct.pack("<Qii", 8, 1, -1) + b"operator\0" + struct.pack("<Q", 3) + b"ab\0"
    assert checksum(fields) == f"{zlib.crc32(text + b'code' + bytes(1) + struct.pack('<Q', 2) + b'%c%c' % (7, 0)):08x}"


def test_a_number_beyond_32_bits_is_refused() -> None:
    whole = program()
    with pytest.raises(InputError, match="2,147,483,648"):
        launcher_fields(replace(whole, kernels=(replace(whole.kernels[0], grid=Grid(2**31, 1, 1)),)))


def test_ptx_is_there_where_another_gpu_could_take_it() -> None:
    """Instructions of one architecture alone help no other GPU, and one text is enough."""

    def count(*architectures: str) -> int:
        code = launcher_fields(program(architectures))["code"]
        assert isinstance(code, bytes)
        return code.count(b".version 9.0\0")

    assert (count("sm_90a"), count("sm_80", "sm_89", "sm_90a"), count("sm_89")) == (0, 2, 2)


def test_headers_are_looked_for_where_they_are_named(tmp_path: Path) -> None:
    place = tmp_path / "root" / "include"
    place.mkdir(parents=True)
    (place / HEADER).write_text("")
    assert find_headers(place, {}).path == place
    assert find_headers(None, {"TENSORRT_INCLUDE": str(place)}).path == place
    assert find_headers(None, {"TENSORRT_ROOT": str(tmp_path / "root")}).path == place
    assert find_headers(None, {"CMAKE_PREFIX_PATH": f"/none:{tmp_path / 'root'}"}).path == place
    named = find_headers(None, {"TENSORRT_INCLUDE": "/none", "TENSORRT_ROOT": str(tmp_path / "root")})
    assert (named.path, named.looked) == (None, ("/none",))
    assert "/usr/include/x86_64-linux-gnu" in find_headers(None, {}).looked


def test_a_library_is_looked_for_where_it_is_named_or_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    library = tmp_path / "build" / "launcher" / LIBRARY
    library.parent.mkdir(parents=True)
    library.write_text("")
    # Code that lies in the current folder may be anyone's.
    assert str(library.parent) not in find_launcher(None, {}).looked
    assert find_launcher(None, {"LD_LIBRARY_PATH": str(library.parent)}).path in (library, find_launcher(None, {}).path)
    assert find_launcher(library, {}).path == find_launcher(library.parent, {}).path == library
    assert find_launcher(None, {"ONNXOPT_LAUNCHER": str(library)}).path == library
    elsewhere = find_launcher(None, {"ONNXOPT_LAUNCHER": "/none/library.so"})
    assert (elsewhere.path, elsewhere.looked) == (None, ("/none",))
    monkeypatch.setenv("ONNXOPT_LAUNCHER", str(library))
    found = doctor._launcher()
    assert (found.status, found.found) == ("ok", str(library))


def test_a_place_that_cannot_be_looked_at_has_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "x" * 300
    for name in ("LD_LIBRARY_PATH", "ONNXOPT_LAUNCHER"):
        assert odd in find_launcher(None, {name: f"/{odd}/{LIBRARY}"}).looked[-1]
    assert find_launcher(odd, {}).path is None
    assert main([odd]) == 2
    assert f"{HEADER} of TensorRT 10 or 11 was not found" in capsys.readouterr().err


def test_an_interrupted_build_ends_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / HEADER).write_text("")
    monkeypatch.setattr("subprocess.run", interrupted)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert main([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_the_doctor_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_LAUNCHER", str(tmp_path / LIBRARY))
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    check = doctor._launcher()
    assert check.status == "missing"
    assert check.found.count(str(tmp_path)) == 2
    (tmp_path / HEADER).write_text("")
    assert f"TENSORRT_INCLUDE={tmp_path} python -m onnxopt.deploy.launcher" in doctor._launcher().install


def test_without_headers_the_build_says_what_to_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    with pytest.raises(MissingError, match=r"NvInferRuntime\.h"):
        build_launcher()
    assert main([]) == 4
    assert main(["--help"]) == main([str(tmp_path), "more"]) == main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_commands_have_the_sizes_of_an_open_batch(tmp_path: Path) -> None:
    model = MODELS["group"]()
    text = write_commands(tmp_path, model, BatchRange(1, 4, 16)).read_text()
    assert (tmp_path / COMMANDS).read_text() == text == commands_text(model, BatchRange(1, 4, 16))
    for words in (
        f"--staticPlugins=/path/to/{LIBRARY}",
        f"--onnx={LAUNCHER_MODEL}",
        "--minShapes=x:1x32x5x4",
        "--optShapes=x:4x32x5x4",
        "--maxShapes=x:16x32x5x4",
        "--loadEngine=../model.launcher.engine",
        "--shapes=x:4x32x5x4",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_input_without_axes_is_called_a_scalar() -> None:
    model = MODELS["group"]()
    model.graph.input.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, []))
    assert "--shapes=x:4x32x5x4,s:scalar" in commands_text(model, BatchRange(1, 4, 16))


@pytest.mark.parametrize("name", ["a,b", "it's", "two\nlines"])
def test_an_input_that_trtexec_would_split_is_not_named_to_it(name: str) -> None:
    model = MODELS["group"]()
    model.graph.input[0].name = name
    for node in model.graph.node:
        node.input[:] = [name if tensor == "x" else tensor for tensor in node.input]
    text = commands_text(model, BatchRange(1, 4, 16))
    assert "hapes=" not in text
    assert repr(name) in text
    assert "are for batch 1" in text


def test_commands_of_a_fixed_batch_have_no_sizes() -> None:
    text = commands_text(MODELS["split"](), BatchRange())
    assert "hapes" not in text
    assert f"--onnx={LAUNCHER_MODEL}" in text

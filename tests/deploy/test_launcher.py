"""The launcher's plugin as TensorRT sees it, in NVIDIA's own registries and parser, on operators of every family.

Nothing here runs a kernel, and no engine is built: TensorRT-RTX has no plugins in its networks, and the lean runtime no
builder.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from onnxopt.deploy.launcher import build_launcher
from onnxopt.deploy.launcher_fields import checksum
from onnxopt.errors import InputError
from tests.deploy.launcher_cases import (
    FAMILIES,
    QUICK,
    Launched,
    batches_of,
    case,
    headers_are_there,
    parsed_fields,
    parts_of_workspace,
)
from tests.deploy.launcher_host import (
    DATA_TYPES,
    INT32,
    OTHER_FORMAT,
    RUNTIME,
    Field,
    Host,
    RefusedError,
    Tensor,
)

pytestmark = headers_are_there

_CHILD = Path(__file__).with_name("launcher_registry_child.py")
_REGISTRIES = ("tensorrt_lean", "tensorrt_rtx")


@pytest.fixture(scope="session")
def host(launcher: Path) -> Host:
    return Host(launcher)


def fields_of(host: Host, node: Launched) -> list[Field]:
    return parsed_fields(node.node, host.field_names())


def _needs(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed here")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plugin_answers_as_its_operators_say(family: str, host: Host) -> None:
    for node in case(family).launched:
        plugin = host.create(fields_of(host, node))
        for batch in batches_of(node):
            inputs, outputs = node.inputs(batch), node.outputs(batch)
            assert [sizes for sizes, _ in plugin.output_shapes(inputs)] == [tensor.sizes for tensor in outputs]
            assert plugin.output_types(inputs, len(outputs)) == [DATA_TYPES[tensor.type] for tensor in outputs]
            parts = parts_of_workspace(node, batch)
            assert plugin.workspace(inputs, outputs) == sum(-(-size // 256) * 256 for _, size in parts)
            plugin.configure(inputs, outputs)
            plugin.shape_change(inputs, outputs)
        plugin.destroy()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_taken_in_its_type_and_dense_alone(family: str, host: Host) -> None:
    for node in case(family).launched:
        plugin = host.create(fields_of(host, node))
        batch = batches_of(node)[0]
        inputs, outputs = node.inputs(batch), node.outputs(batch)
        tensors = [*inputs, *outputs]
        for place, tensor in enumerate(tensors):
            taken = [kind for kind in DATA_TYPES if asked(plugin, tensors, place, replace(tensor, type=kind), inputs)]
            assert taken == [tensor.type]
            assert not asked(plugin, tensors, place, replace(tensor, format=OTHER_FORMAT), inputs)
        plugin.destroy()


def asked(plugin: Any, tensors: list[Tensor], place: int, tensor: Tensor, inputs: list[Tensor]) -> bool:
    """Whether a plugin supports a tensor in a place among the others."""
    changed = [*tensors[:place], tensor, *tensors[place + 1 :]]
    return bool(plugin.supports(place, changed[: len(inputs)], changed[len(inputs) :]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plugin_and_its_clone_keep_every_byte(family: str, host: Host) -> None:
    for node in case(family).launched:
        fields = fields_of(host, node)
        plugin = host.create(fields)
        clone = plugin.clone()
        assert plugin.fields() == fields
        plugin.destroy()
        assert clone.fields() == fields
        read = host.create(clone.fields(), RUNTIME)
        assert read.fields() == fields
        assert read.cache_id() == f"{node.operators[0].name}.{checksum_of(fields)}"
        clone.destroy()
        read.destroy()


def checksum_of(fields: Sequence[Field]) -> str:
    return next((field.data or b"").decode().rstrip("\0") for field in fields if field.name == "checksum")


def test_open_sizes_of_outputs_stay_expressions_of_the_batch(host: Host) -> None:
    """Nothing is computed of a batch that is not known, and nothing remains to be computed of one that is."""
    node = case("scalar").launched[0]
    plugin = host.create(fields_of(host, node))
    inputs = node.inputs(4)
    assert [left for _, left in plugin.output_shapes(inputs)] == [1]
    assert [left for _, left in plugin.output_shapes([replace(tensor, open=()) for tensor in inputs])] == [0]
    plugin.destroy()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda inputs, outputs: (inputs[:-1], outputs), "inputs and 1 outputs, its fields"),
        (lambda inputs, outputs: ([replace(inputs[0], sizes=(7, 11)), *inputs[1:]], outputs), "a multiple of"),
        (lambda inputs, outputs: ([*inputs[:-1], replace(inputs[-1], sizes=(3,))], outputs), "is 3, expected"),
        (lambda inputs, outputs: (inputs, [replace(outputs[0], sizes=(1, 2))]), "output 0 is 1 x 2"),
        (lambda inputs, outputs: (inputs, [replace(outputs[0], sizes=outputs[0].sizes[::-1])]), "where -1 follows"),
        (lambda inputs, outputs: ([replace(inputs[0], sizes=(2**62, 4, 4)), *inputs[1:]], outputs), "a multiple of"),
    ],
)
def test_tensors_of_other_sizes_are_refused_before_anything_runs(change: Any, words: str, host: Host) -> None:
    node = case("scalar").launched[0]
    plugin = host.create(fields_of(host, node))
    inputs, outputs = change(node.inputs(2), node.outputs(2))
    with pytest.raises(RefusedError, match=words):
        plugin.shape_change(inputs, outputs)
    plugin.destroy()


def test_an_output_asked_for_with_other_types_says_which(host: Host) -> None:
    node = case("scalar").launched[0]
    plugin = host.create(fields_of(host, node))
    inputs = node.inputs(2)
    with pytest.raises(RefusedError, match="input 0 has TensorRT's type 1, expected 0"):
        plugin.output_types([replace(inputs[0], type="fp16"), *inputs[1:]], 1)
    plugin.destroy()


@pytest.mark.parametrize("place", range(10))
def test_damaged_fields_are_refused_with_a_message(place: int, host: Host) -> None:
    fields = fields_of(host, case("split").launched[0])
    field = fields[place]
    data = field.data or b""
    damaged = [
        replace(field, data=data[:-4], length=field.length - (1 if field.type == INT32 else 4)),
        replace(field, data=data[:1] + bytes([data[1] ^ 64]) + data[2:]),
        replace(field, type=1),
        replace(field, length=2**31 - 1),
        replace(field, data=None),
    ]
    for wrong in damaged:
        with pytest.raises(RefusedError, match=f"onnxopt launcher: node: .*({field.name}|damaged)"):
            host.create([*fields[:place], wrong, *fields[place + 1 :]])
    with pytest.raises(RefusedError, match=f"'{field.name}' is missing"):
        host.create([*fields[:place], *fields[place + 1 :]], RUNTIME)


def test_without_fields_there_is_no_plugin(host: Host) -> None:
    with pytest.raises(RefusedError, match="no fields"):
        host.create([])


@pytest.mark.parametrize("module", _REGISTRIES)
def test_nvidias_registry_takes_the_library_and_its_plugins(
    module: str, launcher: Path, host: Host, tmp_path: Path
) -> None:
    """The registry of TensorRT's lean runtime and that of TensorRT-RTX load it and give the creator out."""
    _needs(module)
    nodes = [node for family in QUICK for node in case(family).launched]
    fields = [fields_of(host, node) for node in nodes]
    damaged = [replace(f, data=b"\1" + (f.data or b"")[1:]) if f.name == "code" else f for f in fields[0]]
    place = tmp_path / "fields.pickle"
    place.write_bytes(pickle.dumps([*fields, damaged]))
    done = _child("registry", module, launcher, place)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = pickle.loads(place.with_suffix(".answer").read_bytes())
    assert answer["names"] == host.field_names()
    for told, given in zip(answer["plugins"], fields, strict=False):
        assert told["own"] == told["clone"] == told["again"] == given
    assert answer["plugins"][-1] is None
    assert "the fields are damaged" in done.stdout + done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_nvidias_parser_hands_the_fields_over(family: str, launcher: Path, tmp_path: Path) -> None:
    """TensorRT-RTX's parser creates the plugin from the node; it has no plugins in a network, and ends there."""
    _needs("tensorrt_rtx")
    model = case(family).model
    place = tmp_path / "model.onnx"
    place.write_bytes(model.SerializeToString())
    done = _child("parser", "tensorrt_rtx", launcher, place)
    assert "Successfully created plugin: OnnxoptKernel" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert "onnxopt launcher" not in done.stdout + done.stderr


def test_nvidias_parser_is_refused_damaged_fields(launcher: Path, tmp_path: Path) -> None:
    _needs("tensorrt_rtx")
    place = tmp_path / "model.onnx"
    damaged = type(case("scalar").model)()
    damaged.CopyFrom(case("scalar").model)
    for node in damaged.graph.node:
        for attribute in node.attribute:
            if attribute.name == "launches":
                attribute.ints[3] += 32
    place.write_bytes(damaged.SerializeToString())
    done = _child("parser", "tensorrt_rtx", launcher, place)
    assert "Successfully created plugin" not in done.stdout
    assert "the fields are damaged: their checksum is" in done.stdout


def test_a_plugin_keeps_the_checksum_of_its_fields(host: Host) -> None:
    """Python and the library compute the same over real kernels."""
    node = case("split").launched[0]
    fields = {field.name: field for field in fields_of(host, node)}
    values = {}
    for name, field in fields.items():
        data = field.data or b""
        values[name] = data if field.type != INT32 else tuple(memoryview(data).cast("i"))
        if name in ("operator", "entries"):
            values[name] = data.decode().rstrip("\0")
    del values["checksum"]
    assert checksum(values) == checksum_of(list(fields.values()))


def test_a_folder_without_headers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"NvInferRuntime\.h of TensorRT 10 or 11 was not found"):
        build_launcher(tmp_path, tmp_path / "build")


def _child(task: str, module: str, launcher: Path, request: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_CHILD), task, module, str(launcher), str(request)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

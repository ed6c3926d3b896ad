"""The launcher's plugins of whole packages, as `optimize` writes them, and NVIDIA's parser on their models."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from onnxopt.deploy.launcher_fields import PLUGIN_NAME
from onnxopt.deploy.launcher_model import LAUNCHER_MODEL
from onnxopt.deploy.operator_specs import package_kernels
from onnxopt.package import PLUGIN
from onnxopt.target.variant import Element
from samples import build
from tests.corpus_tags import every_tag
from tests.deploy.corpus_packages import SOME, CorpusModel, optimised
from tests.deploy.launcher_cases import batches_of, case_of, headers_are_there, parsed_fields
from tests.deploy.launcher_host import RUNTIME, Host

pytestmark = headers_are_there
_CHILD = Path(__file__).with_name("launcher_registry_child.py")


def check_package(path: Path, folder: Path, launcher: Path, target: str, element: Element, cache: Path) -> int:
    """Every plugin of a model's package, created from its node, answers as its operators say; how many there are."""
    if not optimised(path, folder, target, element, cache):
        return 0
    host, plugin_model, model = Host(launcher), onnx.load(folder / PLUGIN), onnx.load(folder / LAUNCHER_MODEL)
    kernels = {name: [kernel] for name, kernel in package_kernels(folder, plugin_model).items()}
    expected = {node.node.output[0]: node for node in case_of(plugin_model, kernels).launched}
    nodes = [node for node in model.graph.node if node.op_type == PLUGIN_NAME]
    assert {node.output[0] for node in nodes} == set(expected)
    for node in nodes:
        fields = parsed_fields(node, host.field_names())
        plugin = host.create(fields, RUNTIME)
        clone = plugin.clone()
        assert plugin.fields() == clone.fields() == fields
        for batch in batches_of(expected[node.output[0]]):
            inputs, outputs = expected[node.output[0]].inputs(batch), expected[node.output[0]].outputs(batch)
            assert [sizes for sizes, _ in clone.output_shapes(inputs)] == [tensor.sizes for tensor in outputs]
            clone.shape_change(inputs, outputs)
        plugin.destroy()
        clone.destroy()
    if find_spec("tensorrt_rtx") is not None:
        command = [sys.executable, str(_CHILD), "parser", "tensorrt_rtx", str(launcher), str(folder / LAUNCHER_MODEL)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"Successfully created plugin: {PLUGIN_NAME}" in done.stdout, done.stdout[-3000:]
    return len(nodes)


def test_the_plugins_of_a_package_are_created(launcher: Path, tmp_path: Path, programs: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build("shuffle_gather").to_bytes())
    assert check_package(path, tmp_path / "package", launcher, "sm_80", "fp16", programs)


@pytest.mark.corpus
@pytest.mark.parametrize("tag", SOME)
def test_a_sample_of_packages(
    tag: str, launcher: Path, corpus_model: CorpusModel, tmp_path: Path, programs: Path
) -> None:
    assert check_package(corpus_model(tag), tmp_path / "package", launcher, "sm_90", "fp16", programs)


@pytest.mark.corpus_all
@pytest.mark.parametrize(("target", "element"), [("sm_90", "fp16"), ("sm_89", "bf16")])
@pytest.mark.parametrize("tag", every_tag())
def test_every_package(
    tag: str, target: str, element: Element, launcher: Path, corpus_model: CorpusModel, tmp_path: Path
) -> None:
    check_package(corpus_model(tag), tmp_path / "package", launcher, target, element, tmp_path / "cache")

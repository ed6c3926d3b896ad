"""The launcher's plugins in real device memory, against float64; without a GPU nothing here can run.

Needs TensorRT's headers, with which the launcher is built, but neither TensorRT nor an engine: a host program calls the
plugin as TensorRT would.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

import samples
from onnxopt.api import optimize
from onnxopt.deploy.operator_specs import package_kernels
from onnxopt.kernels.compilation import architecture_for
from onnxopt.package import PLUGIN
from onnxopt.target import GpuProfile, load_target
from onnxopt.target.device import find_device
from samples.__main__ import write
from tests.deploy.launcher_cases import (
    Case,
    Launched,
    batches_of,
    built_launcher,
    case_of,
    compiled_case,
    headers_are_there,
)
from tests.deploy.launcher_executions import execution_of, judged_execution, run_on_gpu
from tests.deploy.launcher_host import Host
from tests.deploy.lean_packages import MODELS

pytestmark = headers_are_there

WHOLE = ("longformer2d", "shufflenet_v1", "condensenet_converted")
"""Models whose plans are run, in fp16."""


@pytest.fixture(scope="module")
def gpu() -> GpuProfile:
    """The profile of this machine's GPU."""
    found = find_device()
    if found.device is None:
        pytest.skip(f"no GPU: {found.reason}")
    return load_target(found.device.architecture).need_gpu_profile()


@pytest.fixture(scope="module")
def launcher(gpu: GpuProfile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_launcher(tmp_path_factory.getbasetemp())


def planned(name: str, target: str, folder: Path) -> Case:
    """A sample's plan for a GPU, with the kernels of its package."""
    options = {"size": 32} if name == "longformer2d" else {}
    write(samples.build(name, **options), folder / "model.onnx")
    optimize(folder / "model.onnx", folder / "package", target=target, form="plugin", kernel_dtype="fp16")
    model = onnx.load(folder / "package" / PLUGIN)
    kernels = package_kernels(folder / "package", model)
    return case_of(model, {operator: [kernel] for operator, kernel in kernels.items()})


def check_on_gpu(nodes: Sequence[Launched], launcher: Path, folder: Path) -> None:
    """Run every node at several batches and expect each step to agree with float64."""
    names = Host(launcher).field_names()
    runs = [(node, batch) for node in nodes for batch in batches_of(node)]
    made = [execution_of(node, batch, names) for node, batch in runs]
    request = folder / "request.pickle"
    request.write_bytes(pickle.dumps([execution for execution, _ in made]))
    done = run_on_gpu(launcher, request, {})
    assert done.returncode == 0, done.stderr[-3000:]
    answers = pickle.loads(request.with_suffix(".answer").read_bytes())
    for (node, batch), (_, drawn), found in zip(runs, made, answers, strict=True):
        assert not isinstance(found, str), f"{node.node.name}, batch {batch}: {found}"
        for judgement in judged_execution(node, batch, drawn, found):
            assert judgement.passed, f"{node.node.name}, batch {batch}: {judgement.explain()}"


@pytest.mark.parametrize("name", WHOLE)
def test_the_plan_of_a_model_agrees_with_float64(name: str, gpu: GpuProfile, launcher: Path, tmp_path: Path) -> None:
    found = planned(name, gpu.architecture, tmp_path)
    if not found.launched:
        pytest.skip(f"the plan of {name} for {gpu.architecture} has no kernel of our own")
    check_on_gpu(found.launched, launcher, tmp_path)


@pytest.mark.parametrize("family", MODELS)
def test_every_family_of_operators_agrees_with_float64(
    family: str, gpu: GpuProfile, launcher: Path, tmp_path: Path
) -> None:
    found = compiled_case(MODELS[family](), [architecture_for(gpu.architecture)])
    check_on_gpu(found.launched, launcher, tmp_path)

"""The whole way through TensorRT on this machine's GPU: built, loaded without this package, run, compared, timed."""

from __future__ import annotations

from pathlib import Path

import pytest

import samples
from benchmarks.tensorrt_gpu import measured, shown
from onnxopt.deploy.tensorrt_machine import Machine, check_machine
from onnxopt.errors import MissingError
from samples.__main__ import write


@pytest.fixture(scope="module")
def machine() -> Machine:
    """TensorRT and a GPU."""
    try:
        return check_machine()
    except MissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["longformer2d", "shufflenet_v1", "condensenet_converted"])
def test_engines_of_a_package_agree_with_the_original(name: str, machine: Machine, tmp_path: Path) -> None:
    write(samples.build(name), tmp_path / "model.onnx")
    result = measured(tmp_path / "model.onnx", "fp16", machine, ("aot", "portable"), iterations=200)
    problems = {way: found["problem"] for way, found in result["engines"].items() if "problem" in found}
    assert not problems, "\n".join(shown(result))

"""Running engines: everything but the GPU. Library and driver are fakes that know only the names of the real ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from onnxopt.cli import app
from onnxopt.deploy import runner, runner_worker
from onnxopt.deploy.manifest import BuiltFor, Source, write_manifest
from onnxopt.deploy.runner import run_package
from onnxopt.deploy.runner_compare import compare_run
from onnxopt.deploy.runner_device import DeviceError, EngineDevice
from onnxopt.deploy.runner_engine import engine_ports, load_arrays, run_engine
from onnxopt.deploy.runner_timing import percentile, summarise
from onnxopt.deploy.tensorrt_machine import INSTALL
from onnxopt.deploy.tensorrt_worker import Unbuildable
from onnxopt.errors import InputError, MissingError
from onnxopt.target.device import Device, DeviceSearch
from tests.deploy.engine_fakes import FakeContext, FakeDriver, FakeEngine, FakeTensorrt, public

_X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
_GPU = Device(0, "NVIDIA H200", "sm_90", 132, 141 << 30, "CUDA 13.0")
_BUILT = BuiltFor("sm_90", "NVIDIA H200", "CUDA 13.0", "tensorrt 10.13.3.9", "aot")


def _run(engine: FakeEngine, driver: FakeDriver, x: Any = _X, **options: Any) -> Any:
    settings = {"iterations": 8, "warm_up": 2} | options
    return run_engine(FakeTensorrt(engine), engine, EngineDevice(driver), {"x": x}, **settings)


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt_lean", "tensorrt"])
def test_the_fakes_have_no_name_that_the_libraries_lack(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    # In a process of its own: the libraries have symbols of the same names.
    classes = ("ICudaEngine", "IExecutionContext", "Runtime", "TensorLocation", "TensorIOMode", "DataType", "ILogger")
    code = f"import json, {module} as m; print(json.dumps({{c: dir(getattr(m, c)) for c in {classes}}}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    real = {name: set(names) for name, names in json.loads(done.stdout.splitlines()[-1]).items()}
    assert set(public(FakeEngine)) <= real["ICudaEngine"]
    assert set(public(FakeContext)) <= real["IExecutionContext"]
    assert set(public(FakeTensorrt(None).Runtime)) <= real["Runtime"]
    for fake in (FakeTensorrt.TensorLocation, FakeTensorrt.TensorIOMode, FakeTensorrt.DataType):
        assert {member.name for member in fake} <= real[fake.__name__.lstrip("_")]


def test_outputs_come_from_a_graph_and_times_from_the_gpus_clock() -> None:
    driver = FakeDriver()
    outcome = _run(FakeEngine(driver), driver)
    np.testing.assert_array_equal(outcome.outputs["y"], 2 * _X)
    assert outcome.note == ""
    assert driver.calls.count("cuGraphLaunch") == 8
    assert (outcome.latency.iterations, outcome.latency.images) == (8, 2)
    assert (outcome.latency.smallest, outcome.latency.mean) == (0.5, 0.625)
    assert outcome.latency.percentiles == {50: 0.5, 90: 0.75, 99: 0.75}
    assert outcome.latency.per_second == 1600.0


@pytest.mark.parametrize("failing", ["cuStreamEndCapture", "cuGraphInstantiate", "cuStreamBeginCapture"])
def test_where_no_graph_can_be_made_the_engine_is_run_plainly_with_a_note(failing: str) -> None:
    driver = FakeDriver(failing=failing)
    outcome = _run(FakeEngine(driver), driver)
    np.testing.assert_array_equal(outcome.outputs["y"], 2 * _X)
    assert outcome.note == f"{failing} answers CUDA_ERROR_UNKNOWN"
    assert "cuGraphLaunch" not in driver.calls


def test_an_engine_that_refuses_to_be_captured_or_to_run_is_seen() -> None:
    driver = FakeDriver()
    with pytest.raises(InputError, match="refuses to run again"):
        _run(FakeEngine(driver, runs=2), driver)
    with pytest.raises(InputError, match="refuses to run;"):
        _run(FakeEngine(driver, runs=1), driver)
    assert driver.recording is None


def test_no_graph_is_made_where_none_is_wanted() -> None:
    driver = FakeDriver()
    assert _run(FakeEngine(driver), driver, graph=False).note == "none was asked for"
    assert not [call for call in driver.calls if "Capture" in call]


def test_bfloat16_goes_in_and_comes_out_as_float32(tmp_path: Path) -> None:
    driver = FakeDriver()
    engine = FakeEngine(driver, "BF16", "BF16")
    np.savez(tmp_path / "f.npz", x=_X + np.float32(2**-10))
    arrays = load_arrays(tmp_path / "f.npz", engine_ports(FakeTensorrt(engine), engine))
    assert (arrays["x"].dtype.name, arrays["x"].itemsize) == ("bfloat16", 2)
    outcome = _run(engine, driver, arrays["x"])
    assert outcome.outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(outcome.outputs["y"], 2 * _X)
    assert sorted(len(memory) for memory in driver.memory.values()) == [12, 12]


def test_buffers_have_the_size_of_their_types_and_are_freed() -> None:
    driver = FakeDriver()
    engine = FakeEngine(driver, "HALF", "INT64")
    device = EngineDevice(driver)
    arrays = {"x": _X.astype(np.float16)}
    run_engine(FakeTensorrt(engine), engine, device, arrays, iterations=1, warm_up=0)
    assert sorted(len(memory) for memory in driver.memory.values()) == [12, 48]
    device.close()
    assert driver.memory == {}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": _X.astype(np.float64)}, r"'x' is float64\[2, 3\]; expected float\[batch, 3\]"),
        ({"x": _X[:, :2]}, r"'x' is float32\[2, 2\]; expected float\[batch, 3\]"),
        ({"z": _X}, r"'x' is missing, 'z' is no input"),
        ({"x": np.zeros((5, 3), np.float32)}, r"'x' has the shape \[5, 3\].*\[1, 3\] to \[4, 3\].*--batch"),
    ],
)
def test_inputs_are_held_against_the_engine(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "f.npz", **arrays)
    engine = FakeEngine(FakeDriver())
    with pytest.raises(InputError, match=words):
        load_arrays(tmp_path / "f.npz", engine_ports(FakeTensorrt(engine), engine))


@pytest.mark.parametrize(
    ("odd", "types", "words"),
    [
        ({"host": "x"}, ("FLOAT", "FLOAT"), "'x' of the engine is a shape"),
        ({}, ("FP8", "FLOAT"), "'x' of the engine is of type FP8; allowed: FLOAT"),
        ({"data_dependent": True}, ("FLOAT", "FLOAT"), "size of output 'y' follows from the data"),
        ({"context": False}, ("FLOAT", "FLOAT"), "gives no context"),
    ],
)
def test_engines_that_cannot_be_run_are_named(odd: dict[str, Any], types: tuple[str, str], words: str) -> None:
    driver = FakeDriver()
    with pytest.raises(InputError, match=words):
        _run(FakeEngine(driver, *types, **odd), driver)


def test_what_the_driver_refuses_is_an_error() -> None:
    driver = FakeDriver(failing="cuMemAlloc")
    with pytest.raises(DeviceError, match="cuMemAlloc answers CUDA_ERROR_UNKNOWN"):
        _run(FakeEngine(driver), driver)


def test_percentiles_are_times_that_were_measured() -> None:
    times = [float(n) for n in range(1, 201)]
    latency = summarise(times[::-1], 40_000.0, 4)
    assert latency.percentiles == {50: 100.0, 90: 180.0, 99: 198.0}
    assert (latency.smallest, latency.mean, latency.per_second, latency.images) == (1.0, 100.5, 5.0, 4)
    assert percentile([3.0], 1) == percentile([3.0], 99) == 3.0
    assert latency.to_json()["p99_ms"] == 198.0


@pytest.mark.parametrize("times", [[], [0.0], [float("nan")], [-1.0]])
def test_times_that_are_none_are_refused(times: list[float]) -> None:
    with pytest.raises(InputError, match="no times"):
        summarise(times, 1.0, 1)


def _served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sha256: str | None = None, engine: Any = 0) -> Any:
    """The worker's own work in this process, with the fakes in place of library and driver."""
    from cuda import bindings

    driver = FakeDriver()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)  # type: ignore[arg-type]
    monkeypatch.setattr(bindings, "driver", driver)
    trt = FakeTensorrt(FakeEngine(driver) if engine == 0 else engine)
    (tmp_path / "e").write_bytes(b"engine")
    np.savez(tmp_path / "f.npz", x=_X)
    request = {
        "engine": str(tmp_path / "e"),
        "sha256": sha256 or hashlib.sha256(b"engine").hexdigest(),
        "inputs": str(tmp_path / "f.npz"),
        "iterations": 3,
        "warm_up": 1,
        "graph": True,
    }

    class Silent:
        def send(self, event: str, **values: Any) -> None:
            del event, values

    try:
        return runner_worker._serve(trt, request, Silent()), trt  # type: ignore[arg-type]
    finally:
        assert driver.memory == {}


def test_the_worker_loads_what_was_compared_and_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, trt = _served(tmp_path, monkeypatch)
    np.testing.assert_array_equal(outcome.outputs["y"], 2 * _X)
    assert trt.deserialized == [b"engine"]


def test_outputs_may_have_any_name(tmp_path: Path) -> None:
    arrays = {name: _X + number for number, name in enumerate(("file", "/head/out:0", "allow_pickle", "y"))}
    runner_worker.save_arrays(tmp_path / "o.npz", arrays)
    with np.load(tmp_path / "o.npz", allow_pickle=False) as found:
        assert sorted(found.files) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_an_engine_that_changed_or_cannot_be_loaded_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unbuildable, match="changed after it was compared"):
        _served(tmp_path, monkeypatch, sha256="0" * 64)
    with pytest.raises(Unbuildable, match="cannot be loaded; build it again"):
        _served(tmp_path, monkeypatch, engine=None)


def _package(folder: Path, built: BuiltFor | None = _BUILT, kind: int = TensorProto.FLOAT) -> Path:
    folder.mkdir()
    values = [helper.make_tensor_value_info(name, kind, ["n", 3]) for name in "xy"]
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    (folder / "model.tensorrt.engine").write_bytes(b"engine")
    write_manifest(
        folder,
        target="sm_90",
        versions={},
        source=Source("ab" * 32, 18),
        files=["model.onnx", "model.tensorrt.engine"],
        engines={} if built is None else {"model.tensorrt.engine": built},
    )
    np.savez(folder.parent / "f.npz", x=_X)
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the GPU and the TensorRT that the engine was built for."""
    monkeypatch.setattr(runner, "installed_version", lambda library, install: "10.13.3.9")
    monkeypatch.setattr(runner, "find_device", lambda: DeviceSearch(_GPU, ""))


_CHILD = """
import json, sys
import numpy as np
request = json.load(sys.stdin)
np.savez(request["outputs"], y=2 * np.load(request["inputs"])["x"])
latency = {f"{name}_ms": 1.5 for name in ("min", "mean", "p50", "p90", "p99")}
latency |= {"iterations": request["iterations"], "inferences_per_second": 660.0, "batch": 2}
print(json.dumps({"event": "done", "note": "the engine refuses to be captured", "latency": latency}))
"""


def test_outputs_go_to_a_file_and_are_compared_with_the_original(
    tmp_path: Path, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _package(tmp_path / "p")
    monkeypatch.setattr(runner, "module_command", lambda module: [sys.executable, "-c", _CHILD])
    result = run_package(folder, tmp_path / "f.npz", out=tmp_path / "out.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], 2 * _X)
    document = result.to_json()
    assert (document["schema"], document["latency"]["p50_ms"]) == ("onnxopt.run/1", 1.5)
    assert document["outputs"] == {"y": {"dtype": "float32", "shape": [2, 3]}}
    original = folder / "model.onnx"
    assert compare_run(folder, original, tmp_path / "f.npz", result.outputs, _BUILT).passed
    wrong = {"y": result.outputs["y"] * np.float32(1 + 1e-3)}
    strict = compare_run(folder, original, tmp_path / "f.npz", wrong, _BUILT)
    assert not strict.passed
    assert "output 'y': maximum error 0.001" in strict.explain()
    rounded = BuiltFor("sm_90", tf32="allowed")
    loose = compare_run(folder, original, tmp_path / "f.npz", wrong, rounded)
    assert loose.passed and "TF32" in loose.bounds
    assert not compare_run(folder, original, tmp_path / "f.npz", {"y": -wrong["y"]}, rounded).passed


@pytest.mark.parametrize(
    ("built", "words"),
    [
        (
            BuiltFor("sm_89", "NVIDIA L4", "", "tensorrt 10.13.3.9"),
            r"built for NVIDIA L4 \(sm_89\), and .*H200 \(sm_90\)",
        ),
        (BuiltFor("sm_90", "NVIDIA H100", "", "tensorrt 10.13.3.9"), r"built for NVIDIA H100.*build the engine again"),
        (
            BuiltFor("sm_90", "NVIDIA H200", "", "tensorrt 10.12.0"),
            r"with TensorRT 10\.12\.0, and 10\.13\.3\.9 is inst",
        ),
        (None, "has no model.tensorrt.engine; build it with: onnxopt build"),
    ],
)
def test_an_engine_for_something_else_is_refused(
    tmp_path: Path, machine: None, built: BuiltFor | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        run_package(_package(tmp_path / "p", built), tmp_path / "f.npz")


def test_a_file_is_no_package(tmp_path: Path, machine: None) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="model.onnx: is no folder; give a package"):
        run_package(tmp_path / "model.onnx", tmp_path / "f.npz")


def test_a_changed_engine_is_never_loaded(tmp_path: Path, machine: None) -> None:
    folder = _package(tmp_path / "p")
    (folder / "model.tensorrt.engine").write_bytes(b"ENGINE")
    with pytest.raises(InputError, match="found SHA-256 .*, expected"):
        run_package(folder, tmp_path / "f.npz")


def test_a_crash_of_the_library_is_an_error(tmp_path: Path, machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _package(tmp_path / "p")
    monkeypatch.setattr(runner, "module_command", lambda module: [sys.executable, "-c", "import os; os.abort()"])
    with pytest.raises(InputError, match=r"TensorRT crashed \(SIGABRT\) on .*model.tensorrt.engine, during: starting"):
        run_package(folder, tmp_path / "f.npz", out=tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("iterations", [0, -1, 100_001])
def test_iterations_are_bounded(tmp_path: Path, iterations: int) -> None:
    with pytest.raises(InputError, match="--iterations"):
        run_package(tmp_path, tmp_path / "f.npz", iterations=iterations)


def test_without_a_gpu_or_tensorrt_the_command_ends_with_code_4(
    tmp_path: Path, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _package(tmp_path / "p")
    words = ["run", str(folder), "--inputs", str(tmp_path / "f.npz")]
    monkeypatch.setattr(runner, "find_device", lambda: DeviceSearch(None, "no CUDA driver"))
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "this machine has none: no CUDA driver" in result.stderr

    def absent(library: Any, install: str) -> str:
        raise MissingError(f"{library.name} is not installed; {install}")

    monkeypatch.setattr(runner, "installed_version", absent)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 4
    assert "pip install 'onnxopt[tensorrt]'" in " ".join(result.stderr.split())
    assert INSTALL.split(":")[1].strip() in " ".join(result.stderr.split())


def test_the_command_shows_latency_and_how_the_outputs_compare(
    tmp_path: Path, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _package(tmp_path / "p")
    monkeypatch.setattr(runner, "module_command", lambda module: [sys.executable, "-c", _CHILD])
    words = ["run", str(folder), "--inputs", str(tmp_path / "f.npz"), "--against", str(folder / "model.onnx")]
    result = CliRunner().invoke(app, [*words, "--iterations", "7"])
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "tensorrt 10.13.3.9 on NVIDIA H200, batch 2, 7 inferences" in shown
    assert "p99 ms" in shown and "660.0" in shown and "2 x 3" in shown and "yes" in shown
    assert "no CUDA graph: the engine refuses to be captured" in shown
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (document["schema"], document["latency"]["p99_ms"]) == ("onnxopt.run/1", 1.5)
    assert document["comparison"]["passed"] is True
    monkeypatch.setattr(
        runner, "module_command", lambda module: [sys.executable, "-c", _CHILD.replace("y=2 *", "y=-2 *")]
    )
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3
    assert "does not agree with" in result.stderr

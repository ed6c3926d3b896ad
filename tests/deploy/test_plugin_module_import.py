"""Importing a generated plugin module: which versions and packages it goes with, and how it runs just in time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from onnxopt.deploy.engine_operators import EngineOperator, Output
from onnxopt.deploy.plugin_module import write_module
from tests.deploy.lean_made_up import small, with_files
from tests.deploy.lean_packages import DATA_TYPES, ask, needs_lean, sizes_for

VERSIONS = {
    "10.8.0.43": "it has no ahead-of-time plugins in Python",
    "10.14.1.48": "its plugins in Python are known not to work",
    "12.0.0": "this module was written before it",
    "10.9.0.34": "",
    "10.13.3.9": "",
    "10.15.1.29": "",
    "11.4.0.106": "",
}


@needs_lean
def test_versions_that_cannot_take_the_plugins_are_refused(tmp_path: Path) -> None:
    operator = small()
    module = write_module(with_files(tmp_path, operator), [operator], "sm_90")
    found = ask("imports", modules=[str(module)] * len(VERSIONS), versions=list(VERSIONS))
    for (version, reason), error in zip(VERSIONS.items(), found, strict=True):
        wanted = f"ImportError: TensorRT {version} cannot take these plugins: {reason}; install 10.9 to 11.x, but "
        assert error == (f"{wanted}not 10.14" if reason else ""), version


def test_without_tensorrt_the_module_says_what_to_install(tmp_path: Path) -> None:
    operator = small()
    module = write_module(with_files(tmp_path, operator), [operator], "sm_90")
    code = (
        f"import sys; sys.modules['tensorrt'] = None; sys.path.insert(0, {str(module.parent)!r}); import {module.stem}"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'tensorrt>=10.9,!=10.14.*,<12'" in done.stderr.splitlines()[-1]


@needs_lean
def test_packages_that_share_an_operator_can_be_imported_together_if_it_is_the_same(tmp_path: Path) -> None:
    operator, fixed = small(), small(outputs=(Output("y", "bf16", (3, 8), 24), Output("z", "float32", (2, 2, 3), 12)))
    hopper = [write_module(with_files(tmp_path / name, operator), [operator], "sm_90") for name in ("one", "two")]
    others = [
        write_module(with_files(tmp_path / "fixed", fixed), [fixed], "sm_90"),
        write_module(with_files(tmp_path / "ada", operator, "sm_89"), [operator], "sm_89"),
    ]
    found = ask("imports", modules=[str(place) for place in (*hopper, *others)], versions=[""] * 4)
    assert found[:2] == ["", ""]
    assert all(f"RuntimeError: {operator.name} is registered already, by a package" in error for error in found[2:])


def case_of(operator: EngineOperator, tactic: int, batch: int = 3, **changes: Any) -> dict[str, Any]:
    """A request to run an operator just in time, on a GPU that its kernels are for."""
    return {
        "name": operator.name,
        "tactic": tactic,
        "capability": [9, 0],
        "failing": "",
        "types": [DATA_TYPES[port.type] for port in (*operator.inputs, *operator.outputs)],
        "inputs": [sizes_for(port, batch) for port in operator.inputs],
        "outputs": [list(output.sizes(batch)) for output in operator.outputs],
        **changes,
    }


@needs_lean
def test_just_in_time_a_kernel_is_loaded_once_and_launched_with_the_same_arguments(tmp_path: Path) -> None:
    operator = small()
    module = write_module(with_files(tmp_path, operator), [operator], "sm_90")
    cases = [case_of(operator, tactic=1), case_of(operator, tactic=2), case_of(operator, tactic=1, batch=0)]
    first, second, empty = ask("runs", module=str(module), cases=cases)
    pointers = [1000 + place for place in range(7)]
    kinds = ["c_void_p"] * 5 + ["c_int"] + ["c_void_p"] * 2
    launch = ["cuLaunchKernel", "function first", 6, 1, 1, 64, 1, 1, 60_000, 77]
    launch += [[[*pointers[:5], 3, *pointers[5:]], kinds], 0]
    assert first["error"] == ""
    assert [call[0] for call in first["calls"]] == [
        "cuCtxGetDevice",
        "cuDeviceGetAttribute",
        "cuDeviceGetAttribute",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuFuncSetAttribute",
        "cuLaunchKernel",
        "cuCtxGetDevice",
        "cuLaunchKernel",
    ]
    assert first["calls"][3] == ["cuModuleLoadData", len("machine code 0")]
    assert first["calls"][5] == ["cuFuncSetAttribute", "function first", 8, 60_000]
    assert first["calls"][6] == first["calls"][8] == launch
    # What any kernel may use is not asked for.
    assert "cuFuncSetAttribute" not in [call[0] for call in second["calls"]]
    assert second["calls"][-1][1:9] == ["function second", 15, 1, 1, 128, 1, 1, 49_152]
    assert empty == {"error": "", "calls": []}


@needs_lean
def test_just_in_time_another_gpu_and_the_drivers_errors_are_named(tmp_path: Path) -> None:
    operator = small()
    module = write_module(with_files(tmp_path, operator), [operator], "sm_90")
    cases = [case_of(operator, tactic=1, failing=name) for name in ("cuModuleLoadData", "cuLaunchKernel")]
    cases += [case_of(operator, tactic=1, capability=[8, 9]), case_of(operator, tactic=3)]
    assert [run["error"] for run in ask("runs", module=str(module), cases=cases)] == [
        f"RuntimeError: {operator.name}: cuModuleLoadData failed: a made-up error (CUDA error 700)",
        f"RuntimeError: {operator.name}: cuLaunchKernel failed: a made-up error (CUDA error 700)",
        f"RuntimeError: {operator.name}: GPU 0 has compute capability 8.9, and the kernels of this package were "
        "compiled for 9.0; optimize the model for this GPU",
        f"ValueError: {operator.name} has no tactic 3; it has 1 to 2",
    ]

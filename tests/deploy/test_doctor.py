"""The doctor looks at everything, says what to do about what is missing, and never fails."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from onnxopt.deploy import doctor
from onnxopt.deploy.doctor import Check, examine, to_json
from onnxopt.target.device import Device, DeviceSearch

_NAMES = [
    "Python",
    "onnx",
    "onnxruntime",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-bindings",
    "NVRTC",
    "GPU",
    "C++ compiler",
    "cuobjdump",
    "nvdisasm",
    "trtexec",
    "launcher library",
    "disk space",
    "cache folder",
]


def _by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_everything_is_looked_at_and_what_is_missing_has_a_remedy(tmp_path: Path) -> None:
    checks = examine(tmp_path / "cache")
    assert [check.name for check in checks] == _NAMES
    for check in checks:
        assert check.found
        assert check.needed_for
        assert bool(check.install) == (check.status != "ok")
    found = _by_name(checks)
    assert found["onnx"].status == found["onnxruntime"].status == found["cache folder"].status == "ok"
    assert not (tmp_path / "cache").exists()
    document = to_json(checks)
    assert document["schema"] == "onnxopt.doctor/1"
    assert json.loads(json.dumps(document))["checks"][0]["name"] == "Python"


@pytest.mark.skipif(find_spec("cuda.bindings") is None, reason="cuda-bindings is not installed")
def test_nvrtc_compiles_without_a_driver() -> None:
    check = doctor._nvrtc()
    assert check.status == "ok", check.found
    assert "sm_89" in check.found


def test_a_compiler_that_fails_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise RuntimeError("libnvrtc.so.13 not found")

    monkeypatch.setattr(doctor, "_compile_probe", fail)
    check = doctor._nvrtc()
    assert (check.status, check.install) == ("missing", "pip install 'nvidia-cuda-nvrtc>=13.0,<13.1'")
    assert "libnvrtc" in check.found


def test_a_package_that_breaks_on_import_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brokenpackage.py").write_text("raise OSError('its library is not here')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor._package("brokenpackage", "a test", "nothing")
    assert check.status == "missing"
    assert "its library is not here" in check.found


def test_no_file_of_the_users_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx.py").write_text("open('run', 'w')")
    monkeypatch.chdir(tmp_path)
    assert doctor._package("onnx", "a test", "nothing").status == "ok"
    assert not Path("run").exists()


def test_a_package_that_is_not_there_is_missing() -> None:
    check = doctor._package("nosuchpackage.inner", "a test", "pip install it")
    assert (check.status, check.found, check.install) == ("missing", "not installed", "pip install it")


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(0, "NVIDIA L4", "sm_89", 58, 24 << 30, "CUDA 13.0")
    monkeypatch.setattr(doctor, "find_device", lambda: DeviceSearch(device, ""))
    check = doctor._gpu()
    assert check.status == "ok"
    assert "NVIDIA L4 (sm_89, 58 multiprocessors, 24 GiB)" in check.found


def test_no_tools_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert doctor._compiler().status == "missing"
    assert doctor._trtexec().status == "missing"


def test_little_disk_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor._disk(tmp_path).status == "limited"


def test_a_cache_folder_that_cannot_be_made_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    check = doctor._cache(file / "cache")
    assert check.status == "missing"
    assert check.install

"""The package as a whole: importing it is cheap, and what travels with it is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import onnxopt
from onnxopt import resources
from onnxopt.errors import MissingError
from onnxopt.resources import resource_dir


def test_importing_loads_nothing_heavy() -> None:
    program = (
        "import sys, onnxopt; onnxopt.__version__, dir(onnxopt);"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'scipy', 'rich'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_public_functions_are_those_of_the_api() -> None:
    from onnxopt import api

    for name in ("build", "inspect", "optimize", "verify"):
        assert getattr(onnxopt, name) is getattr(api, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        getattr(onnxopt, "absent")  # noqa: B009


def test_folders_of_the_checkout_are_found() -> None:
    assert list(resource_dir("profiles").glob("*.json"))


def test_folders_of_an_installed_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "onnxopt"
    (package / "_data" / "profiles").mkdir(parents=True)
    (tmp_path / "site-packages" / "profiles").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resource_dir("profiles") == package / "_data" / "profiles"


def test_a_missing_folder_says_how_to_mend_it() -> None:
    with pytest.raises(MissingError, match="'absent'.*pip install --force-reinstall onnxopt"):
        resource_dir("absent")

"""Fixtures for all tests; above all the corpus of exported models that may lie beside the project."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A run says the same about the same code, however busy the machine is. HYPOTHESIS_PROFILE=search looks further.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

_CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"


@pytest.fixture(scope="session")
def corpus_dir() -> Path:
    """The corpus: compact exported models. Tests that need it are skipped where it is missing."""
    if not (_CORPUS / "manifest.json").is_file():
        pytest.skip(f"the corpus of exported models is not at {_CORPUS}")
    return _CORPUS


@pytest.fixture(scope="session")
def corpus_manifest(corpus_dir: Path) -> dict[str, Any]:
    """What is known about each model of the corpus, by tag: inputs, opset, sites."""
    models: dict[str, Any] = json.loads((corpus_dir / "manifest.json").read_text())["models"]
    return models


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels and the programs that run them on the CPU are kept for the session."""
    return _shared(tmp_path_factory, "programs")


def _shared(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder of the session; of several worker processes all have the same one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def corpus_model(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the .onnx file of a tag, made on first use.

    The files are kept for the session, or for longer where ONNXOPT_TEST_CACHE names a folder.
    """
    chosen = os.environ.get("ONNXOPT_TEST_CACHE")
    cache = Path(chosen) if chosen else _shared(tmp_path_factory, "corpus")
    cache.mkdir(parents=True, exist_ok=True)

    def get(tag: str) -> Path:
        path = cache / f"{tag}.onnx"
        if not path.is_file():
            part = cache / f"{tag}.{os.getpid()}.part"
            model = _materialize_module(corpus_dir).materialize(tag)
            part.write_bytes(model.SerializeToString())
            part.replace(path)
        return path

    return get


@pytest.fixture(scope="session")
def corpus_feeds(corpus_dir: Path, corpus_manifest: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Gives random inputs for a tag (and a seed), of the kind that the model expects."""

    def get(tag: str, seed: int = 0) -> dict[str, Any]:
        feeds: dict[str, Any] = _materialize_module(corpus_dir).feeds(corpus_manifest[tag], seed)
        return feeds

    return get


def _materialize_module(corpus: Path) -> Any:
    """The corpus's own script that fills in the weights; loaded without writing byte code beside it."""
    spec = importlib.util.spec_from_file_location("onnxopt_corpus_materialize", corpus / "materialize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module

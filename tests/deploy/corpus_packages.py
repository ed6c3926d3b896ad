"""Packages of whole models, as `optimize` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnxopt import api
from onnxopt.deploy.engine_operators import EngineOperator
from onnxopt.deploy.manifest import check_manifest
from onnxopt.deploy.operators_file import OPERATORS_FILE, read_operators
from onnxopt.target.variant import Element

CorpusModel = Callable[[str], Path]

SOME = ("nat_3layer.legacy.op17", pytest.param("shufflenet1_g3_megvii.dynamo.op18.dyn", marks=pytest.mark.slow))


def optimised(path: Path, folder: Path, target: str, element: Element, cache: Path) -> tuple[EngineOperator, ...]:
    """Write the package of a model; its operators, none where it has none of our own."""
    result = api.optimize(path, folder, target=target, form="plugin", kernel_dtype=element, cache=cache, verify=False)
    check_manifest(folder)
    operators = read_operators(folder / OPERATORS_FILE).operators if (folder / OPERATORS_FILE).is_file() else ()
    # A package without operators has nothing to check, so it must be that of a model that was left as it is.
    assert bool(operators) == bool(result.rewritten)
    return operators

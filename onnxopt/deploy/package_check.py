"""Whether the models for TensorRT in a package are the model in the plugin form that lies beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxopt.deploy.aot_model import AOT_MODEL, AotModel, check_aot
from onnxopt.deploy.launcher_model import LAUNCHER_MODEL, launcher_model
from onnxopt.deploy.manifest import checked_file, read_manifest
from onnxopt.deploy.operator_specs import engine_operators, package_kernels
from onnxopt.deploy.operators_file import OPERATORS_FILE, read_operators
from onnxopt.errors import InputError
from onnxopt.lower.rewrite import DOMAIN
from onnxopt.model.read import read_model
from onnxopt.package import PLUGIN

_AGAIN = "optimize the original model again, or get the package again"


def check_engine_models(folder: Path) -> None:
    """Hold ``model.aot.onnx`` and ``model.launcher.onnx`` against ``model.onnx``, which is what a comparison runs.

    The first has to be its operators with the tables of all tactics, the second those that its kernels give. Raises
    InputError, naming the file, where one is not, or where the model in the plugin form is missing.
    """
    listed = {entry.path for entry in read_manifest(folder).files}
    present = [name for name in (AOT_MODEL, LAUNCHER_MODEL) if name in listed]
    if not present:
        return
    if PLUGIN not in listed:
        raise InputError(f"{folder}: lists {present[0]} and no {PLUGIN} that it could be compared with; {_AGAIN}")
    plugin = read_model(checked_file(folder, PLUGIN))
    if AOT_MODEL in present:
        _check_aot(folder, plugin)
    if LAUNCHER_MODEL in present:
        _check_launcher(folder, plugin)


def _check_aot(folder: Path, plugin: ModelProto) -> None:
    operators = read_operators(checked_file(folder, OPERATORS_FILE)).operators
    found = read_model(checked_file(folder, AOT_MODEL))
    try:
        check_aot(AotModel(found, operators), plugin)
        _check_rest(found, plugin)
    except InputError as error:
        raise InputError(f"{folder / AOT_MODEL} is not the model of {PLUGIN}: {error}; {_AGAIN}") from None


def _check_launcher(folder: Path, plugin: ModelProto) -> None:
    kernels = package_kernels(folder, plugin)
    operators = engine_operators(plugin, {operator: kernel.report for operator, kernel in kernels.items()})
    wanted = launcher_model(plugin, operators, {operator: (kernel,) for operator, kernel in kernels.items()})
    found = read_model(checked_file(folder, LAUNCHER_MODEL))
    try:
        for part in ("node", "initializer", "input", "output"):
            _check_equal(getattr(found.graph, part), getattr(wanted.graph, part), part)
        _check_rest(found, plugin)
    except InputError as error:
        raise InputError(f"{folder / LAUNCHER_MODEL} is not the model of {PLUGIN}: {error}; {_AGAIN}") from None


def _check_equal(found: Sequence[Any], wanted: Sequence[Any], part: str) -> None:
    if len(found) != len(wanted):
        raise InputError(f"it has {len(found)} of the graph's '{part}', expected {len(wanted)}")
    differs = next((own for own, other in zip(found, wanted, strict=True) if own != other), None)
    if differs is not None:
        raise InputError(f"'{differs.name}' of the graph's '{part}' differs")


def _check_rest(found: ModelProto, plugin: ModelProto) -> None:
    """What else could change the meaning of equal nodes: functions, opsets, constants in the place of inputs."""
    if list(found.functions) != [function for function in plugin.functions if function.domain != DOMAIN]:
        raise InputError("its functions are not those of the plugin form")
    if list(found.opset_import) != list(plugin.opset_import):
        raise InputError("its opsets are not those of the plugin form")
    fixed = _fixed_inputs(found) ^ _fixed_inputs(plugin)
    if fixed:
        raise InputError(f"the input '{min(fixed)}' is a constant in one of them")


def _fixed_inputs(model: ModelProto) -> set[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return {value.name for value in model.graph.input} & constants

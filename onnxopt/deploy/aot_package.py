"""What a package holds for TensorRT: models with plugin nodes, their operators and kernels, the plugin module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from onnxopt.decide import SiteKernel
from onnxopt.deploy.aot_model import AOT_MODEL, AotModel, aot_model, check_aot, operator_of
from onnxopt.deploy.commands_file import write_commands
from onnxopt.deploy.engine_operators import EngineOperator
from onnxopt.deploy.launcher_model import write_launcher_model
from onnxopt.deploy.operator_specs import engine_operators
from onnxopt.deploy.operators_file import OPERATORS_FILE, read_operators, write_operators
from onnxopt.deploy.packaged_kernels import write_kernel
from onnxopt.deploy.plugin_module import kernel_name, write_module
from onnxopt.errors import OnnxOptError
from onnxopt.kernels.compilation import CompiledKernel, architecture_for
from onnxopt.model.read import read_model
from onnxopt.model.write import write_model
from onnxopt.tactics import SiteTactics


def write_for_tensorrt(
    place: Path,
    plugin: ModelProto,
    kernels: Sequence[SiteKernel],
    tactics: Mapping[str, SiteTactics],
    architecture: str,
) -> tuple[EngineOperator, ...]:
    """Write the models for TensorRT and what goes with them into a package, and prove what can be proved of the files.

    ``plugin`` is the model in the plugin form, ``kernels`` are those of its operators, written before. A model without
    operators of our own has nothing to write. ``architecture`` is the target's. Returns the operators. Raises
    InputError where model, kernels and tactics do not belong together.
    """
    compiled = {kernel.operator: kernel.compiled for kernel in kernels}
    single = engine_operators(plugin, {operator: kernel.report for operator, kernel in compiled.items()})
    if not single:
        return ()
    aot = aot_model(plugin, single, tactics)
    write_model(aot.model, place / AOT_MODEL)
    check_aot(AotModel(read_model(place / AOT_MODEL), aot.operators), plugin)
    _write_kernels(place, aot.operators, tactics)
    write_operators(place, aot.operators, architecture_for(architecture))
    if read_operators(place / OPERATORS_FILE).operators != aot.operators:
        raise OnnxOptError(f"{OPERATORS_FILE} does not say what was written; a defect of onnxopt, please report it")
    write_module(place, aot.operators, architecture)
    write_launcher_model(place, plugin, single, {operator: (kernel,) for operator, kernel in compiled.items()})
    write_commands(place, plugin)
    return aot.operators


def _write_kernels(place: Path, operators: Sequence[EngineOperator], tactics: Mapping[str, SiteTactics]) -> None:
    """Write the kernels of operators with several tactics; those of others lie there as the plugin form's."""
    known: dict[str, tuple[CompiledKernel, ...]] = {}
    for chosen in tactics.values():
        configurations = [tactic.candidate.source.tables.configuration() for tactic in chosen.tactics]
        known[operator_of(configurations)] = tuple(tactic.compiled for tactic in chosen.tactics)
    for operator in operators:
        if len(operator.tactics) == 1:
            continue
        for number, compiled in enumerate(known[operator.name]):
            write_kernel(place, kernel_name(operator, number), compiled)

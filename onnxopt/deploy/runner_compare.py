"""An engine's outputs beside those of the original model in ONNX Runtime, by the numeric rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from onnxopt.deploy.manifest import BuiltFor
from onnxopt.errors import InputError
from onnxopt.model.read import read_model
from onnxopt.package import package_models
from onnxopt.verification.compare import (
    FP32_RULE,
    AbsoluteRule,
    BaselineRule,
    OutputReport,
    Rule,
    baseline_rule,
    compare_outputs,
)
from onnxopt.verification.inputs import load_inputs
from onnxopt.verification.runs import REDUCED_TIE_RULE
from onnxopt.verification.sessions import RunError, opened
from onnxopt.verification.widen import uses_type, widen

Array = npt.NDArray[Any]

_THREADS = 2


@dataclass(frozen=True)
class Comparison:
    """Every output of an engine against the original, and in words what its bounds are."""

    outputs: tuple[OutputReport, ...]
    bounds: str

    @property
    def passed(self) -> bool:
        """Whether every output is within its bounds."""
        return all(report.passed for report in self.outputs)

    def explain(self) -> str:
        """What is wrong, for a message."""
        return "; ".join(f"output '{r.name}': {r.reason}" for r in self.outputs if not r.passed)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"passed": self.passed, "bounds": self.bounds, "outputs": [r.to_json() for r in self.outputs]}


def compare_run(
    folder: Path, original: Path, inputs: Path, outputs: Mapping[str, Array], built: BuiltFor
) -> Comparison:
    """Compare the outputs of the engine of a package with those of the original on the same inputs.

    The original runs in ONNX Runtime, one in half precision widened to float32. The bounds are twice the error that the
    package's own model has there, which rounds where the engine does, and at least those of float32; for an engine
    whose float32 products may be rounded to TF32 at least those within which two runs in half precision differ. Raises
    InputError where the original cannot be run.
    """
    model = read_model(original)
    arrays = load_inputs(inputs, model)
    half = any(uses_type(model, kind) for kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))
    try:
        with opened(widen(model, onnx.TensorProto.FLOAT) if half else model, threads=_THREADS) as runner:
            reference = runner.run(arrays)
    except RunError as error:
        raise InputError(f"ONNX Runtime cannot run {original}: {error}") from error
    rule, words = _rule(folder, reference, arrays, built)
    return Comparison(tuple(compare_outputs(reference, outputs, rule=rule)), words)


def _rule(
    folder: Path, reference: Mapping[str, Array], arrays: Mapping[str, Array], built: BuiltFor
) -> tuple[Rule, str]:
    model = read_model(package_models(folder)[0])
    try:
        with opened(model, threads=_THREADS) as runner:
            baseline = baseline_rule([(reference, runner.run(arrays))])
    except RunError as error:
        return REDUCED_TIE_RULE, f"those of half precision: ONNX Runtime cannot run the package's model ({error})"
    if built.tf32:
        return _at_least(baseline, REDUCED_TIE_RULE), "those of half precision, as the engine may round to TF32"
    return _at_least(baseline, FP32_RULE), "twice the error of the package's model in ONNX Runtime, or those of float32"


def _at_least(baseline: BaselineRule, floor: AbsoluteRule) -> BaselineRule:
    largest, rms = floor.max_bound / baseline.factor, floor.rms_bound / baseline.factor
    errors = {name: (max(a, largest), max(b, rms)) for name, (a, b) in baseline.errors.items()}
    return BaselineRule(errors, baseline.factor, baseline.floor)

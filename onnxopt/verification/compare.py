"""The numeric rule: how far the outputs of two runs may lie apart.

Errors are relative to the largest finite magnitude of the reference output, as a maximum and as a root mean
square.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Outputs = Mapping[str, Array]

# A reference that is zero but for rounding has no scale of its own. Its error is then taken as that of an
# output of this size, which puts the fp32 bound at 1e-7: about the rounding of the values of order one that
# cancelled.
ZERO_BELOW = 1e-12
SCALE_OF_ZERO = 1e-3


@dataclass(frozen=True)
class AbsoluteRule:
    """Fixed bounds, relative to the maximum of the reference."""

    max_bound: float = 1e-4
    rms_bound: float = 1e-5

    def bounds(self, name: str) -> tuple[float, float]:
        """(maximum, root mean square) allowed for output `name`."""
        del name
        return self.max_bound, self.rms_bound


@dataclass(frozen=True)
class BaselineRule:
    """Bounds for reduced precision: `factor` times the error of a plain run in that precision, plus a floor.

    `errors` holds, per output, the (maximum, root mean square) of that run against the reference.
    """

    errors: Mapping[str, tuple[float, float]]
    factor: float = 2.0
    floor: float = 1e-6

    def bounds(self, name: str) -> tuple[float, float]:
        """(maximum, root mean square) allowed for output `name`; 0 for an output that the baseline lacks."""
        largest, rms = self.errors.get(name, (0.0, 0.0))
        return self.factor * largest + self.floor, self.factor * rms + self.floor


Rule = AbsoluteRule | BaselineRule
FP32_RULE = AbsoluteRule()


@dataclass(frozen=True)
class OutputReport:
    """One output of the candidate against the reference.

    Errors and bounds are relative to `scale`. For integer and boolean outputs `max_error` is 1 where any
    element differs, and the bounds are 0. `reason` says what is wrong, and is empty where `passed`.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    max_error: float
    rms_error: float
    max_bound: float
    rms_bound: float
    passed: bool
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Plain JSON values; an error that is not a number becomes null."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "scale": finite_or_none(self.scale),
            "max_error": finite_or_none(self.max_error),
            "rms_error": finite_or_none(self.rms_error),
            "max_bound": self.max_bound,
            "rms_bound": self.rms_bound,
            "passed": self.passed,
            "reason": self.reason,
        }


def finite_or_none(value: float) -> float | None:
    """`value`, or None where it is NaN or infinite, which JSON cannot hold."""
    return float(value) if np.isfinite(value) else None


def is_float(array: Array) -> bool:
    """Whether the elements are floating-point, bfloat16 included."""
    # NumPy itself knows no bfloat16: the type that onnx brings is of kind "V".
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def compare_outputs(
    reference: Outputs, candidate: Outputs, *, rule: Rule = FP32_RULE, original: Outputs | None = None
) -> list[OutputReport]:
    """Compares every output by `rule`; one report per output.

    The outputs of the reference come first, in its order, then those of the candidate alone.

    Floats: NaN and infinities must stand in the same places, with the same sign, and the rest lie within
    the bounds. Integers and booleans must be equal. Shapes must be equal, and types too, except that a
    floating reference may be wider than the candidate (a float64 reference) or any float under a
    `BaselineRule`. Where the reference is not the original itself, `original` gives the original's outputs:
    a NaN or infinity of the candidate is then judged by them, since a wider reference can be finite where
    the original overflows.
    """
    reports = [
        _compare(name, expected, candidate.get(name), rule, None if original is None else original.get(name))
        for name, expected in reference.items()
    ]
    reports += [
        OutputReport(name, found.shape, 0.0, np.inf, np.inf, *rule.bounds(name), False, "the reference lacks it")
        for name, found in candidate.items()
        if name not in reference
    ]
    return reports


def baseline_rule(runs: Iterable[tuple[Outputs, Outputs]]) -> BaselineRule:
    """The rule for reduced precision, from runs (reference, baseline), pooled per output over all of them.

    Places where either is not finite are left out: they bound nothing.
    """
    largest: dict[str, float] = {}
    squares: dict[str, list[float]] = {}
    for reference, baseline in runs:
        for name, expected in reference.items():
            found = baseline.get(name)
            if found is None or found.shape != expected.shape or not is_float(expected):
                continue
            wide, narrow = expected.astype(np.float64), found.astype(np.float64)
            usable = np.isfinite(wide) & np.isfinite(narrow)
            error = np.abs(narrow[usable] - wide[usable]) / _scale(wide)
            largest[name] = max(largest.get(name, 0.0), float(error.max(initial=0.0)))
            squares.setdefault(name, []).append(float(np.mean(error**2)) if error.size else 0.0)
    return BaselineRule({name: (largest[name], float(np.sqrt(np.mean(squares[name])))) for name in largest})


def _scale(values: npt.NDArray[np.float64]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max(initial=0.0))
    return largest if largest > ZERO_BELOW else SCALE_OF_ZERO


def _compare(name: str, expected: Array, found: Array | None, rule: Rule, original: Array | None) -> OutputReport:
    bounds = rule.bounds(name) if is_float(expected) else (0.0, 0.0)
    if found is None:
        return OutputReport(name, expected.shape, 0.0, np.inf, np.inf, *bounds, False, "the candidate lacks it")
    problem = _mismatch(expected, found, rule)
    if problem:
        return OutputReport(name, expected.shape, 0.0, np.inf, np.inf, *bounds, False, problem)
    if not is_float(expected):
        return _compare_exact(name, expected, found)
    return _compare_floats(name, expected, found, bounds, expected if original is None else original)


def _mismatch(expected: Array, found: Array, rule: Rule) -> str:
    if expected.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    if expected.dtype == found.dtype:
        return ""
    both_float = is_float(expected) and is_float(found)
    wider = both_float and expected.dtype.itemsize > found.dtype.itemsize
    if wider or (both_float and isinstance(rule, BaselineRule)):
        return ""
    return f"type {found.dtype} instead of {expected.dtype}"


def _compare_exact(name: str, expected: Array, found: Array) -> OutputReport:
    different = int(np.count_nonzero(expected != found))
    error = 1.0 if different else 0.0
    reason = f"{different} of {expected.size} elements differ; {expected.dtype} must be equal" if different else ""
    return OutputReport(name, expected.shape, 1.0, error, error, 0.0, 0.0, not different, reason)


def _compare_floats(
    name: str, expected: Array, found: Array, bounds: tuple[float, float], original: Array
) -> OutputReport:
    wide, narrow, source = (array.astype(np.float64) for array in (expected, found, original))
    scale = _scale(wide)
    problem = _nonfinite_problem(source, narrow)
    if problem:
        return OutputReport(name, expected.shape, scale, np.inf, np.inf, *bounds, False, problem)
    usable = np.isfinite(wide) & np.isfinite(narrow)
    error = np.abs(narrow[usable] - wide[usable]) / scale
    largest = float(error.max(initial=0.0))
    rms = float(np.sqrt(np.mean(error**2))) if error.size else 0.0
    if largest > bounds[0]:
        problem = _too_large("maximum error", largest, scale, bounds[0])
    elif rms > bounds[1]:
        problem = _too_large("rms error", rms, scale, bounds[1])
    return OutputReport(name, expected.shape, scale, largest, rms, *bounds, not problem, problem)


def _too_large(measure: str, error: float, scale: float, bound: float) -> str:
    return f"{measure} {error:.3g} of the reference's maximum {scale:.3g}; at most {bound:.3g} is allowed"


def _nonfinite_problem(source: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> str:
    """Says where `found` is NaN or infinite and `source` is not the same, or the other way round."""
    for label, of_source, of_found in (
        ("NaN", np.isnan(source), np.isnan(found)),
        ("+inf", np.isposinf(source), np.isposinf(found)),
        ("-inf", np.isneginf(source), np.isneginf(found)),
    ):
        different = of_source != of_found
        if np.any(different):
            place = [int(index) for index in np.argwhere(different)[0]] if different.ndim else []
            return (
                f"{label} in {int(of_found.sum())} places against {int(of_source.sum())} of the original, "
                f"first different at {place}"
            )
    return ""

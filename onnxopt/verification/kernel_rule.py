"""The numeric rule for kernels: random operands, what they should give in float64, and how far off a kernel may be.

Needs nothing but NumPy, so that a GPU's results are judged where they arise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.validate.reference_attention import Output, attention_outputs, merge_attention

Array = npt.NDArray[Any]

# A kernel's error may be this many times that of a plain implementation in the same precision, and what comes from
# another order of additions beside it: a share of the largest value.
ERROR_RATIO = 2.0
ERROR_FLOOR = 1e-6
# Over fewer elements the largest error of the plain implementation is a matter of luck.
LEAST_ELEMENTS = 1000


@dataclass(frozen=True)
class Operands:
    """Random tensors of one operator, in float32 with the values that the compute type can hold."""

    q: Array
    k: Array
    v: Array
    weight: Array | None


@dataclass(frozen=True)
class Judgement:
    """Errors of one output as shares of the largest value expected, and what the rule allows.

    ``nonfinite`` elements are NaN or infinite where the reference is not, or the other way round; the errors are then
    NaN, or infinite where no NaN is among them.
    """

    elements: int
    max_error: float
    rms_error: float
    max_bound: float
    rms_bound: float
    problem: str = ""
    nonfinite: int = 0

    @property
    def passed(self) -> bool:
        """Whether the output agrees with the reference."""
        return not self.problem and self.max_error <= self.max_bound and self.rms_error <= self.rms_bound

    def to_json(self) -> dict[str, Any]:
        """The fields of a report; errors that are no numbers are null, as JSON has none of these."""
        fields = {key: value for key, value in vars(self).items() if key not in ("problem", "nonfinite") or value}
        errors = {key: None for key in ("max_error", "rms_error") if not np.isfinite(fields[key])}
        return {"passed": self.passed, **fields, **errors}

    def severity(self) -> tuple[bool, int, float]:
        """How bad it is, to be compared: failed ones above all, then those with elements that are no numbers."""
        share = 0.0 if self.nonfinite else self.max_error / (self.max_bound or 1.0)
        return not self.passed, self.nonfinite, share

    def shown_error(self) -> str:
        """The largest error in two digits; where elements are no numbers, what they are and how many."""
        if not self.nonfinite:
            return f"{self.max_error:.2g}"
        kind = "NaN" if np.isnan(self.max_error) else "infinite"
        return f"{kind} ({self.nonfinite:,} of {self.elements:,})"

    def explain(self) -> str:
        """Why it failed, or how far within the rule it is."""
        if self.problem:
            return self.problem
        return (
            f"largest error {self.max_error:.3g} (allowed {self.max_bound:.3g}), root mean square "
            f"{self.rms_error:.3g} (allowed {self.rms_bound:.3g}) over {self.elements:,} elements"
        )


def rounded_to(element: str, values: Array) -> Array:
    """float32 values with no more digits than an operand of a product has: fp16, bf16, tf32; fp32 leaves them.

    Rounds to nearest, ties to even; the result is float32 and holds NaN and infinities as they are.
    """
    values = np.asarray(values, np.float32)
    if element == "fp32":
        return values
    if element == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    dropped = {"bf16": 16, "tf32": 13}[element]
    bits = values.view(np.uint32).astype(np.uint64)
    half = np.uint64((1 << (dropped - 1)) - 1) + ((bits >> np.uint64(dropped)) & np.uint64(1))
    kept = ((bits + half) >> np.uint64(dropped)) << np.uint64(dropped)
    return np.where(np.isfinite(values), kept.astype(np.uint32).view(np.float32), values)


def stored(element: str, values: Array) -> Array:
    """float32 values as a kernel's tensors hold them; bf16 as its bits in uint16."""
    if element == "fp16":
        return values.astype(np.float16)
    if element == "bf16":
        return (rounded_to("bf16", values).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(values, np.float32)


def loaded(element: str, values: Array) -> Array:
    """What :func:`stored` made, as float32."""
    if element == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def draw_operands(kernel: Mapping[str, Any], batch: int, seed: int) -> Operands:
    """Normal q, k and v as the configuration's ``kernel`` describes them; run-time weights are 0 and 1."""
    rng = np.random.default_rng(seed)
    element = "fp32" if kernel["element"] == "tf32" else kernel["element"]
    q, k, v = (
        rounded_to(element, rng.standard_normal((batch, kernel[name][0]), dtype=np.float32)) for name in ("q", "k", "v")
    )
    weight = None
    if kernel["weights"]:
        weight = (rng.random((batch, kernel["columns"])) < 0.7).astype(np.float32)
    return Operands(q, k, v, weight)


def poisoned_outputs(kernel: Mapping[str, Any], batch: int) -> dict[str, Array]:
    """Arrays for the outputs, by name, filled with NaN: a poison that what is not written keeps."""
    if kernel["split"]:
        shapes = {"partial": kernel["slots"] * kernel["value_width"], "lse": kernel["slots"]}
        return {name: np.full((batch, size), np.nan, np.float32) for name, size in shapes.items()}
    return {"y": stored(kernel["element"], np.full((batch, kernel["y"][0]), np.nan, np.float32))}


def expected_attention(
    kernel: Mapping[str, Any], tables: Mapping[str, Array], operands: Operands
) -> tuple[Output, ...]:
    """What the lines of ``jobs`` write, in float64."""
    tensors = (operands.q, operands.k, operands.v)
    return attention_outputs(kernel, tables, *tensors, operands.weight, np.float64)


def plain_attention(kernel: Mapping[str, Any], tables: Mapping[str, Array], operands: Operands) -> tuple[Array, ...]:
    """The same from a plain implementation in the compute type: products of its numbers, all else in float32."""
    element = kernel["element"]
    q, k, v = (rounded_to(element, tensor) for tensor in (operands.q, operands.k, operands.v))
    outputs = attention_outputs(
        kernel, tables, q, k, v, operands.weight, np.float32, lambda weights: rounded_to(element, weights)
    )
    if kernel["split"]:
        return tuple(output.values for output in outputs)
    return tuple(_result(element, output.values) for output in outputs)


def judge_attention(
    kernel: Mapping[str, Any], tables: Mapping[str, Array], operands: Operands, found: Sequence[Array]
) -> list[Judgement]:
    """One judgement an output; ``found`` are batch x elements, and must be NaN still where no job writes."""
    expected = expected_attention(kernel, tables, operands)
    plain = plain_attention(kernel, tables, operands)
    judgements = []
    for output, mine, values in zip(expected, plain, found, strict=True):
        values = np.asarray(values).reshape(mine.shape)
        written = output.written == 1
        stray = np.argwhere(~np.isnan(values[:, ~written]))
        judgement = judged(output.values[:, written], mine[:, written], values[:, written])
        if len(stray) and judgement.passed:
            batch, place = stray[0]
            element = int(np.flatnonzero(~written)[place])
            problem = f"element {element} of batch element {batch} was written, which no job of the launch should do"
            judgement = replace(judgement, problem=problem)
        judgements.append(judgement)
    return judgements


def judge_merge(
    kernel: Mapping[str, Any], tables: Mapping[str, Array], partial: Array, lse: Array, found: Array
) -> Judgement:
    """The judgement of merged results; ``found`` is batch x elements.

    Where ``merges`` are some lines of the operator's, the places of all others must be NaN still.
    """
    width, stride = kernel["value_width"], kernel["y"][1]
    lines = np.array(tables["merges"])
    places = (lines[:, 2].astype(np.int64)[:, None] + np.arange(width) * stride).reshape(-1)
    # The same results one after the other, so that those of some lines are an output of their own.
    lines[:, 2] = np.arange(len(lines)) * width
    own = {**kernel, "y": [len(lines) * width, 1]}
    expected = merge_attention(own, {"merges": lines}, partial, lse)
    plain = _result(kernel["element"], merge_attention(own, {"merges": lines}, partial, lse, np.float32))
    found = np.asarray(found).reshape(len(expected), -1)
    judgement = judged(expected, plain, found[:, places])
    others = np.ones(found.shape[1], bool)
    others[places] = False
    stray = np.argwhere(~np.isnan(found[:, others]))
    if not len(stray) or not judgement.passed:
        return judgement
    element = int(np.flatnonzero(others)[stray[0][1]])
    problem = f"element {element} of batch element {stray[0][0]} was written, which no line of the launch should do"
    return replace(judgement, problem=problem)


def judged(expected: Array, plain: Array, found: Array) -> Judgement:
    """Compare with the float64 reference, beside a plain implementation in the same precision.

    NaN and infinities must stand where the reference has them.
    """
    found, plain = found.astype(np.float64), plain.astype(np.float64)
    finite = np.isfinite(expected)
    count = int(finite.sum())
    scale = float(np.abs(expected[finite]).max(initial=0.0)) or 1.0
    problem, error, nonfinite = _nonfinite(expected, found)
    if problem:
        return Judgement(expected.size, error, error, *_bounds(expected, plain, finite, scale), problem, nonfinite)
    if not count:
        return Judgement(count, 0.0, 0.0, 0.0, 0.0)
    errors = np.abs(found[finite] - expected[finite]) / scale
    bounds = _bounds(expected, plain, finite, scale)
    return Judgement(count, float(errors.max()), float(np.sqrt(np.mean(errors**2))), *bounds)


def _bounds(expected: Array, plain: Array, finite: Array, scale: float) -> tuple[float, float]:
    """The largest error and the root mean square that the rule allows; 0 where no element is finite."""
    if not finite.any():
        return 0.0, 0.0
    own = np.abs(plain[finite] - expected[finite]) / scale
    return (
        ERROR_RATIO * float(own.max()) + ERROR_FLOOR,
        ERROR_RATIO * float(np.sqrt(np.mean(own**2))) + ERROR_FLOOR,
    )


def _nonfinite(expected: Array, found: Array) -> tuple[str, float, int]:
    """What stands where it should not, as a sentence, an error and a count; empty where all is well."""
    for what, error, test in (("NaN", np.nan, np.isnan), ("infinite", np.inf, np.isinf)):
        wrong = np.argwhere(test(expected) != test(found))
        if len(wrong):
            place = tuple(int(i) for i in wrong[0])
            text = f"element {place} is {found[place]}, expected {expected[place]} ({len(wrong):,} differ in {what})"
            return text, error, len(wrong)
    return "", 0.0, 0


def _result(element: str, values: Array) -> Array:
    return rounded_to("fp32" if element == "tf32" else element, values)

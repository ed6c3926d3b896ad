"""Whether programs of a whole-model job compute their model: the numeric rule for reduced precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.verification.kernel_rule import Judgement, judged

Array = npt.NDArray[Any]
Outputs = Sequence[Sequence[Array]]
"""Of each checked set of inputs every output."""

ORIGINAL_LIMIT = 0.05
"""How far the original may be off in the host's type, as a share of an output's largest value; a translation that is
wrong is off by about 1."""


def judge_programs(
    reference: Outputs, found: Mapping[str, Outputs], loose: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """For each program its errors and whether they are allowed, by name.

    ``original`` may be off by :data:`ORIGINAL_LIMIT`, and so may those of ``loose``, which exceed the numeric rule by
    nature; every other one by twice what the original is off. ``ceiling`` computes something else: it only has to be
    finite, of the right shapes, and to depend on the inputs.
    """
    original = found["original"]
    judged_programs: dict[str, dict[str, Any]] = {}
    for name, outputs in found.items():
        problem = _misshapen(reference, outputs)
        if name == "ceiling" or problem:
            problem = problem or _constant(outputs)
            judged_programs[name] = {"passed": not problem, **({"problem": problem} if problem else {})}
            continue
        judgement = _worst(_judgements(reference, original, outputs))
        if name == "original" or name in loose:
            judged_programs[name] = _loosely(judgement)
        else:
            judged_programs[name] = {"passed": judgement.passed, **_errors(judgement)}
            if not judgement.passed:
                judged_programs[name]["problem"] = judgement.explain()
    return judged_programs


def _judgements(reference: Outputs, original: Outputs, found: Outputs) -> list[Judgement]:
    judgements = []
    for expected, plain, own in zip(reference, original, found, strict=True):
        for wanted, beside, array in zip(expected, plain, own, strict=True):
            judgements.append(judged(np.asarray(wanted, np.float64), np.asarray(beside), np.asarray(array)))
    return judgements


def _loosely(judgement: Judgement) -> dict[str, Any]:
    passed = not judgement.problem and judgement.max_error <= ORIGINAL_LIMIT
    result: dict[str, Any] = {"passed": passed, "max_error": judgement.max_error, "rms_error": judgement.rms_error}
    if not passed:
        result["problem"] = judgement.problem or (
            f"off by {judgement.max_error:.3g} of its largest value (allowed {ORIGINAL_LIMIT}): the host does not "
            "compute this model in this type; try --dtype fp32"
        )
    return result


def _errors(judgement: Judgement) -> dict[str, float]:
    names = ("max_error", "rms_error", "max_bound", "rms_bound")
    return {name: getattr(judgement, name) for name in names}


def _worst(judgements: Sequence[Judgement]) -> Judgement:
    return max(judgements, key=lambda j: (bool(j.problem), not j.passed, j.max_error / (j.max_bound or 1.0)))


def _misshapen(reference: Outputs, found: Outputs) -> str:
    for expected, own in zip(reference, found, strict=True):
        for wanted, array in zip(expected, own, strict=True):
            if wanted.shape != array.shape:
                return f"an output has the shape {array.shape}, expected {wanted.shape}"
    return ""


def _constant(outputs: Outputs) -> str:
    if not all(np.isfinite(array).all() for own in outputs for array in own):
        return "an output is not finite"
    same = [np.array_equal(first, second) for first, second in zip(outputs[0], outputs[1], strict=True)]
    return "its outputs do not depend on the inputs" if all(same) else ""


def collect(program: Callable[[int], Sequence[Any]], backend: Any, checked: int) -> list[list[Array]]:
    """The outputs of a program for the first sets of inputs, as arrays of their own."""
    return [[np.array(backend.numpy(x), np.float64) for x in program(number)] for number in range(checked)]

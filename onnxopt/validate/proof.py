"""Whether what a schedule says of its own quality can be true."""

from __future__ import annotations

from math import isfinite

from onnxopt.plan.schedule import AttentionSchedule, ConvSchedule
from onnxopt.validate.failure import PlanError

# Microseconds and pairs are compared to within rounding.
_ROUNDING = 1e-9


def check_proof(name: str, schedule: AttentionSchedule | ConvSchedule) -> None:
    """Whether what a schedule says about itself can be true: its bound, its value, its times, its residency."""
    proof, forecast = schedule.proof, schedule.forecast
    figures = {"value": proof.value, "bound": proof.bound, "predicted_us": forecast.predicted_us}
    figures |= {"bound_us": forecast.bound_us, "uncertainty": forecast.uncertainty, "nodes": proof.nodes}
    for word, figure in figures.items():
        if not isfinite(figure) or figure < 0:
            raise PlanError(f"{name}: the schedule says {word} = {figure}, expected a number from 0 on")
    if proof.bound > proof.value * (1 + _ROUNDING):
        raise PlanError(f"{name}: the proof's bound {proof.bound} is above its value {proof.value}")
    if schedule.objective == "waste" and abs(proof.value - schedule.computed) > _ROUNDING * schedule.computed:
        raise PlanError(f"{name}: the proof's value is {proof.value}, but the schedule computes {schedule.computed}")
    if not proof.certificate or not proof.solver:
        raise PlanError(f"{name}: the proof names no {'solver' if proof.certificate else 'certificate'}")
    if schedule.resident < 1:
        raise PlanError(f"{name}: {schedule.resident} blocks are said to share a multiprocessor, expected 1 or more")

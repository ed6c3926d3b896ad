"""Which models run against which, and running them on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto

from onnxopt.errors import InputError, VerificationError
from onnxopt.verification.compare import (
    FP32_RULE,
    AbsoluteRule,
    Array,
    OutputReport,
    Rule,
    baseline_rule,
    compare_outputs,
)
from onnxopt.verification.sessions import RunError, opened, with_outputs
from onnxopt.verification.widen import float64_reference, uses_type, widen

# In half precision two correct runs already differ by this much inside a deep model, so decisions on such
# numbers may fall either way.
REDUCED_TIE_RULE = AbsoluteRule(max_bound=2e-2, rms_bound=5e-3)


@dataclass(frozen=True)
class Setup:
    """The models of one comparison.

    `plain` is a third run: of the original, to check a float64 reference and to say where a NaN is the
    original's own, or of a baseline in reduced precision, whose error sets the bounds (`reduced`).
    """

    reference: onnx.ModelProto
    candidate: onnx.ModelProto
    kind: str
    plain: onnx.ModelProto | None = None
    plain_is_original: bool = False
    reduced: bool = False
    notes: tuple[str, ...] = ()

    @property
    def tie_rule(self) -> AbsoluteRule:
        """How close numbers must be for a different decision on them to be a near tie."""
        return REDUCED_TIE_RULE if self.reduced else FP32_RULE

    def watching(self, names: Sequence[str]) -> Setup:
        """The same comparison with the tensors `names` as further outputs."""
        plain = None if self.plain is None else with_outputs(self.plain, names)
        return replace(
            self,
            reference=with_outputs(self.reference, names),
            candidate=with_outputs(self.candidate, names),
            plain=plain,
        )


@dataclass(frozen=True)
class Run:
    """The outputs of all models of a setup on the same inputs."""

    reference: Mapping[str, Array]
    candidate: Mapping[str, Array]
    plain: Mapping[str, Array] | None = None


def make_setup(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    baseline: onnx.ModelProto | None,
    *,
    rounded: bool = False,
    threads: int,
) -> Setup:
    """Chooses the reference.

    A model with bfloat16 is compared after widening it, since ONNX Runtime has no kernels for it, unless candidate and
    baseline are float32 models that round to it (`rounded`). With a
    baseline, or where the original is itself in half precision, the rule is that of reduced precision.
    Otherwise the original runs in float64 where every operator has a kernel for it, and as it is where not.
    """
    first = original if baseline is None else baseline
    if not rounded and (uses_type(first, TensorProto.BFLOAT16) or uses_type(candidate, TensorProto.BFLOAT16)):
        note = "ONNX Runtime has no bfloat16 kernels: both models were compared in float32"
        return Setup(
            widen(first, TensorProto.FLOAT),
            widen(candidate, TensorProto.FLOAT),
            "widened bfloat16",
            notes=(note,),
        )
    if baseline is not None:
        return Setup(original, candidate, "original", baseline, reduced=True)
    wide = float64_reference(original, threads=threads)
    if uses_type(original, TensorProto.FLOAT16):
        kind = "widened float32" if wide is None else "widened float64"
        reference = widen(original, TensorProto.FLOAT) if wide is None else wide
        return Setup(reference, candidate, kind, original, plain_is_original=True, reduced=True)
    if wide is None:
        return Setup(original, candidate, "original")
    return Setup(wide, candidate, "float64", original, plain_is_original=True)


def run_all(
    setup: Setup, feeds: Sequence[Mapping[str, Array]], names: Sequence[str] | None, *, threads: int
) -> list[Run]:
    """Runs every model of `setup` on every feed, one model after the other, so that one session is alive at a
    time.

    `names` chooses outputs; None takes all. Raises InputError where the original cannot run and
    VerificationError where the candidate cannot.
    """
    references = _run(setup.reference, feeds, names, threads, InputError, "the original model")
    plain = None
    if setup.plain is not None:
        plain = _run(setup.plain, feeds, names, threads, InputError, "the original model")
    candidates = _run(setup.candidate, feeds, names, threads, VerificationError, "the optimised model")
    return [
        Run(references[index], candidates[index], None if plain is None else plain[index])
        for index in range(len(feeds))
    ]


def drop_unfaithful(setup: Setup, runs: list[Run]) -> tuple[Setup, list[Run]]:
    """Takes the original as the reference where its float64 copy does not agree with it.

    The copy is then another function (a sum that overflows in float32 to the infinity which the model
    means, a TopK that picks the other of two near ties) or the original is too inaccurate to be held to it.
    """
    if setup.kind != "float64" or setup.plain is None or all(_faithful(run) for run in runs):
        return setup, runs
    note = "the original in float64 differs from the original itself, so the original is the reference"
    dropped = replace(
        setup,
        reference=setup.plain,
        plain=None,
        plain_is_original=False,
        kind="original",
        notes=(*setup.notes, note),
    )
    return dropped, [Run(run.reference if run.plain is None else run.plain, run.candidate) for run in runs]


def judge(setup: Setup, runs: list[Run]) -> list[tuple[OutputReport, ...]]:
    """The output reports of every run, by the rule that belongs to the setup."""
    rule: Rule = FP32_RULE
    if setup.reduced:
        rule = baseline_rule((run.reference, run.plain) for run in runs if run.plain is not None)
    return [
        tuple(
            compare_outputs(
                run.reference,
                run.candidate,
                rule=rule,
                original=run.plain if setup.plain_is_original else None,
            )
        )
        for run in runs
    ]


def _faithful(run: Run) -> bool:
    return run.plain is None or all(report.passed for report in compare_outputs(run.reference, run.plain))


def _run(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, Array]],
    names: Sequence[str] | None,
    threads: int,
    error_type: type[InputError] | type[VerificationError],
    label: str,
) -> list[dict[str, Array]]:
    try:
        with opened(model, threads=threads) as runner:
            return [runner.run(feed, names) for feed in feeds]
    except RunError as error:
        raise error_type(f"ONNX Runtime cannot run {label}: {error}") from error

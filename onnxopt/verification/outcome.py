"""What a comparison found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from onnxopt.verification.compare import OutputReport
from onnxopt.verification.kernel_report import KernelReport

SCHEMA = "onnxopt.verify/1"


@dataclass(frozen=True)
class DrawReport:
    """One run of both models on the same inputs.

    `seed` is None for inputs that the user gave, else `draw_inputs` with it and `batch` gives the same
    inputs again. `reference` says what the candidate was held against. `tie` names a decision that fell
    differently on numbers that agree; such a draw counts only if no other could be found.
    """

    batch: int | None
    draw: int
    seed: int | None
    reference: str
    outputs: tuple[OutputReport, ...]
    tie: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every output is within its bounds."""
        return all(output.passed for output in self.outputs)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "batch": self.batch,
            "draw": self.draw,
            "seed": self.seed,
            "reference": self.reference,
            "passed": self.passed,
            "tie": self.tie,
            "outputs": [output.to_json() for output in self.outputs],
        }


@dataclass(frozen=True)
class SiteReport:
    """A site whose output is off: its id, and how its tensor compares."""

    site: str
    output: OutputReport

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {"site": self.site, "output": self.output.to_json()}


@dataclass(frozen=True)
class VerifyReport:
    """Whether two models agree, and all that was measured.

    `reference` is "float64" (the original in float64), "original", "widened float64" or "widened float32"
    (a reduced-precision original with all its floats widened; the error of the original itself sets the
    bounds) or "widened bfloat16" (both models widened to float32, as ONNX Runtime has no bfloat16 kernels).
    `draws` are those that decide, `redrawn` those set aside for a near tie. `first_bad_site` is the first
    of the given sites whose tensor breaks the rule where the models disagree; `unwatched_sites` could not
    be looked at because their tensor is not in both models. `notes` are sentences for the user.

    Where several models were compared with the original, `models` has the report of each by name, and the rest is that
    of the first that does not agree, else of the first. `kernels` is what emulating the kernels of a package found, and
    `passed` covers them; it is None where that was not asked for.
    """

    passed: bool
    reference: str
    seed: int
    draws: tuple[DrawReport, ...]
    redrawn: tuple[DrawReport, ...] = ()
    first_bad_site: SiteReport | None = None
    unwatched_sites: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    models: tuple[tuple[str, VerifyReport], ...] = ()
    kernels: tuple[KernelReport, ...] | None = None

    @property
    def worst(self) -> OutputReport | None:
        """The output report with the largest error relative to its bounds; failed ones first."""
        reports = [output for draw in self.draws for output in draw.outputs]
        return max(reports, key=_severity, default=None)

    def explain(self) -> str:
        """One sentence on the result, for messages."""
        worst = self.worst
        off = next((kernel for kernel in self.kernels or () if not kernel.passed), None)
        if off is not None and all(draw.passed for draw in self.draws):
            return f"the kernel of {off.label}, emulated: {off.explain()}"
        if self.passed or worst is None:
            return f"{len(self.draws)} runs agree with the reference ({self.reference})"
        failed = sum(not draw.passed for draw in self.draws)
        where = f"; the first site that is off is {self.first_bad_site.site}" if self.first_bad_site else ""
        return f"{failed} of {len(self.draws)} runs disagree; output '{worst.name}': {worst.reason}{where}"

    def to_json(self) -> dict[str, object]:
        """Plain JSON values under the schema "onnxopt.verify/1"."""
        of_kernels = {} if self.kernels is None else {"kernels": [kernel.to_json() for kernel in self.kernels]}
        of_models = {"models": {name: report.to_json() for name, report in self.models}} if self.models else {}
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "reference": self.reference,
            "seed": self.seed,
            "draws": [draw.to_json() for draw in self.draws],
            "redrawn": [draw.to_json() for draw in self.redrawn],
            "first_bad_site": None if self.first_bad_site is None else self.first_bad_site.to_json(),
            "unwatched_sites": list(self.unwatched_sites),
            "notes": list(self.notes),
            **of_models,
            **of_kernels,
        }


def of_package(reports: Mapping[str, VerifyReport]) -> VerifyReport:
    """One report of all models of a package, by name; it passes if each does."""
    chosen = next((report for report in reports.values() if not report.passed), next(iter(reports.values())))
    return replace(chosen, models=tuple(reports.items())) if len(reports) > 1 else chosen


def with_kernels(report: VerifyReport, kernels: tuple[KernelReport, ...]) -> VerifyReport:
    """The report with what emulating the kernels found."""
    return replace(report, passed=report.passed and all(kernel.passed for kernel in kernels), kernels=kernels)


def _severity(report: OutputReport) -> tuple[bool, float]:
    pairs = ((report.max_error, report.max_bound), (report.rms_error, report.rms_bound))
    return not report.passed, max(error / bound if bound else error for error, bound in pairs)

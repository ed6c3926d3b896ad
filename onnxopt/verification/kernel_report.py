"""What running the kernels of a package on the CPU found, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxopt.verification.kernel_rule import Judgement


@dataclass(frozen=True)
class KernelReport:
    """One kernel of a package, its PTX emulated: a sample of its jobs, in several orders of lanes.

    ``operator`` is what it computes and ``sites`` are those that use it; ``tactic`` is its number where it is one of
    several among which TensorRT chooses. ``alike`` are tactics of the same code, which were not run by themselves.
    ``judgements`` has every output of every order, in the order of ``orders``; ``problem`` says why the kernel could
    not be run to its end, and is empty where it could.
    """

    operator: str
    sites: tuple[str, ...]
    architecture: str
    jobs: int
    batch: int
    orders: tuple[int, ...]
    judgements: tuple[Judgement, ...]
    problem: str = ""
    tactic: int | None = None
    alike: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its sites, and its number among their tactics."""
        return ", ".join(self.sites) + ("" if self.tactic is None else f", tactic {self.tactic}")

    @property
    def passed(self) -> bool:
        """Whether it ran, and every output agreed in every order."""
        return not self.problem and all(judgement.passed for judgement in self.judgements)

    @property
    def worst(self) -> Judgement | None:
        """The judgement that is furthest off, as a share of what is allowed; failed ones first."""
        return max(self.judgements, key=Judgement.severity, default=None)

    def explain(self) -> str:
        """Why it failed, or how far within the rule it is."""
        worst = self.worst
        return self.problem or (worst.explain() if worst is not None else "nothing was compared")

    def to_json(self) -> dict[str, Any]:
        """An entry of ``kernels`` in ``onnxopt.verify/1``."""
        each = len(self.judgements) // len(self.orders) if self.orders else 0
        outputs = [{"order": self.orders[n // each], **j.to_json()} for n, j in enumerate(self.judgements)]
        return {
            "operator": self.operator,
            "sites": list(self.sites),
            **({} if self.tactic is None else {"tactic": self.tactic}),
            **({"alike": list(self.alike)} if self.alike else {}),
            "architecture": self.architecture,
            "passed": self.passed,
            "jobs": self.jobs,
            "batch": self.batch,
            "orders": list(self.orders),
            "outputs": outputs,
            **({"problem": self.problem} if self.problem else {}),
        }

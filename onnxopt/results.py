"""What the functions of :mod:`onnxopt.api` give back, and the documents that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxopt.algorithm_choice import AlgorithmPlan
from onnxopt.decide import SiteReport
from onnxopt.deploy.tensorrt_build import EngineInfo
from onnxopt.discover.refusal import Refusal
from onnxopt.measure.timing import PairTiming
from onnxopt.model.convert import Precision
from onnxopt.report.algorithms import algorithm_document
from onnxopt.report.figures import figures_document
from onnxopt.site_reports import Form
from onnxopt.target import Target
from onnxopt.verification import VerifyReport
from onnxopt.verification.outcome import of_package

INSPECT_SCHEMA = "onnxopt.inspect/1"
PLAN_SCHEMA = "onnxopt.plan/1"
WrittenForm = Literal["plugin", "portable", "both"]


@dataclass(frozen=True)
class Inspection:
    """Sites and refusals of a model for one target; nothing was changed.

    ``judged`` has the sites as they were decided for each form, the first of which is what ``sites`` shows.
    ``algorithms`` is the choice of convolution algorithms, None where none was asked for. ``dtype`` is the type that
    the model was converted to, None where it keeps its own; ``opset`` and ``nodes`` are those after that.
    """

    path: Path
    opset: int
    nodes: int
    target: Target
    judged: tuple[tuple[Form, tuple[SiteReport, ...]], ...]
    refusals: tuple[Refusal, ...]
    algorithms: AlgorithmPlan | None = None
    dtype: Precision | None = None

    @property
    def form(self) -> WrittenForm:
        """What the decisions are about."""
        return "both" if len(self.judged) > 1 else self.judged[0][0]

    @property
    def sites(self) -> tuple[SiteReport, ...]:
        """Every site with the decision for the first form."""
        return self.judged[0][1]

    @property
    def rewritten(self) -> tuple[SiteReport, ...]:
        """The sites that are rewritten in any of the forms, each as the first that does."""
        by_site = zip(*(sites for _, sites in self.judged), strict=True)
        chosen = (next((s for s in decided if s.decision == "rewrite"), None) for decided in by_site)
        return tuple(site for site in chosen if site is not None)

    def to_json(self) -> dict[str, Any]:
        """The document ``onnxopt.inspect/1``."""
        several = len(self.judged) > 1
        return {
            "schema": INSPECT_SCHEMA,
            "model": {"path": str(self.path), "opset": self.opset, "nodes": self.nodes}
            | ({} if self.dtype is None else {"dtype": self.dtype}),
            "target": self.target.name,
            "form": self.form,
            "sites": [s.inspected() | (self.forms_of(n) if several else {}) for n, s in enumerate(self.sites)],
            "refusals": [refusal.to_json() for refusal in self.refusals],
            **({} if self.algorithms is None else {"conv_algorithms": algorithm_document(self.algorithms)}),
        }

    def forms_of(self, number: int) -> dict[str, Any]:
        """The field ``forms`` of a site: what was decided for each form."""
        return {"forms": {form: sites[number].verdict() for form, sites in self.judged}}

    def planned(self, number: int) -> dict[str, Any]:
        """The schedules of a site, of whichever form."""
        fields: dict[str, Any] = {}
        for _, sites in reversed(self.judged):
            fields |= sites[number].planned
        return fields


@dataclass(frozen=True)
class WrittenModel:
    """A model of a package: its file, the form of its rewritten sites, its nodes, and how it was verified."""

    file: str
    form: Form
    nodes: int
    sites: tuple[SiteReport, ...]
    verification: VerifyReport | None

    @property
    def rewritten(self) -> tuple[SiteReport, ...]:
        """The sites that this model has rewritten."""
        return tuple(site for site in self.sites if site.decision == "rewrite")


@dataclass(frozen=True)
class OptimizeResult:
    """A written package: its folder, what was decided, the models in it, and the engine if one was built.

    ``timing`` is that of the whole model beside the original, where the target is this machine's CPU and it is known.

    ``lowered`` counts operators that were written out because parsers lack them, ``notes`` is what else a user should
    know.
    """

    package: Path
    inspection: Inspection
    models: tuple[WrittenModel, ...]
    lowered: tuple[str, ...]
    notes: tuple[str, ...]
    timing: PairTiming | None
    engine: EngineInfo | None

    @property
    def sites(self) -> tuple[SiteReport, ...]:
        """Every site with its decision, for the plugin form where that was written."""
        return self.inspection.sites

    @property
    def rewritten(self) -> tuple[SiteReport, ...]:
        """The sites that were rewritten in any of the models."""
        return self.inspection.rewritten

    @property
    def nodes_after(self) -> int:
        """The nodes of the first model."""
        return self.models[0].nodes

    @property
    def verification(self) -> VerifyReport | None:
        """How the models were verified, as one report; None where they were not."""
        reports = {model.file: model.verification for model in self.models if model.verification is not None}
        return of_package(reports) if reports else None


def plan_document(inspection: Inspection) -> dict[str, Any]:
    """The document ``onnxopt.plan/1``: the sites with their schedules, and what was decided for each form."""
    document = inspection.to_json()
    document["schema"] = PLAN_SCHEMA
    # A package may be moved; where its model once was says nothing.
    document["model"]["path"] = inspection.path.name
    document["sites"] = [
        site.inspected() | inspection.forms_of(number) | inspection.planned(number)
        for number, site in enumerate(inspection.sites)
    ]
    return document


def drawn_figures(inspection: Inspection) -> dict[str, Any]:
    """The pictures of all planned sites, as ``figures.json`` has them."""
    drawings = {site.id: site.draw for _, sites in reversed(inspection.judged) for site in sites}
    return figures_document({name: draw() for name, draw in drawings.items() if draw is not None})

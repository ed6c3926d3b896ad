"""What the commands call and what a Python user imports: inspect, optimize, verify, build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto

from onnxopt.decide import Progress, SiteReport
from onnxopt.deploy.manifest import (
    Source,
    check_manifest,
    checked_file,
    file_sha256,
    package_versions,
    write_manifest,
)
from onnxopt.deploy.rtx import BuildProgress, EngineInfo, build_engine, check_buildable
from onnxopt.discover.refusal import Refusal
from onnxopt.errors import InputError, VerificationError
from onnxopt.lower.compat import lower_for_parsers
from onnxopt.lower.rewrite import copy_of
from onnxopt.measure.paths import default_cache_dir
from onnxopt.measure.records import FILE_NAME
from onnxopt.measure.timing import PairTiming
from onnxopt.model.graph import default_opset
from onnxopt.model.read import read_model
from onnxopt.model.write import write_model
from onnxopt.package import PLAN, PORTABLE, RTX_ENGINE, check_place, default_folder, new_package, write_json
from onnxopt.report.figures import FIGURES, figures_document
from onnxopt.report.package_report import REPORT, rendered
from onnxopt.site_reports import Form
from onnxopt.sites import Findings, carry_out, discover, judge_sites, whole_judge
from onnxopt.target import Target, load_target
from onnxopt.verification import VerifyReport, load_inputs, verify_models
from onnxopt.verification.structure import check_structure

INSPECT_SCHEMA = "onnxopt.inspect/1"
PLAN_SCHEMA = "onnxopt.plan/1"
Engine = Literal["rtx"]


@dataclass(frozen=True)
class Inspection:
    """Sites and refusals of a model for one target and form; nothing was changed."""

    path: Path
    opset: int
    nodes: int
    target: Target
    form: Form
    sites: tuple[SiteReport, ...]
    refusals: tuple[Refusal, ...]

    def to_json(self) -> dict[str, Any]:
        """The document ``onnxopt.inspect/1``."""
        return {
            "schema": INSPECT_SCHEMA,
            "model": {"path": str(self.path), "opset": self.opset, "nodes": self.nodes},
            "target": self.target.name,
            "form": self.form,
            "sites": [site.inspected() for site in self.sites],
            "refusals": [refusal.to_json() for refusal in self.refusals],
        }


@dataclass(frozen=True)
class OptimizeResult:
    """A written package: its folder, what was decided, how it was verified, and the engine if one was built.

    ``timing`` is that of the whole model beside the original, where the target is this machine's CPU and it is known.

    ``lowered`` counts operators that were written out because parsers lack them, ``notes`` is what else a user should
    know.
    """

    package: Path
    inspection: Inspection
    nodes_after: int
    lowered: tuple[str, ...]
    notes: tuple[str, ...]
    verification: VerifyReport | None
    timing: PairTiming | None
    engine: EngineInfo | None

    @property
    def sites(self) -> tuple[SiteReport, ...]:
        """Every site with its decision."""
        return self.inspection.sites

    @property
    def rewritten(self) -> tuple[SiteReport, ...]:
        """The sites that were rewritten."""
        return tuple(site for site in self.sites if site.decision == "rewrite")


def inspect(
    model: str | Path,
    *,
    target: str = "auto",
    form: Form | None = None,
    cache: Path | None = None,
    progress: Progress = lambda _: None,
) -> Inspection:
    """Find the sites of a model and say what would be done with each; measures and changes nothing.

    ``form`` defaults to ``portable`` for the CPU and ``plugin`` for a GPU. ``cache`` is the folder of the tuning
    records. Raises :class:`onnxopt.InputError` for a model or target that cannot be used.
    """
    path = Path(model)
    chosen = load_target(target)
    proto = read_model(path)
    progress("looking for sites")
    findings = discover(proto)
    form = form or ("portable" if chosen.is_cpu else "plugin")
    reports = judge_sites(proto, findings, chosen, form=form, records=_records(cache), measure=False, progress=progress)
    return _inspection(path, proto, findings, chosen, form, reports)


def optimize(
    model: str | Path,
    out: str | Path | None = None,
    *,
    target: str = "auto",
    form: Form | None = None,
    engine: Engine | None = None,
    objective: Literal["time", "waste"] = "time",
    measure: bool | None = None,
    verify: bool = True,
    cache: Path | None = None,
    progress: Progress = lambda _: None,
    engine_progress: Callable[[BuildProgress], None] | None = None,
) -> OptimizeResult:
    """Rewrite the sites that win, verify the result, and write a package; build an engine if asked.

    ``out`` is the package's folder, by default the model's name with the suffix ``.onnxopt``. ``measure`` defaults to
    whether the target is this machine's CPU. Raises :class:`onnxopt.InputError` for bad input,
    :class:`onnxopt.VerificationError` if the result does not agree with the original (nothing is written), and
    :class:`onnxopt.MissingError` if the machine lacks what the engine needs.
    """
    path = Path(model)
    chosen = load_target(target)
    if form == "plugin":
        raise InputError("--form plugin: this version writes the portable form only; use --form portable")
    if engine is not None and chosen.architecture is None:
        raise InputError(f"--engine {engine}: target '{chosen.name}' is no GPU; name one, for example --target sm_89")
    if engine is not None and chosen.architecture is not None:
        check_buildable(chosen.architecture)
    folder = Path(out) if out is not None else default_folder(path)
    check_place(folder, path)
    proto = read_model(path)
    progress("looking for sites")
    findings = discover(proto)
    measured = chosen.is_cpu if measure is None else measure
    reports = judge_sites(
        proto,
        findings,
        chosen,
        form="portable",
        records=_records(cache),
        measure=measured,
        objective=objective,
        progress=progress,
    )
    judge = whole_judge(proto, findings, chosen, records=_records(cache), measure=measured, progress=progress)
    outcome = carry_out(proto, reports, judge)
    result = copy_of(proto) if outcome.model is proto else outcome.model
    lowered, _ = lower_for_parsers(result)
    inspection = _inspection(path, proto, findings, chosen, "portable", outcome.reports)
    verification = _verified(proto, result, inspection, progress) if verify else None
    with new_package(folder) as draft:
        progress("writing the package")
        write_model(result, draft / PORTABLE)
        note = check_structure(draft / PORTABLE, path) if verify else ""
        versions = package_versions(engine)
        write_json(draft / PLAN, _plan_document(inspection))
        write_json(draft / FIGURES, _figures_document(inspection))
        (draft / REPORT).write_bytes(rendered(draft, versions))
        built = None
        if engine == "rtx":
            place = draft / RTX_ENGINE
            built = build_engine(result, arch=chosen.architecture or "", out=place, progress=engine_progress)
            built = replace(built, path=folder / RTX_ENGINE)
        files = [item.name for item in draft.iterdir()]
        source = Source(file_sha256(path), default_opset(proto))
        write_manifest(
            draft,
            target=chosen.name,
            versions=versions,
            source=source,
            files=files,
            engines={RTX_ENGINE: chosen.name},
        )
    return OptimizeResult(
        folder,
        inspection,
        len(result.graph.node),
        (f"{lowered} Col2Im",) if lowered else (),
        (note,) if note else (),
        verification,
        outcome.timing,
        built,
    )


def verify(
    original: str | Path,
    candidate: str | Path,
    *,
    inputs: str | Path | None = None,
    progress: Progress = lambda _: None,
) -> VerifyReport:
    """Compare two models on fresh random inputs, or on the arrays of an ``.npz`` file, by the numeric rule.

    Either may be a package: its portable model counts, after it was checked against the manifest.
    """
    first, second = read_model(_model_file(original)), read_model(_model_file(candidate))
    given = load_inputs(inputs, first) if inputs is not None else None
    return verify_models(first, second, inputs=given, progress=progress)


def _model_file(path: str | Path) -> Path:
    return checked_file(path, PORTABLE) if Path(path).is_dir() else Path(path)


def build(
    source: str | Path,
    *,
    engine: Engine = "rtx",
    target: str | None = None,
    out: str | Path | None = None,
    engine_progress: Callable[[BuildProgress], None] | None = None,
) -> EngineInfo:
    """Build an engine from a package or from a model; into a package, it becomes part of its manifest.

    A package is checked against its manifest first, and ``target`` defaults to the package's.
    """
    path = Path(source)
    if path.is_dir():
        return _build_in_package(path, engine, target, engine_progress)
    if target is None:
        raise InputError("--target is needed to build an engine from a model, for example --target sm_89")
    chosen = _gpu_target(target)
    place = Path(out) if out is not None else path.with_suffix(".rtx.engine")
    proto = read_model(path)
    lower_for_parsers(proto)
    return build_engine(proto, arch=chosen, out=place, progress=engine_progress)


def _build_in_package(
    folder: Path, engine: Engine, target: str | None, progress: Callable[[BuildProgress], None] | None
) -> EngineInfo:
    manifest = check_manifest(folder)
    chosen = _gpu_target(target or manifest.target)
    model = checked_file(folder, PORTABLE)
    info = build_engine(model, arch=chosen, out=folder / RTX_ENGINE, progress=progress)
    files = sorted({entry.path for entry in manifest.files} | {RTX_ENGINE})
    versions = {**manifest.versions, **package_versions(engine)}
    engines = {entry.path: entry.target for entry in manifest.files} | {RTX_ENGINE: chosen}
    write_manifest(
        folder, target=manifest.target, versions=versions, source=manifest.source, files=files, engines=engines
    )
    return info


def _gpu_target(name: str) -> str:
    architecture = load_target(name).architecture
    if architecture is None:
        raise InputError(f"target '{name}' is no GPU; name one with --target, for example sm_89")
    return architecture


def _verified(proto: ModelProto, result: ModelProto, inspection: Inspection, progress: Progress) -> VerifyReport:
    progress("verifying")
    watched = [(s.id, name) for s in inspection.sites if s.rewrite for name in s.rewrite.replaces]
    report = verify_models(proto, result, sites=watched, progress=progress)
    if not report.passed:
        raise VerificationError(f"{inspection.path}: {report.explain()}; nothing was written")
    return report


def _plan_document(inspection: Inspection) -> dict[str, Any]:
    document = inspection.to_json()
    document["schema"] = PLAN_SCHEMA
    # A package may be moved; where its model once was says nothing.
    document["model"]["path"] = inspection.path.name
    document["sites"] = [site.inspected() | site.planned for site in inspection.sites]
    return document


def _figures_document(inspection: Inspection) -> dict[str, Any]:
    return figures_document({site.id: site.draw() for site in inspection.sites if site.draw is not None})


def _inspection(
    path: Path, proto: ModelProto, findings: Findings, target: Target, form: Form, reports: list[SiteReport]
) -> Inspection:
    return Inspection(
        path, default_opset(proto), len(proto.graph.node), target, form, tuple(reports), findings.refusals
    )


def _records(cache: Path | None) -> Path:
    return (cache or default_cache_dir()) / FILE_NAME

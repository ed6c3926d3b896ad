"""The models of a package before they are written: rewritten for a form, verified, then written and proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxopt.decide import BlockSource, ConvSource, Judge, PluginSource, Progress, SiteReport
from onnxopt.errors import VerificationError
from onnxopt.lower.algorithm_layouts import join_layouts
from onnxopt.lower.compat import lower_for_parsers
from onnxopt.lower.plugin_nodes import note_resident_blocks
from onnxopt.lower.rewrite import copy_of
from onnxopt.measure.timing import PairTiming
from onnxopt.model.write import write_model
from onnxopt.package import PLUGIN, PORTABLE
from onnxopt.site_reports import Form
from onnxopt.sites import carry_out
from onnxopt.verification import VerifyReport
from onnxopt.verification.structure import check_structure
from onnxopt.verification.winograd import verify_written
from onnxopt.written import prove_written

FORM_FILES: Mapping[Form, str] = {"plugin": PLUGIN, "portable": PORTABLE}


@dataclass(frozen=True)
class Draft:
    """A model that is ready to be written; ``lowered`` counts the operators that were written out for parsers."""

    form: Form
    model: ModelProto
    reports: list[SiteReport]
    timing: PairTiming | None
    lowered: int
    verification: VerifyReport | None


def drafted(
    proto: ModelProto,
    form: Form,
    reports: list[SiteReport],
    judge: Judge,
    path: Path,
    original: ModelProto | None,
    progress: Progress,
) -> Draft:
    """Carry out the decisions for one form of ``proto``, which may be the original in another type.

    Raises VerificationError where the result is not the original, which is None where that is not asked.
    """
    outcome = carry_out(proto, reports, judge)
    model = copy_of(proto) if outcome.model is proto else outcome.model
    lowered, _ = lower_for_parsers(model)
    join_layouts(model)
    kept = (report.plugin for report in outcome.reports)
    plugins = [plugin for plugin in kept if isinstance(plugin, PluginSource | ConvSource | BlockSource)]
    note_resident_blocks(model, {source.tables.operator(): source.resident for source in plugins})
    verification = None
    if original is not None:
        converted = None if proto is original else proto
        verification = _verified(original, model, outcome.reports, path, progress, converted)
    return Draft(form, model, outcome.reports, outcome.timing, lowered, verification)


def write_models(drafts: Sequence[Draft], place: Path, original: Path | None) -> tuple[str, ...]:
    """Write the models, and prove what can be proved of the files; ``original`` is None where that is not wanted."""
    notes = []
    for draft in drafts:
        file = place / FORM_FILES[draft.form]
        write_model(draft.model, file)
        if draft.form == "plugin":
            prove_written(file, draft.reports)
        if original is not None:
            notes.append(check_structure(file, original))
    return tuple(dict.fromkeys(note for note in notes if note))


def _verified(
    proto: ModelProto,
    result: ModelProto,
    reports: Sequence[SiteReport],
    path: Path,
    progress: Progress,
    converted: ModelProto | None = None,
) -> VerifyReport:
    """How a rewritten model compares with the original; raises VerificationError where it does not agree with it.

    ``converted`` is the original in another type, if that is what was rewritten.
    """
    progress("verifying")
    watched = [(s.id, name) for s in reports if s.rewrite for name in s.rewrite.replaces]
    report = verify_written(proto, result, sites=watched, converted=converted, progress=progress)
    if not report.passed:
        raise VerificationError(f"{path}: {report.explain()}; nothing was written")
    return report

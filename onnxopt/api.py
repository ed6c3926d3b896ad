"""What the commands call and what a Python user imports: inspect, optimize, verify, build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from onnxopt.algorithm_choice import algorithm_settings, check_algorithms
from onnxopt.decide import Progress
from onnxopt.deploy.aot_package import write_for_tensorrt
from onnxopt.deploy.manifest import BuiltFor, Source, check_manifest, file_sha256, package_versions, write_manifest
from onnxopt.deploy.package_check import check_engine_models
from onnxopt.deploy.packaged_kernels import write_kernel
from onnxopt.deploy.rtx import build_engine
from onnxopt.deploy.tensorrt import TensorrtOptions, build_in_package
from onnxopt.deploy.tensorrt_build import TENSORRT_RTX, BuildProgress
from onnxopt.drafts import FORM_FILES, drafted, write_models
from onnxopt.engines import Engine
from onnxopt.engines import build as build
from onnxopt.forms import Dtype, Types, check_engine, chosen_types, forms_of_model, in_type, written_forms
from onnxopt.measure.paths import EMULATED, default_cache_dir
from onnxopt.measure.records import FILE_NAME
from onnxopt.model.graph import default_opset
from onnxopt.model.read import read_model
from onnxopt.package import (
    PLAN,
    RTX_ENGINE,
    check_place,
    default_folder,
    new_package,
    package_files,
    package_models,
    write_json,
)
from onnxopt.report.figures import FIGURES
from onnxopt.report.package_report import REPORT, rendered
from onnxopt.results import Inspection, OptimizeResult, WrittenForm, WrittenModel, drawn_figures, plan_document
from onnxopt.site_kernels import (
    all_kernels,
    check_compiler,
    kernel_build,
    kernel_versions,
    kernels_written_before,
    notes_on,
)
from onnxopt.site_reports import Form
from onnxopt.sites import Findings, Judged, discover, judge_network, whole_judge
from onnxopt.tactics import TACTICS, check_tactics
from onnxopt.target import Target, load_target
from onnxopt.target.variant import Element
from onnxopt.verification import VerifyReport, load_inputs
from onnxopt.verification.outcome import of_package, with_kernels
from onnxopt.verification.package_kernels import check_kernels, verify_kernels
from onnxopt.verification.winograd import verify_written


def inspect(
    model: str | Path,
    *,
    target: str = "auto",
    form: Form | None = None,
    dtype: Dtype | None = None,
    convert_io: bool = False,
    kernel_dtype: Element | None = None,
    conv_algorithms: bool = False,
    workspace: float | None = None,
    winograd: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda _: None,
) -> Inspection:
    """Find the sites of a model and say what would be done with each; measures and changes nothing.

    ``form`` defaults to ``portable`` for the CPU and ``plugin`` for a GPU. With ``dtype`` fp16 or bf16 the whole model
    is converted first, inputs and outputs too with ``convert_io``, and the sites are those of the converted model;
    fp32 converts nothing. ``kernel_dtype``, in which kernels compute, defaults to the type of a site's own tensors.
    ``conv_algorithms`` also chooses an algorithm for every dense convolution, within ``workspace`` megabytes, and with
    ``winograd`` among those with an error bound of their own. ``cache`` is the folder of the tuning records. Raises
    :class:`onnxopt.InputError` for a model or target that cannot be used.
    """
    algorithms = algorithm_settings(conv_algorithms, workspace, winograd)
    path = Path(model)
    chosen = load_target(target)
    forms: tuple[Form, ...] = (form or ("portable" if chosen.is_cpu else "plugin"),)
    check_algorithms(algorithms, forms, chosen)
    types = chosen_types(dtype, convert_io, kernel_dtype, forms, chosen)
    proto = in_type(read_model(path), types, progress)
    progress("looking for sites")
    findings = discover(proto)
    judged = judge_network(
        proto,
        findings,
        chosen,
        forms=forms,
        records=_records(cache),
        measure=False,
        dtype=types.kernels,
        algorithms=algorithms,
        progress=progress,
    )
    return _inspection(path, proto, findings, chosen, judged, types)


def optimize(
    model: str | Path,
    out: str | Path | None = None,
    *,
    target: str = "auto",
    form: WrittenForm | None = None,
    engine: Engine | None = None,
    dtype: Dtype | None = None,
    convert_io: bool = False,
    kernel_dtype: Element | None = None,
    tactics: int = TACTICS,
    objective: Literal["time", "waste"] = "time",
    conv_algorithms: bool = False,
    workspace: float | None = None,
    winograd: bool = False,
    measure: bool | None = None,
    verify: bool = True,
    cache: Path | None = None,
    progress: Progress = lambda _: None,
    engine_progress: Callable[[BuildProgress], None] | None = None,
    kernel_progress: Callable[[int, int], None] | None = None,
) -> OptimizeResult:
    """Rewrite the sites that win, verify the result, and write a package; build an engine if asked.

    ``out`` is the package's folder, by default the model's name with the suffix ``.onnxopt``. ``form`` defaults to
    ``portable`` for the CPU and ``both`` for a GPU. ``dtype``, ``convert_io``, ``kernel_dtype``, ``conv_algorithms``,
    ``workspace`` and ``winograd`` are as for :func:`inspect`; the algorithms that were chosen are written in the plugin
    form. ``tactics`` (1 to 8) is how many schedules of an operator TensorRT may choose among, each with a kernel; one
    is within the shared memory that every launch may have, where there is one, even if that makes two of one.
    ``measure`` defaults to whether the target is this machine's CPU. Raises :class:`onnxopt.InputError` for bad input,
    :class:`onnxopt.VerificationError` if the result does not agree with the original or the converted model leaves the
    range of its type (nothing is written), and :class:`onnxopt.MissingError` if the machine lacks what the engine or
    the kernels of the plugin form need. ``kernel_progress`` is told how many kernels are compiled, and of how many.
    """
    algorithms = algorithm_settings(conv_algorithms, workspace, winograd)
    path = Path(model)
    chosen = load_target(target)
    forms = written_forms(form, chosen)
    check_algorithms(algorithms, forms, chosen)
    types = chosen_types(dtype, convert_io, kernel_dtype, forms, chosen)
    check_tactics(tactics)
    if engine is not None:
        check_engine(engine, forms, chosen)
    if "plugin" in forms:
        check_compiler()
    folder = Path(out) if out is not None else default_folder(path)
    check_place(folder, path)
    original = read_model(path)
    forms = forms_of_model(original, form, forms, path, engine == "rtx")
    proto = in_type(original, types, progress, ranges=verify)
    building = kernel_build(chosen, forms, cache or default_cache_dir(), kernel_progress)
    before = kernels_written_before(proto, building)
    progress("looking for sites")
    findings = discover(proto)
    measured = chosen.is_cpu if measure is None else measure
    judged = judge_network(
        proto,
        findings,
        chosen,
        forms=forms,
        records=_records(cache),
        measure=measured,
        objective=objective,
        dtype=types.kernels,
        build=building,
        algorithms=algorithms,
        tactics=tactics,
        progress=progress,
    )
    judge = whole_judge(proto, findings, chosen, records=_records(cache), measure=measured, progress=progress)
    compared = original if verify else None
    drafts = [drafted(proto, form, judged.reports[form], judge, path, compared, progress) for form in forms]
    decided = Judged({d.form: d.reports for d in drafts}, judged.algorithms)
    inspection = _inspection(path, proto, findings, chosen, decided, types)
    with new_package(folder) as place:
        progress("writing the package")
        notes = write_models(drafts, place, path if verify else None)
        kernels = all_kernels(inspection.sites, before)
        for operator, compiled in {kernel.operator: kernel.compiled for kernel in kernels}.items():
            write_kernel(place, operator, compiled)
        for draft in (d for d in drafts if d.form == "plugin"):
            write_for_tensorrt(place, draft.model, kernels, judged.tactics, chosen.architecture or "")
        versions = package_versions("rtx" if engine == "rtx" else None) | kernel_versions(kernels)
        write_json(place / PLAN, plan_document(inspection))
        write_json(place / FIGURES, drawn_figures(inspection))
        (place / REPORT).write_bytes(rendered(place, versions))
        built, engines = None, dict[str, BuiltFor]()
        if engine == "rtx":
            portable = next(d.model for d in drafts if d.form == "portable")
            where = place / RTX_ENGINE
            built = build_engine(portable, arch=chosen.architecture or "", out=where, progress=engine_progress)
            built = replace(built, path=folder / RTX_ENGINE)
            engines[RTX_ENGINE] = BuiltFor(built.architecture, library=f"{TENSORRT_RTX.module} {built.version}")
        write_manifest(
            place,
            target=chosen.name,
            versions=versions,
            source=Source(file_sha256(path), default_opset(original), types.precision or ""),
            files=package_files(place),
            engines=engines,
        )
        if engine == "tensorrt":
            options = TensorrtOptions(cache=cache or default_cache_dir())
            built = build_in_package(place, options, target=chosen.architecture, progress=engine_progress)
            built = replace(built, path=folder / built.path.name)
    lowered = drafts[0].lowered
    written = tuple(
        WrittenModel(FORM_FILES[d.form], d.form, len(d.model.graph.node), tuple(d.reports), d.verification)
        for d in drafts
    )
    return OptimizeResult(
        folder,
        inspection,
        written,
        (f"{lowered} Col2Im",) if lowered else (),
        (*notes, *notes_on(before)),
        drafts[0].timing,
        built,
    )


def verify(
    original: str | Path,
    candidate: str | Path,
    *,
    inputs: str | Path | None = None,
    kernels: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda _: None,
    kernel_progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compare two models on fresh random inputs, or on the arrays of an ``.npz`` file, by the numeric rule.

    Either may be a package, each of whose files is held against its manifest: the last model of an original counts, and
    every model of a candidate is compared; its models for TensorRT have to be the one in the plugin form. With
    ``kernels`` the candidate must be a package, and the PTX of its kernels is run on the CPU too; ``cache`` is the
    folder in which what that compiles is kept, and ``kernel_progress`` is told how many kernels were run, and of how
    many. Raises :class:`onnxopt.MissingError` without a C++ compiler for that.
    """
    if kernels:
        check_kernels(Path(candidate))
    first = read_model(_model_files(original)[-1])
    given = load_inputs(inputs, first) if inputs is not None else None
    reports = {}
    for file in _model_files(candidate):
        reports[file.name] = verify_written(first, read_model(file), inputs=given, progress=progress)
    report = of_package(reports)
    if not kernels:
        return report
    folder = (cache or default_cache_dir()) / EMULATED
    tell = kernel_progress or (lambda _, __: None)
    return with_kernels(report, verify_kernels(Path(candidate), cache=folder, progress=tell))


def _model_files(path: str | Path) -> tuple[Path, ...]:
    """A model's file, or those of a package after comparing all in it with its manifest, and its models for engines."""
    if not Path(path).is_dir():
        return (Path(path),)
    check_manifest(path)
    check_engine_models(Path(path))
    return package_models(Path(path))


def _inspection(
    path: Path,
    proto: ModelProto,
    findings: Findings,
    target: Target,
    judged: Judged,
    types: Types,
) -> Inspection:
    decided = tuple((form, tuple(reports)) for form, reports in judged.reports.items())
    size, opset = len(proto.graph.node), default_opset(proto)
    return Inspection(path, opset, size, target, decided, findings.refusals, judged.algorithms, types.precision)


def _records(cache: Path | None) -> Path:
    return (cache or default_cache_dir()) / FILE_NAME

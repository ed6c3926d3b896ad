"""The command that measures a GPU: here, or by a folder that another machine runs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxopt.commands.options import KernelDtype, Settings, TargetName, cache_folder
from onnxopt.errors import InputError, MissingError, VerificationError


class Kind(str, Enum):
    """The kernels that can be measured."""

    attention = "attention"
    conv = "conv"


class Shapes(str, Enum):
    """Which shapes of the kernels are measured."""

    all = "all"
    used = "used"


@dataclass(frozen=True)
class _Wanted:
    """What a job is to hold."""

    models: list[Path]
    elements: list[str]
    kinds: list[str]
    used_only: bool


_Models = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[MODEL]...", help="Models whose sites are checked and timed too.", show_default=False),
]
_Job = Annotated[
    Path | None,
    typer.Option("--job", metavar="DIR", help="Write a folder for a machine with a GPU; measure nothing here."),
]
_Import = Annotated[Path | None, typer.Option("--import", metavar="FILE", help="Add a job's results, or an export.")]
_Export = Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Write the records as lines of JSON.")]
_Kinds = Annotated[
    list[Kind] | None,
    typer.Option(
        "--kind", help="Kernels to measure (default: those of attention and convolutions).", show_default=False
    ),
]
_Shapes = Annotated[
    Shapes | None,
    typer.Option(
        "--shapes",
        help="Shapes to measure: all that the planner chooses from, or those that plans of the models use "
        "(default: used with models, else all).",
        show_default=False,
    ),
]
_Types = Annotated[list[KernelDtype] | None, typer.Option("--dtype", help="Types to measure (default: fp16).")]


def profile(
    ctx: typer.Context,
    models: _Models = None,
    target: TargetName = "auto",
    dtype: _Types = None,
    kind: _Kinds = None,
    shapes: _Shapes = None,
    device: Annotated[int, typer.Option("--device", min=0, help="Which GPU of this machine.")] = 0,
    job: _Job = None,
    import_file: _Import = None,
    export_file: _Export = None,
) -> None:
    """Measure tile times of the kernels on a GPU into the tuning records, which then correct the planner's model."""
    from onnxopt.report.console import output_console
    from onnxopt.target.tile_store import FILE_NAME, export_lines

    settings: Settings = ctx.obj
    store = cache_folder(settings) / FILE_NAME
    if sum(option is not None for option in (job, import_file, export_file)) > 1:
        raise InputError("--job, --import and --export are different uses; give one of them")
    if export_file is not None:
        output_console().print(f"{export_file}: {export_lines(store, export_file)} records", soft_wrap=True)
        return
    if import_file is not None:
        _import(store, import_file)
        return
    if shapes is Shapes.used and not models:
        raise InputError("--shapes used needs models whose plans say which; name some, or use --shapes all")
    elements = [item.value for item in dtype] if dtype else ["fp16"]
    used_only = bool(models) if shapes is None else shapes is Shapes.used
    wanted = _Wanted(models or [], elements, [item.value for item in kind or Kind], used_only)
    _measure(settings, wanted, target, device, job, store)


def _measure(settings: Settings, wanted: _Wanted, target: str, device: int, folder: Path | None, store: Path) -> None:
    from onnxopt.measure.job.build import check_new_folder
    from onnxopt.measure.profiling import run_job
    from onnxopt.report.console import output_console
    from onnxopt.target.device import find_device

    if folder is not None:
        check_new_folder(folder)
        entries = _write_job(settings, wanted, target, folder)
        output_console().print(
            f"{folder}: {entries} kernels to check and time; copy it to the machine with the GPU and run "
            f"`python {folder.name}/run.py --out results.jsonl` there, then `onnxopt profile --import results.jsonl`",
            soft_wrap=True,
        )
        return
    found = find_device(device)
    if found.device is None:
        raise MissingError(
            f"no GPU to measure on: {found.reason}; `onnxopt profile --job DIR --target sm_90` writes a folder that a "
            "machine with one runs, `--import` adds what came out"
        )
    with tempfile.TemporaryDirectory(prefix="onnxopt-profile-") as place:
        _write_job(settings, wanted, found.device.architecture, Path(place, "job"))
        results = Path(place, "results.jsonl")
        code = run_job(Path(place, "job"), results, device)
        if results.is_file():
            _import(store, results)
        if code:
            raise VerificationError(
                "some kernels failed on this GPU; see the lines above, and report them with the model"
            )


def _write_job(settings: Settings, wanted: _Wanted, target: str, folder: Path) -> int:
    from typing import cast

    from onnxopt.kernel_plans import KernelPlanner
    from onnxopt.measure.job.build import Request, build_job, request_sources
    from onnxopt.measure.site_requests import site_requests, usable_requests
    from onnxopt.measure.tile_requests import Kind as KernelKind
    from onnxopt.measure.tile_requests import catalogue, shapes_of, tile_requests
    from onnxopt.report.console import print_error
    from onnxopt.report.progress import reporting
    from onnxopt.site_kernels import KernelBuild
    from onnxopt.target import load_target
    from onnxopt.target.variant import Element

    chosen = load_target(target)
    if chosen.is_cpu:
        raise InputError("--job needs a GPU to plan for; name one with --target, for example --target sm_90")
    gpu, types = chosen.need_gpu_profile(), cast(list[Element], wanted.elements)
    kinds = cast(list[KernelKind], wanted.kinds)
    with reporting(settings.verbose) as reporter:
        reporter.stage("planning")
        sites: list[Request] = []
        skipped: list[tuple[str, str]] = []
        for element in types:
            planner = KernelPlanner.at(gpu, "time", cache_folder(settings), element)
            of_models, left_out = site_requests(wanted.models, planner)
            sites += [request for request in of_models if request.kind in kinds]
            skipped += left_out
        shapes = shapes_of(sites, kinds) if wanted.used_only else catalogue(gpu, types, kinds)
        requests = [*tile_requests(gpu, shapes), *sites]
        build = KernelBuild(gpu, cache_folder(settings), partial(reporter.counting, "compiling kernels"))
        count = len({source for request in requests for source in request_sources(request)})
        reporter.stage(f"{count} kernels for {len(shapes)} shapes and {len(sites)} operators of models")
        requests, left_out = usable_requests(requests, build)
        if not requests:
            reasons = [*left_out, *skipped] or [("the models", "no site of these kinds")]
            raise InputError(f"no kernel is left to measure; {': '.join(reasons[0])}")
        build_job(folder, requests, [build.architecture], cache=cache_folder(settings))
    for name, reason in (*skipped, *left_out):
        print_error(f"left out: {name}: {reason}", "warning")
    return len(requests)


def _import(store: Path, file: Path) -> None:
    from onnxopt.measure.profiling import import_results
    from onnxopt.report.console import output_console, print_error

    count, problems = import_results(store, file)
    for number, reason in problems[:3]:
        print_error(f"{file}, line {number} is left out: {reason}", "warning")
    output_console().print(f"{store}: {count} records added", soft_wrap=True)

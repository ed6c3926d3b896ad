"""The commands that take models: inspect, optimize, verify."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxopt.commands.options import (
    ConvAlgorithms,
    ConvertIo,
    DtypeOption,
    EngineKind,
    Form,
    Json,
    KernelDtypeOption,
    ModelArgument,
    Objective,
    Settings,
    TargetName,
    Winograd,
    Workspace,
    WrittenForm,
)
from onnxopt.errors import VerificationError


def inspect(
    ctx: typer.Context,
    model: ModelArgument,
    target: TargetName = "auto",
    form: Annotated[
        Form | None,
        typer.Option(help="Judge this form (default: portable for cpu, plugin for a GPU).", show_default=False),
    ] = None,
    dtype: DtypeOption = None,
    convert_io: ConvertIo = False,
    kernel_dtype: KernelDtypeOption = None,
    conv_algorithms: ConvAlgorithms = False,
    workspace: Workspace = None,
    winograd: Winograd = False,
    json: Json = False,
) -> None:
    """Show the sites of a model and what would be done with each. Changes and measures nothing."""
    from onnxopt.api import inspect as run
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.progress import reporting
    from onnxopt.report.table import show_inspection

    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        found = run(
            model,
            target=target,
            form=None if form is None else form.value,
            dtype=None if dtype is None else dtype.value,
            convert_io=convert_io,
            kernel_dtype=None if kernel_dtype is None else kernel_dtype.value,
            conv_algorithms=conv_algorithms,
            workspace=workspace,
            winograd=winograd,
            cache=settings.cache,
            progress=reporter.stage,
        )
    if json:
        print_json(found.to_json())
    else:
        show_inspection(output_console(), found)


def optimize(
    ctx: typer.Context,
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The package's folder (default: MODEL.onnxopt).", show_default=False
        ),
    ] = None,
    target: TargetName = "auto",
    form: Annotated[
        WrittenForm | None,
        typer.Option(help="The form to write (default: portable for cpu, both for a GPU).", show_default=False),
    ] = None,
    engine: Annotated[EngineKind | None, typer.Option(help="Also build this engine.", show_default=False)] = None,
    dtype: DtypeOption = None,
    convert_io: ConvertIo = False,
    kernel_dtype: KernelDtypeOption = None,
    tactics: Annotated[
        int, typer.Option(metavar="N", help="How many kernels of an operator TensorRT may choose among (1 to 8).")
    ] = 3,
    objective: Annotated[Objective, typer.Option(help="What a schedule minimises.")] = Objective.time,
    conv_algorithms: ConvAlgorithms = False,
    workspace: Workspace = None,
    winograd: Winograd = False,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure", help="Time sites on this machine (default: for cpu).", show_default=False
        ),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Write the result without comparing it.")] = False,
    json: Json = False,
) -> None:
    """Rewrite the sites that gain, verify the result, and write a package."""
    from onnxopt.api import optimize as run
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.facts import optimize_document
    from onnxopt.report.progress import reporting
    from onnxopt.report.table import show_optimized

    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        result = run(
            model,
            output,
            target=target,
            form=None if form is None else form.value,
            engine=engine.value if engine is not None else None,
            dtype=None if dtype is None else dtype.value,
            convert_io=convert_io,
            kernel_dtype=None if kernel_dtype is None else kernel_dtype.value,
            tactics=tactics,
            conv_algorithms=conv_algorithms,
            workspace=workspace,
            winograd=winograd,
            objective=objective.value,
            measure=measure,
            verify=not no_verify,
            cache=settings.cache,
            progress=reporter.stage,
            engine_progress=reporter.building,
            kernel_progress=partial(reporter.counting, "compiling kernels"),
        )
    if json:
        print_json(optimize_document(result))
    else:
        show_optimized(output_console(), result)


def verify(
    ctx: typer.Context,
    original: Annotated[Path, typer.Argument(metavar="A", help="The original model.", show_default=False)],
    candidate: Annotated[
        Path, typer.Argument(metavar="B", help="The model to compare with it, or a package.", show_default=False)
    ],
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="F.npz", help="Inputs by name, instead of random ones.", show_default=False),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Also run the kernels of the package B on the CPU, emulated.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare two models on fresh random inputs, or on given ones."""
    from onnxopt.api import verify as run
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.progress import reporting
    from onnxopt.report.verification import show_verification

    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        report = run(
            original,
            candidate,
            inputs=inputs,
            kernels=kernels,
            cache=settings.cache,
            progress=reporter.stage,
            kernel_progress=partial(reporter.counting, "emulating kernels"),
        )
    if json:
        print_json(report.to_json())
    else:
        show_verification(output_console(), report)
    if not report.passed:
        raise VerificationError(f"{candidate} does not agree with {original}: {report.explain()}")

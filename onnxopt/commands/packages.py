"""The commands that take a package: build, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxopt.commands.options import EngineKind, EngineWay, Json, Settings, TrtexecWay, cache_folder
from onnxopt.errors import InputError, VerificationError


def build(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="DIR|MODEL", help="A package, or a model.", show_default=False)],
    engine: Annotated[EngineKind, typer.Option(help="The engine to build.")] = EngineKind.rtx,
    target: Annotated[
        str | None,
        typer.Option(metavar="T", help="The GPU to build for (default: the package's target).", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The engine of a model (default: MODEL.rtx.engine or MODEL.tensorrt.engine).",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="MIN,OPT,MAX",
            help="Of a symbolic batch: the smallest, the one to tune for, the largest (default: 1,1,8).",
            show_default=False,
        ),
    ] = None,
    way: Annotated[
        EngineWay | None,
        typer.Option(
            help="TensorRT: how the package's kernels get into the engine (default: aot where it can). To build the "
            "way aot is to run the Python module in the package.",
            show_default=False,
        ),
    ] = None,
    launcher: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TensorRT: the library for --way launcher.", show_default=False),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TensorRT: where timings are kept (default: the cache).", show_default=False),
    ] = None,
    workspace_memory: Annotated[
        int | None,
        typer.Option(metavar="MB", help="TensorRT: what a layer may take to work in.", show_default=False),
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="TensorRT: let float32 products be rounded to TF32, its own default.")
    ] = False,
    json: Json = False,
) -> None:
    """Build an engine from a package, into it, or from a model.

    TensorRT builds for the GPU of this machine, TensorRT-RTX for any.
    """
    from onnxopt.api import build as run
    from onnxopt.deploy.batch_range import parse_batch
    from onnxopt.deploy.tensorrt import TensorrtOptions
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.facts import build_document, show_engine
    from onnxopt.report.progress import reporting

    if output is not None and source.is_dir():
        raise InputError(f"-o {output}: the engine of a package goes into the package {source}; leave out -o")
    settings: Settings = ctx.obj
    options = TensorrtOptions(
        way=None if way is None else way.value,
        launcher=launcher,
        timing_cache=timing_cache,
        cache=cache_folder(settings),
        workspace=workspace_memory,
        tf32=tf32,
        batch=None if batch is None else parse_batch(batch),
    )
    with reporting(settings.verbose) as reporter:
        info = run(
            source,
            engine=engine.value,
            target=target,
            out=output,
            options=options,
            engine_progress=reporter.building,
        )
    if json:
        print_json(build_document(info))
    else:
        show_engine(output_console(), info)


def run(
    ctx: typer.Context,
    package: Annotated[Path, typer.Argument(metavar="DIR", help="A package with an engine.", show_default=False)],
    inputs: Annotated[Path, typer.Option(metavar="F.npz", help="Inputs by name.", show_default=False)],
    engine: Annotated[EngineKind, typer.Option(help="The engine to run.")] = EngineKind.tensorrt,
    iterations: Annotated[int, typer.Option(help="How many inferences are timed.")] = 100,
    graph: Annotated[bool, typer.Option("--graph/--no-graph", help="Time a CUDA graph of the engine.")] = True,
    out: Annotated[Path | None, typer.Option(metavar="F.npz", help="Where the outputs go.", show_default=False)] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Compare the outputs with those of this model.", show_default=False),
    ] = None,
    launcher: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The library that an engine of --way launcher needs.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Run a package's engine on this machine's GPU, and show how long an inference takes."""
    from onnxopt.deploy.runner import run_package
    from onnxopt.deploy.runner_compare import compare_run
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.engine_run import show_run
    from onnxopt.report.progress import reporting

    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        result = run_package(
            package,
            inputs,
            engine=engine.value,
            iterations=iterations,
            launcher=launcher,
            graph=graph,
            out=out,
            progress=reporter.building,
        )
        compared = None
        if against is not None:
            reporter.stage(f"comparing with {against}")
            compared = compare_run(package, against, inputs, result.outputs, result.built)
    if json:
        print_json(result.to_json() | ({} if compared is None else {"comparison": compared.to_json()}))
    else:
        show_run(output_console(), result, compared)
    if compared is not None and not compared.passed:
        raise VerificationError(f"{result.engine} does not agree with {against}: {compared.explain()}")


def bench(
    ctx: typer.Context,
    package: Annotated[Path, typer.Argument(metavar="DIR", help="A package.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="The original (default: looked for beside the package).", show_default=False
        ),
    ] = None,
    trtexec: Annotated[
        bool, typer.Option("--trtexec", help="Time by NVIDIA's trtexec on this machine's GPU instead.")
    ] = False,
    trtexec_path: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The program trtexec (default: the one on PATH).", show_default=False),
    ] = None,
    way: Annotated[
        TrtexecWay | None,
        typer.Option(help="How trtexec runs the package (default: the first that works).", show_default=False),
    ] = None,
    launcher: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The launcher library of this machine.", show_default=False)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="The batch that is timed (1).", show_default=False)] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="The largest batch of the engines (the timed one).", show_default=False)
    ] = None,
    duration: Annotated[
        int | None, typer.Option(metavar="S", help="At least so many seconds of measuring (10).", show_default=False)
    ] = None,
    warm_up: Annotated[
        int | None, typer.Option(metavar="MS", help="Milliseconds before measuring (500).", show_default=False)
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="At least so many inferences (100).", show_default=False)
    ] = None,
    percentile: Annotated[
        str | None, typer.Option(metavar="P,P", help="Percentiles to show (50,90,95,99).", show_default=False)
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A timing cache to read and add to.", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds that each run may take (3600).", show_default=False)
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep engines, logs and JSON files there.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Time a package beside the original: on this CPU, the whole model and each site; or by trtexec on a GPU."""
    chosen = {
        "program": trtexec_path,
        "way": None if way is None else way.value,
        "launcher": launcher,
        "batch": batch,
        "max_batch": max_batch,
        "duration": duration,
        "warm_up": warm_up,
        "iterations": iterations,
        "percentiles": percentile,
        "timing_cache": timing_cache,
        "timeout": timeout,
        "keep": keep,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    if trtexec:
        _bench_by_trtexec(ctx.obj, package, against, given, json)
        return
    if given:
        names = {"program": "trtexec_path", "percentiles": "percentile"}
        option = names.get(next(iter(given)), next(iter(given))).replace("_", "-")
        raise InputError(f"--{option} is an option of timing by trtexec; add --trtexec, or leave it out")
    from onnxopt.measure.bench import bench_package
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.facts import show_bench
    from onnxopt.report.progress import reporting

    settings: Settings = ctx.obj
    with reporting(settings.verbose) as reporter:
        result = bench_package(package, against, progress=reporter.stage)
    if json:
        print_json(result.to_json())
    else:
        show_bench(output_console(), result)


def _bench_by_trtexec(
    settings: Settings, package: Path, against: Path | None, given: dict[str, Any], json: bool
) -> None:
    from onnxopt.measure.trtexec_bench import bench_trtexec
    from onnxopt.measure.trtexec_options import chosen_options
    from onnxopt.report.console import output_console, print_json
    from onnxopt.report.progress import reporting
    from onnxopt.report.trtexec import show_trtexec_bench

    options = chosen_options(given)
    with reporting(settings.verbose) as reporter:
        result = bench_trtexec(package, against, options, progress=reporter.stage)
    if json:
        print_json(result.to_json())
    else:
        show_trtexec_bench(output_console(), result)

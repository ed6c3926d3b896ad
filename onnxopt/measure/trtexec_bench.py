"""A package beside the model that it was made from, both built and timed by trtexec with the same options."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

from onnxopt.deploy.manifest import check_manifest, checked_file, file_sha256
from onnxopt.deploy.tensorrt import ENGINE, MODELS, launcher_library
from onnxopt.errors import InputError, MissingError
from onnxopt.measure.bench import model_beside
from onnxopt.measure.trtexec import Exports, InputShape, input_shapes, trtexec_command
from onnxopt.measure.trtexec_files import Trace, check_trace, read_layers, read_profile, read_trace
from onnxopt.measure.trtexec_layers import (
    EngineLayers,
    LayerDifference,
    compare_layers,
    optimised_owners,
    original_owners,
)
from onnxopt.measure.trtexec_log import METRICS, Spread
from onnxopt.measure.trtexec_options import WAYS, TrtexecOptions
from onnxopt.measure.trtexec_run import Measured, find_trtexec, run_trtexec
from onnxopt.model.read import read_model
from onnxopt.package import PLAN, PLUGIN
from onnxopt.plan_document import PlanDocument, read_plan
from onnxopt.verification.interface import check_interfaces

SCHEMA = "onnxopt.bench.trtexec/1"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """One model as trtexec measured it; ``file`` is what was built or loaded."""

    file: Path
    measured: Measured
    trace: Trace
    layers: EngineLayers

    def to_json(self) -> dict[str, Any]:
        """Its part of the document: the command, the summary by trtexec's names, the layers in milliseconds."""
        summary = self.measured.summary
        return {
            "file": str(self.file),
            "command": list(self.measured.command),
            "queries": self.trace.queries,
            "throughput_qps": summary.throughput,
            "times_ms": {name: summary.times[name].to_json() for name in METRICS},
            "total_host_walltime_s": summary.host_walltime,
            "total_gpu_compute_time_s": summary.gpu_compute,
            "warnings": list(self.measured.log.warnings),
            "layers": [asdict(layer) for layer in self.layers.times],
        }


@dataclass(frozen=True)
class TrtexecBench:
    """Both sides, and where the difference is."""

    package: Path
    way: str
    program: Path
    version: str
    device: str
    batch: int
    original: Side
    optimised: Side
    difference: LayerDifference
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document ``onnxopt.bench.trtexec/1``; a ratio above 1 is faster, null where a time is 0."""
        return {
            "schema": SCHEMA,
            "package": str(self.package),
            "way": self.way,
            "trtexec": {"path": str(self.program), "tensorrt": self.version, "device": self.device},
            "batch": self.batch,
            "original": self.original.to_json(),
            "optimised": self.optimised.to_json(),
            "ratios": ratios(self.original, self.optimised),
            "layers": {
                "groups": [
                    {**asdict(group), "ratio": ratio(group.original_ms, group.optimised_ms)}
                    for group in (*self.difference.groups, self.difference.other)
                ],
                "unresolved": self.difference.unresolved,
            },
            "notes": list(self.notes),
        }


def ratio(original: float, optimised: float) -> float | None:
    """How many times as fast the optimised side is, by two times; None where one of them is 0."""
    return original / optimised if original > 0 and optimised > 0 else None


def ratios(original: Side, optimised: Side) -> dict[str, Any]:
    """The ratio of every figure of the two summaries."""
    before, after = original.measured.summary, optimised.measured.summary
    times = {name: _spread_ratios(before.times[name], after.times[name]) for name in METRICS}
    return {"throughput": ratio(after.throughput, before.throughput), "times": times}


def bench_trtexec(
    package: str | Path,
    against: str | Path | None = None,
    options: TrtexecOptions | None = None,
    *,
    progress: Progress = lambda _: None,
) -> TrtexecBench:
    """Build and time ``against``, by default the model that the package was made from, and the package.

    Raises MissingError without trtexec; InputError for a damaged package, one without a model for the chosen way,
    models of different inputs and outputs, and where trtexec fails or its output is not what it should be.
    """
    options = options or TrtexecOptions()
    folder = Path(package)
    program = find_trtexec(options.program)
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give a package that `onnxopt optimize` has written")
    manifest = check_manifest(folder)
    plan = read_plan(checked_file(folder, PLAN))
    way, file, plugins = _choose(folder, {entry.path for entry in manifest.files}, options)
    source = manifest.source.sha256
    place = Path(against) if against is not None else model_beside(folder, plan.model, source)
    original = read_model(place)
    optimised = read_model(checked_file(folder, _model_of(way, {entry.path for entry in manifest.files})))
    check_interfaces(original, optimised)
    shapes = input_shapes(original, batch=options.batch, most=options.max_batch)
    if not shapes and (options.batch, options.max_batch) != (1, None):
        raise InputError(f"{place} has a fixed batch; leave out --batch and --max-batch")
    with _folder(options.keep) as work:
        cache = options.timing_cache or work / "timing.cache"
        sides = []
        for name, path, libraries in (("original", place, ()), ("optimised", file, plugins)):
            progress(f"trtexec: the {name} model")
            sides.append(_measure(program, path, libraries, shapes, cache, work / name, options))
    same = file_sha256(place) == source
    difference = _difference(plan if same else None, original, optimised, sides, fused=way != "portable")
    log = sides[1].measured.log
    version = ".".join(str(part) for part in log.version) if log.version else ""
    notes = _notes(place, same, original, plan, way)
    batch = options.batch
    return TrtexecBench(folder, way, program, version, log.device, batch, sides[0], sides[1], difference, notes)


def _choose(folder: Path, listed: set[str], options: TrtexecOptions) -> tuple[str, Path, tuple[Path, ...]]:
    """The way, the file of the package that trtexec gets, and the libraries with it."""
    if options.way is not None and options.way not in WAYS:
        raise InputError(f"the way '{options.way}' is not known; allowed: {', '.join(WAYS)}")
    files = {"launcher": MODELS["launcher"], "engine": ENGINE, "portable": MODELS["portable"]}
    library = _library(options, files["launcher"] in listed)
    usable = [way for way in WAYS if files[way] in listed and (way != "launcher" or library is not None)]
    way = options.way or next(iter(usable), None)
    if way is None:
        raise InputError(
            f"{folder}: has nothing that trtexec can run: neither {files['launcher']} (with --launcher LIBRARY), nor "
            f"{ENGINE}, nor {files['portable']}; optimize the original model with --form both"
        )
    if files[way] not in listed:
        raise InputError(f"{folder}: lists no {files[way]}, which the way '{way}' needs; choose another one with --way")
    return way, checked_file(folder, files[way]), () if way == "portable" or library is None else (library,)


def _library(options: TrtexecOptions, has_model: bool) -> Path | None:
    """The launcher library: as named, else, where it could be needed, as found. An engine may need it as well."""
    if options.launcher is not None:
        return launcher_library(options.launcher)
    if not has_model or options.way not in (None, "launcher"):
        return None
    try:
        return launcher_library(None)
    except MissingError:
        if options.way is not None:
            raise
        return None


def _model_of(way: str, listed: set[str]) -> str:
    """The model whose nodes the layers of the optimised engine come from."""
    if way != "engine":
        return MODELS["launcher"] if way == "launcher" else MODELS["portable"]
    return next((name for name in (MODELS["aot"], PLUGIN) if name in listed), MODELS["portable"])


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the files of both runs go: a folder of the user's, or one that is removed."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="onnxopt-trtexec-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
    except OSError as error:
        place = error.filename or keep
        raise InputError(f"{place}: cannot be written: {error.strerror}; choose another folder with --keep") from None


def _measure(
    program: Path,
    file: Path,
    plugins: Sequence[Path],
    shapes: Sequence[InputShape],
    cache: Path,
    stem: Path,
    options: TrtexecOptions,
) -> Side:
    """Run trtexec on one file and read all that it wrote."""
    exports = Exports(*(stem.with_name(f"{stem.name}.{what}.json") for what in ("times", "profile", "layers")))
    for left in (exports.times, exports.profile, exports.layers):
        left.unlink(missing_ok=True)
    loads = file.name == ENGINE
    command = trtexec_command(
        program,
        onnx=None if loads else file.absolute(),
        engine=file.absolute() if loads else None,
        save_engine=None if loads or options.keep is None else stem.with_name(f"{stem.name}.engine"),
        plugins=plugins,
        shapes=shapes,
        timing=options.timing,
        timing_cache=cache.absolute(),
        exports=exports,
    )
    measured = run_trtexec(command, stem.with_name(f"{stem.name}.log"), timeout=options.timeout)
    asked = {f"{percent:g}" for percent in options.timing.percentiles}
    for name in METRICS:
        if {f"{percent:g}" for percent in measured.summary.times[name].percentiles} != asked:
            raise InputError(f"trtexec's '{name}' does not have the percentiles that were asked for: {sorted(asked)}")
    trace = read_trace(exports.times)
    check_trace(trace, measured.summary)
    return Side(file, measured, trace, EngineLayers(read_profile(exports.profile), read_layers(exports.layers)))


def _difference(
    plan: PlanDocument | None, original: ModelProto, optimised: ModelProto, sides: Sequence[Side], *, fused: bool
) -> LayerDifference:
    """Where the time went; everything is 'other' for a model whose sites are not those of the plan."""
    if plan is None:
        return compare_layers(sides[0].layers, sides[1].layers, ({}, {}), ())
    after = optimised_owners(optimised)
    rewritten = {site for site in after.values() if site is not None}
    before = original_owners(original, plan.sites, rewritten, fused=fused)
    order = [site.id for site in plan.sites]
    return compare_layers(sides[0].layers, sides[1].layers, (before, after), order)


def _notes(place: Path, same: bool, original: ModelProto, plan: PlanDocument, way: str) -> tuple[str, ...]:
    notes = []
    if not same:
        notes.append(f"{place} is not the model that the package was made from; its layers were not matched with sites")
    if way == "engine":
        notes.append(
            "the engine of the package was built before and is only loaded; the original is built now, by trtexec's "
            "options, which may differ from those of the engine"
        )
    narrow = sorted({site.text("dtype") for site in plan.sites} & {"fp16", "bf16"})
    if way != "portable" and narrow and _weights_are_fp32(original):
        notes.append(
            f"the operators compute in {' and '.join(narrow)}, the original in float32: the ratios include the change "
            "of type. Compare with the original converted to that type for the gain of the kernels alone"
        )
    return tuple(notes)


def _weights_are_fp32(model: ModelProto) -> bool:
    """Whether most constants of floating point are float32."""
    sizes: Counter[int] = Counter()
    for tensor in model.graph.initializer:
        sizes[tensor.data_type] += math.prod(tensor.dims)
    return sizes[TensorProto.FLOAT] > sizes[TensorProto.FLOAT16] + sizes[TensorProto.BFLOAT16]


def _spread_ratios(before: Spread, after: Spread) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        name: ratio(getattr(before, name), getattr(after, name)) for name in ("min", "max", "mean", "median")
    }
    shared = [percent for percent in before.percentiles if percent in after.percentiles]
    found["percentiles"] = {f"{p:g}": ratio(before.percentiles[p], after.percentiles[p]) for p in shared}
    return found

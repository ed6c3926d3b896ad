"""Makes the job that ``whole_model_gpu.py`` measures: whole models, as they are and with our kernels. Needs no GPU.

    python -m benchmarks.whole_model_gpu_job [MODEL]... --out FOLDER [--algorithms MODEL...] [--batch N] [--dtype fp16]

The models behind ``--algorithms`` are there as they are, by the choice of convolution algorithms, and by each algorithm
wherever it computes a layer. Their weights do not travel: they are drawn, here for the reference and there where they
are used, and packed there for each algorithm. The folder then needs PyTorch, NumPy and cuda-bindings: ``python
FOLDER/whole_model.py``. Operators that the host does not have are refused here, by name.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

import onnxopt
from benchmarks.whole_model_algorithms import drawn_weights, network_bound_us, with_recipes, written_versions
from benchmarks.whole_model_gpu import JOB, JOB_SCHEMA
from benchmarks.whole_model_launches import LaunchWriter
from benchmarks.whole_model_program import Program, write_program
from benchmarks.whole_model_results import chosen, rewritten
from benchmarks.whole_model_translate import translated
from benchmarks.whole_model_variants import Attention, with_fused_attention, without_attention
from benchmarks.whole_model_weights import WeightMaker
from onnxopt.api import optimize
from onnxopt.decide import SiteReport
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.errors import InputError, OnnxOptError
from onnxopt.lower.compat import lower_for_parsers
from onnxopt.lower.rewrite import copy_of
from onnxopt.measure.job.build import carry_modules, check_new_folder
from onnxopt.measure.paths import default_cache_dir
from onnxopt.model.graph import Graph, view
from onnxopt.model.read import read_model
from onnxopt.package import PLUGIN
from onnxopt.sites import discover
from onnxopt.target import load_target
from onnxopt.target.variant import Element
from onnxopt.verification.inputs import draw_inputs
from onnxopt.verification.sessions import opened

DTYPES: tuple[Element, ...] = ("fp16", "fp32")
# Sets of inputs, and how many of them are checked; all take turns when times are taken.
_SETS, _CHECKED = 4, 2
_SEED = 41
_CARRIED = ("gpu", "program", "weights", "operators", "backends", "windows", "kernels", "timing", "check", "results")
_ROOTS = (
    "onnxopt.errors",
    "onnxopt.measure.job.device",
    "onnxopt.plan.algorithms.packing",
    "onnxopt.verification.kernel_rule",
    "onnxopt.validate.reference_algorithms",
    "onnxopt.validate.reference_attention",
    "onnxopt.validate.reference_block",
    "onnxopt.validate.reference_conv",
)
_STARTER = """import sys
from pathlib import Path

from benchmarks.whole_model_gpu import main

if __name__ == "__main__":
    sys.exit(main([str(Path(__file__).resolve().parent), *sys.argv[1:]]))
"""


def build_job(
    folder: Path,
    models: Sequence[Path],
    *,
    algorithms: Sequence[Path] = (),
    batch: int = 1,
    dtype: Element = "fp16",
    target: str = "sm_90",
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """Write a job; the entries of its models, behind which stand those of ``algorithms`` by each algorithm.

    Raises InputError for a model that the host cannot run as it is, and for two of one name.
    """
    count, names = len(models) + len(algorithms), {path.stem for path in (*models, *algorithms)}
    if dtype not in DTYPES or batch < 1 or not count:
        raise InputError(f"{count} models, batch {batch}, {dtype}; allowed: 1 or more, 1 or more, {DTYPES}")
    if len(names) < count:
        raise InputError(f"{count} models of {len(names)} names; give every model once, in files of different names")
    check_new_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".job.") as draft:
        place = Path(draft, "job")
        place.mkdir()
        entries = [_entry(place, path, batch, dtype, target, cache) for path in models]
        entries += [_by_algorithms(place, path, batch, dtype, target, cache) for path in algorithms]
        document = {
            "schema": JOB_SCHEMA,
            "batch": batch,
            "dtype": dtype,
            "target": target,
            "versions": {"onnxopt": onnxopt.__version__, "nvrtc": version("nvidia-cuda-nvrtc")},
            "models": entries,
        }
        (place / JOB).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        carry(place)
        place.replace(folder)
    return entries


def carry(folder: Path) -> None:
    """Copy the host and what it needs of onnxopt below a job's folder."""
    (folder / "benchmarks").mkdir()
    # A package, not a namespace, that a checkout on the same machine would be part of.
    (folder / "benchmarks" / "__init__.py").touch()
    for name in _CARRIED:
        source = Path(__file__).parent / f"whole_model_{name}.py"
        shutil.copyfile(source, folder / "benchmarks" / source.name)
    carry_modules(folder, _ROOTS)
    (folder / "whole_model.py").write_text(_STARTER)


def _entry(folder: Path, path: Path, batch: int, dtype: Element, target: str, cache: Path | None) -> dict[str, Any]:
    """Write one model's programs, inputs and reference."""
    model = copy_of(read_model(path))
    lower_for_parsers(model)
    graph = view(model, batch=batch)
    inputs = _inputs(path, model, batch)
    programs = {"original": translated(model, batch)}
    with tempfile.TemporaryDirectory() as scratch:
        done = optimize(
            path, Path(scratch, "package"), target=target, form="plugin", kernel_dtype=dtype, measure=False,
            verify=False, cache=cache,
        )  # fmt: skip
        optimised = read_model(Path(scratch, "package", PLUGIN))
    reports = [report for report in done.models[0].sites if report.rewrite is not None]
    kernels = {kernel.operator: kernel.compiled for report in reports for kernel in report.kernels}
    if reports:
        programs["ours"] = translated(optimised, batch, LaunchWriter(folder, optimised, kernels, batch))
    sites = [_attention(report, graph) for report in reports if report.kind == "attention"]
    fused = 0
    if sites:
        programs["ceiling"] = without_attention(programs["original"], sites)
        program, fused = with_fused_attention(programs["original"], sites, graph.shape)
        programs |= {"sdpa": program} if fused else {}
    name = path.stem
    return {
        "name": name,
        "programs": _written(folder, name, programs, dtype),
        "sites": _counts(done.models[0].sites),
        "fused": fused,
        "kept": sorted({report.reason for report in done.models[0].sites if report.rewrite is None}),
        **_data(folder, name, model, inputs),
    }


def _by_algorithms(
    folder: Path, path: Path, batch: int, dtype: Element, target: str, cache: Path | None
) -> dict[str, Any]:
    """Write one model's programs by each algorithm, inputs and reference, with drawn weights."""
    model = copy_of(read_model(path))
    drawn, maker, name = drawn_weights(model, _SEED), WeightMaker(), path.stem
    plain = copy_of(model)
    lower_for_parsers(plain)
    inputs = _inputs(path, plain, batch)
    findings, gpu = discover(model), load_target(target)
    files: dict[str, str] = {}

    def add(version: str, program: Program, reports: Sequence[SiteReport]) -> None:
        program = replace(program, recipes=with_recipes(program, drawn, reports, maker))
        files.update(_written(folder, name, {version: program}, dtype))

    add("original", translated(plain, batch), ())
    files["original, channels last"] = files["original"]
    versions, sites = {}, {}
    for own in written_versions(model, findings, gpu, dtype, cache or default_cache_dir()):
        sites = _counts(own.reports)
        kernels = {kernel.operator: kernel.compiled for report in own.reports for kernel in report.kernels}
        if own.same is None:
            writer = LaunchWriter(folder, own.model, kernels, batch)
            add(own.name, translated(own.model, batch, writer), own.reports)
        fields = {"layers": dict(own.layers), "predicted_us": own.predicted_us, "winograd": own.winograd}
        versions[own.name] = {**fields, "same": own.same}
    return {
        "name": name,
        "programs": files,
        "algorithms": versions,
        "bound_us": network_bound_us(findings, dtype, gpu),
        "sites": {kind: {"found": counts["found"], "rewritten": 0} for kind, counts in sites.items()},
        "fused": 0,
        "kept": [],
        **_data(folder, name, plain, inputs),
    }


def _inputs(path: Path, model: ModelProto, batch: int) -> list[dict[str, np.ndarray]]:
    """Sets of inputs; InputError for a model of another batch."""
    inputs = [draw_inputs(model, seed=_SEED + number, batch=batch) for number in range(_SETS)]
    sizes = {array.shape[:1] for array in inputs[0].values()}
    if sizes != {(batch,)}:
        raise InputError(f"{path}: has a fixed batch of {sorted(sizes)[0][0]}, not {batch}; give --batch its own")
    return inputs


def _counts(reports: Sequence[SiteReport]) -> dict[str, dict[str, int]]:
    """For each kind of site how many there are and how many were rewritten."""
    kinds: dict[str, dict[str, int]] = {}
    for report in reports:
        own = kinds.setdefault(report.kind, {"found": 0, "rewritten": 0})
        own["found"] += 1
        own["rewritten"] += report.rewrite is not None
    return kinds


def _attention(report: SiteReport, graph: Graph) -> Attention:
    """An attention that was rewritten, at the batch size of the view."""
    assert report.plugin is not None and isinstance(report.plugin.site, AttentionSite)
    site = report.plugin.site
    shapes = {name: _shape(graph, name) for name in (*site.inputs, site.output)}
    value = max((source.tensor for source in site.v.sources), key=lambda name: prod(shapes[name]))
    return Attention(site.node, site.inputs, site.output, shapes[site.output], value, shapes[value])


def _shape(graph: Graph, name: str) -> tuple[int, ...]:
    shape = graph.shape(name)
    if shape is None:
        raise InputError(f"tensor '{name}' has no static shape; its attention cannot be left out")
    return tuple(int(size) for size in shape)


def _written(folder: Path, name: str, programs: Mapping[str, Program], dtype: Element) -> dict[str, str]:
    files = {kind: f"{name}/{kind.replace(' ', '_')}.json" for kind in programs}
    for kind, program in programs.items():
        write_program(program, folder, files[kind], dtype)
    return files


def _data(folder: Path, name: str, model: ModelProto, inputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Inputs, and what ONNX Runtime makes of the first sets of them, in the precision of the model."""
    with opened(model, threads=2) as runner:
        found = [list(runner.run(own).values()) for own in inputs[:_CHECKED]]
    arrays = {f"input_{n}_{i}": array for n, own in enumerate(inputs) for i, array in enumerate(own.values())}
    arrays |= {f"output_{n}_{i}": array for n, own in enumerate(found) for i, array in enumerate(own)}
    file = f"{name}/data.npz"
    with (folder / file).open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    return {"data": file, "inputs": list(inputs[0]), "sets": len(inputs), "checked": len(found)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the job; prints what is in it."""
    parser = argparse.ArgumentParser(prog="whole_model_gpu_job", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="ONNX files")
    parser.add_argument("--algorithms", nargs="+", default=[], help="ONNX files to be measured by each algorithm")
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="fp16", choices=DTYPES, help="the host's type, and that of our kernels")
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--cache", help="folder for plans and compiled kernels")
    options = parser.parse_args(arguments)
    cache = Path(options.cache) if options.cache else None
    try:
        entries = build_job(
            Path(options.out),
            [Path(model) for model in options.models],
            algorithms=[Path(model) for model in options.algorithms],
            batch=options.batch,
            dtype=options.dtype,
            target=options.target,
            cache=cache,
        )
    except OnnxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for entry in entries:
        if "algorithms" not in entry:
            print(f"{entry['name']}: {rewritten(entry['sites'])}; {', '.join(entry['programs'])}")
            continue
        print(f"{entry['name']}: by {len(entry['algorithms'])} choices of algorithms")
        for name, own in entry["algorithms"].items():
            print(f"  {name}: {chosen(own)}")
    size = sum(file.stat().st_size for file in Path(options.out).rglob("*") if file.is_file())
    print(f"{options.out}: {size / (1 << 20):.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

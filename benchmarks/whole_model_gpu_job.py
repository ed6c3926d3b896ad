"""Makes the job that ``whole_model_gpu.py`` measures: whole models, as they are and with our kernels. Needs no GPU.

    python -m benchmarks.whole_model_gpu_job MODEL... --out FOLDER [--batch N] [--dtype fp16] [--target sm_90]

The folder then needs PyTorch, NumPy and cuda-bindings: ``python FOLDER/whole_model.py``. Operators that the host does
not have are refused here, by name.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

import onnxopt
from benchmarks.whole_model_gpu import JOB, JOB_SCHEMA
from benchmarks.whole_model_launches import LaunchWriter
from benchmarks.whole_model_program import Program, write_program
from benchmarks.whole_model_results import rewritten
from benchmarks.whole_model_translate import translated
from benchmarks.whole_model_variants import Attention, with_fused_attention, without_attention
from onnxopt.api import optimize
from onnxopt.decide import SiteReport
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.errors import InputError, OnnxOptError
from onnxopt.lower.compat import lower_for_parsers
from onnxopt.lower.rewrite import copy_of
from onnxopt.measure.job.build import carry_modules, check_new_folder
from onnxopt.model.graph import Graph, view
from onnxopt.model.read import read_model
from onnxopt.package import PLUGIN
from onnxopt.target.variant import Element
from onnxopt.verification.inputs import draw_inputs
from onnxopt.verification.sessions import opened

DTYPES: tuple[Element, ...] = ("fp16", "fp32")
# Sets of inputs, and how many of them are checked; all take turns when times are taken.
_SETS, _CHECKED = 4, 2
_SEED = 41
_CARRIED = ("gpu", "program", "operators", "backends", "windows", "kernels", "timing", "check", "results")
_ROOTS = (
    "onnxopt.errors",
    "onnxopt.measure.job.device",
    "onnxopt.verification.kernel_rule",
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
    batch: int = 1,
    dtype: Element = "fp16",
    target: str = "sm_90",
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """Write a job; the entries of its models. Raises InputError for a model that the host cannot run as it is."""
    if dtype not in DTYPES or batch < 1 or not models:
        raise InputError(f"{len(models)} models, batch {batch}, {dtype}; allowed: 1 or more, 1 or more, {DTYPES}")
    check_new_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".job.") as draft:
        place = Path(draft, "job")
        place.mkdir()
        entries = [_entry(place, path, batch, dtype, target, cache) for path in models]
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
    inputs = [draw_inputs(model, seed=_SEED + number, batch=batch) for number in range(_SETS)]
    sizes = {array.shape[:1] for array in inputs[0].values()}
    if sizes != {(batch,)}:
        raise InputError(f"{path}: has a fixed batch of {sorted(sizes)[0][0]}, not {batch}; give --batch its own")
    programs = {"original": translated(model, batch)}
    with tempfile.TemporaryDirectory() as scratch:
        done = optimize(
            path, Path(scratch, "package"), target=target, form="plugin", dtype=dtype, measure=False, verify=False,
            cache=cache,
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
    files = {kind: f"{name}/{kind}.json" for kind in programs}
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
    parser.add_argument("models", nargs="+", help="ONNX files")
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
            batch=options.batch,
            dtype=options.dtype,
            target=options.target,
            cache=cache,
        )
    except OnnxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for entry in entries:
        print(f"{entry['name']}: {rewritten(entry['sites'])}; {', '.join(entry['programs'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

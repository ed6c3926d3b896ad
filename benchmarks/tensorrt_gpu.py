"""Engines of TensorRT on this machine's GPU: original models beside their packages, in each way that there is here.

    python -m benchmarks.tensorrt_gpu MODEL... --dtype fp16 --out engines.jsonl

Every model is optimised for this GPU, and all engines are built with the same options: of the original, converted to
the same type; of the package with the kernels inside, with the launcher library where one is found, and in standard
operators. Latencies are those of a CUDA graph by the GPU's clock; outputs are compared with the original in ONNX
Runtime before a time is believed. Needs TensorRT 10.9 to 11.x.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from onnxopt.api import build, optimize
from onnxopt.deploy.launcher import find_launcher
from onnxopt.deploy.runner import run_engine, run_package
from onnxopt.deploy.runner_compare import compare_run
from onnxopt.deploy.tensorrt import TensorrtOptions, Way
from onnxopt.deploy.tensorrt_machine import Machine, check_machine
from onnxopt.errors import MissingError, OnnxOptError
from onnxopt.model.convert import convert
from onnxopt.model.read import read_model
from onnxopt.model.write import write_model
from onnxopt.verification.inputs import draw_inputs

Precision = Literal["fp16", "bf16", "fp32"]


def measured(model: Path, dtype: Precision, machine: Machine, ways: Sequence[Way], iterations: int) -> dict[str, Any]:
    """One model: milliseconds of the original and of each way, with the ratio and what is wrong, if anything is."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-engines-") as place:
        folder = Path(place)
        proto = read_model(model)
        inputs = folder / "inputs.npz"
        drawn: dict[str, Any] = dict(draw_inputs(proto, seed=1, batch=1))
        np.savez(inputs, **drawn)
        plain = folder / "original.onnx"
        write_model(proto if dtype == "fp32" else convert(proto, dtype), plain)
        build(plain, engine="tensorrt", out=folder / "original.engine", options=TensorrtOptions())
        latency, _ = run_engine(folder / "original.engine", inputs, iterations=iterations)
        found: dict[str, Any] = {"original": {"latency": latency}}
        package = folder / "package"
        optimize(model, package, target=machine.device.architecture, form="both", dtype=dtype)
        for way in ways:
            found[way] = _way(package, way, model, inputs, iterations)
    return {"model": model.name, "dtype": dtype, "engines": found}


def _way(package: Path, way: Way, original: Path, inputs: Path, iterations: int) -> dict[str, Any]:
    """An engine of a package; one way that fails says so and leaves the others their turn."""
    try:
        build(package, engine="tensorrt", options=TensorrtOptions(way=way))
        done = run_package(package, inputs, iterations=iterations)
        compared = compare_run(package, original, inputs, done.outputs, done.built)
    except OnnxOptError as error:
        return {"problem": str(error)}
    agrees = {} if compared.passed else {"problem": compared.explain()}
    return {"latency": dict(done.latency), "notes": list(done.notes), **agrees}


def shown(result: Mapping[str, Any]) -> list[str]:
    """A model's engines as lines of text; a ratio above 1 means that ours is faster."""
    engines = result["engines"]
    original = engines["original"]["latency"]["p50_ms"]
    lines = [f"{result['model']} in {result['dtype']}: original {original:.3f} ms (median)"]
    for way, found in engines.items():
        if way == "original":
            continue
        if "problem" in found:
            lines.append(f"  {way}: FAILED: {found['problem']}")
            continue
        ratio = original / found["latency"]["p50_ms"]
        slower = "" if ratio >= 1 else "  SLOWER"
        lines.append(f"  {way}: {found['latency']['p50_ms']:.3f} ms, ratio {ratio:.2f}{slower}")
    return lines


def _machine_facts(machine: Machine) -> dict[str, Any]:
    fields = "clocks.sm,clocks.mem,driver_version"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        answer = ""
    values = [value.strip() for value in (answer.splitlines() or [""])[0].split(",")]
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "gpu": machine.device.name,
        "tensorrt": machine.version,
        **dict(zip(fields.split(","), values, strict=False)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the models; 1 where an engine failed or differs, 4 where TensorRT or a GPU is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--dtype", choices=get_args(Precision), default="fp16")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        machine = check_machine()
    except MissingError as error:
        print(f"not measured: {error}", file=sys.stderr)
        return error.exit_code
    ways: tuple[Way, ...] = ("aot", "portable") if find_launcher().path is None else ("aot", "launcher", "portable")
    failed = False
    for model in options.models:
        result = measured(model, options.dtype, machine, ways, options.iterations) | _machine_facts(machine)
        print("\n".join(shown(result)), flush=True)
        failed = failed or any("problem" in engine for engine in result["engines"].values())
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(result) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

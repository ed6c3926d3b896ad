"""A stand-in for trtexec: reads its options, prints its log and writes its JSON files, with numbers drawn by a seed.

``behaviour.json`` beside the script that starts it says which version it is, what it measures for each file, and how
it fails. Python's standard library alone, so that it starts at once.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_FLAGS = ("stronglyTyped", "useCudaGraph", "useSpinWait", "noDataTransfers", "dumpProfile", "separateProfileRun")
_VALUES = (
    *("onnx", "loadEngine", "saveEngine", "staticPlugins", "profilingVerbosity", "timingCacheFile", "warmUp"),
    *("duration", "iterations", "avgRuns", "percentile", "shapes", "minShapes", "optShapes", "maxShapes"),
    *("exportTimes", "exportProfile", "exportLayerInfo"),
)
_NO_OPS = ("stronglyTyped", "useCudaGraph", "useSpinWait", "noDataTransfers", "separateProfileRun")
_STAMP = "[11/21/2026-10:00:00]"


def main(arguments: list[str], behaviour: dict[str, Any]) -> int:
    """Run as trtexec would with these arguments; returns the exit code."""
    major, minor, patch = behaviour["version"]
    name = f"TensorRT.trtexec [TensorRT v{major * 10000 + minor * 100 + patch}] [b31] # {' '.join(arguments)}"
    print(f"&&&& RUNNING {name}")
    options = _options(arguments)
    if options is None:
        return 1
    if major >= 11:
        for flag in (flag for flag in _NO_OPS if flag in options):
            _say("W", f"--{flag} is deprecated.")
    _say("I", "=== Model Options ===")
    _say("I", f"Selected Device: {behaviour['device']}")
    _say("I", f"TensorRT version: {major}.{minor}.{patch}")
    file = Path(options.get("onnx") or options["loadEngine"])
    plan = behaviour["files"][file.name]
    if failure := behaviour.get("fails", {}).get(file.name):
        return _fail(failure, name)
    _export_layers(options, plan, behaviour.get("names_only", False))
    compute = _draw(plan, int(options["iterations"]))
    print(_summary(options, compute, behaviour, plan), end="")
    _export_times(options, compute, behaviour)
    _export_profile(options, plan)
    if "saveEngine" in options:
        Path(options["saveEngine"]).write_bytes(b"engine")
    print(f"&&&& {behaviour.get('result', 'PASSED')} {name}")
    return 0


def _options(arguments: list[str]) -> dict[str, str] | None:
    options = {}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in (_VALUES if value else _FLAGS):
            print("=== Model Options ===")
            _say("E", f"Unknown option: --{name} {value}")
            return None
        options[name] = value
    return options


def _fail(failure: str, name: str) -> int:
    if failure == "hang":
        # Its child lives on where only the parent is killed.
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *sys.argv])
        time.sleep(600)
    if failure == "flood":
        while True:
            print("x" * 4096)
    if failure == "crash":
        import os
        import signal

        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    _say("E", "[TRT] ModelImporter.cpp:948: ERROR: ModelImporter.cpp:195 In function parseNode:")
    _say("E", f"[TRT] {failure}")
    _say("E", "Engine set up failed")
    print(f"&&&& FAILED {name}")
    return 1


def _draw(plan: dict[str, Any], count: int) -> list[float]:
    """GPU times in ms around a mean, with the six digits that are printed."""
    numbers = random.Random(plan["seed"])
    return [float(f"{plan['mean'] * numbers.uniform(0.9, 1.1):.6g}") for _ in range(count)]


def _summary(options: dict[str, str], compute: list[float], behaviour: dict[str, Any], plan: dict[str, Any]) -> str:
    percentiles = [float(part) for part in options.get("percentile", "90,95,99").split(",")]
    total = sum(compute) / 1000
    wall = total * 1.05
    lines = [
        "",
        "=== Performance summary ===",
        f"Throughput: {len(compute) / wall:g} qps",
        f"Latency: {spread(compute, percentiles)}",
        f"Enqueue Time: {spread([value / 8 for value in compute], percentiles)}",
        f"H2D Latency: {spread([0.0] * len(compute), percentiles)}",
        f"GPU Compute Time: {spread(compute, percentiles)}",
        f"D2H Latency: {spread([0.0] * len(compute), percentiles)}",
        f"Total Host Walltime: {wall:g} s",
        f"Total GPU Compute Time: {total:g} s",
        "Explanations of the performance metrics are printed in the verbose logs.",
        "",
    ]
    for old, new in behaviour.get("replace", {}).items():
        lines = [line.replace(old, new) for line in lines]
    if "warning" in plan:
        lines.insert(-2, f"{_STAMP} [W] {plan['warning']}")
    return "".join(line + "\n" if line.startswith("[") else f"{_STAMP} [I] {line}\n" for line in lines)


def spread(values: list[float], percentiles: list[float]) -> str:
    """A line of the summary; percentiles as ``findPercentile`` takes them from the sorted values."""
    ordered = sorted(values)
    text = f"min = {ordered[0]:g} ms, max = {ordered[-1]:g} ms, mean = {statistics.fmean(ordered):g} ms, "
    text += f"median = {statistics.median(ordered):g} ms"
    for percent in percentiles:
        excluded = int(round((1 - percent / 100) * len(ordered), 6))
        text += f", percentile({percent:g}%) = {ordered[max(len(ordered) - 1 - excluded, 0)]:g} ms"
    return text


def _export_times(options: dict[str, str], compute: list[float], behaviour: dict[str, Any]) -> None:
    if "exportTimes" not in options:
        return
    text, separator, start = "[\n", "  ", 0.0
    for value in compute:
        shown = value * behaviour.get("trace_factor", 1.0)
        end = start + value
        fields = {"startEnqMs": start, "endEnqMs": start + value / 8, "startH2dMs": start, "endH2dMs": start}
        fields |= {"startComputeMs": start, "endComputeMs": end, "startD2hMs": end, "endD2hMs": end}
        fields |= {"h2dMs": 0.0, "computeMs": shown, "d2hMs": 0.0, "latencyMs": shown}
        text += separator + "{ " + ", ".join(f'"{key}" : {number:g}' for key, number in fields.items()) + " }\n"
        separator, start = ", ", end
    Path(options["exportTimes"]).write_text(text + "]\n")


def _export_profile(options: dict[str, str], plan: dict[str, Any]) -> None:
    total = sum(layer["ms"] for layer in plan["layers"])
    text = '[\n  { "count" : 50 }\n'
    for layer in plan["layers"]:
        share = f"{layer['ms'] / total * 100:g}" if total else "-nan"
        text += f', {{ "name" : "{layer["name"]}", "timeMs" : {layer["ms"] * 50:g}, "averageMs" : {layer["ms"]:g}'
        text += f', "medianMs" : {layer["ms"]:g}, "percentage" : {share} }}\n'
    Path(options["exportProfile"]).write_text(text + "]\n")


def _export_layers(options: dict[str, str], plan: dict[str, Any], names_only: bool) -> None:
    detailed = options.get("profilingVerbosity") == "detailed" and not names_only
    layers: list[Any] = [
        {"Name": layer["name"], "LayerType": "Any", "Metadata": layer.get("metadata", "")}
        if detailed
        else layer["name"]
        for layer in plan["layers"]
    ]
    Path(options["exportLayerInfo"]).write_text(json.dumps({"Layers": layers, "Bindings": ["x", "y"]}))


def _say(severity: str, text: str) -> None:
    print(f"{_STAMP} [{severity}] {text}", file=sys.stdout if severity in "IV" else sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], json.loads(Path(sys.argv[1]).read_text())))

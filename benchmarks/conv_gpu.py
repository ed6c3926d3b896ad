"""Our convolution kernels beside PyTorch's on a GPU, layer by layer, in one run.

    python FOLDER/conv_gpu.py [--out FILE] [--only TEXT] [--seconds N] [--dry-run]

FOLDER is made by ``benchmarks.conv_gpu_job``. Every layer is computed by our kernels, compared with float64 on poisoned
outputs (of large ones a sample), and timed: the median over replays of a CUDA graph with the L2 cache warm (one set of
operands) and cold (sets that exceed the cache in turn); then by PyTorch, with cuDNN's benchmark on, in both layouts:
dense, with zeros where channels are not connected, grouped, and split into one convolution for each group. Results are
JSON lines, whose records of layers `onnxopt profile --import` reads; layers that FILE has are not measured again.
``--dry-run`` does all but timing on a CPU with the smallest layers. Whole networks: ``benchmarks.whole_model_gpu_job``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.conv_gpu_layers import Layer, Layers, read_layers
from benchmarks.conv_gpu_peers import PYTORCH, Convolution, of_layer, of_tables, peers
from benchmarks.conv_gpu_results import shown, summary
from benchmarks.conv_gpu_timing import benchmarking, cold_sets, operand_sets, peer_times
from onnxopt.errors import OnnxOptError
from onnxopt.measure.job.content import Entry, Job, read_job
from onnxopt.measure.job.device import Device
from onnxopt.measure.job.runner import multiprocessor_clock, open_device, run_entry

_SEED = 3
# Of hundreds of layers; what the reference computes of each takes less than a second.
_WORK = 500_000
# What a CPU emulates in seconds.
_DRY_LAYERS, _DRY_PRODUCTS = 4, 3_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the layers of a job; 0 if all of ours agreed with float64, 4 where there is no GPU."""
    options = _parser().parse_args(arguments)
    try:
        folder = Path(options.folder)
        job, layers = read_job(folder), read_layers(folder)
        device = open_device(options.dry_run, options.cache)
        return _run(job, layers, device, _torch(), options)
    except OnnxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="conv_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="a job folder")
    parser.add_argument("--out", help="file for the results, one JSON object a line; goes on where it ends")
    parser.add_argument("--only", default="", help="layers whose name contains this text")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin no layer after this time")
    parser.add_argument("--dry-run", action="store_true", help="the smallest layers on the CPU, no times")
    parser.add_argument("--cache", help="folder for what the dry run compiles")
    return parser


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        print("PyTorch is not here: no peers", file=sys.stderr)
        return None
    return torch


def _run(job: Job, layers: Layers, device: Device, torch: Any, options: argparse.Namespace) -> int:
    dry, end = options.dry_run, time.monotonic() + options.seconds
    out = Path(options.out) if options.out else None
    results: dict[str, dict[str, Any]] = {}
    if out is not None and out.is_file():
        results = {result["id"]: result for result in map(json.loads, out.read_text().splitlines())}
    wanted = [layer for layer in layers.layers if options.only in layer.id]
    chosen = _smallest(wanted, job) if dry else wanted
    for layer in chosen:
        if layer.id in results or time.monotonic() > end:
            continue
        results[layer.id] = measure(job, layer, layers.element, device, torch, dry)
        device.release()
        print(shown(results[layer.id]), flush=True)
        if out is not None:
            out.write_text("".join(json.dumps(result) + "\n" for result in results.values()))
    done = [results[layer.id] for layer in chosen if layer.id in results]
    print("\n".join(summary(wanted, results)))
    failed = [way["id"] for result in done for way in result["ours"].values() if not way["passed"]]
    left = len(wanted) - len(done)
    print(
        f"{len(done)} layers, {left} left; " + (f"FAILED: {', '.join(failed)}" if failed else "all agree with float64")
    )
    return 0 if done and not failed else 1


def _smallest(layers: Sequence[Layer], job: Job) -> list[Layer]:
    """The layers that a dry run computes: few, and small ones."""
    entries = {entry.id: entry for entry in job.entries}

    def products(layer: Layer) -> int:
        kernel = entries[next(iter(layer.ways.values()))].kernel
        shape = kernel.get("layer", kernel)
        return layer.connections * int(prod(shape["kernel"]) * prod(shape["output_size"]))

    small = [layer for layer in layers if products(layer) <= _DRY_PRODUCTS]
    return sorted(small, key=products)[:_DRY_LAYERS]


def measure(job: Job, layer: Layer, element: str, device: Device, torch: Any, dry: bool) -> dict[str, Any]:
    """One layer: our ways to compute it checked and timed, then the peers."""
    numbers = {entry.id: number for number, entry in enumerate(job.entries)}
    result: dict[str, Any] = {
        "id": layer.id,
        "connections": layer.connections,
        "bound_us": layer.bound_us,
        "ours": {},
        "peers": {},
        "no_peers": "",
        "layers": [],
        "device": device.describe(),
        "versions": dict(job.versions),
    }
    for way, name in layer.ways.items():
        own = run_entry(job, numbers[name], device, dry, _WORK)
        device.release()
        result["layers"] += own.pop("layers", [])
        result["ours"][way] = {key: value for key, value in own.items() if key not in ("device", "versions")}
    result["passed"] = all(own["passed"] for own in result["ours"].values())
    if torch is None:
        return {**result, "no_peers": "PyTorch is not here"}
    first = job.entries[numbers[next(iter(layer.ways.values()))]]
    conv = of_layer(layer.geometry, _SEED) if layer.geometry is not None else _of_entry(job, first)
    if isinstance(conv, str):
        return {**result, "no_peers": conv}
    layouts = _measure_peers(torch, conv, first.batch, element, result, dry)
    result["versions"] |= {"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())}
    if layer.record is not None:
        result["layers"] += [_kept(layer.record, layout, us, result) for layout, us in layouts.items()]
    return result


def _of_entry(job: Job, entry: Entry) -> Convolution | str:
    return of_tables(entry.kernel, entry.second_kernel, job.tables(entry))


def _measure_peers(
    torch: Any, conv: Convolution, batch: int, element: str, result: dict[str, Any], dry: bool
) -> dict[str, float]:
    """Fill in the peers; the fastest cold time of each layout."""
    place = "cpu" if dry else "cuda"
    sets = 1 if dry else cold_sets(conv, batch, element, int(result["device"]["l2_bytes"]))
    operands = operand_sets(torch, conv, batch, sets, place)
    fastest: dict[str, float] = {}
    with torch.inference_mode(), benchmarking(torch, element):
        for name, layout, make in peers(torch, conv, element):
            try:
                if dry:
                    make(*operands[0])()
                    result["peers"][name] = None
                    continue
                times = peer_times(torch, make, operands)
            except (RuntimeError, ValueError, TypeError) as error:
                # A library that has no kernel for a layer says so with one of these.
                result["peers"][name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                continue
            result["peers"][name] = times
            if name != PYTORCH:
                us = times["cold_us"]["median_us"]
                fastest[layout] = min(us, fastest.get(layout, us))
    return fastest


def _kept(record: Mapping[str, Any], layout: str, microseconds: float, result: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record of the library's own convolution."""
    facts, versions = result["device"], result["versions"]
    return {
        **record,
        "algorithm": "keep",
        "layout": layout,
        "gpu": facts["gpu"],
        "driver": facts["cuda_driver"],
        "host": f"PyTorch {versions['torch']}, cuDNN {versions['cudnn']}",
        "nvrtc": "none",
        "source": "none",
        "microseconds": microseconds,
        "clock_hz": multiprocessor_clock() or facts["largest_clock_hz"],
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    sys.exit(main())

"""Our attention kernels beside PyTorch's on a GPU, in one run on the same operands.

    python attention_gpu.py JOB [--out FILE] [--dry-run] [--only TEXT]

``JOB`` is a folder made by ``onnxopt profile --job``; of it the entries that are sites of models are measured. Printed
are the time of one launch (median over replays of a CUDA graph, with the middle half), useful TFLOP/s (needed pairs
only), the share of the physical bound, and every peer's time over ours. Peers get contiguous operands and no bias.
Operands are random; ours is also timed with operand sets that exceed the L2 cache ("cold"). ``--dry-run`` runs all on a
CPU, so that the script is known to work before a GPU is there; it gives no times.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

_CALLS = 20
_REPLAYS = 20
_SEED = 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every site of a job; 0 if all of ours agreed with float64."""
    parser = argparse.ArgumentParser(prog="attention_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", help="a job folder")
    parser.add_argument("--out", help="file for the results, one JSON object a line")
    parser.add_argument("--dry-run", action="store_true", help="everything on the CPU, no times")
    parser.add_argument("--only", default="", help="entries whose id contains this text")
    options = parser.parse_args(arguments)
    # The job folder brings the modules of onnxopt that this needs, except those for running PTX on the CPU.
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here.parent if options.dry_run else options.job), str(here)]
    from onnxopt.measure.job.content import read_job

    job = read_job(Path(options.job))
    torch = _torch()
    entries = [entry for entry in job.entries if entry.purpose == "site" and options.only in entry.id]
    lines, passed = [], True
    for entry in entries:
        result = measure(job, entry, torch, options.dry_run)
        passed = passed and result["passed"]
        lines.append(json.dumps(result))
        print(shown(result), flush=True)
        if options.out:
            Path(options.out).write_text("\n".join(lines) + "\n")
    print(f"{len(entries)} sites; " + ("all agreed with float64" if passed else "SOME DID NOT AGREE WITH FLOAT64"))
    return 0 if passed and entries else 1


def _torch() -> Any:
    try:
        import torch
        import torch.nn.attention
    except ImportError:
        print("PyTorch is not here: no peers", file=sys.stderr)
        return None
    return torch


def measure(job: Any, entry: Any, torch: Any, dry_run: bool) -> dict[str, Any]:
    """One site: ours checked and timed, then the peers on the same operands."""
    from attention_gpu_peers import logical, peers

    from onnxopt.measure.job.runner import open_device, run_entry
    from onnxopt.verification.kernel_rule import draw_operands

    device = open_device(dry_run, None)
    result = run_entry(job, job.entries.index(entry), device, dry_run)
    result["flops"] = 2 * (entry.kernel["width"] + entry.kernel["value_width"]) * entry.needed * entry.batch
    result["peers"], result["no_peers"] = {}, ""
    work = logical(entry.kernel, job.tables(entry)) if torch is not None else "PyTorch is not here"
    if isinstance(work, str):
        result["no_peers"] = work
        return result
    operands = draw_operands(entry.kernel, entry.batch, _SEED)
    place = "cpu" if dry_run else "cuda"
    for name, call in peers(torch, work, operands, entry.kernel, place):
        try:
            result["peers"][name] = call_once(call) if dry_run else graph_microseconds(torch, call)
        except (RuntimeError, ValueError, TypeError) as error:
            # A backend that takes no such mask, size or type says so with one of these.
            result["peers"][name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    result["peer_bias"] = "left out" if work.biased else "none"
    result["versions"] = {**result["versions"], "torch": torch.__version__}
    return result


def call_once(call: Callable[[], Any]) -> None:
    """Run a peer without timing it."""
    call()


def graph_microseconds(torch: Any, call: Callable[[], Any]) -> float:
    """The median time of one call, from replays of a CUDA graph of several."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            call()
    times = []
    for replay in range(-3, _REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if replay >= 0:
            times.append(1000.0 * start.elapsed_time(end) / _CALLS)
    return median(times)


def shown(result: dict[str, Any]) -> str:
    """A site as a few lines of text."""
    if not result["passed"]:
        return f"{result['id']}: FAILED: {result['problem']}"
    lines = [f"{result['id']}: {result['needed']:,} pairs needed, {result['computed']:,} computed"]
    ours = (result.get("warm_us") or {}).get("median_us")
    for kind in ("warm", "cold"):
        timing = result.get(f"{kind}_us")
        if timing:
            us = timing["median_us"]
            rate, share = result["flops"] / us / 1e6, result["bound_us"] / us
            lines.append(f"  ours, {kind}: {us:.2f} us, {rate:.0f} useful TFLOP/s, {share:.0%} of the bound")
    for name, value in result["peers"].items():
        if isinstance(value, float) and ours:
            lines.append(f"  {name}: {value:.2f} us, {value / ours:.2f} times ours")
        else:
            lines.append(f"  {name}: {'ran, not timed' if value is None else value}")
    return "\n".join(lines + ([f"  no peers: {result['no_peers']}"] if result["no_peers"] else []))


if __name__ == "__main__":
    sys.exit(main())

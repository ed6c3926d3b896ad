"""What runs on the machine with the GPU: every entry of a job checked, then timed, in a process apart.

    python FOLDER/run.py [--out FILE] [--dry-run] [--only TEXT] [--seconds N] [--sanitizer PROGRAM]

A kernel that faults ends that process, and another one goes on behind it. Results are JSON lines, one an entry; the
last line of the output says how many passed, failed and were left out. ``--dry-run`` runs the PTX on the CPU instead.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from onnxopt.errors import MissingError, OnnxOptError
from onnxopt.measure.job.check import check_entry
from onnxopt.measure.job.content import Entry, Job, read_job
from onnxopt.measure.job.device import Device, DeviceError, Gpu
from onnxopt.measure.job.timing import tile_microseconds, time_entry

# Scores, or as much other work, that the reference computes for an entry: seconds on one core of a server, and of a dry
# run on a laptop.
_WORK_ON_GPU = 4_000_000
_WORK_DRY = 30_000
_ENTRY_SECONDS = 120
_SEED = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job; 0 if every entry passed, 1 if one did not, 4 where there is no GPU."""
    options = _parser().parse_args(arguments)
    # What the process keeps for itself goes with it then, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        job = read_job(Path(options.folder))
        if options.entries is not None:
            device = open_device(options.dry_run, options.cache)
            for number in map(int, options.entries.split(",")):
                print(json.dumps(run_entry(job, number, device, options.dry_run)), flush=True)
                device.release()
            return 0
        return _run_all(job, options)
    except KeyboardInterrupt:
        kept = f"; results so far are in {options.out}" if options.out else ""
        print(f"interrupted{kept}", file=sys.stderr)
        return 128 + signal.SIGINT
    except OnnxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runner", description="Check and time the kernels of a job folder.")
    parser.add_argument("folder", help="a job folder")
    parser.add_argument("--out", help="file for the results, one JSON object a line")
    parser.add_argument("--dry-run", action="store_true", help="run the PTX on the CPU; no times")
    parser.add_argument("--only", default="", help="entries whose id contains this text")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin no entry after this time")
    parser.add_argument("--cache", help="folder for what the dry run compiles")
    parser.add_argument("--sanitizer", help="program that watches every kernel, for example compute-sanitizer")
    parser.add_argument("--entries", help=argparse.SUPPRESS)
    return parser


def _run_all(job: Job, options: argparse.Namespace) -> int:
    open_device(options.dry_run, options.cache)
    end, lines = time.monotonic() + options.seconds, []
    waiting = [number for number, entry in enumerate(job.entries) if options.only in entry.id]
    counts = {"passed": 0, "failed": 0}
    while waiting and time.monotonic() < end:
        for result in _in_child(job, tuple(waiting), options, end):
            waiting.pop(0)
            counts["passed" if result["passed"] else "failed"] += 1
            lines.append(json.dumps(result))
            print(_line(result), flush=True)
            if options.out:
                Path(options.out).write_text("\n".join(lines) + "\n")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {len(waiting)} left out")
    return 0 if not counts["failed"] and counts["passed"] else 1


def _in_child(job: Job, numbers: Sequence[int], options: argparse.Namespace, end: float) -> Iterator[dict[str, Any]]:
    """Results of entries from one process, until it has done all, time is up, or an entry ended it."""
    command = [sys.executable, "-m", "onnxopt.measure.job.runner", options.folder]
    command += ["--entries", ",".join(map(str, numbers))]
    command += ["--dry-run"] if options.dry_run else []
    command += ["--cache", options.cache] if options.cache else []
    if options.sanitizer:
        command = [options.sanitizer, "--error-exitcode", "9", *command]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as child:
        said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # Both pipes are read all the time, so that neither fills up and stops the child.
        complaints: list[str] = []
        readers = [
            threading.Thread(target=_forward, args=(child.stdout, said), daemon=True),
            threading.Thread(target=lambda: complaints.extend(child.stderr or ()), daemon=True),
        ]
        for reader in readers:
            reader.start()
        for number in numbers:
            if time.monotonic() > end:
                break
            line = _next_result(said)
            if line is None:
                child.kill()
                child.wait()
                readers[1].join(1)
                yield {"id": job.entries[number].id, "passed": False, "problem": _end_of(child.returncode, complaints)}
                break
            result: dict[str, Any] = json.loads(line)
            yield result
        else:
            if options.sanitizer and child.wait() != 0:
                raise DeviceError(f"{options.sanitizer} found errors; what it says stands above")
        child.kill()


def _forward(stream: IO[str] | None, lines: queue.SimpleQueue[str | None]) -> None:
    """Every result that a child prints, then None; what a sanitizer prints between them goes to the terminal."""
    for line in stream or ():
        if line.startswith("{"):
            lines.put(line)
        else:
            sys.stderr.write(line)
    lines.put(None)


def _next_result(lines: queue.SimpleQueue[str | None]) -> str | None:
    """The next result; None where the child ended or said nothing for too long."""
    try:
        return lines.get(timeout=_ENTRY_SECONDS)
    except queue.Empty:
        return None


def _end_of(code: int, complaints: Sequence[str]) -> str:
    last = (complaints or ["nothing was said"])[-1].strip()
    return f"its process ended with {code} or said nothing for {_ENTRY_SECONDS} s: {last}"


def _environment() -> dict[str, str]:
    """The environment in which a child finds the same modules as this process."""
    root = str(Path(__file__).resolve().parents[3])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


def run_entry(job: Job, number: int, device: Device, dry_run: bool, work: int = _WORK_ON_GPU) -> dict[str, Any]:
    """Check one entry, and time it where that says something; the fields of a result.

    ``work`` is how much the reference computes of it on a GPU.
    """
    entry = job.entries[number]
    judgements = check_entry(job, entry, device, _SEED, _WORK_DRY if dry_run else work)
    result: dict[str, Any] = {
        "id": entry.id,
        "passed": all(judgement.passed for judgement in judgements),
        "outputs": [judgement.to_json() for judgement in judgements],
        "needed": entry.needed,
        "computed": entry.computed,
        "predicted_us": entry.predicted_us,
        "bound_us": entry.bound_us,
        "batch": entry.batch,
        "device": device.describe(),
        "versions": dict(job.versions),
    }
    failed = [judgement.explain() for judgement in judgements if not judgement.passed]
    if failed:
        result["problem"] = failed[0]
    elif entry.purpose == "tile":
        result["tile_us"] = tile_microseconds(job, entry, device, _SEED)
        if result["tile_us"] is not None and entry.record is not None:
            result["record"] = _record(entry, result, result["tile_us"])
    else:
        for kind, cold in (("cold", True), ("warm", False)):
            timing = time_entry(job, entry, device, _SEED, cold=cold)
            result[f"{kind}_us"] = None if timing is None else vars(timing)
        if result["cold_us"] is not None and entry.record is not None:
            # In a network other layers have used the cache since the last run of this one.
            record = _record(entry, result, result["cold_us"]["median_us"])
            result["layers"] = [{**record, "host": f"onnxopt {job.versions['onnxopt']}"}]
    return result


def _record(entry: Entry, result: dict[str, Any], microseconds: float) -> dict[str, Any]:
    """A tuning record's fields; its clock is the one that ``nvidia-smi`` reads under load, else the largest."""
    facts = result["device"]
    return {
        **(entry.record or {}),
        "gpu": facts["gpu"],
        "driver": facts["cuda_driver"],
        "microseconds": microseconds,
        "clock_hz": multiprocessor_clock() or facts["largest_clock_hz"],
        "date": datetime.date.today().isoformat(),
    }


def multiprocessor_clock() -> float | None:
    """The clock of the first GPU's multiprocessors in Hz, None where ``nvidia-smi`` does not say."""
    command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return 1e6 * float(done.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def open_device(dry_run: bool, cache: str | None) -> Device:
    """The GPU of this machine or, for a dry run, the CPU runner of PTX."""
    if not dry_run:
        return Gpu()
    try:
        from onnxopt.measure.job.emulated import Emulated
    except ModuleNotFoundError:
        # A job folder carries neither the CPU runner nor what it needs.
        raise MissingError(
            "a dry run needs onnxopt itself: run `python -m onnxopt.measure.job.runner FOLDER --dry-run` where it is "
            "installed, from outside of the folder"
        ) from None

    return Emulated(Path(cache) if cache else None)


def _line(result: dict[str, Any]) -> str:
    """One entry on one line of a terminal."""
    if not result["passed"]:
        return f"FAILED  {result['id']}: {result['problem']}"
    worst = max(output["max_error"] / (output["max_bound"] or 1.0) for output in result["outputs"])
    parts = [f"passed  {result['id']}: error {worst:.2f} of what is allowed"]
    if result.get("tile_us") is not None:
        parts.append(f"tile {result['tile_us']:.3f} us (predicted {result['predicted_us']:.3f})")
    timed = {kind: result.get(f"{kind}_us") for kind in ("cold", "warm")}
    parts += [f"{kind} {timing['median_us']:.2f} us" for kind, timing in timed.items() if timing]
    if result.get("cold_us"):
        share = result["bound_us"] / result["cold_us"]["median_us"]
        parts.append(f"{share:.0%} of the bound (predicted {result['predicted_us']:.2f} us)")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())

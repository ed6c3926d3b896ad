"""How what `onnxopt profile` measured becomes tuning records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.model.files import read_file
from onnxopt.target.layer_records import LayerRecord, add_layers, parse_layer_record
from onnxopt.target.tile_records import TileRecord, parse_tile_record
from onnxopt.target.tile_store import add_records, import_lines

_MOST_RESULT_BYTES = 64 << 20
_RUN_SECONDS = 1800


def records_in(results: Path) -> tuple[tuple[TileRecord, ...], list[tuple[int, str]]]:
    """The tuning records in a job's results, and the lines that hold a record which cannot be used, with the reason.

    Raises InputError where the file does not exist or is no file of results.
    """
    records, problems = [], []
    for number, line in enumerate(read_file(results, _MOST_RESULT_BYTES).splitlines(), start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(
                f"{results}, line {number}: no JSON; name a file that a job's runner has written"
            ) from None
        record = entry.get("record") if isinstance(entry, dict) else None
        if record is None:
            continue
        try:
            records.append(parse_tile_record(json.dumps(record).encode()))
        except ValueError as error:
            problems.append((number, str(error)))
    return tuple(records), problems


def layers_in(results: Path) -> tuple[tuple[LayerRecord, ...], list[tuple[int, str]]]:
    """The records of layers in a job's results, several a line, and the lines with one that cannot be used, as above.

    Raises as :func:`records_in`, which read the file before.
    """
    records, problems = [], []
    for number, line in enumerate(read_file(results, _MOST_RESULT_BYTES).splitlines(), start=1):
        entry = json.loads(line)
        layers = entry.get("layers") if isinstance(entry, dict) else None
        for layer in layers if isinstance(layers, list) else ():
            try:
                records.append(parse_layer_record(json.dumps(layer).encode()))
            except ValueError as error:
                problems.append((number, str(error)))
    return tuple(records), problems


def import_results(store: Path, file: Path) -> tuple[int, list[tuple[int, str]]]:
    """Add what a file of a job's results, or of exported records, holds; how many, and the lines not used with reasons.

    Raises InputError where the file cannot be read or holds no record.
    """
    records, problems = records_in(file)
    layers, further = layers_in(file)
    problems += further
    count = (add_records(store, records) if records else 0) + (add_layers(store, layers) if layers else 0)
    if not count and _is_results(file):
        said = f"; line {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise InputError(
            f"{file}: these results of a job hold no times of tiles or layers{said}; a dry run and sites of models "
            "have none"
        )
    if not count:
        count, problems = import_lines(store, file)
    if not count:
        said = f"; line {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise InputError(f"{file}: no tuning record that can be used{said}; name the results of a job, or an export")
    return count, problems


def _is_results(file: Path) -> bool:
    """Whether a file's first line is a job's result rather than a record."""
    first = read_file(file, _MOST_RESULT_BYTES).split(b"\n", 1)[0]
    return bool(first.strip()) and "passed" in json.loads(first)


def run_job(folder: Path, results: Path, device: int = 0) -> int:
    """Run a job on a GPU of this machine in a process of its own; its exit code. Its lines go to standard error."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(device)} if device else dict(os.environ)
    command = [sys.executable, str(folder / "run.py"), "--out", str(results), "--seconds", str(_RUN_SECONDS)]
    return subprocess.run(command, stdout=sys.stderr, env=environment, check=False).returncode

"""Makes the job that ``conv_gpu.py`` measures: every distinct convolution of some models. Needs no GPU.

    python -m benchmarks.conv_gpu_job --out FOLDER [MODEL]... [--algorithms MODEL...] [--part 1/3] [--target sm_90]

A MODEL's layers are there by the planner's best kernels, those of the models behind ``--algorithms`` by every algorithm
that computes them (Winograd included) and by the implicit matrix product in both layouts. Weights do not travel: where
they are used they are drawn, as many as the layer has and where it has them. The folder then needs PyTorch, NumPy and
cuda-bindings: ``python FOLDER/conv_gpu.py``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from benchmarks.conv_gpu_collect import Collected
from benchmarks.conv_gpu_layers import Layers, write_layers
from onnxopt.errors import InputError, OnnxOptError
from onnxopt.kernels.compiler import architecture_for
from onnxopt.measure.job.build import build_job, carry_modules, check_new_folder
from onnxopt.target.variant import Element

_MOST_BYTES = 64 << 20
_CARRIED = ("conv_gpu", "conv_gpu_layers", "conv_gpu_peers", "conv_gpu_timing", "conv_gpu_results")
_ROOTS = ("onnxopt.errors", "onnxopt.target.layer_records")
_STARTER = """import sys
from pathlib import Path

from benchmarks.conv_gpu import main

if __name__ == "__main__":
    sys.exit(main([str(Path(__file__).resolve().parent), *sys.argv[1:]]))
"""


def write_job(folder: Path, found: Collected, part: tuple[int, int] = (1, 1), workers: int | None = None) -> int:
    """Write the ``part``-th of so many jobs of the layers; its bytes. Raises as :func:`build_job`."""
    check_new_folder(folder)
    layers = list(found.layers.values())[part[0] - 1 :: part[1]]
    if not layers:
        raise InputError(
            f"part {part[0]} of {part[1]} has none of {len(found.layers)} layers; name models, or fewer parts"
        )
    requests = [found.requests[entry] for layer in layers for entry in layer.ways.values()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".job.") as draft:
        place = Path(draft, "job")
        architecture = architecture_for(found.gpu.architecture)
        build_job(place, requests, [architecture], cache=found.cache, workers=workers)
        left_out = tuple(found.left_out)
        write_layers(place, Layers(found.element, found.gpu.architecture, tuple(layers), left_out))
        _carry(place)
        place.replace(folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _carry(folder: Path) -> None:
    (folder / "benchmarks").mkdir()
    # A package, not a namespace, that a checkout on the same machine would be part of.
    (folder / "benchmarks" / "__init__.py").touch()
    for name in _CARRIED:
        shutil.copyfile(Path(__file__).parent / f"{name}.py", folder / "benchmarks" / f"{name}.py")
    carry_modules(folder, _ROOTS)
    (folder / "conv_gpu.py").write_text(_STARTER)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a part and how many there are, for example 2/3")
    return int(number), int(count)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the job; prints what was left out, and its size."""
    parser = argparse.ArgumentParser(prog="conv_gpu_job", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="models whose layers are measured by the planner's best kernels")
    parser.add_argument(
        "--algorithms", nargs="+", default=[], help="models whose layers are measured by each algorithm"
    )
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--part", type=_part, default=(1, 1), help="every so-manieth layer only, for example 2/3")
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--dtype", default="fp16", choices=get_args(Element))
    parser.add_argument("--cache", help="folder for plans and compiled kernels")
    options = parser.parse_args(arguments)
    try:
        found = Collected(options.target, options.dtype, Path(options.cache) if options.cache else None)
        for path in options.models:
            found.add(Path(path), algorithms=False)
        for path in options.algorithms:
            found.add(Path(path), algorithms=True)
        size = write_job(Path(options.out), found, options.part)
    except OnnxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name, reason in found.left_out:
        print(f"left out: {name}: {reason}")
    shown = f"{size / (1 << 20):.1f} MiB"
    if size > _MOST_BYTES:
        shown += f"; in {-(-size // _MOST_BYTES) + 1} parts (--part) each is under {_MOST_BYTES >> 20} MiB"
    print(f"{options.out}: part {options.part[0]} of {options.part[1]} of {len(found.layers)} layers, {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

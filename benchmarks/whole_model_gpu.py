"""Whole models on a GPU in one host, PyTorch under CUDA graphs: as they are, with our kernels, without their attention.

    python FOLDER/whole_model.py [--out FILE] [--dry-run [--emulate]] [--only TEXT] [--rounds N]

``FOLDER`` was made by ``whole_model_gpu_job.py``. The host runs a model's ONNX operators one by one, each by PyTorch's
function of that name, eagerly; reshapes, transposes and slices are views. Nothing is fused that the model does not
fuse, in any of the versions: a compiler would make all of them faster, and what surrounds the attention most. So times
are comparable with one another, and say less about what an engine would reach. One CUDA graph holds a whole run, so
that launching from the CPU costs nothing; what remains is the GPU's own time, that between kernels included.

Versions: ``original``; ``ours``, with the operators of the plugin form; ``ceiling``, the original in which each
attention that ours rewrites is left out and its result replaced by a part of its v tensor, so that projections and
everything behind still run; ``sdpa``, where plain masked attentions are PyTorch's scaled_dot_product_attention with an
additive mask. Of a model by algorithms: the original, and the original with its convolutions channels last; the
``choice`` of algorithms for the whole network, also with Winograd among them, and where no layer is kept that an
algorithm computes; and ``by`` each algorithm wherever it computes a layer.

Ours is checked against ONNX Runtime, once with poisoned outputs and once as it is timed: it may be off by twice what
the original is off in the same type; with Winograd, each layer of which has a bound of its own, by as much as a right
translation ever is. ``--dry-run`` runs all of it on the CPU but the timing, kernels by their reference in NumPy or,
with ``--emulate``, by their PTX.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.whole_model_backends import NumpyBackend, TorchBackend
from benchmarks.whole_model_check import Outputs, collect, judge_programs
from benchmarks.whole_model_kernels import EmulatedLauncher, ReferenceLauncher, StreamLauncher
from benchmarks.whole_model_operators import Interpreter
from benchmarks.whole_model_program import LAUNCH, for_host, read_program
from benchmarks.whole_model_results import concluded, shown
from benchmarks.whole_model_timing import capture, times
from benchmarks.whole_model_weights import WeightMaker
from onnxopt.errors import InputError, MissingError, OnnxOptError

JOB = "whole_models.json"
JOB_SCHEMA = "onnxopt.whole_models/1"
CHANNELS_LAST = "original, channels last"
_MODEL_SECONDS = 900
_RESULT = "result: "


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every model of a job, each in a process of its own; 0 if all of them agreed with ONNX Runtime."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder)
    try:
        job = read_job(folder)
        names = [entry["name"] for entry in job["models"] if options.only in entry["name"]]
        if options.model is not None:
            entry = next((e for e in job["models"] if e["name"] == options.model), None)
            if entry is None:
                raise InputError(f"no model {options.model!r}; in the job: {', '.join(names)}")
            print(_RESULT + json.dumps(measure(folder, job, entry, options)))
            return 0
    except OnnxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    lines, passed = [], True
    for name in names:
        result = _in_child(name, options)
        passed = passed and result["passed"]
        lines.append(json.dumps(result))
        print(shown(result), flush=True)
        if options.out:
            Path(options.out).write_text("\n".join(lines) + "\n")
    print(f"{len(names)} models; " + ("all agreed with ONNX Runtime" if passed else "NOT ALL AGREED WITH ONNX RUNTIME"))
    return 0 if passed and names else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="whole_model", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="a job folder")
    parser.add_argument("--out", help="file for the results, one JSON object a line")
    parser.add_argument("--dry-run", action="store_true", help="everything on the CPU, no times")
    parser.add_argument("--emulate", action="store_true", help="in a dry run, run the kernels' PTX on the CPU")
    parser.add_argument("--numpy", action="store_true", help="in a dry run, NumPy even where PyTorch is installed")
    parser.add_argument("--only", default="", help="models whose name contains this text")
    parser.add_argument("--rounds", type=int, default=60, help="timed replays of each version")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    return parser


def read_job(folder: Path) -> dict[str, Any]:
    """The list of a job's models; raises InputError where the folder holds none."""
    path = folder / JOB
    try:
        job: dict[str, Any] = json.loads(path.read_text())
        if job["schema"] != JOB_SCHEMA:
            raise InputError(f"{path}: schema {job['schema']!r}, expected {JOB_SCHEMA!r}; make the job again")
        return job
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a folder made by whole_model_gpu_job") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); make the job again") from None


def _in_child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result of one model from a process of its own, which a fault may end."""
    folder = str(Path(options.folder).resolve())
    command = [sys.executable, "-m", "benchmarks.whole_model_gpu", folder, "--model", name]
    command += ["--rounds", str(options.rounds)]
    command += [f"--{flag}" for flag in ("dry-run", "emulate", "numpy") if getattr(options, flag.replace("-", "_"))]
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_MODEL_SECONDS)
    except subprocess.TimeoutExpired:
        return {"name": name, "passed": False, "problem": f"not done after {_MODEL_SECONDS} s"}
    for line in done.stdout.splitlines():
        if line.startswith(_RESULT):
            result: dict[str, Any] = json.loads(line.removeprefix(_RESULT))
            return result
    said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
    return {"name": name, "passed": False, "problem": f"its process ended with {done.returncode}: {said}"}


def measure(
    folder: Path, job: Mapping[str, Any], entry: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """One model: every version checked, then timed where there is a GPU; the fields of a result."""
    torch, backend, launcher = _host(folder, job["dtype"], options)
    with np.load(folder / entry["data"], allow_pickle=False) as data:
        sets = [
            {
                name: backend.tensor(for_host(data[f"input_{n}_{i}"], job["dtype"]))
                for i, name in enumerate(entry["inputs"])
            }
            for n in range(entry["sets"])
        ]
        reference = [_outputs(data, n) for n in range(entry["checked"])]
    interpreters = _interpreters(folder, job["dtype"], entry["programs"], backend, launcher)
    found: dict[str, Outputs] = {}
    with np.errstate(all="ignore"):
        if isinstance(launcher, StreamLauncher):
            launcher.poison = True
        for name, program in interpreters.items():
            found[name] = collect(lambda n, run=program: run(sets[n]), backend, entry["checked"])  # type: ignore[misc]
    result: dict[str, Any] = {
        "name": entry["name"],
        "dtype": job["dtype"],
        "batch": job["batch"],
        "sites": entry["sites"],
        "kept": entry["kept"],
        "fused": entry["fused"],
        "launches": {name: _launches(program) for name, program in interpreters.items()},
        "versions": {**job["versions"], **_versions(torch, backend)},
        "checks": judge_programs(reference, found, _loose(entry)),
        **{key: entry[key] for key in ("algorithms", "bound_us") if key in entry},
    }
    if isinstance(launcher, StreamLauncher):
        launcher.poison = False
        _time(torch, backend, interpreters, sets, reference, result, options.rounds)
    return concluded(result)


def _interpreters(
    folder: Path, dtype: str, programs: Mapping[str, str], backend: Any, launcher: Any
) -> dict[str, Interpreter]:
    """The versions of a model, the original first; weights are drawn once for all of them."""
    maker, found = WeightMaker(), {}
    for name in sorted(programs, key=lambda name: (name != "original", name)):
        own = backend
        if name == CHANNELS_LAST:
            if not isinstance(backend, TorchBackend):
                continue
            own = TorchBackend(backend.torch, dtype, backend.device, last=True)
        found[name] = Interpreter(read_program(folder, programs[name], maker), own, launcher)
    return found


def _loose(entry: Mapping[str, Any]) -> list[str]:
    """The versions that exceed the numeric rule by nature."""
    return [name for name, version in entry.get("algorithms", {}).items() if version["winograd"]]


def _host(folder: Path, dtype: str, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """PyTorch, the arrays to compute with, and who runs kernels; NumPy in a dry run without PyTorch."""
    torch = None if options.dry_run and options.numpy else _torch()
    if options.dry_run:
        backend = NumpyBackend(dtype) if torch is None else TorchBackend(torch, dtype, "cpu")
        return torch, backend, EmulatedLauncher(folder) if options.emulate else ReferenceLauncher()
    if torch is None or not torch.cuda.is_available():
        what = "PyTorch" if torch is None else "a GPU that PyTorch can use"
        raise MissingError(f"{what} is not here; install it, or try the job by --dry-run")
    # Kernels in fp32 are to be compared with fp32; convolutions choose their algorithm by measuring.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.set_grad_enabled(False)
    # The first call makes the context that kernels are loaded into.
    torch.zeros(1, device="cuda")
    return torch, TorchBackend(torch, dtype, "cuda"), StreamLauncher(torch, folder)


def _torch() -> Any:
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    return torch


def _outputs(data: Any, number: int) -> list[Any]:
    names = [name for name in data.files if name.startswith(f"output_{number}_")]
    return [data[f"output_{number}_{i}"] for i in range(len(names))]


def _launches(program: Interpreter) -> dict[str, int]:
    """Operators of a version, and how many of them are kernels of ours."""
    nodes = program.program.nodes
    return {"operators": len(nodes), "own_kernels": sum(node.op == LAUNCH for node in nodes)}


def _time(
    torch: Any,
    backend: Any,
    interpreters: Mapping[str, Interpreter],
    sets: Sequence[Mapping[str, Any]],
    reference: Outputs,
    result: dict[str, Any],
    rounds: int,
) -> None:
    """Capture every version, check what its replays compute, and time them; adds to the result."""
    inputs = {name: tensor.clone() for name, tensor in sets[0].items()}

    def place(number: int) -> None:
        for name, tensor in sets[number % len(sets)].items():
            inputs[name].copy_(tensor)

    graphs = {name: capture(torch, lambda run=program: run(inputs)) for name, program in interpreters.items()}  # type: ignore[misc]

    def replayed(name: str) -> Callable[[int], Sequence[Any]]:
        def run(number: int) -> Sequence[Any]:
            place(number)
            graphs[name].graph.replay()
            return graphs[name].outputs

        return run

    found = {name: collect(replayed(name), backend, len(reference)) for name in graphs}
    result["replay_checks"] = judge_programs(reference, found, _loose(result))
    result["times"] = times(torch, graphs, place, rounds)
    result["clocks"] = _clocks()


def _versions(torch: Any, backend: Any) -> dict[str, str]:
    found = {"numpy": np.__version__, "host": backend.name}
    if torch is not None:
        found |= {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    if torch is not None and torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cudnn": str(torch.backends.cudnn.version())}
    return found


def _clocks() -> dict[str, str]:
    """What ``nvidia-smi`` says just after the measurement; empty where it does not."""
    fields = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    first = (done.stdout.splitlines() or [""])[0]
    return dict(zip(fields.split(","), (value.strip() for value in first.split(",")), strict=False))


if __name__ == "__main__":
    sys.exit(main())

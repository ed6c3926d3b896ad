"""Engines by TensorRT-RTX, which builds for a GPU that this machine need not have."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import onnx

from onnxopt.deploy.batch_range import BatchRange, check_batch
from onnxopt.deploy.child import module_command
from onnxopt.deploy.operators import foreign_nodes
from onnxopt.deploy.tensorrt_build import (
    TENSORRT_RTX,
    WORKER,
    BuildProgress,
    EngineInfo,
    check_writable,
    kept_engine,
    listed,
    run_worker,
)
from onnxopt.errors import InputError, MissingError
from onnxopt.model.read import read_model
from onnxopt.model.write import write_model

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""The architectures that TensorRT-RTX builds engines for."""

_TURING_ADVICE = "Choose an architecture from sm_80 on, or convert the model to fp16"


def check_buildable(arch: str) -> None:
    """Refuse at once what a build would refuse after all the work before it.

    Raises InputError for an architecture that TensorRT-RTX does not build for, MissingError where it is not installed.
    """
    _capability(arch)
    if find_spec("tensorrt_rtx") is None:
        raise MissingError("TensorRT-RTX is not installed; install it with: pip install 'onnxopt[rtx]'")


def build_engine(
    model: onnx.ModelProto | str | Path,
    *,
    arch: str,
    out: str | Path,
    progress: Callable[[BuildProgress], None] | None = None,
    batch: BatchRange | None = None,
) -> EngineInfo:
    """Build the engine of a model for an architecture (``sm_89``); write it to ``out``, whole or not at all.

    The network is strongly typed: it computes in the model's own types. A dynamic batch gets the range ``batch``, by
    default 1 to 8, tuned for 1. The build runs in a child process, because the library may abort the process on a model
    that it does not like. The library's log goes to the logger of :mod:`onnxopt.deploy.tensorrt_build`.

    Raises InputError for an architecture that TensorRT-RTX does not build for, operators that are not
    standard ONNX, and a model that the parser refuses (naming each node) or that the builder fails or crashes
    on; MissingError where TensorRT-RTX is not installed or the machine runs out of memory.
    """
    out = Path(out).absolute()
    check_buildable(arch)
    batches = batch or BatchRange()
    label = str(model) if isinstance(model, (str, Path)) else f"the model '{model.graph.name}'"
    proto = read_model(model) if isinstance(model, (str, Path)) else model
    _refuse_foreign(label, proto)
    check_batch(proto, label, batch)
    check_writable(out)
    with tempfile.TemporaryDirectory(prefix=".onnxopt-engine-", dir=out.parent) as folder:
        # The library opens external data itself: it gets a copy that was read with care.
        copy = Path(folder) / "model.onnx"
        write_model(proto, copy)
        del proto
        engine = Path(folder) / "engine"
        request = {
            "library": TENSORRT_RTX.module,
            "model": str(copy),
            "engine": str(engine),
            "capability": _capability(arch),
            "batch": batches.sizes,
        }
        done = run_worker(module_command(WORKER), request, TENSORRT_RTX, label, progress, _advice)
        return kept_engine(engine, out, done, TENSORRT_RTX, arch, batches)


def _capability(arch: str) -> str:
    if arch not in ARCHITECTURES:
        raise InputError(
            f"TensorRT-RTX does not build engines for '{arch}'; allowed: {', '.join(ARCHITECTURES)}. "
            "Choose one of them as the target, or build with --engine tensorrt on a machine with that GPU"
        )
    return arch.replace("_", "").upper()


def _refuse_foreign(label: str, model: onnx.ModelProto) -> None:
    foreign = foreign_nodes(model)
    if foreign:
        raise InputError(
            f"{label} has {len(foreign)} nodes that are not standard ONNX, and TensorRT-RTX has no plugins: "
            f"{listed(foreign, ', ')}. Build the engine from the portable form, which has standard operators"
        )


def _advice(errors: str) -> str:
    # Measured with 1.7.1: every fp32 matrix product is refused for sm_75, and every fp16 one is built.
    return _TURING_ADVICE if "FP32 GEMM is not supported" in errors else ""

"""Running a model once or a few times in ONNX Runtime, with nothing kept afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxopt.errors import OnnxOptError
from onnxopt.model.write import INLINE_LIMIT, model_bytes, write_model
from onnxopt.verification.compare import Array, is_float
from onnxopt.verification.interface import input_specs


class RunError(OnnxOptError):
    """ONNX Runtime refuses a model or stops in it; whoever calls knows whose fault that is."""


class Runner:
    """A model held by ONNX Runtime on the CPU."""

    def __init__(self, session: Any, model: onnx.ModelProto) -> None:
        self._session = session
        self._dtypes = {spec.name: spec.dtype for spec in input_specs(model) if spec.elem_type}

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs by name; floating inputs are cast to the type that this model takes.

        Raises RunError where a node fails or an output is no tensor.
        """
        names = list(outputs) if outputs is not None else [value.name for value in self._session.get_outputs()]
        feed = {name: array.astype(self._dtypes[name]) if is_float(array) else array for name, array in inputs.items()}
        try:
            values = self._session.run(names, feed)
        except Exception as error:
            raise RunError(_first_line(error)) from error
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, np.ndarray):
                raise RunError(f"'{name}' is a {type(value).__name__}; only tensors can be compared")
        return dict(zip(names, values, strict=True))


@contextmanager
def opened(model: onnx.ModelProto, *, threads: int, optimise: bool = True) -> Iterator[Runner]:
    """A session for the length of the block.

    The arena is off, so that a large intermediate is given back at once and the session's end frees
    everything. Models too large for one protocol buffer go through a temporary folder. Raises RunError
    where ONNX Runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.use_deterministic_compute = True
    # Refusals come back as exceptions; the library's own lines on stderr would only repeat them.
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL

    def start(source: bytes | str) -> Any:
        try:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise RunError(_first_line(error)) from error

    if model_bytes(model) <= INLINE_LIMIT:
        yield Runner(start(model.SerializeToString()), model)
        return
    with tempfile.TemporaryDirectory(prefix="onnxopt-verify-") as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path)
        yield Runner(start(str(path)), model)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` that also gives the tensors `names`; ONNX Runtime finds out their types."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return watched


def tensor_names(model: onnx.ModelProto) -> set[str]:
    """Every tensor that a node of the main graph makes."""
    return {name for node in model.graph.node for name in node.output if name}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

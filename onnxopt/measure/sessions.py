"""Run ONNX models in ONNX Runtime on the CPU, for timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper

from onnxopt.errors import InputError
from onnxopt.measure.timing import PairTiming, Run, TimingLimits, time_pair
from onnxopt.model.graph import runtime_inputs

Feeds = Mapping[str, npt.NDArray[Any]]

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_NO_VALUES = {TensorProto.STRING, TensorProto.UNDEFINED}
_MAX_FEED_BYTES = 8 << 30


def draw_feeds(model: ModelProto, *, seed: int = 0, batch: int = 1) -> dict[str, npt.NDArray[Any]]:
    """Inputs for timing, by name: floats standard normal, integers 0 (an index that is always valid),
    booleans True.

    A first dimension without a number becomes ``batch``. Equal arguments give equal arrays.
    Raises InputError for a type that has no numbers, and for a shape that is not fixed or takes over 8 GiB.
    """
    rng = np.random.default_rng(seed)
    return {value.name: _draw(value, rng, batch) for value in runtime_inputs(model.graph)}


def open_session(model: ModelProto | Path, *, threads: int = 0, label: str = "the model") -> Any:
    """An ONNX Runtime session on the CPU; ``threads`` 0 means ONNX Runtime's own choice.

    Waiting threads sleep: spinning ones would take the processor from the other session that is timed beside
    this one.
    Raises InputError where ONNX Runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        content = str(model) if isinstance(model, Path) else model.SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime and protobuf raise many kinds; all mean: this model does not load
        where = f"{label} ({model})" if isinstance(model, Path) else label
        raise InputError(
            f"ONNX Runtime cannot load {where}: {_first_line(error)}; check it with `onnx.checker`"
        ) from error


def prepare_run(session: Any, feeds: Feeds) -> Run:
    """A function that runs the session once on ``feeds``; inputs are handed over once, and extra ones are
    left out.

    Raises InputError where an input is missing.
    """
    import onnxruntime

    values = {}
    for wanted in session.get_inputs():
        if wanted.name not in feeds:
            raise InputError(f"no value for the input {wanted.name!r}; given are {sorted(feeds)}")
        values[wanted.name] = _hand_over(onnxruntime.OrtValue, np.ascontiguousarray(feeds[wanted.name]))
    outputs = [output.name for output in session.get_outputs()]

    def run() -> object:
        return session.run_with_ort_values(outputs, values)

    return run


def time_models(
    original: ModelProto | Path,
    candidate: ModelProto | Path,
    feeds: Feeds,
    *,
    threads: int = 0,
    limits: TimingLimits | None = None,
) -> PairTiming:
    """Time two models on the same feeds, alternating in this process.

    Raises InputError where ONNX Runtime cannot load or run one of them.
    """
    runs = [
        prepare_run(open_session(model, threads=threads, label=label), feeds)
        for model, label in ((original, "the original"), (candidate, "the candidate"))
    ]
    try:
        return time_pair(runs[0], runs[1], limits)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise InputError(f"a model fails while it is timed: {_first_line(error)}; verify it first") from error


def time_regions(
    original: ModelProto,
    candidate: ModelProto,
    *,
    threads: int = 0,
    limits: TimingLimits | None = None,
    seed: int = 0,
) -> PairTiming:
    """Time two parts with the same boundary (see ``extract_region``) on random inputs."""
    feeds = draw_feeds(original, seed=seed)
    for name, value in draw_feeds(candidate, seed=seed).items():
        feeds.setdefault(name, value)
    return time_models(original, candidate, feeds, threads=threads, limits=limits)


def _draw(value: onnx.ValueInfoProto, rng: np.random.Generator, batch: int) -> npt.NDArray[Any]:
    kind = value.type.tensor_type.elem_type
    if not value.type.HasField("tensor_type") or kind in _NO_VALUES:
        raise InputError(f"the input {value.name!r} is no tensor of numbers; no values can be drawn for it")
    shape = _shape(value, batch)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > _MAX_FEED_BYTES:
        raise InputError(f"the input {value.name!r} of shape {list(shape)} is larger than {_MAX_FEED_BYTES >> 30} GiB")
    if kind in _FLOATS:
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
    return np.ones(shape, dtype) if kind == TensorProto.BOOL else np.zeros(shape, dtype)


def _shape(value: onnx.ValueInfoProto, batch: int) -> Sequence[int]:
    sizes = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        size = dim.dim_value if dim.HasField("dim_value") else 0
        if size <= 0 and axis > 0:
            raise InputError(
                f"the input {value.name!r} has no fixed size in dimension {axis}; export the model with "
                "fixed sizes behind the batch dimension"
            )
        sizes.append(size if size > 0 else batch)
    return sizes


def _hand_over(kind: Any, array: npt.NDArray[Any]) -> Any:
    if array.dtype.name == "bfloat16":  # no NumPy type of its own: ONNX Runtime takes its bits
        return kind.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return kind.ortvalue_from_numpy(array)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

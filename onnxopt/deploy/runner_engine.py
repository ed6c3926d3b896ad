"""What an engine takes and gives, and one run of it: on whichever library and device it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from onnxopt.deploy.runner_device import EngineDevice
from onnxopt.deploy.runner_timing import Latency, summarise
from onnxopt.errors import InputError

Array = npt.NDArray[Any]

MAX_ITERATIONS = 100_000

_TYPES = {
    "FLOAT": TensorProto.FLOAT,
    "HALF": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "INT8": TensorProto.INT8,
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "BOOL": TensorProto.BOOL,
}


@dataclass(frozen=True)
class EnginePort:
    """An input or output of an engine; -1 is a size that follows the batch.

    ``elem_type`` is ONNX's. Of an input ``smallest`` and ``largest`` are the shapes that it may have.
    """

    name: str
    is_input: bool
    elem_type: int
    shape: tuple[int, ...]
    smallest: tuple[int, ...] = ()
    largest: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of its elements (bfloat16 is the one of ml_dtypes)."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.elem_type))


@dataclass(frozen=True)
class Outcome:
    """What a run gave: outputs by name (bfloat16 as float32), latencies, and why no CUDA graph was used, if so."""

    outputs: Mapping[str, Array]
    latency: Latency
    note: str


def engine_ports(trt: Any, engine: Any) -> list[EnginePort]:
    """The inputs and outputs of an engine.

    Raises InputError for a tensor whose type NumPy lacks, or that has to be in the memory of the CPU.
    """
    ports = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        kind = engine.get_tensor_dtype(name).name
        if kind not in _TYPES:
            raise InputError(f"tensor '{name}' of the engine is of type {kind}; allowed: {', '.join(_TYPES)}")
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise InputError(f"tensor '{name}' of the engine is a shape, not data; such engines cannot be run here")
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = _sizes(engine.get_tensor_shape(name))
        smallest = largest = shape if is_input else ()
        if is_input and -1 in shape:
            low, _, high = engine.get_tensor_profile_shape(name, 0)
            smallest, largest = _sizes(low), _sizes(high)
        ports.append(EnginePort(name, is_input, _TYPES[kind], shape, smallest, largest))
    return ports


def load_arrays(path: Path, ports: Sequence[EnginePort]) -> dict[str, Array]:
    """The inputs of an engine from an .npz file: names, types and shapes as the engine has them.

    bfloat16, which .npz cannot hold, is given as float32. Raises InputError naming the array, what it is and what was
    expected.
    """
    from onnxopt.verification.inputs import load_inputs

    inputs = [port for port in ports if port.is_input]
    arrays = load_inputs(path, _as_model(inputs))
    for port in inputs:
        array = arrays[port.name]
        fits = all(a <= size <= b for a, size, b in zip(port.smallest, array.shape, port.largest, strict=True))
        if not fits:
            raise InputError(
                f"{path}: '{port.name}' has the shape {list(array.shape)}; the engine was built for "
                f"{list(port.smallest)} to {list(port.largest)}: give a batch in this range, or build the engine again "
                "with another --batch"
            )
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def run_engine(
    trt: Any,
    engine: Any,
    device: EngineDevice,
    arrays: Mapping[str, Array],
    *,
    iterations: int,
    warm_up: int,
    graph: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run an engine on inputs, ``warm_up`` times untimed and ``iterations`` times timed.

    Timed is a CUDA graph of the run, or the run itself where no graph can be made. Raises InputError where the engine
    refuses the shapes or to run, DeviceError where the driver refuses.
    """
    ports = engine_ports(trt, engine)
    context = engine.create_execution_context()
    if context is None:
        raise InputError("the engine gives no context to run in; most likely the GPU lacks memory for it")
    tell("copying the inputs to the GPU")
    buffers = _bound(ports, context, device, arrays)

    def enqueue() -> bool:
        return bool(context.execute_async_v3(device.stream))

    tell("warming up")
    for _ in range(max(1, warm_up)):
        if not enqueue():
            raise InputError("the engine refuses to run; the library's log says why (onnxopt --verbose)")
    device.wait()
    captured = device.captured(enqueue) if graph else "none was asked for"
    run, note = (enqueue, captured) if isinstance(captured, str) else (captured, "")
    tell("timing")
    times = device.milliseconds(run, iterations)
    if times is None:
        raise InputError("the engine refuses to run again; the library's log says why (onnxopt --verbose)")
    batch = next((arrays[port.name].shape[0] for port in ports if port.is_input and arrays[port.name].ndim), 1)
    outputs = {name: _read(device, pointer, shape, port) for name, (pointer, shape, port) in buffers.items()}
    return Outcome(outputs, summarise(*times, images=batch), note)


def _bound(
    ports: Sequence[EnginePort], context: Any, device: EngineDevice, arrays: Mapping[str, Array]
) -> dict[str, tuple[int, tuple[int, ...], EnginePort]]:
    """Give the context the shapes and a buffer for every tensor; returns those of the outputs."""
    for port in ports:
        if port.is_input and not context.set_input_shape(port.name, tuple(arrays[port.name].shape)):
            raise InputError(f"the engine refuses the shape {list(arrays[port.name].shape)} for '{port.name}'")
    lacking = list(context.infer_shapes())
    if lacking:
        raise InputError(f"the engine needs more than its inputs to know the sizes of {', '.join(lacking)}")
    outputs = {}
    for port in ports:
        shape = _sizes(context.get_tensor_shape(port.name))
        if min(shape, default=0) < 0:
            raise InputError(f"the size of output '{port.name}' follows from the data; such engines cannot be run here")
        pointer = device.allocate(prod(shape) * port.dtype.itemsize)
        if port.is_input:
            device.upload(pointer, arrays[port.name])
        else:
            outputs[port.name] = (pointer, shape, port)
        if not context.set_tensor_address(port.name, pointer):
            raise InputError(f"the engine refuses the buffer for '{port.name}'")
    return outputs


def _read(device: EngineDevice, pointer: int, shape: tuple[int, ...], port: EnginePort) -> Array:
    array: Array = np.empty(shape, port.dtype)
    device.download(pointer, array)
    return array.astype(np.float32) if port.elem_type == TensorProto.BFLOAT16 else array


def _as_model(inputs: Sequence[EnginePort]) -> onnx.ModelProto:
    """A model with the inputs of an engine, for what checks the inputs of models."""
    values = [
        helper.make_tensor_value_info(
            port.name, port.elem_type, ["batch" if size == -1 else size for size in port.shape]
        )
        for port in inputs
    ]
    return helper.make_model(helper.make_graph([], "engine", values, []))


def _sizes(dims: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in dims)

"""Kernels of our own inside a whole-model program: on PyTorch's stream, by their reference in NumPy, or emulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError, MissingError
from onnxopt.measure.job.device import Gpu, Launch
from onnxopt.validate.reference_algorithms import STEPS, step_output
from onnxopt.validate.reference_attention import merge_attention, sparse_attention
from onnxopt.validate.reference_block import conv_block
from onnxopt.validate.reference_conv import group_conv, sum_conv

_ALIGNMENT = 16

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
Reference = Callable[[Attributes, Mapping[str, Array], Mapping[str, Array]], Sequence[Array]]
"""Outputs of an operator in float32 from its configuration, operands and tables."""


def _attention(kernel: Attributes, given: Mapping[str, Array], tables: Mapping[str, Array]) -> Sequence[Array]:
    return sparse_attention(kernel, tables, given["q"], given["k"], given["v"], given.get("weight"), np.float32)


def _merge(kernel: Attributes, given: Mapping[str, Array], tables: Mapping[str, Array]) -> Sequence[Array]:
    return (merge_attention(kernel, tables, given["partial"], given["lse"], np.float32),)


def _convolution(kernel: Attributes, given: Mapping[str, Array], tables: Mapping[str, Array]) -> Sequence[Array]:
    return (group_conv(kernel, tables, given["x"], given.get("residual"), np.float32),)


def _sum(kernel: Attributes, given: Mapping[str, Array], tables: Mapping[str, Array]) -> Sequence[Array]:
    return (sum_conv(kernel, tables, given["partial"], given.get("residual"), np.float32),)


def _block(kernel: Attributes, given: Mapping[str, Array], tables: Mapping[str, Array]) -> Sequence[Array]:
    return (conv_block(kernel, tables, given["x"], given.get("residual"), np.float32),)


def _step(operator: str) -> Reference:
    """A step of a convolution algorithm."""
    return lambda kernel, given, tables: (step_output(operator, kernel, {**given, **tables}, np.float32),)


REFERENCES: Mapping[str, Reference] = {
    "SparseAttention": _attention,
    "MergeAttention": _merge,
    "GroupConv": _convolution,
    "SumConv": _sum,
    "ConvBlock": _block,
    **{operator: _step(operator) for operator in STEPS},
}
"""What each kind of operator computes, for runs without a GPU."""


class ReferenceLauncher:
    """Computes what a kernel should, in NumPy from its tables."""

    def __call__(
        self, backend: Any, attributes: Attributes, operands: Mapping[str, Any], tables: Mapping[str, Any]
    ) -> list[Any]:
        kind, types = attributes["kind"], attributes["types"]
        if kind not in REFERENCES:
            raise InputError(f"{kind} has no reference here; known: {', '.join(REFERENCES)}")
        given = {name: backend.numpy(x).astype(np.float32) for name, x in operands.items()}
        made = REFERENCES[kind](attributes["kernel"], given, {n: backend.numpy(table) for n, table in tables.items()})
        results = []
        for (name, shape), values in zip(attributes["results"].items(), made, strict=True):
            tensor = backend.tensor(np.ascontiguousarray(values, np.float32).reshape(shape), exact=True)
            results.append(backend.as_kind(tensor, types[name]))
        return results


class EmulatedLauncher:
    """Runs a kernel's own PTX on the CPU; for small models, as every thread is a fiber."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.folder, self.cache = folder, cache

    def __call__(
        self, backend: Any, attributes: Attributes, operands: Mapping[str, Any], tables: Mapping[str, Any]
    ) -> list[Any]:
        try:
            from onnxopt.emulate import Uninitialised, build_cpu_kernel
        except ModuleNotFoundError:
            raise MissingError(
                "emulating kernels needs onnxopt itself: run `python -m benchmarks.whole_model_gpu FOLDER --dry-run "
                "--emulate` in a checkout of it"
            ) from None
        types = attributes["types"]
        given: dict[str, Any] = {n: backend.numpy(backend.as_kind(x, types[n])) for n, x in operands.items()}
        given |= {name: np.ascontiguousarray(backend.numpy(table)) for name, table in tables.items()}
        made = {n: np.full(shape, np.nan, np.dtype(types[n])) for n, shape in attributes["results"].items()}
        given |= {name: Uninitialised(array) for name, array in made.items()}
        given["batch"] = np.int32(attributes["batch"])
        kernel = build_cpu_kernel((self.folder / attributes["ptx"]).read_text(), attributes["entry"], self.cache)
        kernel.run(
            grid=(attributes["grid"], 1, 1),
            block=(attributes["block"], 1, 1),
            shared_bytes=attributes["shared_bytes"],
            arguments=[given[name] for name in attributes["parameters"]],
        )
        return [backend.tensor(array, exact=True) for array in made.values()]


class StreamLauncher:
    """Launches kernels on PyTorch's current stream, so that a capture sees them.

    An operand that is not contiguous, of another type or not at 16 bytes is copied first, which is timed with the
    kernel; with ``poison`` outputs are NaN before the launch, and what a kernel leaves out stays so.
    """

    def __init__(self, torch: Any, folder: Path) -> None:
        self.torch, self.folder, self.gpu, self.poison = torch, folder, Gpu(torch.cuda.current_device()), False
        self._codes: dict[str, bytes] = {}

    def __call__(
        self, backend: Any, attributes: Attributes, operands: Mapping[str, Any], tables: Mapping[str, Any]
    ) -> list[Any]:
        types, results = attributes["types"], attributes["results"]
        given = {name: _aligned(backend.as_kind(x, types[name])) for name, x in operands.items()}
        made = {name: backend.empty(shape, types[name], poison=self.poison) for name, shape in results.items()}
        pointers = {name: tensor.data_ptr() for name, tensor in {**given, **tables, **made}.items()}
        arguments = {**pointers, "batch": np.int32(attributes["batch"])}
        self.gpu.enqueue(
            Launch(
                self._code(attributes),
                attributes["entry"],
                attributes["grid"],
                attributes["block"],
                attributes["shared_bytes"],
                tuple(arguments[name] for name in attributes["parameters"]),
            ),
            self.torch.cuda.current_stream().cuda_stream,
        )
        return list(made.values())

    def _code(self, attributes: Attributes) -> bytes:
        name = attributes["cubins"].get(self.gpu.architecture, attributes["ptx"])
        if name not in self._codes:
            self._codes[name] = (self.folder / name).read_bytes()
        return self._codes[name]


def _aligned(tensor: Any) -> Any:
    """The tensor where kernels can read it 16 bytes at a time: a view may begin anywhere."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()

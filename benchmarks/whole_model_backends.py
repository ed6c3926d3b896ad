"""Arrays that a whole-model host computes with: PyTorch's, and NumPy's for tests and dry runs without PyTorch.

Both have the same methods. What the two modules name alike (``matmul``, ``where``, ``exp``, ...) is reached through
``xp``; the methods are what they name differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.whole_model_windows import average_windows, conv_windows, max_windows

Array = npt.NDArray[Any]


class NumpyBackend:
    """NumPy; in fp16 tensors are rounded between operators, which themselves compute in float32."""

    name = "numpy"
    xp: Any = np

    def __init__(self, dtype: str) -> None:
        self.float: Any = np.float16 if dtype == "fp16" else np.float32

    def tensor(self, array: Array, *, exact: bool = False) -> Any:
        """An array of the host; floats in its own type unless ``exact``."""
        return array if exact or array.dtype.kind != "f" else array.astype(self.float)

    def numpy(self, x: Any) -> Array:
        return np.asarray(x)

    def empty(self, shape: Sequence[int], kind: str, *, poison: bool) -> Any:
        return np.full(tuple(shape), np.nan, np.dtype(kind))

    def as_kind(self, x: Any, kind: str) -> Any:
        """Contiguous, in the named type."""
        return np.ascontiguousarray(x, np.dtype(kind))

    def widen(self, x: Any) -> Any:
        """What an operator computes with."""
        return x.astype(np.float32) if x.dtype == np.float16 else x

    def narrow(self, x: Any) -> Any:
        """What is kept of an operator's result."""
        x = np.asarray(x)
        if x.dtype.kind != "f" or x.dtype == self.float:
            return x
        with np.errstate(over="ignore"):
            return x.astype(self.float)

    def cast(self, x: Any, kind: str) -> Any:
        return x.astype({"float": np.float32, "int64": np.int64, "bool": np.bool_}[kind])

    def permute(self, x: Any, order: Sequence[int]) -> Any:
        return np.transpose(x, order)

    def concat(self, parts: Sequence[Any], axis: int) -> Any:
        return np.concatenate(parts, axis)

    def pad(self, x: Any, pads: Sequence[int], value: float) -> Any:
        rank = x.ndim
        return np.pad(x, [(pads[i], pads[rank + i]) for i in range(rank)], constant_values=value)

    def take(self, x: Any, index: Any, axis: int) -> Any:
        return np.take(x, index, axis)

    def scatter(self, x: Any, index: Any, updates: Any, axis: int) -> Any:
        result = np.array(x)
        np.put_along_axis(result, index, updates, axis)
        return result

    def put(self, x: Any, index: tuple[Any, ...], updates: Any) -> Any:
        result = np.array(x)
        result[index] = updates
        return result

    def clip(self, x: Any, low: float | None, high: float | None) -> Any:
        return np.clip(x, low, high)

    def relu(self, x: Any) -> Any:
        return np.maximum(x, 0)

    def sigmoid(self, x: Any) -> Any:
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-x))

    def erf(self, x: Any) -> Any:
        from scipy.special import erf

        return erf(x)

    def reduce(self, kind: str, x: Any, axes: Sequence[int], keep: bool) -> Any:
        methods: dict[str, Any] = {"mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min}
        return methods[kind](x, axis=tuple(axes), keepdims=keep)

    def softmax(self, x: Any, axis: int) -> Any:
        powers = np.exp(x - x.max(axis=axis, keepdims=True))
        return powers / powers.sum(axis=axis, keepdims=True)

    def log_softmax(self, x: Any, axis: int) -> Any:
        shifted = x - x.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))

    def top_k(self, x: Any, k: int, axis: int, largest: bool) -> tuple[Any, Any]:
        order = np.argsort(-x if largest else x, axis=axis, kind="stable")
        index = np.take(order, np.arange(k), axis)
        return np.take_along_axis(x, index, axis), index

    def einsum(self, equation: str, *parts: Any) -> Any:
        return np.einsum(equation, *parts, optimize=True)

    def gemm(self, a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
        product = alpha * (a @ b)
        return product if c is None else product + beta * c

    def layer_norm(self, x: Any, axis: int, scale: Any, bias: Any, epsilon: float) -> Any:
        axes = tuple(range(axis, x.ndim))
        centred = x - x.mean(axis=axes, keepdims=True)
        result = centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon) * scale
        return result if bias is None else result + bias

    def batch_norm(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, epsilon: float) -> Any:
        shape = (1, -1, *(1,) * (x.ndim - 2))
        factor = scale / np.sqrt(variance + epsilon)
        return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)

    def attention(self, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        """``k`` has its keys along the last axis, as a product with q takes it."""
        return self.softmax(scale * (q @ k) + mask, -1) @ v

    def conv(self, x: Any, w: Any, bias: Any, **geometry: Any) -> Any:
        return conv_windows(x, w, bias, **geometry)

    def max_pool(self, x: Any, **geometry: Any) -> Any:
        return max_windows(x, **geometry)

    def average_pool(self, x: Any, **geometry: Any) -> Any:
        return average_windows(x, **geometry)


class TorchBackend:
    """PyTorch, eager: one or more kernels an operator; reshapes, transposes and slices are views where they can be.

    With ``last`` convolutions compute channels last, and what follows them keeps that order.
    """

    name = "torch"

    def __init__(self, torch: Any, dtype: str, device: str, *, last: bool = False) -> None:
        self.xp, self.torch, self.nn, self.last = torch, torch, torch.nn.functional, last
        self.device, self.float = device, torch.float16 if dtype == "fp16" else torch.float32

    def tensor(self, array: Array, *, exact: bool = False) -> Any:
        """As :meth:`NumpyBackend.tensor`, on the device."""
        plain = np.array(array)
        kept = self.torch.from_numpy(plain.view(np.int16) if plain.dtype == np.uint16 else plain)
        return self._ordered(kept.to(self.device, None if exact or not kept.is_floating_point() else self.float))

    def numpy(self, x: Any) -> Array:
        array: Array = x.detach().cpu().numpy()
        return array

    def empty(self, shape: Sequence[int], kind: str, *, poison: bool) -> Any:
        result = self.torch.empty(tuple(shape), dtype=getattr(self.torch, kind), device=self.device)
        return result.fill_(float("nan")) if poison else result

    def as_kind(self, x: Any, kind: str) -> Any:
        return x.to(getattr(self.torch, kind)).contiguous()

    def widen(self, x: Any) -> Any:
        return x

    def narrow(self, x: Any) -> Any:
        return x

    def cast(self, x: Any, kind: str) -> Any:
        return x.to({"float": self.float, "int64": self.torch.int64, "bool": self.torch.bool}[kind])

    def permute(self, x: Any, order: Sequence[int]) -> Any:
        return x.permute(tuple(order))

    def concat(self, parts: Sequence[Any], axis: int) -> Any:
        return self.torch.cat(tuple(parts), axis)

    def pad(self, x: Any, pads: Sequence[int], value: float) -> Any:
        rank = x.dim()
        backwards = [pads[side * rank + i] for i in reversed(range(rank)) for side in (0, 1)]
        return self.nn.pad(x, backwards, value=value)

    def take(self, x: Any, index: Any, axis: int) -> Any:
        taken = x.index_select(axis, index.reshape(-1))
        return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    def scatter(self, x: Any, index: Any, updates: Any, axis: int) -> Any:
        return x.scatter(axis, index, updates)

    def put(self, x: Any, index: tuple[Any, ...], updates: Any) -> Any:
        return x.index_put(index, updates)

    def clip(self, x: Any, low: float | None, high: float | None) -> Any:
        return x.clamp(low, high)

    def relu(self, x: Any) -> Any:
        return self.torch.relu(x)

    def sigmoid(self, x: Any) -> Any:
        return self.torch.sigmoid(x)

    def erf(self, x: Any) -> Any:
        return self.torch.erf(x)

    def reduce(self, kind: str, x: Any, axes: Sequence[int], keep: bool) -> Any:
        method = {"mean": x.mean, "sum": x.sum, "max": x.amax, "min": x.amin}[kind]
        return method(dim=tuple(axes), keepdim=keep)

    def softmax(self, x: Any, axis: int) -> Any:
        return self.torch.softmax(x, axis)

    def log_softmax(self, x: Any, axis: int) -> Any:
        return self.torch.log_softmax(x, axis)

    def top_k(self, x: Any, k: int, axis: int, largest: bool) -> tuple[Any, Any]:
        found = self.torch.topk(x, k, axis, largest, True)
        return found.values, found.indices

    def einsum(self, equation: str, *parts: Any) -> Any:
        return self.torch.einsum(equation, *parts)

    def gemm(self, a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
        if c is None:
            return alpha * (a @ b)
        return self.torch.addmm(c, a, b, alpha=alpha, beta=beta)

    def layer_norm(self, x: Any, axis: int, scale: Any, bias: Any, epsilon: float) -> Any:
        return self.nn.layer_norm(x, x.shape[axis:], scale, bias, epsilon)

    def batch_norm(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, epsilon: float) -> Any:
        return self.nn.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    def attention(self, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        return self.nn.scaled_dot_product_attention(q, k.transpose(-1, -2), v, attn_mask=mask, scale=scale)

    def conv(self, x: Any, w: Any, bias: Any, **geometry: Any) -> Any:
        x, pads = self._padded(x, geometry["pads"], 0.0)
        function = (self.nn.conv1d, self.nn.conv2d, self.nn.conv3d)[w.dim() - 3]
        return function(self._ordered(x), w, bias, geometry["strides"], pads, geometry["dilations"], geometry["group"])

    def max_pool(self, x: Any, **geometry: Any) -> Any:
        x, pads = self._padded(x, geometry["pads"], float("-inf"))
        function = (self.nn.max_pool1d, self.nn.max_pool2d, self.nn.max_pool3d)[x.dim() - 3]
        kernel, strides, dilations = (geometry[name] for name in ("kernel", "strides", "dilations"))
        return function(x, kernel, strides, pads, dilations, geometry["ceil"])

    def average_pool(self, x: Any, **geometry: Any) -> Any:
        function = (self.nn.avg_pool1d, self.nn.avg_pool2d, self.nn.avg_pool3d)[x.dim() - 3]
        kernel, strides, pads = (geometry[name] for name in ("kernel", "strides", "pads"))
        if prod(geometry["dilations"]) != 1 or pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
            raise ValueError(f"an average pool with pads {pads} and dilations {geometry['dilations']}")
        return function(x, kernel, strides, pads[: len(pads) // 2], geometry["ceil"], geometry["count_padding"])

    def _ordered(self, x: Any) -> Any:
        """Where channels are to lie last, an image or its weights so; nothing is copied that lies so already."""
        return x.contiguous(memory_format=self.torch.channels_last) if self.last and x.dim() == 4 else x

    def _padded(self, x: Any, pads: Sequence[int], value: float) -> tuple[Any, Sequence[int]]:
        """The tensor, and the pads that are the same in front and behind; others are written out first."""
        rank = len(pads) // 2
        front, behind = list(pads[:rank]), list(pads[rank:])
        if front == behind:
            return x, front
        return self.pad(x, [0, 0, *front, 0, 0, *behind], value), [0] * rank

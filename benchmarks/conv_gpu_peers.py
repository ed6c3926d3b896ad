"""What our convolution kernels are measured beside on a GPU: PyTorch's convolutions of the same channels.

Peers compute the convolution and its bias alone. What our kernel does on the way (normalisation and activation in
front, residual and activation behind, channels in another order) is left out for all but the one that is called
PyTorch: the layer as a model runs it, channels first, one operator after another. Padding that differs between the two
ends of an axis is there beforehand, at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Make = Callable[[Any, Any], Callable[[], Any]]

PYTORCH = "PyTorch"
# More convolutions one after another take longer by their launches alone.
MOST_SPLIT = 16


@dataclass(frozen=True)
class Convolution:
    """A layer apart from its schedule: ``weights`` are channels of y x channels of x x two axes, zero where none are.

    ``pads`` are those in front of both axes, then behind. ``clusters`` are the channels of y with the same inputs, each
    with these.
    """

    weights: Array
    bias: Array
    size: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    clusters: tuple[tuple[Array, Array], ...]
    activation: str = "none"
    input_activation: str = "none"
    prologue: bool = False
    residual: bool = False

    @property
    def groups(self) -> int:
        """Groups of equal numbers of outputs and of inputs that it consists of; 1 where its clusters are not equal."""
        return len(self.clusters) if len({(len(o), len(i)) for o, i in self.clusters}) == 1 else 1

    @property
    def order(self) -> Array:
        """The inputs of all clusters, one after another."""
        return np.concatenate([inputs for _, inputs in self.clusters])


def of_layer(layer: Mapping[str, Any], seed: int) -> Convolution | str:
    """A layer of a given geometry with random weights, or why peers cannot compute it."""
    outputs, inputs, groups = (layer[name] for name in ("output_channels", "input_channels", "groups"))
    rng = np.random.default_rng(seed)
    own = inputs // groups
    taps = [int(n) for n in layer["kernel"]]
    dense = np.zeros((outputs, inputs, *taps), np.float32)
    for group in range(groups):
        rows = slice(group * (outputs // groups), (group + 1) * (outputs // groups))
        shape = (outputs // groups, own, *taps)
        scale = np.float32((own * int(np.prod(taps))) ** -0.5)
        dense[rows, group * own : (group + 1) * own] = scale * rng.standard_normal(shape, dtype=np.float32)
    return _convolution(layer, dense, rng.standard_normal(outputs, dtype=np.float32))


def of_tables(
    kernel: Mapping[str, Any], second: Mapping[str, Any] | None, tables: Mapping[str, Array]
) -> Convolution | str:
    """The convolution that an operator's tables describe, or why peers cannot compute it."""
    taps = [int(n) for n in kernel["kernel"]]
    rows = kernel["slots"] if kernel["split"] else kernel["output_channels"]
    dense = np.zeros((rows, kernel["input_channels"], *taps), np.float32)
    bias = np.zeros(rows, np.float32)
    # Jobs that differ in their pixels alone compute with the same weights.
    for line in np.unique(tables["jobs"][:, [0, 1, 2, 3, 4, 5, 8, 9]], axis=0).tolist():
        variant, first, outputs, begin, inputs, weights, extra, extras = line
        high, wide = (
            -(-count // kernel["variants"][variant][granule]) * kernel["variants"][variant][granule]
            for count, granule in ((outputs, "output_granule"), (inputs, "input_granule"))
        )
        packed = np.asarray(tables["w"][weights : weights + int(np.prod(taps)) * high * wide], np.float32)
        part = packed.reshape(*taps, high, wide)[..., :outputs, :inputs].transpose(3, 4, 0, 1, 2)
        channels = tables["inputs"][begin : begin + inputs]
        stores = [(o, int(row)) for o, row in enumerate(tables["outputs"][first : first + outputs]) if row >= 0]
        stores += [(int(o), int(row)) for o, row in tables["extras"][extra : extra + extras]] if extras else []
        for o, row in stores:
            np.add.at(dense[row], channels[channels >= 0], part[o, channels >= 0])
            bias[row] = 0.0 if kernel["split"] else tables["b"][first + o]
    whole = kernel
    if second is not None:
        begins, summed = tables["sum_begin"], tables["sum_rows"]
        dense = np.stack([dense[summed[a:b]].sum(axis=0) for a, b in pairwise(begins)])
        bias, whole = np.asarray(tables["b"], np.float32), {**kernel, **second, "kernel": kernel["kernel"]}
    return _convolution(whole, dense, bias)


def _convolution(layer: Mapping[str, Any], dense: Array, bias: Array) -> Convolution | str:
    names = ("input_size", "output_size", "strides", "dilations")
    axes = {name: tuple(int(n) for n in layer[name]) for name in names}
    if axes["input_size"][0] != 1 or layer["kernel"][0] != 1:
        return "three axes"
    behind = [
        (axes["output_size"][a] - 1) * axes["strides"][a]
        + (layer["kernel"][a] - 1) * axes["dilations"][a]
        + 1
        - axes["input_size"][a]
        - layer["pads"][a]
        for a in (1, 2)
    ]
    live = np.asarray(dense.reshape(*dense.shape[:2], -1).any(axis=2))
    found: dict[bytes, list[int]] = {}
    for row, own in enumerate(live):
        found.setdefault(own.tobytes(), []).append(row)
    clusters = tuple((np.array(rows), np.flatnonzero(live[rows[0]])) for rows in found.values())
    size, strides, dilations = ((axes[name][1], axes[name][2]) for name in ("input_size", "strides", "dilations"))
    return Convolution(
        weights=dense[:, :, 0],
        bias=bias,
        size=size,
        strides=strides,
        dilations=dilations,
        pads=(int(layer["pads"][1]), int(layer["pads"][2]), max(0, behind[0]), max(0, behind[1])),
        clusters=tuple(cluster for cluster in clusters if len(cluster[1])),
        activation=layer.get("activation", "none"),
        input_activation=layer.get("input_activation", "none"),
        prologue=bool(layer.get("prologue", False)),
        residual=bool(layer.get("residual", False)),
    )


def peers(torch: Any, conv: Convolution, element: str) -> Iterator[tuple[str, str, Make]]:
    """Names, layouts, and functions that make one call from x and a residual, both as PyTorch has them by default.

    What a grouped one makes has its channels in the order of the clusters.
    """
    yield PYTORCH, "first", _as_a_model(torch, conv, element)
    for layout in ("first", "last"):
        dense = conv.weights.shape[0] * conv.weights.shape[1] == sum(len(o) * len(i) for o, i in conv.clusters)
        name = "dense" if dense else "dense with zeros"
        yield f"{name}, channels {layout}", layout, _dense(torch, conv, element, layout)
        if conv.groups > 1:
            yield f"grouped, channels {layout}", layout, _grouped(torch, conv, element, layout)
        if 1 < len(conv.clusters) <= MOST_SPLIT:
            yield f"split, channels {layout}", layout, _split(torch, conv, element, layout)


def _dense(torch: Any, conv: Convolution, element: str, layout: str) -> Make:
    def make(x: Any, _: Any) -> Callable[[], Any]:
        own = _Call(torch, conv, element, layout, x.device)
        return own.of(x, conv.weights, conv.bias)

    return make


def _grouped(torch: Any, conv: Convolution, element: str, layout: str) -> Make:
    def make(x: Any, _: Any) -> Callable[[], Any]:
        own = _Call(torch, conv, element, layout, x.device)
        return own.of(x[:, own.indices(conv.order)], *_grouped_weights(conv), groups=conv.groups)

    return make


def _grouped_weights(conv: Convolution) -> tuple[Array, Array]:
    rows = np.concatenate([outputs for outputs, _ in conv.clusters])
    return np.concatenate([conv.weights[o][:, i] for o, i in conv.clusters]), conv.bias[rows]


def _split(torch: Any, conv: Convolution, element: str, layout: str) -> Make:
    def make(x: Any, _: Any) -> Callable[[], Any]:
        own = _Call(torch, conv, element, layout, x.device)
        whole = own.tensor(x)
        calls = []
        for outputs, inputs in conv.clusters:
            call = own.over(conv.weights[outputs][:, inputs], conv.bias[outputs])
            calls.append((own.taken(inputs, whole.shape[1]), call))
        return lambda: torch.cat([call(take(whole)) for take, call in calls], dim=1)

    return make


def _as_a_model(torch: Any, conv: Convolution, element: str) -> Make:
    """Operator after operator; the weights are grouped where they can be, whatever form the model has them in."""

    def make(x: Any, residual: Any) -> Callable[[], Any]:
        own = _Call(torch, conv, element, "first", x.device)
        whole, grouped = own.tensor(x), conv.groups > 1
        weights, bias = _grouped_weights(conv) if grouped else (conv.weights, conv.bias)
        call = own.over(weights, bias, conv.groups)
        take = own.taken(conv.order, whole.shape[1]) if grouped else lambda tensor: tensor
        scales = [torch.rand((1, whole.shape[1], 1, 1), device=x.device).to(whole.dtype) for _ in range(2)]
        added = None if residual is None else residual.to(whole.dtype)
        before, behind = (_activation(torch, kind) for kind in (conv.input_activation, conv.activation))

        def run() -> Any:
            data = before(torch.addcmul(scales[1], whole, scales[0])) if conv.prologue else whole
            y = call(take(data))
            return behind(y if added is None else y + added)

        return run

    return make


def _activation(torch: Any, kind: str) -> Callable[[Any], Any]:
    kinds = {"relu": "relu", "hardswish": "hardswish", "silu": "silu"}
    return getattr(torch.nn.functional, kinds[kind]) if kind in kinds else lambda tensor: tensor


class _Call:
    """Makes convolutions of one layer in one type and layout on one device."""

    def __init__(self, torch: Any, conv: Convolution, element: str, layout: str, device: Any) -> None:
        self.torch, self.conv, self.device = torch, conv, device
        self.kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(element, torch.float32)
        self.format = torch.channels_last if layout == "last" else torch.contiguous_format

    def tensor(self, x: Any) -> Any:
        """x in the type and layout, padded where the two ends of an axis differ."""
        top, left, bottom, right = self.conv.pads
        if (top, left) != (bottom, right):
            x = self.torch.nn.functional.pad(x, (left, right, top, bottom))
        return x.to(self.kind).clone(memory_format=self.format)

    def indices(self, channels: Array) -> Any:
        return self.torch.from_numpy(np.asarray(channels, np.int64)).to(self.device)

    def taken(self, channels: Array, whole: int) -> Callable[[Any], Any]:
        """Those channels of a tensor with ``whole`` ones: a view where they lie together."""
        first = int(channels[0])
        if len(channels) == whole and np.array_equal(channels, np.arange(whole)):
            return lambda tensor: tensor
        if np.array_equal(channels, np.arange(first, first + len(channels))):
            return lambda tensor: tensor[:, first : first + len(channels)]
        indices = self.indices(channels)
        return lambda tensor: tensor.index_select(1, indices)

    def over(self, weights: Array, bias: Array, groups: int = 1) -> Callable[[Any], Any]:
        """A convolution with these weights, over a tensor that is padded where that is needed."""
        own = self.torch.from_numpy(np.ascontiguousarray(weights)).to(self.device)
        own = own.to(self.kind).contiguous(memory_format=self.format)
        added = self.torch.from_numpy(np.ascontiguousarray(bias)).to(self.device).to(self.kind)
        top, left, bottom, right = self.conv.pads
        padding = (top, left) if (top, left) == (bottom, right) else (0, 0)
        strides, dilations = self.conv.strides, self.conv.dilations
        conv2d = self.torch.nn.functional.conv2d
        return lambda tensor: conv2d(tensor, own, added, strides, padding, dilations, groups)

    def of(self, x: Any, weights: Array, bias: Array, groups: int = 1) -> Callable[[], Any]:
        """One call over a tensor of its own."""
        data, call = self.tensor(x), self.over(weights, bias, groups)
        return lambda: call(data)

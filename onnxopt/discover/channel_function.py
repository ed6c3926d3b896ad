"""What the channelwise operations of a path compute: a scale and a shift for each channel, then one activation.

The operations are read one by one. Exporters write an activation as one operator or as several (``x * clip(x + 3, 0,
6) / 6``, ``x * sigmoid(x)``); what is none of the forms below has no function here, and whoever asks stops before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxopt.discover.conv_site import ChannelPath, Step
from onnxopt.model.graph import Graph, attribute

Activation = Literal["none", "relu", "hardswish", "silu"]
Floats = NDArray[np.float64]

# Constants of composite activations are rounded to the model's type: 1/6 has no finite binary form.
_WITHIN = 1e-6


@dataclass(frozen=True, eq=False)
class ChannelFunction:
    """``activation(scales[c] * x + shifts[c])`` for each channel ``c`` of a path's target."""

    scales: Floats
    shifts: Floats
    activation: Activation

    @property
    def is_linear_identity(self) -> bool:
        """Whether nothing is scaled or shifted."""
        return bool((self.scales == 1).all() and (self.shifts == 0).all())


@dataclass(frozen=True, eq=False)
class _Form:
    """``factor * kind(scale * x + shift)``; kind ``clip`` has bounds, ``sigmoid`` is only met inside of a product."""

    kind: Literal["linear", "clip", "sigmoid", "hardswish", "silu"]
    scale: Floats
    shift: Floats
    low: float = -np.inf
    high: float = np.inf
    factor: float = 1.0


def channel_function(graph: Graph, path: ChannelPath) -> ChannelFunction | None:
    """The function of a path's operations by channel of its target; None where it has another form."""
    channels = len(path.origin)
    steps = {step.node.output[0]: step for step in path.steps}
    held: dict[str, _Form] = {path.source: _Form("linear", np.ones(channels), np.zeros(channels))}
    for node in path.nodes:
        step = steps.get(node.output[0])
        if step is None:
            # Movement is the same for all that it moves: behind it, the operations in front have been done.
            form = next((held[name] for name in node.input if name in held), None)
        else:
            form = _after(graph, step, held)
        if form is None:
            return None
        held.update(dict.fromkeys(node.output, form))
    return _finished(held[path.target])


def _finished(form: _Form) -> ChannelFunction | None:
    # As part of a weight, what is no number would reach channels that it has nothing to do with.
    if not (np.isfinite(form.scale).all() and np.isfinite(form.shift).all()):
        return None
    if form.kind == "linear":
        return ChannelFunction(form.scale, form.shift, "none")
    if form.kind == "clip" and form.low == 0 and form.high == np.inf:
        return ChannelFunction(form.scale, form.shift, "relu")
    if form.kind in ("hardswish", "silu") and abs(form.factor - 1) <= _WITHIN:
        return ChannelFunction(form.scale, form.shift, form.kind)
    return None


def _after(graph: Graph, step: Step, held: Mapping[str, _Form]) -> _Form | None:
    """The form behind one operation; None where it has none."""
    node = step.node
    forms = [held.get(name) for name in node.input]
    given = [form for form in forms if form is not None]
    if len(given) == 2 and node.op_type == "Mul" and len(node.input) == 2:
        return _product(given[0], given[1]) or _product(given[1], given[0])
    if len(given) != 1:
        return None
    form = given[0]
    if node.op_type in _BINARY and len(node.input) == 2:
        place = next(i for i, known in enumerate(forms) if known is None)
        value = _constant(graph, step, place)
        return None if value is None else _BINARY[node.op_type](form, value, place)
    if forms[0] is None or form.kind != "linear":
        return None
    if node.op_type == "BatchNormalization":
        return _normalised(form, step)
    return _UNARY[node.op_type](graph, node, form) if node.op_type in _UNARY else None


def _constant(graph: Graph, step: Step, place: int) -> Floats | None:
    """A constant operand by channel of the target; a single value for one that all channels share."""
    if place in step.tables:
        return step.tables[place][step.rows].astype(np.float64)
    value = graph.constant(step.node.input[place])
    return None if value is None or value.size != 1 else value.astype(np.float64).reshape(1)


def _normalised(form: _Form, step: Step) -> _Form:
    gain, bias, mean, variance = (step.tables[place][step.rows].astype(np.float64) for place in range(1, 5))
    epsilon = attribute(step.node, "epsilon", 1e-5)
    assert isinstance(epsilon, float)
    with np.errstate(all="ignore"):
        times = gain / np.sqrt(variance + epsilon)
    return replace(form, scale=form.scale * times, shift=(form.shift - mean) * times + bias)


def _plus(form: _Form, value: Floats) -> _Form | None:
    if form.kind == "linear":
        return replace(form, shift=form.shift + value)
    if form.kind == "clip" and value.size == 1:
        by = float(value[0])
        return replace(form, shift=form.shift + by, low=form.low + by, high=form.high + by)
    return None


def _times(form: _Form, value: Floats) -> _Form | None:
    if form.kind == "linear":
        return replace(form, scale=form.scale * value, shift=form.shift * value)
    if value.size != 1 or value[0] <= 0 or form.kind == "sigmoid":
        return None
    by = float(value[0])
    if form.kind == "clip":
        return replace(form, scale=form.scale * by, shift=form.shift * by, low=form.low * by, high=form.high * by)
    return replace(form, factor=form.factor * by)


def _minus(form: _Form, value: Floats, place: int) -> _Form | None:
    if place == 1:
        return _plus(form, -value)
    return None if (turned := _times(form, -np.ones(1))) is None else _plus(turned, value)


def _over(form: _Form, value: Floats, place: int) -> _Form | None:
    return _times(form, 1 / value) if place == 1 and bool((value != 0).all()) else None


def _bounded(form: _Form, low: float, high: float) -> _Form | None:
    return replace(form, kind="clip", low=low, high=high) if form.kind == "linear" else None


def _above(form: _Form, value: Floats, _: int) -> _Form | None:
    return _bounded(form, float(value[0]), np.inf) if value.size == 1 else None


_BINARY: Mapping[str, Callable[[_Form, Floats, int], _Form | None]] = {
    "Add": lambda form, value, _: _plus(form, value),
    "Sub": _minus,
    "Mul": lambda form, value, _: _times(form, value),
    "Div": _over,
    "Max": _above,
}


def _clip(graph: Graph, node: NodeProto, form: _Form) -> _Form | None:
    bounds = []
    for place, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        value: Any = attribute(node, name, default)
        if len(node.input) > place and node.input[place]:
            value = graph.constant(node.input[place])
        if value is None or np.size(value) != 1:
            return None
        # The largest number of a type is how some exporters write no bound.
        number = float(np.asarray(value).reshape(-1)[0])
        bounds.append(number if abs(number) < np.finfo(np.float32).max else np.copysign(np.inf, number))
    return _bounded(form, bounds[0], bounds[1])


def _hard_sigmoid(_: Graph, node: NodeProto, form: _Form) -> _Form | None:
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    assert isinstance(alpha, float) and isinstance(beta, float)
    return replace(form, kind="clip", scale=form.scale * alpha, shift=form.shift * alpha + beta, low=0.0, high=1.0)


def _swish(_: Graph, node: NodeProto, form: _Form) -> _Form | None:
    return replace(form, kind="silu") if attribute(node, "alpha", 1.0) == 1.0 else None


_UNARY: Mapping[str, Callable[[Graph, NodeProto, _Form], _Form | None]] = {
    "Relu": lambda _, __, form: _bounded(form, 0.0, np.inf),
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, __, form: replace(form, kind="hardswish"),
    "Sigmoid": lambda _, __, form: replace(form, kind="sigmoid"),
    "Swish": _swish,
}


def _product(x: _Form, gate: _Form) -> _Form | None:
    """``x`` times a function of itself: a hard swish or a swish, times a constant."""
    if x.kind != "linear":
        return None
    if gate.kind == "sigmoid":
        same = _close(gate.scale, x.scale) and _close(gate.shift, x.shift)
        return replace(x, kind="silu") if same else None
    if gate.kind != "clip" or gate.low != 0 or not 0 < gate.high < np.inf:
        return None
    high = gate.high
    same = _close(gate.scale * 6 / high, x.scale) and _close(gate.shift / high, x.shift / 6 + 0.5)
    return replace(x, kind="hardswish", factor=high) if same else None


def _close(a: Floats, b: Floats) -> bool:
    return bool(np.abs(a - b).max() <= _WITHIN * max(1.0, float(np.abs(b).max())))

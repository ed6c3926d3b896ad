"""Whether the written form of a convolution computes its site: proved from its weights and indices.

Input channels are told apart by where they come from and by the constants of the operations on the way, so that the
form and the site are two linear maps between the same channels, and must have the same entries, tap by tap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxopt.discover.conv_site import ConvPart
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph, attribute
from onnxopt.plan.convolution import ConvPlan
from onnxopt.validate.convolution_written import WrittenConvolution, path_constants, read_convolution
from onnxopt.validate.failure import PlanError


def validate_conv_weights(plan: ConvPlan, rewrite: Rewrite, graph: Graph) -> None:
    """Prove that the written convolution maps source to target channels as the site does, per kernel tap.

    Entries are compared in float64, exactly; only where channels behind the convolution are added up, and so weights
    are, may they differ by the rounding of those sums. The layout of the plan is not used. Raises :class:`PlanError`.
    """
    site, lead, tail = plan.site, plan.lead, plan.tail
    written = read_convolution(rewrite, lead, tail, graph)
    _check_geometry(rewrite.site, site.parts, site.kernel, written)
    count = len(tail.origin)
    if len(written.place) != count:
        raise PlanError(f"{rewrite.site}: {len(written.place)} channels are written, expected {count}")
    _check_behind(rewrite.site, written, path_constants(tail))
    atoms = _atoms(rewrite.site, written, lead.origin, path_constants(lead))
    form = _form(rewrite.site, written, atoms[: len(written.inputs.origin)])
    original = _original(plan, graph, atoms[len(written.inputs.origin) :])
    if form.weights.dtype != original.weights.dtype:
        raise PlanError(f"{rewrite.site}: weights are {form.weights.dtype}, expected {original.weights.dtype}")
    _check_rows(rewrite.site, plan, written.place, form, original, int(atoms.max(initial=0)) + 1)


@dataclass(frozen=True, eq=False)
class _Map:
    """A grouped linear map: row ``o`` has ``weights[o]`` (inputs x taps) on ``inputs[o]``, of kinds ``atoms``."""

    weights: np.ndarray
    inputs: np.ndarray
    atoms: np.ndarray
    bias: np.ndarray

    def live(self, index: int) -> np.ndarray:
        """Which places of a row have a weight."""
        return np.flatnonzero((self.weights[index] != 0).any(axis=1))

    def row(self, index: int, kinds: int) -> np.ndarray:
        """The entries of a row, float64, kinds x taps."""
        live = self.live(index)
        result = np.zeros((kinds, self.weights.shape[2]))
        np.add.at(result, self.atoms[self.inputs[index, live]], self.weights[index, live].astype(np.float64))
        return result

    def connections(self, rows: Iterable[int], kinds: int) -> np.ndarray:
        """How many inputs of each kind some rows together are connected to."""
        inputs = [self.inputs[index, self.live(index)] for index in rows]
        return np.bincount(self.atoms[np.unique(np.concatenate([np.empty(0, np.int64), *inputs]))], minlength=kinds)


def _check_geometry(site: str, parts: tuple[ConvPart, ...], kernel: tuple[int, ...], form: WrittenConvolution) -> None:
    node, rank = form.node, len(kernel)
    if form.weight.shape[2:] != kernel:
        raise PlanError(f"{site}: the kernel is written as {form.weight.shape[2:]}, expected {kernel}")
    transposed = node.op_type == "ConvTranspose"
    for part in parts:
        wanted, seen = _geometry(part.node, rank), _geometry(node, rank)
        if transposed:
            if any(attribute(node, name) for name in ("output_padding", "output_shape")):
                raise PlanError(f"{site}: the transposed convolution chooses its output's size")
            if seen["auto_pad"] != "NOTSET" or set(wanted["strides"]) != {1}:
                raise PlanError(f"{site}: no transposed convolution equals one of strides {wanted['strides']}")
            reach = [d * (k - 1) for d, k in zip(seen["dilations"], kernel, strict=True)] * 2
            seen["pads"] = [r - p for r, p in zip(reach, seen["pads"], strict=True)]
        for name, value in wanted.items():
            if seen[name] != value:
                raise PlanError(f"{site}: {name} = {seen[name]} is written for {part.node.name!r}, expected {value}")


def _geometry(node: NodeProto, rank: int) -> dict[str, Any]:
    return {
        "auto_pad": attribute(node, "auto_pad", "NOTSET"),
        "dilations": attribute(node, "dilations", [1] * rank),
        "pads": attribute(node, "pads", [0] * 2 * rank),
        "strides": attribute(node, "strides", [1] * rank),
    }


def _check_behind(site: str, form: WrittenConvolution, expected: tuple[np.ndarray, ...]) -> None:
    if len(form.behind.constants) != len(expected):
        raise PlanError(
            f"{site}: {len(form.behind.constants)} constants are written behind it, expected {len(expected)}"
        )
    for seen, wanted in zip(form.behind.constants, expected, strict=True):
        if seen.dtype != wanted.dtype or not np.array_equal(seen, wanted, equal_nan=True):
            alike = (seen == wanted) | ((seen != seen) & (wanted != wanted))
            channel = int(np.flatnonzero(~alike.all(axis=1))[0]) if seen.dtype == wanted.dtype else 0
            raise PlanError(
                f"{site}: behind it, channel {channel} has the constant {seen[channel].tolist()}, "
                f"expected {wanted[channel].tolist()}"
            )


def _atoms(site: str, form: WrittenConvolution, origin: np.ndarray, constants: tuple[np.ndarray, ...]) -> np.ndarray:
    """Number alike what holds the same data: first the slots of the form, then the site's input channels."""
    written = form.inputs
    if [c.dtype for c in written.constants] != [c.dtype for c in constants]:
        raise PlanError(f"{site}: the constants before it are not of the site's types")
    columns = [np.concatenate([written.origin, origin]).astype(np.int64)[:, None]]
    for seen, wanted in zip(written.constants, constants, strict=True):
        columns.append(np.ascontiguousarray(np.concatenate([seen, wanted])))
    signs = np.concatenate([c.view(np.uint8).reshape(len(c), -1) for c in columns], axis=1)
    return np.asarray(np.unique(signs, axis=0, return_inverse=True)[1]).reshape(-1)


def _form(site: str, form: WrittenConvolution, atoms: np.ndarray) -> _Map:
    """The written convolution as a map from atoms."""
    groups = attribute(form.node, "group", 1)
    assert isinstance(groups, int)
    weight = form.weight.reshape(*form.weight.shape[:2], -1)
    if form.node.op_type == "ConvTranspose":
        # Inputs come first there, and taps count the other way round.
        inputs, each, taps = weight.shape
        split = weight.reshape(groups, inputs // groups, each, taps)[..., ::-1]
        weight = split.transpose(0, 2, 1, 3).reshape(groups * each, inputs // groups, taps)
    outputs, width = weight.shape[:2]
    if width * groups != len(atoms):
        raise PlanError(f"{site}: {groups} groups of {width} inputs are written for {len(atoms)} channels")
    if outputs % groups:
        raise PlanError(f"{site}: {outputs} outputs are written in {groups} groups")
    slots = np.repeat(np.arange(len(atoms)).reshape(groups, width), outputs // groups, axis=0)
    bias = np.zeros(outputs) if form.bias is None else form.bias
    if bias.shape != (outputs,):
        raise PlanError(f"{site}: biases of shape {bias.shape} are written for {outputs} outputs")
    return _Map(weight, slots, atoms, bias.astype(np.float64))


def _original(plan: ConvPlan, graph: Graph, atoms: np.ndarray) -> _Map:
    """The site's own convolutions as a map from atoms; parts have the same number of inputs, or are padded."""
    parts = plan.site.parts
    weights = [_constant(graph, part.node, 1) for part in parts]
    width = max(w.shape[1] for w in weights)
    taps = int(np.prod(plan.site.kernel))
    result = np.zeros((plan.site.out_channels, width, taps), weights[0].dtype)
    inputs = np.zeros((plan.site.out_channels, width), np.int64)
    bias = np.zeros(plan.site.out_channels)
    for part, weight in zip(parts, weights, strict=True):
        outputs, own = weight.shape[:2]
        rows = slice(part.first_output, part.first_output + outputs)
        result[rows, :own] = weight.reshape(outputs, own, taps)
        read = part.first_input + np.arange(own * part.groups).reshape(part.groups, own)
        inputs[rows, :own] = np.repeat(read, outputs // part.groups, axis=0)
        if len(part.node.input) > 2 and part.node.input[2]:
            bias[rows] = _constant(graph, part.node, 2).astype(np.float64)
    return _Map(result, inputs, atoms, bias)


def _constant(graph: Graph, node: NodeProto, position: int) -> np.ndarray:
    value = graph.constant(node.input[position])
    if value is None:
        raise PlanError(f"node {node.name!r}: {node.input[position]!r} is not constant")
    return value


def _check_rows(site: str, plan: ConvPlan, place: np.ndarray, form: _Map, original: _Map, kinds: int) -> None:
    rounding = _rounding(form.weights.dtype)
    done: set[tuple[bytes, int]] = set()
    for channel in range(len(place)):
        mix = plan.tail.mix
        outputs = plan.tail.origin[channel : channel + 1] if mix is None else np.flatnonzero(mix[channel])
        times = np.ones(1) if mix is None else mix[channel][outputs].astype(np.float64)
        at = int(place[channel])
        known = (outputs.tobytes() + times.tobytes(), at)
        if known in done:
            continue
        done.add(known)
        exact = len(outputs) == 1 and times[0] == 1
        expected = np.zeros((kinds, form.weights.shape[2]))
        size = np.zeros_like(expected)
        for output, factor in zip(outputs.tolist(), times.tolist(), strict=True):
            row = original.row(output, kinds)
            expected += factor * row
            size += np.abs(factor * row)
        allowed = 0.0 if exact else rounding * len(outputs)
        _check_connections(site, channel, form.connections([at], kinds), original.connections(outputs, kinds))
        _check_row(site, channel, form.row(at, kinds), expected, allowed * size)
        bias = times @ original.bias[outputs]
        slack = allowed * float(np.abs(times * original.bias[outputs]).sum())
        if not abs(form.bias[at] - bias) <= slack:
            raise PlanError(f"{site}: channel {channel} has the bias {form.bias[at]:g}, expected {bias:g}")


def _check_connections(site: str, channel: int, seen: np.ndarray, expected: np.ndarray) -> None:
    """No dead pair has a weight, however small, and none is computed in two places."""
    wrong = np.flatnonzero(seen > expected)
    if wrong.size:
        kind = int(wrong[0])
        raise PlanError(
            f"{site}: channel {channel} is connected to input kind {kind} {seen[kind]} times, expected {expected[kind]}"
        )


def _check_row(site: str, channel: int, seen: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> None:
    wrong = ~((np.abs(seen - expected) <= allowed) | (seen == expected) | (np.isnan(seen) & np.isnan(expected)))
    if wrong.any():
        kind, tap = (int(i) for i in np.argwhere(wrong)[0])
        raise PlanError(
            f"{site}: channel {channel} has the weight {seen[kind, tap]:g} at tap {tap} on input kind {kind}, "
            f"expected {expected[kind, tap]:g}"
        )


def _rounding(kind: np.dtype) -> float:
    """The largest relative error of one operation in a floating-point type."""
    return {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}.get(kind.name, 2.0**-53)

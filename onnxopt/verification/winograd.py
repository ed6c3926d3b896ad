"""Comparing a model that has layers by Winograd's algorithms, whose error exceeds the numeric rule by nature.

Two questions are asked. Whether the model agrees by the rule when these layers are computed as in the original; and
whether each of these layers, on the numbers that it meets in the model, keeps the rule of ``docs/algorithms.md``: twice
the error of a plain implementation of Winograd in the same precision, and no element beyond the bound. How far the
whole model is off with them is measured and said, and judged by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxopt.lower.algorithm_nodes import PluginAlgorithm, plugin_algorithms
from onnxopt.lower.plugin_nodes import RESIDUAL
from onnxopt.lower.rewrite import NODE_PREFIX, copy_of
from onnxopt.validate.reference_algorithms import WINOGRAD_FILTER, layer_output
from onnxopt.verification.algorithm_rule import LayerOperands, plain_winograd, winograd_bound
from onnxopt.verification.compare import Array, OutputReport
from onnxopt.verification.cut import cut_unknown
from onnxopt.verification.inputs import draw_inputs
from onnxopt.verification.kernel_rule import ERROR_FLOOR, ERROR_RATIO, rounded_to
from onnxopt.verification.outcome import DrawReport, SiteReport, VerifyReport
from onnxopt.verification.precision import converted_original
from onnxopt.verification.reduced import verify_rewritten
from onnxopt.verification.sessions import opened, with_outputs
from onnxopt.verification.widen import uses_type, widen

Floats = npt.NDArray[np.float64]

REFERENCE = "the layers as in the original, by Winograd's rule"

_THREADS = 2
_PLAIN = "plain/"


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer by Winograd: the tensors of the model that its nodes read, what they make, and the original's nodes."""

    steps: PluginAlgorithm
    x: str
    residual: str | None
    target: str
    nodes: tuple[NodeProto, ...]


def verify_written(
    original: ModelProto,
    candidate: ModelProto,
    *,
    inputs: Mapping[str, Array] | None = None,
    sites: Sequence[tuple[str, str]] = (),
    draws: int = 3,
    converted: ModelProto | None = None,
    progress: Callable[[str], None] | None = None,
) -> VerifyReport:
    """:func:`verify_rewritten`; layers by Winograd's algorithms that the original has not are judged by their own rule.

    That is done on one random input, or the given one. Layers of a converted model are held against the converted
    original's, which is ``converted`` where it is known already.
    """
    converted = converted or converted_original(original, candidate)
    compare = partial(verify_rewritten, original, inputs=inputs, draws=draws, converted=converted, progress=progress)
    own_original = converted or original
    known = {layer.site for layer in plugin_algorithms(own_original)}
    found = [layer for layer in plugin_algorithms(candidate) if layer.winograd and layer.site not in known]
    layers = [_layer(own_original, candidate, steps) for steps in found]
    if not layers:
        return compare(candidate, sites=sites)
    own = {layer.steps.site for layer in layers}
    others = [(site, name) for site, name in sites if site not in own]
    report = compare(_with_plain(own_original, candidate, layers), sites=others)
    if progress is not None:
        progress("judging Winograd's layers by their own rule")
    outputs, note = _judged(own_original, candidate, layers, inputs)
    judged = DrawReport(None if inputs is not None else 1, 0, None if inputs is not None else 0, REFERENCE, outputs)
    bad = next((n for n, output in enumerate(outputs) if not output.passed), None)
    first_bad = report.first_bad_site
    if first_bad is None and bad is not None:
        first_bad = SiteReport(layers[bad].steps.site, outputs[bad])
    return replace(
        report,
        passed=report.passed and bad is None,
        draws=(*report.draws, judged),
        first_bad_site=first_bad,
        notes=(*report.notes, note),
    )


def _layer(original: ModelProto, candidate: ModelProto, steps: PluginAlgorithm) -> _Layer:
    prefix = _prefix(steps.site)
    own = [node for node in candidate.graph.node if node.name.startswith(prefix)]
    made = {name: node for node in own for name in node.output}
    (target,) = [name for name in made if not name.startswith(prefix)]

    def of_model(name: str) -> str:
        while name in made:
            name = made[name].input[0]
        return name

    x = of_model(next(iter(steps.steps[0].operands.values())))
    added = steps.steps[-1].operands.get(RESIDUAL)
    residual = None if added is None else of_model(added)
    return _Layer(steps, x, residual, target, _region(original, target, {x, residual or x}))


def _prefix(site: str) -> str:
    return f"{NODE_PREFIX}{site}/"


def _region(original: ModelProto, target: str, border: set[str]) -> tuple[NodeProto, ...]:
    """The nodes that make a tensor from those of the border, in order."""
    maker = {name: number for number, node in enumerate(original.graph.node) for name in node.output}
    wanted: set[int] = set()
    stack = [target]
    while stack:
        name = stack.pop()
        if name in border or name not in maker or maker[name] in wanted:
            continue
        wanted.add(maker[name])
        stack += original.graph.node[maker[name]].input
    return tuple(original.graph.node[number] for number in sorted(wanted))


def _with_plain(original: ModelProto, candidate: ModelProto, layers: Sequence[_Layer]) -> ModelProto:
    """The candidate with the original's nodes in place of its layers by Winograd."""
    model = copy_of(candidate)
    nodes: list[NodeProto] = []
    waiting = {layer.steps.site: layer for layer in layers}
    prefixes = tuple(_prefix(site) for site in waiting)
    for node in candidate.graph.node:
        if not node.name.startswith(prefixes):
            nodes.append(node)
            continue
        layer = waiting.pop(node.name.removeprefix(NODE_PREFIX).partition("/")[0], None)
        if layer is not None:
            nodes += [_renamed(inner, layer) for inner in layer.nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    known = {tensor.name for tensor in model.graph.initializer}
    read = {name for layer in layers for node in layer.nodes for name in node.input}
    model.graph.initializer.extend(t for t in original.graph.initializer if t.name in read - known)
    return model


def _renamed(node: NodeProto, layer: _Layer) -> NodeProto:
    """A node of a layer with names of its own for what only the layer reads; a layer's nodes may be another's too."""
    inside = {name for own in layer.nodes for name in own.output if name and name != layer.target}
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{_PLAIN}{layer.steps.site}/{node.name}"
    for names in (copy.input, copy.output):
        for place, name in enumerate(names):
            names[place] = f"{_PLAIN}{layer.steps.site}/{name}" if name in inside else name
    return copy


def _judged(
    original: ModelProto, candidate: ModelProto, layers: Sequence[_Layer], inputs: Mapping[str, Array] | None
) -> tuple[tuple[OutputReport, ...], str]:
    """Every layer by its rule, and a sentence on how far they and the whole model are off."""
    original, candidate, _ = cut_unknown(original, candidate)
    drawn = draw_inputs(original, seed=0, batch=1)
    feed = {**drawn, **(inputs or {})}
    if uses_type(candidate, TensorProto.BFLOAT16):
        original, candidate = (widen(model, TensorProto.FLOAT) for model in (original, candidate))
    names = dict.fromkeys(n for layer in layers for n in (layer.x, layer.residual, layer.target) if n)
    given = [name for name in names if name not in feed]
    outputs = [value.name for value in candidate.graph.output]
    with opened(with_outputs(candidate, [n for n in given if n not in outputs]), threads=_THREADS) as runner:
        seen = {**feed, **runner.run(feed, [*dict.fromkeys([*outputs, *given])])}
    with opened(original, threads=_THREADS) as runner:
        expected = runner.run(feed, outputs)
    reports, shares = [], []
    for layer in layers:
        report, share = _bounded(original, layer, seen)
        reports.append(report)
        shares.append(share)
    off, name = max((_error(expected[name], seen[name]), name) for name in outputs)
    note = (
        f"{len(layers)} layers are computed by Winograd's algorithms, whose error has a rule of its own: at most "
        f"{max(shares):.2g} of what it allows on the numbers that they met; the other figures are those of the model "
        f"with these layers as in the original; with Winograd output '{name}' is off by {off:.2g} of its largest "
        "value, measured and not judged"
    )
    return tuple(reports), note


def _bounded(original: ModelProto, layer: _Layer, seen: Mapping[str, Array]) -> tuple[OutputReport, float]:
    """The layer's output beside the original's on the same input, and its largest error as a share of the rule's."""
    first, product, last = layer.steps.steps
    element, kernel = first.kernel["element"], last.kernel
    kept = "fp32" if element == "tf32" else element
    border = {name: rounded_to(kept, np.asarray(seen[name], np.float32)) for name in (layer.x, layer.residual) if name}
    expected = _as_original(original, layer, border).astype(np.float64)
    found = np.asarray(seen[layer.target], np.float64)
    error = np.abs(found - expected)
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    operands = LayerOperands(
        border[layer.x].reshape(len(found), kernel["input_channels"], -1),
        _filters(product.tables["w"], product.kernel, kernel["tile"]),
        last.tables["b"],
        None if layer.residual is None else border[layer.residual].reshape(*found.shape[:2], -1),
    )
    plain, bound = _allowed(kernel, element, operands)
    allowed = ERROR_RATIO * float(plain.max()) / scale + ERROR_FLOOR
    allowed_rms = ERROR_RATIO * float(np.sqrt(np.mean(plain**2))) / scale + ERROR_FLOOR
    most, rms = float(error.max()) / scale, float(np.sqrt(np.mean(error**2))) / scale
    wrong = np.argwhere(~(error <= bound.reshape(error.shape)))
    reason = ""
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        limit = bound.reshape(error.shape)[place]
        reason = f"element {place} is {found[place]:.6g} instead of {expected[place]:.6g}; the bound is {limit:.3g}"
    elif not (most <= allowed and rms <= allowed_rms):
        reason = f"errors of {most:.3g} (allowed {allowed:.3g}), root mean square {rms:.3g} (allowed {allowed_rms:.3g})"
    report = OutputReport(
        layer.target, found.shape, scale, most, rms, allowed, allowed_rms, passed=not reason, reason=reason
    )
    return report, most / allowed


def _allowed(kernel: Mapping[str, Any], element: str, operands: LayerOperands) -> tuple[Floats, Floats]:
    """Errors of a plain implementation of Winograd in the same precision, and the bound of the worst case."""
    name, activation = f"winograd_{kernel['tile']}x{kernel['tile']}", kernel["activation"]
    exact = layer_output(kernel, operands.x, operands.weights, operands.b, operands.residual, activation)
    made = plain_winograd(name, kernel, element, activation, operands)
    stored = rounded_to("fp32" if element == "tf32" else element, made)
    return np.abs(stored - exact), winograd_bound(name, kernel, element, activation, operands)


def _as_original(original: ModelProto, layer: _Layer, border: Mapping[str, Array]) -> Array:
    """What the original's nodes make of a layer's inputs, in float32."""
    read = {name for node in layer.nodes for name in node.input}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in border.items()]
    result = helper.make_tensor_value_info(layer.target, TensorProto.FLOAT, None)
    constants = [tensor for tensor in original.graph.initializer if tensor.name in read]
    graph = helper.make_graph(list(layer.nodes), "layer", values, [result], constants)
    model = onnx.ModelProto(ir_version=original.ir_version, graph=graph)
    model.opset_import.extend(original.opset_import)
    with opened(widen(model, TensorProto.FLOAT), threads=_THREADS) as runner:
        return runner.run(border)[layer.target]


def _filters(w: Array, kernel: Mapping[str, Any], tile: int) -> Array:
    """The weights that were transformed: outputs x inputs x 9, off by the rounding of the transformed ones."""
    side = tile + 2
    u = w.astype(np.float64).reshape(side, side, kernel["rows"], -1)[..., : kernel["depth"]]
    back = np.linalg.pinv(WINOGRAD_FILTER[tile])
    filters: Array = np.einsum("ka,aboi,lb->oikl", back, u, back, optimize=True)
    return filters.reshape(kernel["rows"], kernel["depth"], 9)


def _error(expected: Array, found: Array) -> float:
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    return float(np.abs(wide - other).max(initial=0.0) / (np.abs(wide).max(initial=0.0) or 1.0))

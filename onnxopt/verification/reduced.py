"""Comparing a model that computes in another type than the original, in its rewritten sites or as a whole.

A site of another type has casts in front and behind. Two questions are asked: whether the model computes the same with
the casts left out, by the rule of fp32, and whether with them it is as good as the original whose tensors are rounded
in the same places. A model that was converted as a whole is held against the float32 original: it may be off by twice
of what the converted original is, which has not been rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import NodeProto, TensorProto

from onnxopt.lower.operator_nodes import CAST_LABEL
from onnxopt.lower.rewrite import DOMAIN, NODE_PREFIX, copy_of
from onnxopt.model.graph import attribute
from onnxopt.verification.compare import Array
from onnxopt.verification.models import verify_models
from onnxopt.verification.outcome import VerifyReport
from onnxopt.verification.precision import converted_original, round_trip, rounding
from onnxopt.verification.widen import widen


@dataclass(frozen=True)
class _Rounded:
    """Tensors of the original that a rewritten site rounds to ``to``; ``back`` is their own type."""

    tensors: tuple[str, ...]
    to: int
    back: int


def verify_rewritten(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    *,
    inputs: Mapping[str, Array] | None = None,
    sites: Sequence[tuple[str, str]] = (),
    draws: int = 3,
    converted: onnx.ModelProto | None = None,
    progress: Callable[[str], None] | None = None,
) -> VerifyReport:
    """:func:`verify_models` by the rule that belongs to what onnxopt wrote into ``candidate``.

    Where sites of a wider model compute in fp16, both comparisons have to pass: the report is that of the first that
    does not, else that of the model as it is, with a note on the other one. Where the candidate says that it was
    converted and the original was not, ``converted`` is the converted original, made here if it is not given.
    """
    converted = converted or converted_original(original, candidate)
    if converted is not None:
        return _verify_converted(original, candidate, converted, inputs, sites, draws, progress)

    def compared(other: onnx.ModelProto, baseline: onnx.ModelProto | None = None) -> VerifyReport:
        return verify_models(
            original, other, draws=draws, inputs=inputs, sites=sites, baseline=baseline, progress=progress
        )

    rounded = _rounded(original, candidate)
    if not rounded:
        return compared(candidate)
    exact = compared(_without_rounding(candidate))
    if not exact.passed:
        return replace(exact, notes=(*exact.notes, "compared with the sites in float32: rounding is not the cause"))
    report = compared(candidate, _rounding_too(original, rounded))
    notes = (
        f"with the rewritten sites in float32 the models agree by the rule of fp32{_largest_error(exact)}",
        "bounds are those of the original with the tensors around the rewritten sites rounded to fp16",
    )
    return replace(report, notes=(*report.notes, *notes))


def _verify_converted(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    converted: onnx.ModelProto,
    inputs: Mapping[str, Array] | None,
    sites: Sequence[tuple[str, str]],
    draws: int,
    progress: Callable[[str], None] | None,
) -> VerifyReport:
    """Two comparisons, the report being that of the first that does not pass, else of the second.

    The candidate beside the converted original, both in float32, by the rule of fp32; and the candidate beside the
    float32 original, with bounds from the converted original, both run rounded.
    """
    exact = verify_models(
        *(widen(model, TensorProto.FLOAT) for model in (converted, candidate)),
        draws=draws,
        inputs=inputs,
        sites=sites,
        progress=progress,
    )
    if not exact.passed:
        return replace(exact, notes=(*exact.notes, "compared in float32 throughout: rounding is not the cause"))
    rounded = _rounded(converted, candidate, (TensorProto.FLOAT16, TensorProto.BFLOAT16))
    report = verify_models(
        original,
        rounding(candidate),
        draws=draws,
        inputs=inputs,
        sites=sites,
        baseline=rounding(_rounding_too(converted, rounded) if rounded else converted),
        rounded=True,
        progress=progress,
    )
    notes = (
        f"with every type widened to float32 the models agree by the rule of fp32{_largest_error(exact)}",
        "bounds are twice the errors of the converted original, which was not rewritten, against the float32 original; "
        "both were run node by node in float32, each result rounded to its type",
    )
    return replace(report, notes=(*report.notes, *notes))


def _largest_error(report: VerifyReport) -> str:
    worst = report.worst
    return "" if worst is None else f": max error {worst.max_error:.2g} (allowed {worst.max_bound:.2g})"


def _rounded(
    original: onnx.ModelProto, candidate: onnx.ModelProto, kinds: Collection[int] = (TensorProto.FLOAT16,)
) -> list[_Rounded]:
    """What the sites round to one of ``kinds`` that the candidate has and the original has not."""
    known = {node.name for node in original.graph.node if node.name.startswith(NODE_PREFIX)}
    tensors = {name for node in original.graph.node for name in node.output}
    tensors |= {value.name for value in original.graph.input}
    casts: dict[str, list[NodeProto]] = {}
    for node in candidate.graph.node:
        site, _, label = node.name.removeprefix(NODE_PREFIX).partition("/")
        own = node.name.startswith(NODE_PREFIX) and node.name not in known
        if own and node.op_type == "Cast" and label.startswith(f"{CAST_LABEL}/"):
            casts.setdefault(site, []).append(node)
    makers = {name: node for node in original.graph.node for name in node.output}
    found = []
    for own_casts in casts.values():
        into = [n for n in own_casts if attribute(n, "to") in kinds and n.input[0] in tensors]
        kind = _type_to(into[0]) if into else 0
        back = [n for n in own_casts if n.output[0] in tensors and attribute(n, "to") != kind]
        if into and back:
            given, made = [n.input[0] for n in into], [n.output[0] for n in back]
            names = dict.fromkeys([*given, *_convolved(makers, given, made), *made])
            found.append(_Rounded(tuple(names), kind, _type_to(back[0])))
    return found


def _convolved(makers: Mapping[str, NodeProto], given: Sequence[str], made: Sequence[str]) -> list[str]:
    """What convolutions between the borders of a site read: whoever multiplies in a type rounds to it before."""
    waiting, seen, found = list(made), set(given), []
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        if node.op_type == "Conv" and node.input[0] in makers and node.input[0] not in given:
            found.append(node.input[0])
        waiting += node.input
    return found


def _type_to(cast: NodeProto) -> int:
    kind = attribute(cast, "to")
    assert isinstance(kind, int)
    return kind


def _without_rounding(candidate: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose sites of our own compute in float32 from border to border."""
    model = copy_of(candidate)
    own = {name for node in model.graph.node if node.name.startswith(NODE_PREFIX) for name in node.output}
    for node in model.graph.node:
        if node.name.startswith(NODE_PREFIX) and node.op_type == "Cast":
            _widen(node)
    for function in model.functions:
        if function.domain == DOMAIN:
            for node in function.node:
                _widen(node)
    declared = [value for value in model.graph.value_info if value.name not in own]
    del model.graph.value_info[:]
    model.graph.value_info.extend(declared)
    return model


def _widen(node: NodeProto) -> None:
    for item in node.attribute:
        if node.op_type == "Cast" and item.name == "to" and item.i == TensorProto.FLOAT16:
            item.i = TensorProto.FLOAT


def _rounding_too(original: onnx.ModelProto, rounded: Sequence[_Rounded]) -> onnx.ModelProto:
    """The original with some of its tensors rounded, for whoever reads them."""
    model = copy_of(original)
    given = {value.name for value in model.graph.input}
    of = {name: (item.to, item.back) for item in rounded for name in item.tensors}
    nodes: list[NodeProto] = []
    renamed = {}
    for name in (n for n in of if n in given):
        renamed[name] = f"{name}/rounded"
        nodes += round_trip(name, renamed[name], *of[name])
    for node in original.graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(copy.input):
            copy.input[place] = renamed.get(name, name)
        nodes.append(copy)
        for place, name in enumerate(node.output):
            if name in of:
                copy.output[place] = f"{name}/exact"
                nodes += round_trip(copy.output[place], name, *of[name])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model

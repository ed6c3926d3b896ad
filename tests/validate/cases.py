"""Planned and written sites for the validators' tests, and ways to spoil what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import NodeProto, numpy_helper

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.lower.attention import lower_attention
from onnxopt.lower.convolution import lower_convolution
from onnxopt.lower.rewrite import Rewrite
from onnxopt.model.graph import Graph
from onnxopt.plan.attention import AttentionPlan, plan_attention
from onnxopt.plan.conv_time import Form
from onnxopt.plan.convolution import ConvPlan, plan_convolutions
from onnxopt.plan.rates import CpuRates
from onnxopt.plan.schedule import Objective
from onnxopt.sites import discover
from onnxopt.target import CpuProfile, load_target
from tests.lower.masked_attention import Pattern


@dataclass(frozen=True)
class AttentionCase:
    """An attention site with its plan and what was written from it."""

    site: AttentionSite
    plan: AttentionPlan
    rewrite: Rewrite
    graph: Graph


@dataclass(frozen=True)
class ConvCase:
    """A convolution's plan and, where it rewrites, what was written from it."""

    plan: ConvPlan
    rewrite: Rewrite | None
    graph: Graph


def cpu() -> CpuProfile:
    profile = load_target("cpu").cpu
    assert profile is not None
    return profile


def attention_cases(model: onnx.ModelProto, objective: Objective = "time") -> Iterator[AttentionCase]:
    """Every attention of a model whose pattern does not depend on the input, written whether or not that pays."""
    findings = discover(model)
    for site in findings.attention:
        if not site.runtime:
            plan = plan_attention(site, CpuRates.of(cpu()), objective)
            yield AttentionCase(site, plan, lower_attention(site, plan, findings.graph), findings.graph)


def conv_cases(model: onnx.ModelProto, forms: tuple[Form, ...] = ("direct",), margin: float = 0.0) -> list[ConvCase]:
    """Every convolution of a model; a margin of 0 writes whatever can be."""
    findings = discover(model)
    plans = plan_convolutions(findings.convolutions, findings.graph, cpu(), forms, margin)
    graph = findings.graph
    return [
        ConvCase(plan, lower_convolution(f"conv-{i}", plan, graph) if plan.decision == "rewrite" else None, graph)
        for i, plan in enumerate(plans)
    ]


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    """Any mask, with repeated keys, biases and rows without keys; some rows share their keys."""
    tokens, heads = draw(st.integers(2, 20)), draw(st.integers(1, 3))
    queries = draw(st.integers(1, tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    columns = draw(st.integers(1, 24))
    keys_of = rng.integers(0, tokens, columns) if draw(st.booleans()) else np.arange(min(columns, tokens))
    kinds = draw(st.sampled_from([1, heads]))
    live = rng.random((kinds, queries, len(keys_of))) < draw(st.sampled_from([0.1, 0.4, 0.9]))
    if draw(st.booleans()):
        live = live[:, rng.integers(0, min(3, queries), queries)]
    if draw(st.booleans()):
        live[:, :, 0] = True
    # A graph that computes nothing but zeros has no schedule.
    live[:, 0, 0] = True
    bias = rng.standard_normal((draw(st.sampled_from([1, heads])), *live.shape[1:])).astype(np.float32)
    return Pattern(
        live,
        heads,
        keys_of,
        tokens,
        bias if draw(st.booleans()) else None,
        draw(st.sampled_from([-np.inf, -100.0, float(np.finfo(np.float32).min)])),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def table_of(rewrite: Rewrite, node: NodeProto, position: int = 1) -> np.ndarray:
    """A copy of the table that a node reads."""
    tables = {t.name: t for t in rewrite.tables}
    return np.array(numpy_helper.to_array(tables[node.input[position]]))


def with_table(
    rewrite: Rewrite, node: NodeProto, values: np.ndarray, position: int = 1, name: str = "spoilt"
) -> Rewrite:
    """The rewrite with other contents of the table that a node reads, for that node alone."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
    spoilt = replace(rewrite, tables=(*rewrite.tables, tensor))
    return with_node(spoilt, node, lambda n: n.input.__setitem__(position, name))


def with_node(rewrite: Rewrite, node: NodeProto, change: Callable[[NodeProto], object]) -> Rewrite:
    """The rewrite with one of its nodes changed."""
    changed = NodeProto()
    changed.CopyFrom(node)
    change(changed)
    return replace(rewrite, nodes=tuple(changed if n is node else n for n in rewrite.nodes))


def nodes_of(rewrite: Rewrite, kind: str) -> list[NodeProto]:
    """The nodes of one operator, in order."""
    return [n for n in rewrite.nodes if n.op_type == kind]

"""Attention of random shape, pattern and spelling is recovered exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxopt.discover.attention import find_attention
from onnxopt.discover.attention_site import AttentionSite, EmptyRow, count
from onnxopt.model.graph import view
from tests.discover.reference import deviations

Layout = Literal["packed", "separate", "heads_given", "convolution"]
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True, eq=False)
class Case:
    """A drawn attention: ``mask`` and ``bias`` are heads or 1 x queries x keys, before keys are gathered."""

    layout: Layout
    batch: int | None
    heads: int
    width: int
    queries: int
    keys: int
    mask: NDArray[np.bool_]
    hidden: float
    replaced: bool
    guarded: bool
    bias: NDArray[np.float32] | None
    bias_first: bool
    gathered: NDArray[np.int64] | None
    scale: float
    scale_on_query: bool

    @property
    def order(self) -> NDArray[np.int64]:
        """The key of each column."""
        return np.arange(self.keys) if self.gathered is None else self.gathered

    @property
    def first_key(self) -> int:
        """The token number of the first key: tokens that queries come from are counted first."""
        return {"separate": self.queries, "heads_given": self.heads * self.queries}.get(self.layout, 0)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layout: Layout = draw(st.sampled_from(["packed", "separate", "heads_given", "convolution"]))
    heads, width = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    queries = draw(st.integers(1, 9))
    keys = queries if layout in ("packed", "convolution") else draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gathered = rng.integers(0, keys, draw(st.integers(1, 12))) if draw(st.booleans()) else None
    across = keys if gathered is None else len(gathered)
    mask = rng.random((draw(st.sampled_from([1, heads])), queries, across)) < draw(st.sampled_from([0.2, 0.6, 1.0]))
    hidden = draw(st.sampled_from([-np.inf, -100.0, -10000.0, -1e9, LOWEST]))
    if hidden == -10000.0 or draw(st.booleans()):
        # Beside -10000 a score loses digits, and a row of nothing else would compare rounding errors.
        mask[:, np.arange(queries), rng.integers(0, across, queries)] = True
    if layout == "heads_given":
        # Heads that stand apart in their source are matched by their keys, so each shows all of them.
        mask[:, 0] = True
    bias = None
    if draw(st.booleans()):
        bias = rng.standard_normal((draw(st.sampled_from([1, heads])), queries, across)).astype(np.float32)
    return Case(
        layout=layout,
        batch=draw(st.sampled_from([1, 2, None])),
        heads=heads,
        width=width,
        queries=queries,
        keys=keys,
        mask=mask,
        hidden=hidden,
        replaced=draw(st.booleans()),
        guarded=draw(st.booleans()),
        bias=bias,
        bias_first=draw(st.booleans()),
        gathered=gathered,
        scale=draw(st.sampled_from([1.0, 0.5, 0.3])),
        scale_on_query=draw(st.booleans()),
    )


class Writer:
    """Writes a case as a model."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.rng = np.random.default_rng(7)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, value: Any) -> str:
        name = f"constant{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, name: str, *shape: int) -> str:
        dims = ["batch" if self.case.batch is None else self.case.batch, *shape]
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)))

    def weight(self, *shape: int) -> str:
        return self.constant((0.7 * self.rng.standard_normal(shape)).astype(np.float32))

    def projected(self, x: str, channels: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(5, channels)), self.weight(channels))

    def by_head(self, x: str, rows: int) -> str:
        case = self.case
        return self.op("Transpose", self.reshape(x, -1, rows, case.heads, case.width), perm=[0, 2, 1, 3])

    def operands(self) -> tuple[str, str, str]:
        case = self.case
        channels = case.heads * case.width
        if case.layout == "heads_given":
            return (
                self.input("q", case.heads, case.queries, case.width),
                self.input("k", case.heads, case.keys, case.width),
                self.input("v", case.heads, case.keys, case.width),
            )
        if case.layout == "separate":
            x, context = self.input("x", case.queries, 5), self.input("context", case.keys, 5)
            q, k, v = (self.projected(source, channels) for source in (x, context, context))
            return self.by_head(q, case.queries), self.by_head(k, case.keys), self.by_head(v, case.keys)
        if case.layout == "packed":
            rows = self.projected(self.input("x", case.queries, 5), 3 * channels)
            parts = self.reshape(rows, -1, case.queries, 3, case.heads, case.width)
            moved = self.op("Transpose", parts, perm=[2, 0, 3, 1, 4])
            q, k, v = (self.op("Gather", moved, self.constant(np.int64(i)), axis=0) for i in range(3))
            return q, k, v
        x = self.input("x", 5, 1, case.queries)
        images = [self.op("Conv", x, self.weight(channels, 5, 1, 1), self.weight(channels)) for _ in range(3)]
        parts = [self.reshape(image, -1, case.heads, case.width, case.queries) for image in images]
        q, k, v = (self.op("Transpose", part, perm=[0, 1, 3, 2]) for part in parts)
        return q, k, v

    def masked(self, scores: str) -> str:
        case = self.case
        if case.mask.all():
            return scores
        if case.replaced:
            return self.op("Where", self.constant(case.mask[None]), scores, self.constant(np.float32(case.hidden)))
        return self.op("Add", scores, self.constant(np.where(case.mask, 0, case.hidden).astype(np.float32)[None]))

    def model(self) -> onnx.ModelProto:
        case = self.case
        q, k, v = self.operands()
        if case.gathered is not None:
            index = self.constant(case.gathered)
            k, v = (self.op("Gather", part, index, axis=2) for part in (k, v))
        factor = self.constant(np.float32(case.scale))
        q = self.op("Mul", q, factor) if case.scale_on_query else q
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = scores if case.scale_on_query else self.op("Mul", scores, factor)
        biased = self.constant(case.bias[None]) if case.bias is not None else ""
        if biased and case.bias_first:
            scores = self.op("Add", scores, biased)
        scores = self.masked(scores)
        if biased and not case.bias_first:
            scores = self.op("Add", biased, scores)
        weights = self.op("Softmax", scores, axis=-1)
        if case.guarded:
            weights = self.op("Where", self.op("IsNaN", weights), self.constant(np.float32(0)), weights)
        mixed = self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        y = self.op("Relu", self.reshape(mixed, -1, case.queries, case.heads * case.width))
        output = helper.make_empty_tensor_value_info(y)
        graph = helper.make_graph(self.nodes, "case", self.inputs, [output], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def feeds(self) -> dict[str, NDArray[Any]]:
        batch = self.case.batch or 3
        result = {}
        for value in self.inputs:
            shape = [batch, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
            # Small scores: beside -1e9 a score above 32 would not vanish.
            result[value.name] = (0.3 * self.rng.standard_normal(shape)).astype(np.float32)
        return result


def multiplicities(site: AttentionSite, first: int, keys: int) -> NDArray[np.int64]:
    """How often each query row of each head uses each token; nothing for rows that have no live key."""
    result = np.zeros((site.heads, site.rows, keys), np.int64)
    for head in range(site.heads):
        lists = site.lists_of(head)
        for row in np.flatnonzero(~site.head_empty[head]):
            tokens = site.key_tokens[lists.list(int(lists.row_list[row]))] - first
            np.add.at(result, (head, row, tokens), 1)
    return result


def biases(site: AttentionSite, head: int, row: int) -> list[tuple[int, float]]:
    """(token, bias) of every key of a row, sorted."""
    lists, bias = site.lists_of(head), site.bias_of(head)
    keys = lists.list(int(lists.row_list[row]))
    start = int(lists.row_offsets()[row])
    added = np.zeros(len(keys)) if bias is None else bias[start : start + len(keys)]
    return sorted((int(site.key_tokens[key]), float(value)) for key, value in zip(keys, added, strict=True))


def wanted_kind(case: Case) -> EmptyRow:
    if case.hidden == -np.inf:
        return EmptyRow.ZERO if case.guarded else EmptyRow.NAN
    biased_after = case.bias is not None and not case.bias_first
    if case.hidden <= -1e9 or (case.replaced and not biased_after):
        return EmptyRow.UNIFORM
    return EmptyRow.UNMASKED


@settings(max_examples=120, deadline=None, derandomize=True)
@given(cases())
def test_discovery_recovers_what_was_drawn(case: Case) -> None:
    writer = Writer(case)
    model = writer.model()
    (site,), refusals = find_attention(view(model, batch=2 if case.batch is None else 1))
    assert not refusals
    assert (site.heads, site.rows, site.head_dim) == (case.heads, case.queries, case.width)
    live = np.broadcast_to(case.mask, (case.heads, case.queries, len(case.order)))
    if live.any(axis=(1, 2)).all():
        # A head without any score has no scale, and keys of its own that are zero vectors.
        assert site.tokens == case.keys
        assert np.allclose(site.scale, case.scale)
    expected = np.zeros((case.heads, case.queries, case.keys), np.int64)
    for head, row in np.ndindex(case.heads, case.queries):
        np.add.at(expected[head, row], case.order[live[head, row]], 1)
    rows = np.argsort(site.query_tokens, kind="stable")
    assert np.array_equal(multiplicities(site, case.first_key, case.keys)[:, rows], expected)
    assert np.array_equal(site.head_empty[:, rows], ~live.any(axis=-1))
    assert count(site).pairs_total == live.sum()
    if case.bias is not None:
        for head, row in zip(*np.nonzero(live.any(axis=-1)), strict=True):
            own = np.broadcast_to(case.bias, live.shape)[head, row]
            chosen = np.flatnonzero(live[head, row])
            wanted = sorted((int(case.first_key + case.order[j]), float(own[j])) for j in chosen)
            assert biases(site, head, int(rows[row])) == wanted
    if not live.any(axis=-1).all() and len(case.order) > 1:
        assert site.empty_kind is wanted_kind(case)
    (deviation,) = deviations(model, [site], writer.feeds())
    assert deviation.small

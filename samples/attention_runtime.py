"""Attention whose tokens or weights are only known at run time: DynamicViT, with and without a policy
input."""

from __future__ import annotations

import numpy as np

from samples.builder import GraphBuilder, divided, require
from samples.truth import AttentionTruth, RuntimeRule, Sample, Wiring

POLICY_EPSILON = 1e-6


class _Attention:
    """A pre-norm attention over all tokens; the scale comes after the product."""

    def __init__(self, g: GraphBuilder, x: str, tokens: int, dim: int, heads: int) -> None:
        self.g, self.x, self.tokens, self.dim, self.heads = g, x, tokens, dim, heads
        self.head_dim = divided(dim, heads, "dim by heads")
        self.source = g.layer_norm(x, dim)
        qkv, self.packed = g.linear(self.source, dim, 3 * dim)
        packed = g.transpose(g.reshape(qkv, g.rows(1), tokens, 3, heads, self.head_dim), 2, 0, 3, 1, 4)
        q, k, self.values = (g.select(packed, index) for index in range(3))
        self.scores = g.scaled(g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), self.head_dim**-0.5)

    def finish(
        self, weights: str, node: str, runtime: RuntimeRule = "none", runtime_input: str = ""
    ) -> tuple[str, AttentionTruth]:
        g, tokens, dim, heads = self.g, self.tokens, self.dim, self.heads
        merged = g.transpose(g.op("MatMul", weights, self.values), 0, 2, 1, 3)
        out, projection = g.linear(g.reshape(merged, g.rows(1), tokens, dim), dim, dim)
        order = np.arange(tokens, dtype=np.int32)
        query, key, value = (self.packed.part(index, 3) for index in range(3))
        wiring = Wiring(self.source, self.source, out, query, key, value, projection, order, order)
        truth = AttentionTruth(
            node,
            heads,
            self.head_dim,
            tokens,
            (self.head_dim**-0.5,) * heads,
            np.ones((1, tokens, tokens), np.int32),
            wiring,
            runtime=runtime,
            runtime_input=runtime_input,
        )
        return g.op("Add", self.x, out), truth


def _keep_scores(g: GraphBuilder, x: str, patches: int, dim: int) -> str:
    """The predictor's log probability (batch, patches) that a patch is kept, from local and mean features."""
    half = dim // 2
    hidden = g.gelu(g.linear(g.layer_norm(x, dim), dim, dim)[0])
    axis = g.constant(np.array([1], np.int64), "axes")
    total = g.op("ReduceSum", g.slice(hidden, 2, half), axis, keepdims=1)
    mean = g.op("Div", total, g.constant(float(patches), "count"))
    repeat = g.op("Expand", mean, g.constant(np.array([1, patches, half], np.int64), "shape"))
    joined = g.concat(-1, g.slice(hidden, 2, 0, half), repeat)
    logits = g.linear(joined, dim, 2)[0]
    return g.select(g.op("LogSoftmax", logits, axis=-1), 0, axis=2)


def _keep_best(g: GraphBuilder, x: str, scores: str, patches: int, kept: int, dim: int) -> str:
    """The class token and the `kept` best patches, by a full sort, a Slice and a GatherND."""
    count = g.constant(np.array([patches], np.int64), "k")
    _, order = g.split_op("TopK", scores, count, outputs=2, axis=1, largest=1, sorted=1)
    best = g.op("Add", g.slice(order, 1, 0, kept), g.constant(1, "one"))
    first = g.expand_batch(g.constant(np.zeros((1, 1), np.int64), "class_token"), x, 2)
    index = g.concat(1, first, best)
    if g.batch == 1:
        flat = g.reshape(x, 1 + patches, dim)
        chosen = g.op("GatherND", flat, g.unsqueeze(g.reshape(index, -1), -1), batch_dims=0)
        return g.reshape(chosen, 1, 1 + kept, dim)
    return g.op("GatherND", x, g.unsqueeze(index, -1), batch_dims=1)


def dynamicvit(
    *, patches: int = 64, kept: int = 45, dim: int = 16, heads: int = 2, seed: int = 0, batch: int | None = 1
) -> Sample:
    """DynamicViT at inference: dense attention, then a predictor drops patches, then dense attention on
    the rest."""
    require(kept <= patches, f"kept {kept} of patches {patches} is too many")
    name = "dynamicvit"
    g = GraphBuilder(name, seed=seed, batch=batch)
    layer = _Attention(g, g.input("x", 1 + patches, dim), 1 + patches, dim, heads)
    x, first = layer.finish(g.op("Softmax", layer.scores, axis=-1), g.last_node)
    scores = _keep_scores(g, g.slice(x, 1, 1), patches, dim)
    x = _keep_best(g, x, scores, patches, kept, dim)
    layer = _Attention(g, x, 1 + kept, dim, heads)
    x, second = layer.finish(g.op("Softmax", layer.scores, axis=-1), g.last_node)
    g.output("y", x, 1 + kept, dim)
    return Sample(name, g.model(), (first, second), inputs={"x": "randn"})


def dynamicvit_policy(
    *, tokens: int = 50, dim: int = 16, heads: int = 2, seed: int = 0, batch: int | None = 1
) -> Sample:
    """DynamicViT's softmax with a policy, which has no Softmax node: the exponentials are multiplied by
    the keys' policy, except on the diagonal, and divided by their sum plus a small constant."""
    name = "dynamicvit_policy"
    g = GraphBuilder(name, seed=seed, batch=batch)
    x, policy = g.input("x", tokens, dim), g.input("policy", tokens, 1)
    layer = _Attention(g, x, tokens, dim, heads)
    columns = g.reshape(policy, g.rows(1), 1, 1, tokens)
    eye = g.reshape(g.op("Cast", g.constant(np.eye(tokens, dtype=bool), "eye"), to=1), 1, 1, tokens, tokens)
    dropped = g.op("Sub", g.constant(1.0, "one"), columns)
    keep = g.op("Add", columns, g.op("Mul", dropped, eye))
    axis = g.constant(np.array([-1], np.int64), "axes")
    peak = g.op("ReduceMax", layer.scores, axis, keepdims=1)
    powers = g.op("Mul", g.op("Exp", g.op("Sub", layer.scores, peak)), keep)
    total = g.op("Add", g.op("ReduceSum", powers, axis, keepdims=1), g.constant(POLICY_EPSILON, "epsilon"))
    weights = g.op("Div", powers, total)
    y, truth = layer.finish(weights, g.last_node, "policy", "policy")
    g.output("y", y, tokens, dim)
    return Sample(name, g.model(), (truth,), inputs={"x": "randn", "policy": "policy"})

"""Discovery answers on every graph, also on broken ones and on those that only look like attention."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxopt.discover.attention import find_attention
from onnxopt.discover.attention_site import count
from onnxopt.discover.refusal import Refusal
from onnxopt.model.graph import symbolic_batch, view
from samples import SAMPLES, build

NAMES = ["swin", "swin_traced", "longformer2d_self", "regionvit_masked", "dynamicvit_policy", "bigbird"]
NAMES += ["neighbourhood", "masked_vit", "cross", "onnx_attention", "empty_zero", "swin_v2"]
KINDS = ["Add", "Mul", "Softmax", "MatMul", "Reshape", "Transpose", "Tanh", "Where", "Concat", "Slice", "Identity"]
KINDS += ["Div", "Sub", "Einsum", "Gather", "Attention", "Conv", "Pad", "ScatterND", "Split", "ReduceMax", "Unknown"]


def mutate(model: onnx.ModelProto, rng: random.Random) -> None:
    """One change of the kind that a damaged file or a strange exporter would show; order stays topological."""
    graph = model.graph
    place = rng.randrange(len(graph.node))
    node = graph.node[place]
    before = [v.name for v in graph.input] + [o for n in graph.node[:place] for o in n.output]
    choice = rng.randrange(7)
    if choice == 0:
        source = next((name for name in node.input if name in before), before[0])
        for other in graph.node:
            for position, name in enumerate(other.input):
                if name in node.output:
                    other.input[position] = source
        del graph.node[place]
    elif choice == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*before, *(t.name for t in graph.initializer)])
    elif choice == 2:
        node.op_type = rng.choice(KINDS)
    elif choice == 3 and node.attribute:
        item = node.attribute[rng.randrange(len(node.attribute))]
        if item.type == AttributeProto.INT:
            item.i = rng.choice([-9, -1, 0, 1, 2, 5])
        elif item.type == AttributeProto.INTS:
            shuffled = list(item.ints)
            rng.shuffle(shuffled)
            del item.ints[:]
            item.ints.extend(shuffled)
    elif choice == 4 and node.input:
        node.input[rng.randrange(len(node.input))] = ""
    elif choice == 5:
        node.domain = "somewhere.else"
    elif choice == 6 and node.input:
        del node.input[-1]


@pytest.mark.parametrize("name", NAMES)
def test_discovery_never_raises(name: str) -> None:
    rng = random.Random(name)
    for number in range(25):
        model = build(name, batch=rng.choice([1, None])).model
        for _ in range(rng.choice([1, 1, 2, 3])):
            mutate(model, rng)
        sites, refusals = find_attention(view(model, batch=2 if symbolic_batch(model) else 1))
        for site in sites:
            assert count(site).pairs_total >= 0, number
        for refusal in refusals:
            assert refusal.node and refusal.reason, number


def test_unknown_operators_elsewhere_do_not_matter() -> None:
    model = build("swin").model
    names = [site.node for site in find_attention(view(model))[0]]
    (value,) = model.graph.output
    node = helper.make_node("Mystery", [value.name], ["mystery"], domain="acme", name="mystery")
    model.graph.node.append(node)
    model.graph.output.append(helper.make_empty_tensor_value_info("mystery"))
    assert [site.node for site in find_attention(view(model))[0]] == names


class Writer:
    """Queries, keys and values as graph inputs, and whatever a test puts between them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str | NDArray[Any], domain: str = "", **attributes: Any) -> str:
        names = []
        for item in inputs:
            if not isinstance(item, str):
                self.tensors.append(numpy_helper.from_array(item, f"t{len(self.tensors)}"))
                item = self.tensors[-1].name
            names.append(item)
        output = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], name=output, domain=domain, **attributes))
        return output

    def scores(self) -> str:
        return self.op("MatMul", "q", self.op("Transpose", "k", perm=[0, 1, 3, 2]))

    def refusals(self, *outputs: str) -> list[Refusal]:
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 6, 4]) for n in "qkv"]
        results = [helper.make_empty_tensor_value_info(o) for o in outputs]
        graph = helper.make_graph(self.nodes, "case", inputs, results, self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        sites, refusals = find_attention(view(model))
        assert not sites
        return refusals


def test_a_softmax_without_scores_says_where_the_way_back_ends() -> None:
    w = Writer()
    (refusal,) = w.refusals(w.op("MatMul", w.op("Softmax", w.op("Tanh", "q"), axis=-1), np.ones((4, 2), np.float32)))
    assert refusal.op == "Softmax"
    assert "no product of two tensors that depend on the input leads to it" in refusal.reason
    assert "'tanh0'" in refusal.reason


def test_scores_that_are_squashed_are_refused() -> None:
    w = Writer()
    (refusal,) = w.refusals(w.op("MatMul", w.op("Softmax", w.op("Tanh", w.scores()), axis=-1), "v"))
    assert "the way back ends at 'tanh2'" in refusal.reason


def test_a_softmax_over_another_axis_is_refused() -> None:
    w = Writer()
    (refusal,) = w.refusals(w.op("MatMul", w.op("Softmax", w.scores(), axis=2), "v"))
    assert refusal.reason == "it normalises axis 2 of 4, not the last one"


def test_weights_that_the_model_gives_out_are_refused() -> None:
    w = Writer()
    weights = w.op("Softmax", w.scores(), axis=-1)
    (refusal,) = w.refusals(w.op("MatMul", weights, "v"), weights)
    assert "themselves are an output of the model" in refusal.reason


def test_weights_that_something_else_reads_are_refused() -> None:
    w = Writer()
    weights = w.op("Softmax", w.scores(), axis=-1)
    (refusal,) = w.refusals(w.op("MatMul", w.op("Sqrt", weights), "v"))
    assert refusal.reason.startswith("Sqrt 'sqrt3' reads the attention weights")


def test_channels_that_lie_apart_are_refused() -> None:
    w = Writer()
    # Head-minor channels: channel c of head h is 2 c + h.
    rows = w.op("Reshape", w.op("MatMul", "q", np.ones((4, 8), np.float32)), np.array([1, 12, 4, 2]))
    q = w.op("Transpose", rows, perm=[0, 3, 1, 2])
    weights = w.op("Softmax", w.op("MatMul", q, w.op("Transpose", "k", perm=[0, 1, 3, 2])), axis=-1)
    (refusal,) = w.refusals(w.op("MatMul", weights, "v"))
    assert "does not hold whole vectors of 4 neighbouring channels" in refusal.reason


def test_a_fused_operator_of_a_runtime_is_refused_by_name() -> None:
    w = Writer()
    (refusal,) = w.refusals(w.op("MultiHeadAttention", "q", "k", "v", domain="com.microsoft", num_heads=2))
    assert refusal.op == "MultiHeadAttention"
    assert "'com.microsoft'" in refusal.reason


def test_a_site_that_is_too_large_to_trace_is_refused_with_the_figure() -> None:
    rows = 1 << 14
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, rows, 4]) for n in "qkv"]
    w = Writer()
    split = [w.op("Slice", w.scores(), np.array([0]), np.array([rows]), np.array([3])) for _ in range(2)]
    weights = w.op("Softmax", w.op("Concat", *split, axis=-1), axis=-1)
    y = w.op("MatMul", w.op("Slice", weights, np.array([0]), np.array([rows]), np.array([3])), "v")
    graph = helper.make_graph(w.nodes, "case", inputs, [helper.make_empty_tensor_value_info(y)], w.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    _, (refusal,) = find_attention(view(model))
    assert "268,435,456" in refusal.reason


def test_equal_input_gives_equal_sites() -> None:
    for name in ("swin", "bigbird"):
        first, second = (find_attention(view(SAMPLES[name]().model))[0] for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert a.nodes == b.nodes
            assert all(np.array_equal(x.keys, y.keys) for x, y in zip(a.lists, b.lists, strict=True))
            assert np.array_equal(a.slots, b.slots)

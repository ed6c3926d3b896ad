"""Which tensors share a layout, and who needs a plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxopt.discover.convolution import find_convolutions
from onnxopt.model.graph import view
from onnxopt.plan.algorithms.problem import Network, Option
from onnxopt.plan.algorithms.regions import algorithm_network

OPTION = Option("keep", "first", 1.0)


def _model(nodes: list[tuple[str, list[str], str, dict[str, Any]]], convolutions: int) -> ModelProto:
    """A model on 8 channels of 6 x 6; weights are ``w0``, ``w1``, ..."""
    weights = [
        numpy_helper.from_array(np.ones((8, 8, 1, 1), np.float32), f"w{number}") for number in range(convolutions)
    ]
    made = [helper.make_node(op, inputs, [output], **more) for op, inputs, output, more in nodes]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 6, 6])],
        [helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _network(model: ModelProto) -> Network:
    graph = view(model, batch=1)
    sites, _ = find_convolutions(graph)
    names = [site.output for site in sites]
    return algorithm_network(graph, sites, [(OPTION,) for _ in sites], names, float)


def test_elementwise_nodes_join_and_the_models_ends_are_plain() -> None:
    network = _network(
        _model(
            [
                ("Conv", ["x", "w0"], "a", {}),
                ("Relu", ["a"], "b", {}),
                ("MaxPool", ["b"], "c", {"kernel_shape": [2, 2], "strides": [2, 2]}),
                ("Conv", ["c", "w1"], "d", {}),
                ("Flatten", ["d"], "y", {}),
            ],
            2,
        )
    )
    assert [layer.id for layer in network.layers] == ["a", "d"]
    assert network.regions == 3
    told = [(c.region, c.microseconds, c.layers, c.plain) for c in network.conversions]
    assert told == [(0, 288.0, (0,), True), (1, 288.0, (0,), False), (1, 72.0, (1,), False), (2, 72.0, (1,), True)]


def test_branches_and_their_concatenation_are_one_region() -> None:
    network = _network(
        _model(
            [
                ("Conv", ["x", "w0"], "a", {}),
                ("Conv", ["a", "w1"], "b", {}),
                ("Concat", ["a", "b"], "c", {"axis": -3}),
                ("Relu", ["c"], "y", {}),
            ],
            2,
        )
    )
    # x, and everything behind the first convolution: the second one reads and writes the same region.
    assert network.regions == 2
    assert [c.layers for c in network.conversions if c.region == 1] == [(0, 1), (1,), ()]
    assert [c.plain for c in network.conversions if c.region == 1] == [False, False, True]


def test_movement_that_mixes_positions_and_channels_needs_onnx_layout() -> None:
    network = _network(
        _model(
            [
                ("Conv", ["x", "w0"], "a", {}),
                ("Transpose", ["a"], "b", {"perm": [0, 1, 3, 2]}),
                ("Conv", ["b", "w1"], "c", {}),
                ("Concat", ["c", "c"], "y", {"axis": 0}),
            ],
            2,
        )
    )
    assert network.regions == 5
    assert all(conversion.plain for conversion in network.conversions)

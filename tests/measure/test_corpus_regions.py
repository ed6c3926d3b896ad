"""Cutting parts out of exported models and running them gives the model's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxopt.measure.extract import extract_region
from onnxopt.measure.sessions import draw_feeds
from onnxopt.model.graph import view

pytestmark = pytest.mark.corpus


@pytest.mark.parametrize("tag", ["shufflenet1_g3.legacy.op17", "nat_3layer.dynamo.op18"])
def test_middle_of_an_exported_model(tag: str, corpus_model: Callable[[str], Path]) -> None:
    model = onnx.load(corpus_model(tag))
    graph = view(model)
    # Everything behind the first convolution: all data passes through it in these networks.
    source = next(node.output[0] for node in graph.nodes if node.op_type == "Conv")
    end = graph.outputs[0]
    region = extract_region(model, graph, [source], [end])
    onnx.checker.check_model(region, full_check=True)

    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.append(onnx.ValueInfoProto(name=source))
    # Graph fusion rounds differently on either side of a cut, so it is left off.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1

    def run(target: onnx.ModelProto, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(target.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(names, feeds))

    expected, cut = run(whole, [end, source], draw_feeds(model))
    np.testing.assert_array_equal(run(region, [end], {source: cut})[0], expected)

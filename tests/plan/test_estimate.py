"""Predicted times of graphs on a GPU: what pads, what is fused, what runs without the matrix unit."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from onnxopt.model.graph import view
from onnxopt.plan.estimate import GPU_PRODUCT_SHARE, data_work, gpu_seconds
from onnxopt.plan.work import Work
from onnxopt.target import GpuProfile, load_target

GPU: GpuProfile = load_target("sm_90").need_gpu_profile()


def _conv(groups: int, channels: int = 96, outputs: int = 96) -> Work:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups)
    weight = helper.make_tensor(
        "w", TensorProto.FLOAT, [outputs, channels // groups, 1, 1], [1.0] * (outputs * channels // groups)
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 56, 56])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (work,) = data_work(view(model))
    return work


def test_groups_are_padded_to_the_tile_of_the_matrix_unit() -> None:
    assert _conv(1).matrix_flops == _conv(1).flops == 2 * 96 * 96 * 56 * 56
    # 12 x 12 channels of a group take two tiles of 8 outputs x 16 inputs.
    assert _conv(8).matrix_flops == pytest.approx(_conv(8).flops * 256 / 144)
    assert _conv(96).matrix_flops == 0
    assert _conv(96).flops == 2 * 96 * 56 * 56


def test_a_depthwise_convolution_runs_in_the_ordinary_lanes() -> None:
    large = Work("Conv", 1e12, 0.0, 0.0, 0.0, 0.0)
    seconds = 1e12 / (GPU.fp32_flops * GPU_PRODUCT_SHARE) + GPU.launch_seconds
    assert gpu_seconds([large], GPU) == pytest.approx(seconds)
    dense = Work("Conv", 1e12, 1e12, 0.0, 0.0, 0.0)
    assert gpu_seconds([dense], GPU) < gpu_seconds([large], GPU)


def test_elementwise_nodes_cost_nothing_and_movement_a_launch() -> None:
    relu, moved = Work("Relu", 0.0, 0.0, 0.0, 1e6, 1e6), Work("Transpose", 0.0, 0.0, 0.0, 1e6, 1e6)
    assert gpu_seconds([relu], GPU) == 0.0
    assert gpu_seconds([moved, relu], GPU) == pytest.approx(1e6 / GPU.memory_bytes_per_second + GPU.launch_seconds)

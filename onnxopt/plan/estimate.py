"""Predicted time of a piece of a graph, on a CPU or a GPU, node by node.

A node takes the longer of its arithmetic and its traffic, plus a fixed cost. The figures rank alternatives and decide
where nothing was measured; wherever a measurement exists, it decides.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnxopt.model.graph import Graph
from onnxopt.plan.roofline import ELEMENT_BYTES, peak_flops
from onnxopt.plan.work import GATHERING, PRODUCTS, TRANSPOSING, VIEWS, Work, work_of
from onnxopt.target import CpuProfile, GpuProfile
from onnxopt.target.variant import Element

# The share of the peak that products of a few hundred rows reach in practice.
_CPU_PRODUCT_SHARE = 0.5
GPU_PRODUCT_SHARE = 0.5
# ONNX Runtime's indexed operators copy small pieces one by one.
_CPU_SCATTERED_BYTES = 4e9
_CPU_NODE_SECONDS = 4e-6


def data_work(graph: Graph) -> list[Work]:
    """The work of every node of a graph that depends on its input."""
    return [work_of(graph, node) for node in graph.nodes if any(graph.is_data(o) for o in node.output if o)]


def cpu_seconds(work: Iterable[Work], cpu: CpuProfile) -> float:
    """Predicted time of nodes run one after the other by ONNX Runtime."""
    total = 0.0
    for item in work:
        if item.op in VIEWS:
            continue
        rate = cpu.memory_bytes_per_second
        if item.op in TRANSPOSING:
            rate = cpu.transpose_bytes_per_second
        if item.op in GATHERING and item.op != "Gather":
            rate = _CPU_SCATTERED_BYTES
        arithmetic = item.flops / (cpu.fp32_flops * _CPU_PRODUCT_SHARE)
        arithmetic += item.exponentials / cpu.exponentials_per_second
        total += max(arithmetic, item.bytes_moved / rate) + max(cpu.node_seconds, _CPU_NODE_SECONDS)
    return total


def gpu_seconds(work: Iterable[Work], gpu: GpuProfile, element: Element = "fp16", stored: Element = "fp32") -> float:
    """Predicted time of nodes run as a TensorRT engine runs them in the type ``element``.

    ``stored`` is the type of the model whose work this is: its bytes are converted. Elementwise nodes are fused into
    what makes their input; every other node that is not a view is one launch. Groups of a convolution are padded to the
    matrix unit's tile, a depthwise one runs in the ordinary lanes.
    """
    shrink = ELEMENT_BYTES[element] / ELEMENT_BYTES[stored]
    flops = peak_flops(gpu, element) * GPU_PRODUCT_SHARE
    total = 0.0
    for item in work:
        if item.op in VIEWS:
            continue
        fused = item.op not in PRODUCTS | TRANSPOSING | GATHERING | {
            "Softmax",
            "Concat",
            "Slice",
            "Split",
            "Pad",
        }
        if fused:
            continue
        lanes = 0.0 if item.matrix_flops else item.flops / (gpu.fp32_flops * GPU_PRODUCT_SHARE)
        arithmetic = item.matrix_flops / flops + lanes + item.exponentials / gpu.exponentials_per_second
        traffic = item.bytes_moved * shrink / gpu.memory_bytes_per_second
        total += max(arithmetic, traffic) + gpu.launch_seconds
    return total

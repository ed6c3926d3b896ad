"""Windows of convolutions and pools as a whole-model program states them: everything explicit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import NodeProto

from onnxopt.errors import InputError
from onnxopt.model.graph import attribute


def conv_attributes(node: NodeProto, x: Sequence[int], w: Sequence[int]) -> dict[str, Any]:
    """Strides, pads (all in front, all behind), dilations and groups of a convolution."""
    kernel = list(w[2:])
    strides, dilations = _numbers(node, "strides", kernel), _numbers(node, "dilations", kernel)
    pads = _pads(node, x[2:], kernel, strides, dilations)
    return {"strides": strides, "pads": pads, "dilations": dilations, "group": attribute(node, "group", 1)}


def pool_attributes(node: NodeProto, x: Sequence[int]) -> dict[str, Any]:
    """The same for a pool; InputError for an average whose pads differ in front and behind."""
    given = attribute(node, "kernel_shape")
    kernel = list(given) if isinstance(given, list) else []
    if len(kernel) != len(x) - 2 or len(node.output) > 1:
        raise InputError(f"node '{node.name}' ({node.op_type}): the host has pools of whole positions, without indices")
    strides, dilations = _numbers(node, "strides", kernel), _numbers(node, "dilations", kernel)
    pads = _pads(node, x[2:], kernel, strides, dilations)
    found: dict[str, Any] = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    found["ceil"] = bool(attribute(node, "ceil_mode", 0))
    if node.op_type == "AveragePool":
        found["count_padding"] = bool(attribute(node, "count_include_pad", 0))
        if pads[: len(kernel)] != pads[len(kernel) :] or set(dilations) != {1}:
            raise InputError(
                f"node '{node.name}' (AveragePool): pads {pads}, dilations {dilations}; the host has averages with "
                "the same pads in front and behind, without dilation"
            )
    return found


def _numbers(node: NodeProto, name: str, kernel: Sequence[int]) -> list[int]:
    value = attribute(node, name, None)
    return [int(number) for number in value] if isinstance(value, list) else [1] * len(kernel)


def _pads(
    node: NodeProto, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    kind, given = attribute(node, "auto_pad", "NOTSET"), attribute(node, "pads", None)
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        front, behind = [], []
        for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size)
            small, large = total // 2, total - total // 2
            front.append(small if kind == "SAME_UPPER" else large)
            behind.append(large if kind == "SAME_UPPER" else small)
        return [*front, *behind]
    if kind == "VALID" or not isinstance(given, list):
        return [0] * (2 * len(kernel))
    return [int(pad) for pad in given]

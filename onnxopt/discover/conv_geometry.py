"""Whether the attributes of a Conv node fit its weights and its input: a node that no run could compute is no site."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from onnxopt.discover.refusal import NotASite
from onnxopt.model.graph import Graph, attribute

_MODES = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
_LARGEST = 2**31 - 1


def check_attributes(node: NodeProto, taps: Sequence[int]) -> None:
    """Raise NotASite, with the figures, for attributes that do not belong to a kernel of ``taps`` along its axes."""
    rank = len(taps)
    mode = _mode(node)
    if mode not in _MODES:
        raise NotASite(f"its auto_pad is {mode[:40]!r}; allowed: {', '.join(_MODES)}")
    shape = _numbers(node, "kernel_shape", taps)
    if tuple(shape) != tuple(taps):
        raise NotASite(f"its kernel_shape is {_shown(shape)}, its weights have {list(taps)} taps; allowed: the same")
    for name, count, least, default in (
        ("strides", rank, 1, 1),
        ("dilations", rank, 1, 1),
        ("pads", 2 * rank, 0, 0),
    ):
        values = _numbers(node, name, [default] * count)
        if len(values) != count or not all(least <= value <= _LARGEST for value in values):
            raise NotASite(
                f"its {name} are {_shown(values)}; allowed for {rank} axes: {count} whole numbers from {least} to "
                f"{_LARGEST:,}"
            )


def check_reach(node: NodeProto, taps: Sequence[int], size: Sequence[int]) -> None:
    """Raise NotASite where a kernel of ``taps`` is larger than its padded input of ``size`` positions.

    The attributes are those that :func:`check_attributes` takes.
    """
    rank = len(taps)
    if len(size) != rank:
        raise NotASite(f"its weights have {rank} axes of taps, its input {len(size)} of positions")
    if _mode(node) in ("SAME_UPPER", "SAME_LOWER"):
        return
    dilations = _numbers(node, "dilations", [1] * rank)
    pads = [0] * 2 * rank if _mode(node) == "VALID" else _numbers(node, "pads", [0] * 2 * rank)
    for axis in range(rank):
        reach, padded = dilations[axis] * (taps[axis] - 1) + 1, size[axis] + pads[axis] + pads[rank + axis]
        if reach > padded:
            raise NotASite(
                f"its kernel is larger than its padded input: along axis {axis} {taps[axis]} taps with dilation "
                f"{dilations[axis]:,} reach over {reach:,} positions of {padded:,}"
            )


def check_bias(graph: Graph, node: NodeProto, outputs: int) -> None:
    """Raise NotASite where a constant bias does not have a number for each output."""
    name = node.input[2] if len(node.input) > 2 else ""
    bias = graph.constant(name) if name else None
    if bias is not None and bias.shape != (outputs,):
        raise NotASite(f"its bias has the shape {list(bias.shape)}; allowed for {outputs} outputs: [{outputs}]")


def _mode(node: NodeProto) -> str:
    mode = attribute(node, "auto_pad", "NOTSET")
    return mode.decode(errors="replace") if isinstance(mode, bytes) else str(mode)


def _numbers(node: NodeProto, name: str, default: Sequence[int]) -> list[int]:
    values = attribute(node, name, list(default))
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise NotASite(f"its {name} are no numbers")
    if not all(isinstance(value, int) for value in values):
        raise NotASite(f"its {name} are no whole numbers")
    return list(values)


def _shown(values: Sequence[int]) -> str:
    few = ", ".join(f"{value:,}" for value in values[:8])
    return f"[{few}{', ...' if len(values) > 8 else ''}]"

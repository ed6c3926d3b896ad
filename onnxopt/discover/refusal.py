"""Why something that looked like a site was not taken: always a node and a reason, never a silent nothing."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto


@dataclass(frozen=True)
class Refusal:
    """A candidate that discovery looked at and did not take."""

    node: str
    op: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """The entry of ``refusals`` in ``onnxopt.inspect/1``."""
        return {"node": self.node, "op": self.op, "reason": self.reason}


# What tracing runs into where a graph contradicts itself: shapes that do not fit, inputs that are missing.
INCONSISTENT = (AssertionError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError)


class NotASite(Exception):  # noqa: N818  # control flow inside discovery, not an error that a user meets
    """Raised inside a trace where a candidate turns out not to be provable; carries the reason."""


def reason_for(error: Exception) -> str:
    """The reason of a refusal, from what a trace raised."""
    if isinstance(error, NotASite):
        return str(error)
    if isinstance(error, MemoryError):
        return "tracing it takes more memory than there is"
    return f"the graph around it contradicts itself ({type(error).__name__}: {str(error)[:120]})"


def node_name(node: NodeProto) -> str:
    """A node's name, or its first output's where it has none."""
    return node.name or node.output[0]

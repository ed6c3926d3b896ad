"""Reading the layers that were written as steps of an algorithm back from a model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from onnx import ModelProto

from onnxopt.errors import InputError
from onnxopt.lower.plugin_nodes import FIRST_OPERANDS, SLICES, SUM_CONV, PluginNode, plugin_nodes, site_of

# What follows the first step where that does not make y by itself.
_STARTS = {
    "ConvScalar": (),
    "ConvDirect": (),
    SLICES: (SUM_CONV,),
    "ConvUnfold": ("ConvProduct",),
    "ConvProduct": ("ConvShiftAdd",),
    "WinogradInput": ("ConvProduct", "WinogradOutput"),
}
_OPTIMIZE = "optimize the original model again"


@dataclass(frozen=True, eq=False)
class PluginAlgorithm:
    """One layer of a model as the steps of an algorithm, in order."""

    site: str
    steps: tuple[PluginNode, ...]

    @property
    def winograd(self) -> bool:
        """Whether its error has a bound of its own."""
        return str(self.steps[0].configuration["operator"]) == "WinogradInput"


def plugin_algorithms(model: ModelProto) -> tuple[PluginAlgorithm, ...]:
    """The layers written as steps, in the order of the graph.

    Raises InputError for a node without a body, one whose configuration or tables are not those that it is named
    after, and for steps that are not those of an algorithm, one after the other.
    """
    nodes = plugin_nodes(model, tuple(FIRST_OPERANDS))
    made = {node.outputs[0]: node for node in nodes}
    sites: dict[str, list[PluginNode]] = {}
    for node in nodes:
        if node.configuration["operator"] != SUM_CONV or _first_tensor(node) in made:
            sites.setdefault(site_of(node), []).append(node)
    return tuple(PluginAlgorithm(site, _checked(site, steps)) for site, steps in sites.items())


def _checked(site: str, steps: list[PluginNode]) -> tuple[PluginNode, ...]:
    operators = tuple(step.configuration["operator"] for step in steps)
    follow = _STARTS.get(operators[0])
    if follow is not None and not _is_raw(steps[0]) and operators[0] in (SLICES, "ConvProduct"):
        follow = ()
    chained = all(_first_tensor(b) == a.outputs[0] for a, b in pairwise(steps))
    raw = [_is_raw(step) for step in steps]
    wanted = [_makes_sums(operator, number, len(steps)) for number, operator in enumerate(operators)]
    if follow is None or operators[1:] != follow or not chained or raw != wanted:
        raise InputError(f"site '{site}': {', '.join(operators)} are not the steps of an algorithm; {_OPTIMIZE}")
    return tuple(steps)


def _makes_sums(operator: str, number: int, count: int) -> bool:
    return operator in (SLICES, "ConvProduct") and number < count - 1


def _is_raw(step: PluginNode) -> bool:
    return bool(step.kernel.get("raw"))


def _first_tensor(node: PluginNode) -> str:
    return node.operands[FIRST_OPERANDS[node.configuration["operator"]]]

"""Which layers of two engines belong to which rewritten site, and what they take.

A layer is attributed by the nodes in its metadata, or, where there is none, by the nodes in its name, which TensorRT
joins from those of the nodes that it fused. Sites that share a layer on either side are compared together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from onnxopt.lower.rewrite import NODE_PREFIX
from onnxopt.measure.trtexec_files import LayerTime
from onnxopt.plan_document import PlanSite

Owners = Mapping[str, str | None]
"""By node name the site that it belongs to; None for a node of no site."""

_REFORMAT = re.compile(r"^Reformatting CopyNode for (?:Network )?(?:Input|Output)(?: Tensor \d+)? (?:to|from) ")
_FOREIGN = re.compile(r"^\{ForeignNode\[(.*)\.\.\.(.*)\]\}$")
_JOINTS = re.compile(r" \+ | \|\| ")
_NUMBERED = re.compile(r"^(.*)_\d+$")


@dataclass(frozen=True)
class EngineLayers:
    """The layers of an engine with their times, and by layer the nodes in its metadata."""

    times: tuple[LayerTime, ...]
    nodes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class LayerGroup:
    """The layers of some sites in both engines, and the sums of their mean times in milliseconds.

    ``shared`` counts the layers that also compute nodes of no site.
    """

    sites: tuple[str, ...]
    original: tuple[str, ...]
    optimised: tuple[str, ...]
    original_ms: float
    optimised_ms: float
    shared: int = 0


@dataclass(frozen=True)
class LayerDifference:
    """Both engines layer by layer: the sites that were rewritten, and all other layers together.

    ``unresolved`` counts layers that name only the first and the last of their nodes, which are not of one site; they
    are among the others.
    """

    groups: tuple[LayerGroup, ...]
    other: LayerGroup
    unresolved: int


def original_owners(model: ModelProto, sites: Sequence[PlanSite], rewritten: Iterable[str], *, fused: bool) -> Owners:
    """The rewritten site of each node of the original; with ``fused`` also of those that an operator has taken over.

    Convolutions that another one's kernel computes belong to that one, unless they were rewritten themselves.
    """
    wanted = set(rewritten)
    owners: dict[str, str | None] = {}
    for node in model.graph.node:
        owners[tensorrt_name(node.name, node.output)] = None
    places = {label: name for name, label in _labels(model)}
    for site in sites:
        owner = site.id if site.id in wanted else site.text("computed_by")
        if owner not in wanted:
            continue
        extra = site.fields.get("fused", []) if fused else []
        names = [*site.nodes, *(extra if isinstance(extra, list) else [])]
        owners.update({places[name]: owner for name in names if isinstance(name, str) and name in places})
    return owners


def optimised_owners(model: ModelProto) -> Owners:
    """The site of each node of an optimised model, by the names that rewriting gives."""
    owners: dict[str, str | None] = {}
    for node in model.graph.node:
        own = node.name.startswith(NODE_PREFIX)
        site = node.name.removeprefix(NODE_PREFIX).partition("/")[0] if own else None
        owners[tensorrt_name(node.name, node.output)] = site
    return owners


def tensorrt_name(name: str, outputs: Sequence[str]) -> str:
    """What TensorRT's parser calls a node."""
    return name or (f"node_of_{outputs[0]}" if outputs else "")


def compare_layers(
    original: EngineLayers, optimised: EngineLayers, owners: tuple[Owners, Owners], order: Sequence[str]
) -> LayerDifference:
    """Attribute the layers of both engines to sites, which come in the given order."""
    sides = [
        [_sites(time.name, side.nodes, of) for time in side.times]
        for side, of in zip((original, optimised), owners, strict=True)
    ]
    groups = _joined([found.sites for side in sides for found in side], order)
    compared = tuple(_group(sites, (original, optimised), sides) for sites in groups)
    other = _group((), (original, optimised), sides)
    return LayerDifference(compared, other, sum(found.unresolved for side in sides for found in side))


@dataclass(frozen=True)
class _Found:
    """What is known of a layer: its sites, whether it has other nodes as well, whether some remained unknown."""

    sites: frozenset[str]
    shared: bool = False
    unresolved: bool = False


def _sites(layer: str, nodes: Mapping[str, tuple[str, ...]], owners: Owners) -> _Found:
    known = [name for name in nodes.get(layer, ()) if name in owners]
    if not known:
        ends = _FOREIGN.match(layer)
        if ends:
            sites = {owners.get(name) for name in ends.groups()}
            one = len(sites) == 1 and None not in sites
            return _Found(frozenset(s for s in sites if s is not None) if one else frozenset(), unresolved=not one)
        known = _named(layer, owners)
    sites = {owners[name] for name in known}
    own = frozenset(site for site in sites if site is not None)
    return _Found(own, bool(own) and None in sites)


def _named(layer: str, owners: Owners) -> list[str]:
    """The nodes in a layer's name; a node that became several layers has numbers behind its name."""
    found = []
    for part in _JOINTS.split(_REFORMAT.sub("", layer)):
        for name in [part] if part in owners else part.replace("PWN(", "").split(", "):
            shorter = name
            while shorter not in owners and shorter.endswith(")"):
                shorter = shorter[:-1]
            base = _NUMBERED.match(shorter)
            if shorter in owners:
                found.append(shorter)
            elif base and base[1] in owners:
                found.append(base[1])
    return found


def _labels(model: ModelProto) -> list[tuple[str, str]]:
    """TensorRT's name of each node, and the one that a plan has for it."""
    nodes = [node for node in model.graph.node if node.output]
    return [(tensorrt_name(node.name, node.output), node.name or node.output[0]) for node in nodes]


def _joined(sets: Iterable[frozenset[str]], order: Sequence[str]) -> list[tuple[str, ...]]:
    """The sites, those that stand in one set together."""
    group: dict[str, set[str]] = {}
    for sites in sets:
        merged = set(sites).union(*(group.get(site, set()) for site in sites))
        for site in merged:
            group[site] = merged
    rank = {site: number for number, site in enumerate(order)}
    ordered = {tuple(sorted(members, key=lambda site: (rank.get(site, len(rank)), site))) for members in group.values()}
    return sorted(ordered, key=lambda members: (rank.get(members[0], len(rank)), members))


def _group(
    sites: tuple[str, ...], engines: tuple[EngineLayers, EngineLayers], sides: Sequence[Sequence[_Found]]
) -> LayerGroup:
    members = set(sites)
    names: list[tuple[str, ...]] = []
    sums: list[float] = []
    shared = 0
    for engine, found in zip(engines, sides, strict=True):
        chosen = [
            (time, place)
            for time, place in zip(engine.times, found, strict=True)
            if (place.sites & members if sites else not place.sites)
        ]
        names.append(tuple(time.name for time, _ in chosen))
        sums.append(sum(time.mean for time, _ in chosen))
        shared += sum(place.shared for _, place in chosen)
    return LayerGroup(sites, names[0], names[1], sums[0], sums[1], shared)

"""Finding blocks in a graph: convolutions one behind the other, with nothing else that reads what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxopt.discover.conv_fusion import ConvFusion, ConvFusions
from onnxopt.discover.conv_site import ConvSite
from onnxopt.model.graph import Graph
from onnxopt.plan.block.work import MOST_STAGES


@dataclass(frozen=True, eq=False)
class Link:
    """A convolution with what is fused to it; ``number`` is its place among the sites of the graph."""

    number: int
    site: ConvSite
    fusion: ConvFusion


def fused_links(graph: Graph, sites: Sequence[ConvSite], borders: frozenset[str] = frozenset()) -> list[Link]:
    """What is fused with each convolution, dense ones too, in the order of the graph."""
    fusions, found = ConvFusions(graph, borders), []
    for number, site in enumerate(sites):
        fusion = fusions.fusion(site)
        if fusion is not None:
            fusions.take(fusion)
            found.append(Link(number, site, fusion))
    return found


def chains(graph: Graph, links: Sequence[Link], borders: frozenset[str] = frozenset()) -> list[tuple[Link, ...]]:
    """Every chain of 2 to 3 convolutions whose tensors between are read by the next one alone, the longest first.

    Chains that begin with the same convolution follow one another.
    """
    following: dict[str, Link] = {}
    for link in links:
        # Several convolutions may read a tensor; then it lies between none of them.
        following[link.fusion.lead.source] = link
    result = []
    for link in links:
        chain = [link]
        while len(chain) < MOST_STAGES:
            follower = following.get(chain[-1].fusion.target)
            if follower is None or not _reads_alone(graph, chain[-1].fusion.target, follower, borders):
                break
            chain.append(follower)
        result += [tuple(chain[:length]) for length in range(len(chain), 1, -1)]
    return result


def _reads_alone(graph: Graph, tensor: str, link: Link, borders: frozenset[str]) -> bool:
    """Whether a convolution with what is fused in front of it is all that a tensor is made for."""
    if tensor in graph.outputs or tensor in borders or link.fusion.residual == tensor:
        return False
    own = {node.output[0] for node in (*link.fusion.lead.nodes, *(part.node for part in link.site.parts))}
    return all(reader.output[0] in own for reader in graph.readers(tensor))

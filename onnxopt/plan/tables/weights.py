"""The run-time weights that the tables of a site have."""

from __future__ import annotations

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.plan.tables.pieces import NoTables
from onnxopt.plan.tables.types import RuntimeWeights


def own_weights(site: AttentionSite) -> RuntimeWeights | None:
    """The weights of a site's keys, or None where all weigh 1.

    The tensor is to be given as float32, batch x columns, and inverted before where the site says so. Raises
    :class:`NoTables` where the site's mask depends on the input in a way that is not understood.
    """
    found = site.weights
    if found is not None:
        return RuntimeWeights(found.tensor, found.width, found.columns, found.diagonals, found.epsilons)
    if site.runtime:
        why = f"; {site.unweighed}" if site.unweighed else ""
        raise NoTables(f"{site.id}: its mask depends on {site.runtime[0]!r}, which no table can hold{why}")
    return None

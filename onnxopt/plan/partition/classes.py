"""Structure of a connectivity: outputs with equal inputs, components that share nothing, and the unions that occur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.partition.problem import CostTable

# A component with more distinct unions than this is described by its degrees alone.
UNION_LIMIT = 1024


@dataclass(frozen=True, eq=False)
class Component:
    """Classes that share inputs with one another and with no other component.

    Row k of ``inputs`` says what class k reads; ``members[k]`` are its outputs, in order.
    """

    inputs: BoolArray
    members: tuple[IntArray, ...]

    @property
    def sizes(self) -> IntArray:
        """Outputs of each class."""
        return np.array([len(outputs) for outputs in self.members], np.int64)

    @property
    def degrees(self) -> IntArray:
        """Inputs of each class."""
        return np.asarray(self.inputs.sum(axis=1))

    @property
    def outputs(self) -> IntArray:
        """All outputs, class by class."""
        return np.concatenate(self.members)


@dataclass(frozen=True, eq=False)
class Unions:
    """Sets of inputs that parts of a component may read, up to what does not matter.

    Row u: ``size[u]`` inputs, in which exactly the classes ``fits[u]`` have all of theirs. ``exact`` where the sets
    are the component's real unions; otherwise a class fits wherever there are as many inputs as it has, which allows
    more than is possible. ``sets`` has the real unions, where they are known.
    """

    size: IntArray
    fits: BoolArray
    exact: bool
    sets: BoolArray | None = None


def components(links: BoolArray) -> list[Component]:
    """The components of a connectivity, by their first output; outputs without inputs are in none."""
    live = np.flatnonzero(links.any(axis=1))
    keys: dict[bytes, list[int]] = {}
    for output, key in zip(live.tolist(), np.packbits(links[live], axis=1), strict=True):
        keys.setdefault(key.tobytes(), []).append(output)
    members = [np.array(outputs, np.int64) for outputs in keys.values()]
    if not members:
        return []
    rows = links[[outputs[0] for outputs in members]]
    labels = _labels(rows)
    return [
        Component(rows[labels == label], tuple(m for m, at in zip(members, labels, strict=True) if at == label))
        for label in range(int(labels.max()) + 1)
    ]


def _labels(rows: BoolArray) -> IntArray:
    """The component of each row, numbered by first appearance."""
    count, width = rows.shape
    at, column = np.nonzero(rows)
    graph = csr_matrix((np.ones(len(at), np.int8), (at, count + column)), shape=(count + width, count + width))
    labels = connected_components(graph, directed=False)[1][:count]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def unions(component: Component, limit: int = UNION_LIMIT) -> Unions:
    """The unions that parts of a component can have: all of them up to ``limit``, otherwise by degree alone."""
    closed = _closure(component.inputs, limit)
    if closed is not None:
        fits = np.asarray(~(component.inputs[None, :, :] & ~closed[:, None, :]).any(axis=2))
        return Unions(closed.sum(axis=1), fits, True, closed)
    degrees = np.unique(component.degrees)
    return Unions(degrees, component.degrees[None, :] <= degrees[:, None], False)


def without_dominated(family: Unions, table: CostTable) -> Unions:
    """Leave out unions that lie in a larger one at which parts of every size cost the same."""
    if not family.exact:
        return family
    same = (table.values[:, family.size][:, :, None] == table.values[:, family.size][:, None, :]).all(axis=0)
    inside = ~(family.fits[:, None, :] & ~family.fits[None, :, :]).any(axis=2)
    larger = family.size[:, None] < family.size[None, :]
    keep = ~(same & inside & larger).any(axis=1)
    sets = None if family.sets is None else family.sets[keep]
    return Unions(family.size[keep], family.fits[keep], True, sets)


def _closure(rows: BoolArray, limit: int) -> BoolArray | None:
    """All unions of rows, smallest first; None where there are more than ``limit``."""
    width = rows.shape[1]
    known: dict[bytes, None] = {}
    for row in np.packbits(rows, axis=1):
        fresh = {row.tobytes()}
        fresh.update((np.frombuffer(key, np.uint8) | row).tobytes() for key in known)
        known.update(dict.fromkeys(sorted(fresh)))
        if len(known) > limit:
            return None
    packed = np.stack([np.frombuffer(key, np.uint8) for key in known])
    sets = np.unpackbits(packed, axis=1, count=width).astype(bool)
    order = np.lexsort((np.arange(len(sets)), sets.sum(axis=1)))
    return sets[order]

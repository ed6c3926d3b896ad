"""Components that look alike to the bound, and the sets of classes on which it puts prices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxopt.plan.partition.classes import Component, Unions

# Degrees that are told apart.
LEVELS = 8
_SUBSET_CLASSES = 5
_UNION_SETS = 160


@dataclass(frozen=True, eq=False)
class Kind:
    """Components that look alike: one of them, its unions, how many there are, and the sets X within one.

    ``masks[x]`` are the classes of set x, ``hits[u, x]`` whether a part with union u can have outputs of it.
    """

    component: Component
    unions: Unions
    count: int
    masks: np.ndarray
    hits: np.ndarray


def kinds_of(parts: list[Component], families: list[Unions]) -> list[Kind]:
    """Components grouped by what the bound looks at."""
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for i, (component, family) in enumerate(zip(parts, families, strict=True)):
        shape = (component.sizes.tobytes(), component.degrees.tobytes(), family.size.tobytes(), family.fits.tobytes())
        groups.setdefault(shape, []).append(i)
    result = []
    for members in groups.values():
        component, family = parts[members[0]], families[members[0]]
        masks = _masks(component, family)
        hits = (family.fits.astype(np.int64) @ masks.T.astype(np.int64)) > 0
        result.append(Kind(component, family, len(members), masks, hits))
    return result


def _masks(component: Component, family: Unions) -> np.ndarray:
    """Sets of classes within a component.

    Each class alone, all of them, those of high degree, all sets of few, and what fits into a union and what does not.
    """
    count, degrees = len(component.members), component.degrees
    rows = [
        np.eye(count, dtype=bool),
        np.ones((1, count), bool),
        degrees[None, :] >= picked(np.unique(degrees), LEVELS)[:, None],
    ]
    if 1 < count <= _SUBSET_CLASSES:
        rows.append((np.arange(1, 2**count)[:, None] >> np.arange(count)[None, :] & 1).astype(bool))
    elif family.exact and len(family.size) <= _UNION_SETS:
        rows += [family.fits, ~family.fits]
    masks = np.unique(np.concatenate(rows), axis=0)
    return masks[masks.any(axis=1)]


def picked(values: np.ndarray, most: int) -> np.ndarray:
    """``most`` of some values at most, spread evenly over their order."""
    return np.asarray(values[np.unique(np.linspace(0, len(values) - 1, most).astype(np.int64))])

"""Putting groups of outputs together where that saves: remainders of several classes, and whole small components."""

from __future__ import annotations

import numpy as np

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.partition.classes import Component
from onnxopt.plan.partition.knapsack import split_sizes
from onnxopt.plan.partition.problem import CostTable

_MOST_GROUPS = 1024


def merge_groups(links: BoolArray, groups: list[IntArray], table: CostTable) -> list[IntArray]:
    """Merge two groups at a time, always those whose merging saves most, until none does."""
    if len(groups) > _MOST_GROUPS:
        return groups
    groups = list(groups)
    unions = np.stack([links[group].any(axis=0) for group in groups])
    sizes = np.array([len(group) for group in groups])
    saving = np.stack([_savings(unions, sizes, i, table) for i in range(len(groups))])
    while True:
        i, j = divmod(int(np.argmax(saving)), len(groups))
        if saving[i, j] <= 1e-9 * float(table.values.max()):
            break
        i, j = min(i, j), max(i, j)
        groups[i] = np.concatenate([groups[i], groups[j]])
        unions[i] |= unions[j]
        sizes[i] += sizes[j]
        sizes[j] = table.max_outputs + 1
        groups[j] = groups[j][:0]
        saving[i] = saving[:, i] = _savings(unions, sizes, i, table)
        saving[j] = saving[:, j] = -np.inf
    return [group for group in groups if len(group)]


def _savings(unions: BoolArray, sizes: IntArray, i: int, table: CostTable) -> np.ndarray:
    """What merging group ``i`` with each other one saves."""
    together = sizes + sizes[i]
    fits = together <= table.max_outputs
    fits[i] = False
    own, joint = unions.sum(axis=1), (unions | unions[i]).sum(axis=1)
    most = np.minimum(together, table.max_outputs)
    each = table.values[np.minimum(sizes, table.max_outputs), own]
    return np.where(fits, each + each[i] - table.values[most, joint], -np.inf)


def with_remainders(component: Component, table: CostTable, step: int) -> list[IntArray]:
    """Every class in whole multiples of ``step`` outputs, and what is left over of it as a group of its own."""
    groups = []
    for outputs, inputs in zip(component.members, component.degrees.tolist(), strict=True):
        whole = len(outputs) // step * step
        for piece in (outputs[:whole], outputs[whole:]):
            if len(piece):
                sizes = split_sizes(table.values[:, inputs], len(piece))
                groups += np.split(piece, np.cumsum(sizes)[:-1])
    return groups


def bundles(alike: list[Component], table: CostTable) -> list[IntArray]:
    """Whole components of one shape, put together in the numbers that cost least."""
    outputs, inputs = len(alike[0].outputs), int(alike[0].inputs.any(axis=0).sum())
    most = min(len(alike), table.max_outputs // outputs, (table.values.shape[1] - 1) // inputs)
    if most < 1:
        return []
    counts = np.arange(1, most + 1)
    costs = np.concatenate([[0.0], table.values[counts * outputs, counts * inputs]])
    groups, begin = [], 0
    for count in split_sizes(costs, len(alike)):
        groups.append(np.concatenate([component.outputs for component in alike[begin : begin + count]]))
        begin += count
    return groups

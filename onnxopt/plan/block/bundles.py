"""Cutting a block by channels: components that share nothing in between, bundles of them, and their parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.block.types import Bundle, StagePart
from onnxopt.plan.block.work import BlockWork

OUTPUT_GRANULE, INPUT_GRANULE = 8, 16
# Computed connections that another part costs beside its own: its line, and what stands still between two parts.
_PART_COST = 64
# Beyond so many parts, joining them pair by pair takes too long; they become one.
_MOST_PARTS = 64


def components(work: BlockWork) -> list[IntArray]:
    """Outputs of the last stage that share a middle channel, directly or through others; in the order of y."""
    count = len(work.last.weights)
    reach = _reach(work)
    label = np.arange(count)
    for users in reach.T:
        own = np.flatnonzero(users)
        if len(own) > 1:
            lowest = label[own].min()
            label[np.isin(label, label[own])] = lowest
    groups = [np.flatnonzero(label == name) for name in np.unique(label)]
    kept = [group[work.targets[group] >= 0] for group in groups]
    return sorted((group for group in kept if len(group)), key=lambda group: int(work.targets[group].min()))


def _reach(work: BlockWork) -> BoolArray:
    """Outputs of the last stage x outputs of the first: what each needs, through all stages between."""
    needed: BoolArray = np.eye(len(work.last.weights), dtype=bool)
    for stage in range(len(work.stages) - 1, 0, -1):
        made = np.zeros((len(work.stages[stage].weights), len(work.stages[stage - 1].weights)), bool)
        output, given = np.nonzero(work.links(stage))
        made[output, work.sources[stage][given]] = True
        needed = np.asarray((needed.astype(np.float32) @ made.astype(np.float32)) > 0)
    return needed


def within(bundle: Bundle, most_outputs: int) -> Bundle:
    """The same with parts of the first stage of ``most_outputs`` at most."""
    first, *others = bundle.stages
    return Bundle((tuple(part for own in first for part in _cut(own, most_outputs)), *others))


def bundle(work: BlockWork, outputs: IntArray) -> Bundle:
    """What computes some outputs of the last stage."""
    stages: list[tuple[StagePart, ...]] = []
    wanted = outputs
    for number in range(len(work.stages) - 1, -1, -1):
        links = work.links(number)
        if number == 0:
            # In the order in which the next stage wants them, so that neighbours have neighbouring slots.
            parts = _merged(_equal_inputs(links, wanted))
        elif work.is_channelwise(number) and number < len(work.stages) - 1:
            parts = [
                StagePart(part.outputs, _only_input(links, part.outputs)) for part in _runs(stages[-1], work, number)
            ]
        else:
            parts = _merged(_connected(links, wanted, work.sources[number]))
        stages.append(tuple(parts))
        if number:
            read = [work.sources[number][part.inputs] for part in parts]
            wanted = _distinct(np.concatenate([*read, np.empty(0, np.int64)]))
    return Bundle(tuple(reversed(stages)))


def _runs(following: Sequence[StagePart], work: BlockWork, number: int) -> list[StagePart]:
    """The outputs of a channelwise stage as the parts behind it want them; all of these have inputs of their own."""
    read = [work.sources[number + 1][part.inputs] for part in following]
    return [StagePart(own, own) for own in read if len(own)]


def _only_input(links: BoolArray, outputs: IntArray) -> IntArray:
    """The input of each output; -1 for those without one."""
    return np.where(links[outputs].any(axis=1), links[outputs].argmax(axis=1), -1).astype(np.int64)


def _equal_inputs(links: BoolArray, outputs: IntArray) -> list[StagePart]:
    """Outputs with equal inputs together."""
    found: dict[bytes, list[int]] = {}
    for output in outputs.tolist():
        found.setdefault(links[output].tobytes(), []).append(output)
    return [StagePart(np.array(own), np.flatnonzero(links[own[0]])) for own in found.values()]


def _connected(links: BoolArray, outputs: IntArray, sources: IntArray) -> list[StagePart]:
    """Outputs together that share something of the stage before, so that parts have inputs of their own."""
    groups: list[tuple[list[int], set[int]]] = []
    for output in outputs.tolist():
        own = [output], set(sources[links[output]].tolist())
        rest = []
        for group in groups:
            if group[1] & own[1]:
                own = group[0] + own[0], group[1] | own[1]
            else:
                rest.append(group)
        groups = [*rest, own]
    return [StagePart(np.array(own), np.flatnonzero(links[own].any(axis=0))) for own, _ in groups]


def _merged(parts: list[StagePart]) -> list[StagePart]:
    """Parts that cost less together than apart, joined, the pair that saves most first."""
    if len(parts) > _MOST_PARTS:
        parts = [StagePart(np.concatenate([p.outputs for p in parts]), _all_inputs(parts))]
    # By numbers that only grow, so that what a pair saves is counted once; of equal pairs the first counts.
    known = dict(enumerate(parts))
    saved = {pair: _saved(known[pair[0]], known[pair[1]]) for pair in combinations(known, 2)}
    while saved:
        first, second = max(saved, key=lambda pair: (saved[pair], -pair[0], -pair[1]))
        if saved[first, second] <= 0:
            break
        number, joined = max(known) + 1, _union(known.pop(first), known.pop(second))
        saved = {pair: own for pair, own in saved.items() if not {first, second}.intersection(pair)}
        saved |= {(other, number): _saved(part, joined) for other, part in known.items()}
        known[number] = joined
    return sorted(known.values(), key=lambda part: int(part.outputs.min()))


def _saved(first: StagePart, second: StagePart) -> int:
    """What two parts cost less together than apart."""
    return _cost(first) + _cost(second) - _cost(_union(first, second))


def _all_inputs(parts: Sequence[StagePart]) -> IntArray:
    return np.unique(np.concatenate([part.inputs for part in parts]))


def _union(first: StagePart, second: StagePart) -> StagePart:
    return StagePart(np.concatenate([first.outputs, second.outputs]), np.union1d(first.inputs, second.inputs))


def _cost(part: StagePart) -> int:
    return _up(len(part.outputs), OUTPUT_GRANULE) * _up(len(part.inputs), INPUT_GRANULE) + _PART_COST


def _cut(part: StagePart, most: int) -> list[StagePart]:
    """A part in pieces of as equal numbers of whole granules of outputs as can be."""
    pieces = -(-len(part.outputs) // most)
    size = _up(-(-len(part.outputs) // pieces), OUTPUT_GRANULE)
    return [StagePart(part.outputs[n : n + size], part.inputs) for n in range(0, len(part.outputs), size)]


def _distinct(values: IntArray) -> IntArray:
    """Values in their order, each once; none below 0."""
    return np.array(list(dict.fromkeys(v for v in values.tolist() if v >= 0)), np.int64)


def _up(count: int, granule: int) -> int:
    return -(-count // granule) * granule

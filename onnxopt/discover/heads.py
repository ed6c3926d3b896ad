"""Which head each row of a softmax belongs to, and in which place of the output its result stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxopt.discover.key_lists import HeadRows
from onnxopt.discover.operand import Operand
from onnxopt.discover.refusal import NotASite
from onnxopt.discover.scores import ScoreMap
from onnxopt.discover.values import ValueMap
from onnxopt.model.graph import Graph


def rows_by_head(graph: Graph, scores: ScoreMap, values: ValueMap, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax rows as (batch elements x heads x rows), in the order of the output, and the output's slots.

    Raises :class:`NotASite` where batch elements or heads fill the output unevenly.
    """
    slots = values.slots
    numbers = slots.reshape(len(slots), -1)
    filled = numbers[0] >= 0
    if np.any((numbers >= 0) != filled):
        raise NotASite("the output is not filled alike in every batch element")
    if not filled.any():
        raise NotASite("no part of its output holds a result")
    columns = np.broadcast_to(np.arange(slots.shape[2]), slots.shape[1:]).reshape(-1)
    label = _labels(graph, scores, numbers[0][filled], columns[filled], batch)
    heads = np.unique(label)
    counts = [int(np.count_nonzero(label == head)) for head in heads]
    if len(set(counts)) != 1:
        raise NotASite(f"its heads have different numbers of output rows: {sorted(set(counts))}")
    rows = np.stack([numbers[:, filled][:, label == head] for head in heads], axis=1)
    target = np.full(numbers.shape[1], -1, np.int64)
    places = np.flatnonzero(filled)
    for index, head in enumerate(heads):
        target[places[label == head]] = index * counts[0] + np.arange(counts[0])
    return rows, target.reshape(slots.shape[1:])


def _labels(graph: Graph, scores: ScoreMap, rows: np.ndarray, columns: np.ndarray, batch: int) -> np.ndarray:
    """The head of each softmax row: by the channels of its query, else by where the query's or the result's
    head stands.

    ``columns`` are the channel blocks of the output that the rows fill.
    """
    index = np.unravel_index(rows, scores.shape[:-1])
    every = np.broadcast_to(scores.query, scores.shape)
    query = every[index].max(axis=1) if scores.query.shape[-1] > 1 else every[(*index, 0)]
    operand = scores.q.operand
    blocks = np.concatenate([np.tile(np.arange(s.channels // operand.width), s.rows) for s in operand.sources])
    label = np.where(query >= 0, blocks[query % operand.vectors], -1)
    if len(np.unique(label[label >= 0])) <= 1:
        along = _axis_of_heads(graph, operand, query, index[1], batch) if len(scores.shape) == 4 else None
        return columns if along is None else along
    # A row without any score shows no query; it is of the head that fills the same channels.
    for column in np.unique(columns[label < 0]):
        named = np.unique(label[(columns == column) & (label >= 0)])
        if len(named) != 1:
            raise NotASite("the head of a row without scores cannot be told")
        label[(columns == column) & (label < 0)] = named[0]
    return np.asarray(label)


def _axis_of_heads(
    graph: Graph, operand: Operand, query: np.ndarray, second: np.ndarray, batch: int
) -> np.ndarray | None:
    """The scores' second index, if it is an index of the four-dimensional tensor that the queries come from.

    That is what tells heads from windows, which mix the axes of their source.
    """
    if len(operand.sources) != 1 or np.any(query < 0):
        return None
    shape = graph.shape(operand.sources[0].tensor)
    if shape is None or len(shape) != 4 or shape[0] % batch:
        return None
    lead = np.delete(np.array(shape), operand.sources[0].channel_axis)
    lead[0] //= batch
    for index in np.unravel_index(query % operand.vectors, tuple(lead))[1:]:
        pairs = len(np.unique(index * (int(second.max()) + 1) + second))
        if pairs == len(np.unique(index)) == len(np.unique(second)):
            return second
    return None


def numbered_alike(heads: Sequence[HeadRows], tokens: Sequence[np.ndarray]) -> tuple[list[HeadRows], np.ndarray]:
    """The heads with key numbers that mean the same token in each, and the token of every number.

    ``tokens`` gives the token of each key of each head. Heads whose keys are others get numbers of their own.
    """
    tables: list[np.ndarray] = []
    which = []
    for own in tokens:
        number = next((i for i, table in enumerate(tables) if _alike(own, table)), len(tables))
        tables[number:] = tables[number:] or [own]
        which.append(number)
    if len(tables) == 1:
        return list(heads), tables[0]
    starts = np.cumsum([0] + [len(table) for table in tables])
    result = []
    for head, number in zip(heads, which, strict=True):
        place = slice(int(starts[number]), int(starts[number + 1]))
        keys, values = np.full(starts[-1], -1, np.int64), np.full(starts[-1], -1, np.int64)
        keys[place], values[place] = head.keys, head.values
        lists = replace(head.lists, keys=head.lists.keys + np.int32(place.start))
        result.append(replace(head, keys=keys, values=values, lists=lists))
    return result, np.concatenate(tables)


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two heads have the same tokens, or each its own in the same order."""
    if len(a) != len(b) or not np.array_equal(a < 0, b < 0):
        return False
    shift = (a - b)[a >= 0]
    return not shift.size or bool(np.all(shift == shift[0]))


def heads_apart(tokens: Sequence[np.ndarray]) -> int:
    """How many copies of the tokens there are because heads stand apart in the tensor that the keys come
    from.
    """
    sets = {own.tobytes(): own for own in (np.unique(t[t >= 0]) for t in tokens) if own.size}
    distinct = len(np.unique(np.concatenate([*sets.values(), np.empty(0, np.int64)])))
    return max(1, len(sets)) if distinct == sum(len(own) for own in sets.values()) else 1

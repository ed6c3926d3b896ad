"""From the traced elements of one head to its key lists: who attends to whom, with what bias."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxopt.discover.attention_site import EmptyRow, KeyLists
from onnxopt.discover.refusal import NotASite
from onnxopt.discover.row_classes import row_classes, wide_rows
from onnxopt.discover.scores import MASK_THRESHOLD, SWALLOWING, ScoreMap
from onnxopt.discover.values import ValueMap
from onnxopt.model.graph import Shape

# Added in float32 to a score within +-16, a constant beyond this leaves nothing of it.
_ABSORBING = -5e8


@dataclass(frozen=True)
class HeadRows:
    """One head: vector numbers of its queries, keys and values, its key lists, its bias and its rows without
    keys.

    ``asked`` are the queries as the graph asks them; in ``queries`` those whose every score a constant
    replaced are zero vectors.
    """

    asked: np.ndarray
    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    lists: KeyLists
    bias: np.ndarray | None
    scale: float
    empty: np.ndarray
    empty_kind: EmptyRow | None


@dataclass(frozen=True)
class _Elements:
    """The softmax elements of the chosen rows; arrays are rows x keys, of length 1 along what they do not
    vary with.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    factor: np.ndarray
    constant: np.ndarray

    def same_as(self, other: _Elements) -> bool:
        """Whether every array is equal."""
        return all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("query", "key", "value", "factor", "constant")
        )


def head_rows(scores: ScoreMap, values: ValueMap, rows: np.ndarray, *, zero_keys: bool = False) -> HeadRows:
    """Key lists of the softmax rows ``rows`` (batch elements x rows; numbers over all leading axes).

    With ``zero_keys`` a row that the graph turns into zeros has one key whose value is a zero vector.
    Raises :class:`NotASite` where rows mix queries or scales, or batch elements differ.
    """
    elements = _elements(scores, values, rows[0], 0)
    for element in range(1, len(rows)):
        if not elements.same_as(_elements(scores, values, rows[element], element)):
            raise NotASite("the attention pattern is not the same for every batch element")
    count = rows.shape[1]
    keys_wide = scores.shape[-1]
    queries = _one_query(elements, count)
    live = elements.constant > MASK_THRESHOLD
    if live.all():
        live = np.ones((1, 1), bool)
    has_live = np.asarray(live.any(axis=1))
    empty_kind = None
    constant = elements.constant
    if not has_live.all():
        empty_kind, revived = _empty_rows(elements, has_live, values.guarded)
        live = live | revived
        if zero_keys and empty_kind is EmptyRow.ZERO:
            elements, live = _with_zero_keys(elements, live, has_live)
            constant = elements.constant
    scale, key, unscored = _scaled_keys(elements, live)
    classes, chosen = row_classes(key, elements.value, live, keys_wide)
    key, value, live = (wide_rows(array, chosen, keys_wide) for array in (key, elements.value, live))
    numbers, key_vectors, value_vectors = _number_keys(key, value, live, zero_keys)
    lists, columns = _lists(numbers, live, classes, count)
    bias = _bias(constant, lists, columns, np.broadcast_to(classes, (count,)))
    empty = np.zeros(count, bool) | ~np.broadcast_to(has_live, (count,))
    return HeadRows(
        queries, np.where(unscored, -1, queries), key_vectors, value_vectors, lists, bias, scale, empty, empty_kind
    )


def _elements(scores: ScoreMap, values: ValueMap, rows: np.ndarray, element: int) -> _Elements:
    """The chosen rows of every array, with vector numbers counted within the batch element."""
    index = np.unravel_index(rows, scores.shape[:-1])

    def local(vectors: np.ndarray, table: int) -> np.ndarray:
        picked = _pick(vectors, index, scores.shape)
        inside = np.where(picked >= 0, picked - element * table, -1)
        if np.any((inside < -1) | (inside >= table)):
            raise NotASite("a query attends to another batch element")
        return np.asarray(inside)

    query = local(scores.query, scores.q.operand.vectors)
    key = local(scores.key, scores.k.operand.vectors)
    return _Elements(
        query=query,
        key=key if (query >= 0).all() else np.where(query >= 0, key, -1),
        value=local(values.value, values.v.operand.vectors),
        factor=_pick(scores.factor, index, scores.shape),
        constant=_pick(scores.constant, index, scores.shape),
    )


def _pick(values: np.ndarray, index: tuple[np.ndarray, ...], shape: Shape) -> np.ndarray:
    """Rows of an array that broadcasts to ``shape``: rows x keys, one row where all chosen rows are the same
    one.
    """
    values = values.reshape([1] * (len(shape) - values.ndim) + list(values.shape))
    own = [np.where(values.shape[axis] == 1, 0, i) for axis, i in enumerate(index)]
    if all(np.all(i == i[0]) for i in own if i.size):
        return np.asarray(values[tuple(int(i[0]) if i.size else 0 for i in own)])[None]
    return np.asarray(values[tuple(own)])


def _one_query(elements: _Elements, count: int) -> np.ndarray:
    query = elements.query.max(axis=1)
    if elements.query.shape[1] > 1 and np.any((elements.query != query[:, None]) & (elements.query >= 0)):
        raise NotASite("one softmax row mixes several queries")
    return np.array(np.broadcast_to(query, (count,)))


def _empty_rows(elements: _Elements, has_live: np.ndarray, guarded: bool) -> tuple[EmptyRow, np.ndarray]:
    """What rows without a live key compute, and the elements that do it."""
    constant = elements.constant
    finite = np.isfinite(constant) & ~has_live[:, None]
    without_finite = ~has_live & ~finite.any(axis=1)
    if without_finite.any():
        if finite.any():
            raise NotASite("rows without keys are NaN in some places and finite in others")
        return EmptyRow.ZERO if guarded else EmptyRow.NAN, np.broadcast_to(~has_live[:, None], constant.shape)
    strongest = np.where(finite, constant, -np.inf).max(axis=1)[~has_live]
    factor = np.broadcast_to(elements.factor, np.broadcast_shapes(elements.factor.shape, constant.shape))
    scored = np.broadcast_to(factor != 0, np.broadcast_shapes(factor.shape, finite.shape))
    absorbed = bool((strongest <= _ABSORBING).all())
    if not absorbed and np.any(strongest <= _ABSORBING):
        raise NotASite("rows without keys are uniform in some places and unmasked in others")
    equal = (constant == np.where(finite, constant, -np.inf).max(axis=1, keepdims=True)) & finite
    if absorbed:
        return EmptyRow.UNIFORM, equal
    replaced = not np.any(scored & finite) and np.array_equal(equal, finite)
    return EmptyRow.UNIFORM if replaced else EmptyRow.UNMASKED, finite


def _with_zero_keys(elements: _Elements, live: np.ndarray, has_live: np.ndarray) -> tuple[_Elements, np.ndarray]:
    """Rows without keys with their first element, a zero vector, as their only one."""
    shape = (len(has_live), live.shape[1])
    first = ~has_live[:, None] & (np.arange(shape[1]) == 0)
    return replace(
        elements,
        key=np.where(first, -1, elements.key),
        value=np.where(first, -1, elements.value),
        constant=np.where(first, 0, elements.constant),
    ), np.where(has_live[:, None], live, first)


def _scaled_keys(elements: _Elements, live: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The one scale of all scores, the keys, and which rows have no score.

    A score that a constant replaced is a zero vector's: the key's, or the query's where that holds for the
    whole row.
    """
    if elements.factor.size == 1 and elements.factor.flat[0] != 0:
        return float(elements.factor.flat[0]), elements.key, np.zeros(1, bool)
    shape = np.broadcast_shapes(elements.factor.shape, elements.key.shape, live.shape)
    factor = np.broadcast_to(elements.factor, shape)
    scales = factor[np.broadcast_to(live & (factor != 0) & (elements.key >= 0), shape)]
    scale = float(scales.flat[0]) if scales.size else 1.0
    if np.any(scales != scale):
        raise NotASite(f"scores of one head are scaled unevenly, from {scales.min():g} to {scales.max():g}")
    # Beside a constant that swallows any score it does not matter that there is none.
    replaced = live & (factor == 0) & (elements.constant > SWALLOWING)
    unscored = replaced.any(axis=1) & (replaced | ~live).all(axis=1)
    replaced &= ~unscored[:, None]
    return scale, np.where(replaced, -1, elements.key) if replaced.any() else elements.key, unscored


def _number_keys(
    key: np.ndarray, value: np.ndarray, live: np.ndarray, zero_key: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the distinct (key vector, value vector) pairs; masked keys count too, so that heads number
    alike, and with ``zero_key`` a pair of zero vectors even where there is none.

    Returns the number of each element, and the key and value vector of each number.
    """
    table = int(key.max()) + 2
    partner = np.full(table, -2, np.int64)
    partner[key + 1] = value
    zero_keys = live & (key < 0)
    partner[0] = value[zero_keys][0] if zero_keys.any() else (-1 if zero_key else -2)
    # Where the graph wrote over a score, nothing tells which key it was; such elements are not live and have
    # no number.
    if np.all((partner[key + 1] == value) | ((key < 0) & ~zero_keys)):
        used = np.flatnonzero(partner != -2)
        rank = np.full(table, -1, np.int32)
        rank[used] = np.arange(len(used), dtype=np.int32)
        return rank[key + 1], used - 1, partner[used]
    base = int(value.max()) + 2
    codes = np.where(live | (key >= 0), (key + 1).astype(np.int64) * base + value + 1, -1)
    always = np.array([0] if zero_key else [], np.int64)
    pairs, numbers = np.unique(np.concatenate([always, codes.reshape(-1)]), return_inverse=True)
    unknown = int(pairs[0] < 0)
    pairs = pairs[unknown:]
    numbers = numbers[len(always) :].reshape(key.shape) - unknown
    return numbers.astype(np.int32), pairs // base - 1, pairs % base - 1


def _lists(numbers: np.ndarray, live: np.ndarray, classes: np.ndarray, count: int) -> tuple[KeyLists, list[np.ndarray]]:
    """Key lists from one row a class, and for each class the columns of its list in the order of the list."""
    columns = []
    known: dict[bytes, int] = {}
    lists: list[np.ndarray] = []
    list_of_class = np.empty(len(numbers), np.int32)
    for index, row in enumerate(numbers):
        alive = np.flatnonzero(live[index])
        order = np.argsort(row[alive], kind="stable")
        columns.append(alive[order])
        ordered = np.ascontiguousarray(row[alive][order], dtype=np.int32)
        number = known.setdefault(ordered.tobytes(), len(lists))
        if number == len(lists):
            lists.append(ordered)
        list_of_class[index] = number
    offsets = np.concatenate([[0], np.cumsum([len(keys) for keys in lists])]).astype(np.int64)
    keys = np.concatenate(lists)
    return KeyLists(np.array(np.broadcast_to(list_of_class[classes], (count,))), offsets, keys), columns


def _bias(constant: np.ndarray, lists: KeyLists, columns: list[np.ndarray], classes: np.ndarray) -> np.ndarray | None:
    """What is added to each live score, row after row; None where that is nothing."""
    if not np.any(constant[constant > MASK_THRESHOLD]) and constant.min() > MASK_THRESHOLD:
        return None
    offsets = lists.row_offsets()
    bias = np.empty(int(offsets[-1]), np.float32)
    order = np.argsort(classes, kind="stable")
    bounds = np.searchsorted(classes[order], np.arange(len(columns) + 1))
    wide = constant.shape[1] > 1
    for index, column in enumerate(columns):
        rows = order[bounds[index] : bounds[index + 1]]
        some = constant[rows] if constant.shape[0] > 1 else constant
        bias[offsets[rows][:, None] + np.arange(len(column))] = some[:, column] if wide else some
    return bias if np.any(bias) else None

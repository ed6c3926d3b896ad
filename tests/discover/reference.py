"""Attention in float64 NumPy, computed from an :class:`AttentionSite` alone, as its docstring describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyLists, KeyWeights
from onnxopt.discover.operand import Operand

Floats = NDArray[np.float64]

# Scores of one block of rows; a bound on the memory that a block takes.
_BLOCK_SCORES = 1 << 22


def attend(site: AttentionSite, tensors: Mapping[str, NDArray[Any]], *, rows: NDArray[Any] | None = None) -> Floats:
    """``site.output`` for all batch elements, from the tensors named in ``site.inputs``.

    With ``rows`` only those query rows are computed; the blocks of the output that hold the others are NaN.
    """
    results = attention_rows(site, tensors, np.arange(site.rows) if rows is None else rows)
    batch, heads, _, width = results.shape
    every = np.full((batch, heads * site.rows + 1, width), np.nan)
    every[:, -1] = 0.0
    every[:, :-1].reshape(batch, heads, site.rows, width)[:, :, slice(None) if rows is None else rows] = results
    blocks = every[:, site.slots]
    element = list(site.output_shape)
    element[0] = element[0] * batch // site.batch
    channels = element.pop(site.channel_axis)
    return np.moveaxis(blocks.reshape(*element, channels), -1, site.channel_axis)


def attention_rows(site: AttentionSite, tensors: Mapping[str, NDArray[Any]], rows: NDArray[Any]) -> Floats:
    """Results of the given query rows, batch elements x heads x rows x channels of a value vector."""
    queries, keys, values = (_vectors(operand, tensors) for operand in (site.q, site.k, site.v))
    result = np.zeros((queries.shape[0], site.heads, len(rows), site.v.width))
    for head in range(site.heads):
        lists, bias = site.lists_of(head), site.bias_of(head)
        starts = lists.row_offsets()
        q = _picked(queries, site.query_vectors[head])
        k, v = _picked(keys, site.key_vectors[head]), _picked(values, site.value_vectors[head])
        for places, list_number in _blocks(lists, rows):
            chosen = lists.list(list_number)
            scores = q[:, rows[places]] @ k[:, chosen].transpose(0, 2, 1) * site.scale[head]
            if bias is not None:
                scores = scores + bias[starts[rows[places]][:, None] + np.arange(len(chosen))].astype(np.float64)
            weights = _softmax(scores)
            if site.weights is not None:
                weights = _weighed(scores, _factors(site.weights, tensors, rows[places], chosen), site.weights.epsilons)
            empty = site.head_empty[head, rows[places]]
            if site.empty_kind is EmptyRow.ZERO:
                weights[:, empty] = 0.0
            elif site.empty_kind is EmptyRow.UNIFORM:
                # What float32 makes of a score beside a constant that swallows it.
                weights[:, empty] = 1.0 / len(chosen)
            result[:, head, places] = weights @ v[:, chosen]
    return result


def _vectors(operand: Operand, tensors: Mapping[str, NDArray[Any]]) -> Floats:
    """The operand's table: batch elements x vectors x channels."""
    parts = []
    for source in operand.sources:
        rows = np.moveaxis(np.asarray(tensors[source.tensor], np.float64), source.channel_axis, -1)
        parts.append(rows.reshape(-1, source.rows * source.channels // operand.width, operand.width))
    return np.concatenate(parts, axis=1)


def _picked(table: Floats, numbers: NDArray[Any]) -> Floats:
    with_zero = np.concatenate([table, np.zeros_like(table[:, :1])], axis=1)
    return np.asarray(with_zero[:, numbers])


def _blocks(lists: KeyLists, rows: NDArray[Any]) -> list[tuple[NDArray[Any], int]]:
    """Places in ``rows`` of rows with the same key list, in blocks of bounded size, and the list's number."""
    blocks = []
    wanted = lists.row_list[rows]
    order = np.argsort(wanted, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(wanted[order])) + 1):
        number = int(wanted[places[0]])
        step = max(1, _BLOCK_SCORES // max(1, len(lists.list(number))))
        blocks += [(places[i : i + step], number) for i in range(0, len(places), step)]
    return blocks


def _softmax(scores: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _factors(
    weights: KeyWeights, tensors: Mapping[str, NDArray[Any]], rows: NDArray[Any], keys: NDArray[Any]
) -> Floats:
    """What the exponentials are multiplied by: batch elements x rows x keys."""
    held = np.asarray(tensors[weights.tensor], np.float64).reshape(-1, weights.width)
    columns = weights.columns[keys]
    factors = np.repeat((1 - held if weights.inverted else held)[:, None, columns], len(rows), axis=1)
    factors[:, weights.diagonals[rows][:, None] == columns] = 1
    return factors


def _weighed(scores: Floats, factors: Floats, epsilons: tuple[float, float]) -> Floats:
    with np.errstate(invalid="ignore"):
        powers = factors * np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray((powers + epsilons[0]) / (powers.sum(axis=-1, keepdims=True) + epsilons[1]))


@dataclass(frozen=True)
class Deviation:
    """How far a recomputed output is from the model's own, as parts of the latter's largest value."""

    node: str
    largest: float
    rms: float

    @property
    def small(self) -> bool:
        """Whether float32 rounding explains it."""
        return self.largest <= 1e-4 and self.rms <= 1e-5


def deviations(
    model: onnx.ModelProto,
    sites: Sequence[AttentionSite],
    feeds: Mapping[str, NDArray[Any]],
    *,
    most_pairs: int | None = None,
) -> list[Deviation]:
    """Recompute every site from the model's own tensors and compare with the tensor that the model has there.

    With ``most_pairs`` rows are sampled (seeded) until about so many pairs of a site are computed.
    """
    names = list(dict.fromkeys(name for site in sites for name in (*site.inputs, site.output)))
    tensors = _tensors(model, feeds, names)
    return [_deviation(site, tensors, _sampled(site, most_pairs)) for site in sites]


def _tensors(
    model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Tensors as ONNX Runtime computes them; the model gets them as outputs for the time of the run."""
    known = {value.name for value in model.graph.output}
    inner = [name for name in names if name not in feeds]
    before = len(model.graph.output)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner if name not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    finally:
        del model.graph.output[before:]
    given = {value.name: feeds[value.name] for value in session.get_inputs()}
    return {**feeds, **dict(zip(inner, session.run(inner, given), strict=True))}


def _sampled(site: AttentionSite, most_pairs: int | None) -> NDArray[Any] | None:
    pairs = sum(int(site.lists_of(head).lengths.sum()) for head in range(site.heads))
    if most_pairs is None or pairs <= most_pairs:
        return None
    count = max(64, site.rows * most_pairs // pairs)
    return np.sort(np.random.default_rng(0).choice(site.rows, min(site.rows, count), replace=False))


def _deviation(site: AttentionSite, tensors: Mapping[str, NDArray[Any]], rows: NDArray[Any] | None) -> Deviation:
    wanted = tensors[site.output].astype(np.float64)
    got = attend(site, tensors, rows=rows)
    assert got.shape == wanted.shape, (site.node, got.shape, wanted.shape)
    computed = np.ones(got.shape, bool) if rows is None else ~np.isnan(got)
    if site.empty_kind is EmptyRow.NAN or site.weights is not None:
        assert np.array_equal(np.isnan(got)[computed], np.isnan(wanted)[computed]), site.node
        computed &= ~np.isnan(wanted)
    if not computed.any():
        return Deviation(site.node, 0.0, 0.0)
    scale = np.nanmax(np.abs(wanted))
    difference = np.abs(got - wanted)[computed] / (scale if scale > 0 else 1.0)
    return Deviation(site.node, float(difference.max()), float(np.sqrt(np.mean(difference**2))))

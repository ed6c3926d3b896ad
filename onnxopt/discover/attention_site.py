"""What an attention computes, apart from how its exporter wrote it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from onnxopt.discover.operand import Operand


class EmptyRow(Enum):
    """What the graph computes, in float32, for a query all of whose keys are masked: equal weights for the
    keys of its list, the softmax of their biased scores, zeros, or NaN.
    """

    UNIFORM = "uniform"
    UNMASKED = "unmasked"
    ZERO = "zero"
    NAN = "nan"


@dataclass(frozen=True)
class KeyLists:
    """Which keys each query row of a head attends to; rows with the same keys share a list.

    Row ``r`` has ``keys[offsets[c] : offsets[c + 1]]`` with ``c = row_list[r]``. The numbers are int32 and
    index :attr:`AttentionSite.key_vectors`; they ascend within a list and repeat where the graph repeats a
    key.
    """

    row_list: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Keys of each row, int64."""
        return np.asarray(np.diff(self.offsets)[self.row_list])

    def list(self, index: int) -> np.ndarray:
        """The keys of one list."""
        return self.keys[self.offsets[index] : self.offsets[index + 1]]

    def row_offsets(self) -> np.ndarray:
        """Where each row starts if all rows are laid out one after the other; one longer than there are rows."""
        return np.concatenate([[0], np.cumsum(self.lengths)])


@dataclass(frozen=True)
class KeyWeights:
    """Weights of keys that only an input of the model knows: a policy, or a mask of padded tokens.

    ``tensor`` holds ``width`` weights for each batch element, one batch element after the other; where it is
    ``inverted``, a Boolean, a key weighs 1 where it is false. Key number ``j`` of a site has the weight in column
    ``columns[j]``; row ``r`` sees the keys of column ``diagonals[r]`` (-1: none) with weight 1. With scores ``s``
    and their maximum ``m`` over all keys of the row, ``p = weight * exp(s - m)``, and the result is the sum of
    ``(p + epsilons[0]) * v`` over the sum of ``p`` plus ``epsilons[1]``.
    """

    tensor: str
    width: int
    columns: np.ndarray = field(repr=False)
    diagonals: np.ndarray = field(repr=False)
    epsilons: tuple[float, float]
    inverted: bool = False


@dataclass(frozen=True)
class AttentionSite:
    """One softmax with its products, for one batch element; every other batch element is the same.

    Query row ``r`` of head ``h`` is vector ``query_vectors[h, r]`` of ``q``'s table, key ``j`` is
    ``key_vectors[h, j]`` of ``k``'s and ``value_vectors[h, j]`` of ``v``'s; -1 is a zero vector. A score is
    ``scale[h] * (q . k)``, plus ``biases[head_bias[h]]`` where that is not -1: one float32 a row and key, row
    after row in the order of the key lists. Biases are -inf or hugely negative only in rows without a live
    key.

    The result of row ``r`` of head ``h`` goes wherever ``slots`` (output rows x channel blocks of
    ``v.width``) holds ``h * rows + r``; -1 is a block of zeros. ``output`` has the shape ``output_shape`` at
    the view's batch size, with its channels along ``channel_axis``. ``lists`` has one entry for every
    distinct head pattern; head ``h`` has ``lists[head_lists[h]]``. ``empty`` marks rows all of whose keys are
    masked in every head, ``head_empty`` (heads x rows) those of each head; the lists of empty rows hold what
    the graph takes the softmax of, if anything.

    Tokens are the rows that projections read; -1 is a phantom. ``tokens`` counts those that keys come from.

    ``runtime`` names tensors that depend on the input and weigh or mask keys. What they do is ``weights``, or is
    not understood for the reason ``unweighed``; all else describes the site with every key at weight 1.
    """

    id: str
    node: str
    op: str
    nodes: tuple[str, ...]
    heads: int
    rows: int
    scale: np.ndarray
    q: Operand
    k: Operand
    v: Operand
    query_vectors: np.ndarray = field(repr=False)
    key_vectors: np.ndarray = field(repr=False)
    value_vectors: np.ndarray = field(repr=False)
    head_lists: np.ndarray = field(repr=False)
    lists: tuple[KeyLists, ...] = field(repr=False)
    head_bias: np.ndarray = field(repr=False)
    biases: tuple[np.ndarray, ...] = field(repr=False)
    empty: np.ndarray = field(repr=False)
    head_empty: np.ndarray = field(repr=False)
    empty_kind: EmptyRow | None
    output: str
    output_shape: tuple[int, ...]
    channel_axis: int
    slots: np.ndarray = field(repr=False)
    query_tokens: np.ndarray = field(repr=False)
    key_tokens: np.ndarray = field(repr=False)
    tokens: int
    batch: int
    runtime: tuple[str, ...]
    group: str = ""
    weights: KeyWeights | None = None
    unweighed: str = ""

    @property
    def head_dim(self) -> int:
        """Channels of a query or key vector."""
        return self.q.width

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that the site reads, each once."""
        sources = [s.tensor for s in (*self.q.sources, *self.k.sources, *self.v.sources)]
        return tuple(dict.fromkeys(sources if self.weights is None else [*sources, self.weights.tensor]))

    @property
    def bias_kind(self) -> str:
        """What is added to scores of rows that have keys: ``none``, ``shared`` by all heads, or ``per_head``."""
        if not any(self._biases_live_rows(head) for head in np.unique(self.head_bias, return_index=True)[1]):
            return "none"
        return "shared" if len(self.biases) == 1 and (self.head_bias >= 0).all() else "per_head"

    def _biases_live_rows(self, head: int) -> bool:
        bias, empty = self.bias_of(head), self.head_empty[head]
        if bias is None:
            return False
        if not empty.any():
            return True
        starts = self.lists_of(head).row_offsets()
        return any(bias[starts[row] : starts[row + 1]].any() for row in np.flatnonzero(~empty))

    def lists_of(self, head: int) -> KeyLists:
        """The key lists of one head."""
        return self.lists[int(self.head_lists[head])]

    def bias_of(self, head: int) -> np.ndarray | None:
        """The bias of one head, flat, or None."""
        index = int(self.head_bias[head])
        return None if index < 0 else self.biases[index]


@dataclass(frozen=True)
class Count:
    """Pairs as ``onnxopt.inspect/1`` defines them; see :func:`count`."""

    queries: int
    keys: int
    pairs: int
    pairs_total: int
    phantom_pairs: int
    empty_rows: int

    @property
    def density(self) -> float:
        """Pairs needed of all (query, key) pairs."""
        return self.pairs / max(1, self.queries * self.keys)


def count(site: AttentionSite) -> Count:
    """Live (query token, key token) pairs over all heads, with multiplicity, phantom keys and queries apart."""
    total = phantom = 0
    for head in range(site.heads):
        lists = site.lists_of(head)
        live_rows = (site.query_tokens >= 0) & ~site.head_empty[head]
        is_phantom = (site.key_tokens < 0)[lists.keys]
        sums = np.concatenate([[0], np.cumsum(is_phantom)])
        phantoms = (sums[lists.offsets[1:]] - sums[lists.offsets[:-1]])[lists.row_list]
        total += int((lists.lengths - phantoms)[live_rows].sum())
        phantom += int(phantoms[live_rows].sum())
    tokens = site.query_tokens
    empty = len(np.unique(tokens[(tokens >= 0) & site.empty]))
    return Count(
        queries=len(np.unique(tokens[(tokens >= 0) & ~site.empty])),
        keys=site.tokens,
        pairs=total // site.heads,
        pairs_total=total,
        phantom_pairs=phantom // site.heads,
        empty_rows=empty,
    )

"""What a mask that depends on the input does to the keys, found by running the graph around it.

Whatever an exporter wrote between the tensor that holds the weights and the softmax is run on chosen weights: the
bits of each weight's number tell which weight an element follows, and random weights prove what is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import NodeProto, TensorProto

from onnxopt.discover.attention_site import KeyLists, KeyWeights
from onnxopt.discover.probing import GraphPart, passages
from onnxopt.discover.refusal import INCONSISTENT, NotASite, reason_for
from onnxopt.discover.scores import MASK_THRESHOLD, ScoreMap
from onnxopt.discover.softmax import Normalisation
from onnxopt.model.graph import Graph

# Nodes behind a mask that are looked at, and scores that are computed to prove what they do.
_MOST_NODES = 64
_MOST_SCORES = 1 << 26
# Where a softmax of no key is made 0 and not NaN: no sum of exponentials in float32 notices it.
_ZERO_OVER_ZERO = 2.0**-126
_SEED = 20
_FIXED, _DEAD = -1, -2
# How far float32 and float16 may be from float64, relative and absolute.
_WITHIN = {np.dtype(np.float16): (3e-2, 1e-4)}
_WITHIN_FLOAT = (1e-4, 1e-30)


@dataclass(frozen=True)
class Keys:
    """The keys of a site as far as their weights need them: the softmax rows of its results, batch elements x heads x
    rows; the vector of each key number and the lists of each head; whether rows without a key give zeros.
    """

    rows: np.ndarray
    vectors: Sequence[np.ndarray]
    lists: Sequence[KeyLists]
    guarded: bool


@dataclass(frozen=True)
class _Weighing:
    """Which weight each element of the softmax follows: its number, or one of the two constants; and what this means
    for key numbers and rows.
    """

    number: np.ndarray
    inverted: bool
    columns: np.ndarray
    diagonals: np.ndarray


def trace_key_weights(graph: Graph, normalisation: Normalisation, scores: ScoreMap, keys: Keys) -> KeyWeights:
    """The weights of the keys; raises :class:`NotASite` with the reason where they cannot be proved."""
    if normalisation.runtime and scores.runtime:
        raise NotASite("keys are weighed and masked by the input")
    if normalisation.epsilons is None:
        raise NotASite("different numbers are added to the weights of different keys")
    if scores.runtime and any(normalisation.epsilons):
        raise NotASite("keys are masked by the input, and a constant is added to the sum of their weights")
    if int(np.prod(scores.shape)) > _MOST_SCORES:
        raise NotASite(f"more than {_MOST_SCORES:,} scores are masked by the input")
    found, reason = None, "what it depends on does not pass through one tensor"
    for tensor, nodes in passages(graph, normalisation.runtime or scores.runtime, _MOST_NODES):
        try:
            candidate = _Candidate(graph, normalisation, scores, keys, tensor, nodes)
            found = candidate, candidate.weighing()
        except (NotASite, *INCONSISTENT) as error:
            if found is not None:
                break
            reason = reason_for(error)
    if found is None:
        raise NotASite(reason)
    return found[0].proved(found[1], normalisation.epsilons)


class _Candidate:
    """A tensor that may hold the weights, ``nodes`` being what lies between it and the mask."""

    def __init__(
        self,
        graph: Graph,
        normalisation: Normalisation,
        scores: ScoreMap,
        keys: Keys,
        tensor: str,
        nodes: Sequence[NodeProto],
    ) -> None:
        self.graph, self.normalisation, self.scores, self.keys, self.tensor = graph, normalisation, scores, keys, tensor
        self.boolean = graph.element_type(tensor) == TensorProto.BOOL
        shape, batch = graph.shape(tensor), len(keys.rows)
        if shape is None or not shape or int(np.prod(shape)) % batch:
            raise NotASite(f"{tensor!r} does not hold weights for each batch element")
        if not _in_model(graph, tensor):
            raise NotASite(f"{tensor!r} is a tensor inside of an operator")
        if scores.runtime and not self.boolean:
            raise NotASite(f"{tensor!r} is added to the scores and is no Boolean, so it may be anything")
        self.size = int(np.prod(shape))
        self.width = self.size // batch
        self.products = [product.output for product in scores.products]
        every = graph.ordered([*nodes, *scores.nodes, *normalisation.nodes])
        self.mask = GraphPart(graph, nodes, [tensor], normalisation.runtime or scores.runtime)
        inputs = [*dict.fromkeys([tensor, *self.products])]
        self.whole = GraphPart(graph, every, inputs, [normalisation.scores, normalisation.weights])
        self.live = self._wide(scores.constant > MASK_THRESHOLD)

    def weighing(self) -> _Weighing:
        """What the tensor means for every element of the softmax, proved on random weights."""
        number, inverted = self._numbers()
        columns, diagonals = _by_key(self._by_row(number), self._by_row(self._wide(self.scores.key)), self)
        weighing = _Weighing(number, inverted, columns, diagonals)
        self._check_factors(weighing)
        return weighing

    def proved(self, weighing: _Weighing, epsilons: tuple[float, float]) -> KeyWeights:
        """The weights as the site has them, proved on the softmax itself."""
        if epsilons[0] and not self.live.all():
            raise NotASite("a constant is added to the weights of masked keys as well")
        self._check_softmax(weighing, epsilons)
        if self.keys.guarded and not any(epsilons):
            epsilons = (0.0, _ZERO_OVER_ZERO)
        return KeyWeights(
            self.tensor, self.width, weighing.columns, weighing.diagonals, epsilons, inverted=weighing.inverted
        )

    @cached_property
    def fed(self) -> dict[str, np.ndarray]:
        """Random products of queries and keys."""
        draw = np.random.default_rng(_SEED).standard_normal
        return {name: 3 * draw(self.whole.shape(name), np.float32) for name in self.products}

    def _by_row(self, elements: np.ndarray) -> np.ndarray:
        """Elements of the softmax as batch elements x heads x rows x keys."""
        return np.asarray(elements.reshape(-1, self.scores.shape[-1])[self.keys.rows])

    def _wide(self, values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, self.scores.shape)

    def _numbers(self) -> tuple[np.ndarray, bool]:
        """Which weight every live element follows, from weights that spell the bits of their numbers."""
        none, every = self._factors(np.zeros(self.size)), self._factors(np.ones(self.size))
        fixed = (none == 1) & (every == 1)
        inverted = self.boolean and bool(np.any(self.live & (none == 1) & (every == 0)))
        following = self.live & ~fixed
        if np.any((none != float(inverted))[following]) or np.any((every != float(not inverted))[following]):
            raise NotASite(f"a key's weight is not what {self.tensor!r} holds")
        if not following.any() and self.scores.runtime:
            reason = "adds no infinite constant to the scores that it masks, so a query without keys is not NaN"
            raise NotASite(f"{self.tensor!r} {reason}")
        if not following.any():
            raise NotASite(f"no key's weight depends on {self.tensor!r}")
        number = np.zeros(self.scores.shape, np.int32)
        for bit in range(self.size.bit_length()):
            factors = self._factors(np.arange(self.size) >> bit & 1)
            number |= (factors == float(not inverted)).astype(np.int32) << bit
        number = np.where(self.live, np.where(fixed, _FIXED, number), _DEAD)
        if number.max() >= self.size:
            raise NotASite(f"a key's weight is made of several that {self.tensor!r} holds")
        return number, inverted

    def _factors(self, weights: np.ndarray) -> np.ndarray:
        """What each element of the softmax is multiplied by, with a mask 0 or 1."""
        masks = self.mask.run({self.tensor: weights})
        if self.normalisation.runtime:
            if np.broadcast_shapes(masks[0].shape, self.scores.shape) != self.scores.shape:
                raise NotASite("the weights of the keys have more elements than the scores")
            return self._wide(masks[0].astype(np.float64))
        (masked,) = self.whole.run({**self.fed, self.tensor: weights})[:1]
        masked = masked.reshape(self.scores.shape)
        return np.where(np.isneginf(masked), 0.0, 1.0)

    def _expected(self, weighing: _Weighing, weights: np.ndarray) -> np.ndarray:
        """What ``weighing`` says that live elements are multiplied by."""
        given = 1 - weights if weighing.inverted else weights
        table = np.concatenate([np.asarray(given, np.float64), [0.0, 1.0]])
        return np.asarray(table[weighing.number])

    def _check_factors(self, weighing: _Weighing) -> None:
        """Prove that elements are multiplied by their weights, of whatever size these are."""
        rng = np.random.default_rng(_SEED)
        dtype = self.whole.dtype(self.tensor)
        trials = [rng.integers(0, 2, self.size) for _ in range(2)]
        if not self.boolean:
            trials += [rng.integers(0, 4, self.size), (rng.random(self.size) * 3 - 1).astype(dtype)]
        within = _WITHIN.get(dtype, _WITHIN_FLOAT)[1] + 1e-6
        for weights in trials:
            off = np.abs(self._factors(weights) - self._expected(weighing, weights))
            if not np.all(off[self.live] <= within + (1e-3 if dtype == np.float16 else 0)):
                raise NotASite(f"a key's weight is not what {self.tensor!r} holds")

    def _check_softmax(self, weighing: _Weighing, epsilons: tuple[float, float]) -> None:
        """Prove the weights of the values against the graph's own, with scores where every key weighs 1."""
        every = np.zeros(self.size) if weighing.inverted else np.ones(self.size)
        self._check_passing(every)
        scores = self.whole.run({**self.fed, self.tensor: every})[0].astype(np.float64).reshape(self.scores.shape)
        rng = np.random.default_rng(_SEED + 1)
        trials = [every, 1 - every, rng.integers(0, 2, self.size)]
        trials += [] if self.boolean else [rng.random(self.size).astype(self.whole.dtype(self.tensor))]
        for weights in trials:
            factors = np.where(self.live, self._expected(weighing, weights), 0.0)
            masked, found = self.whole.run({**self.fed, self.tensor: weights})
            if self.scores.runtime and not _same_but_masked(masked, scores, factors, self.live):
                raise NotASite("the mask that depends on the input changes scores without masking them")
            with np.errstate(invalid="ignore", divide="ignore"):
                powers = np.where(self.live, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0) * factors
                wanted = (powers + epsilons[0]) / (powers.sum(axis=-1, keepdims=True) + epsilons[1])
            relative, absolute = _WITHIN.get(found.dtype, _WITHIN_FLOAT)
            own = found.astype(np.float64).reshape(wanted.shape)
            if not np.allclose(own[self.live], wanted[self.live], relative, absolute, equal_nan=True):
                raise NotASite("its softmax is not one of weighed exponentials")

    def _check_passing(self, every: np.ndarray) -> None:
        """Prove that masks that let all pass do nothing to the scores, as their trace takes it to be."""
        if self.normalisation.runtime:
            return
        values = dict(zip(self.scores.runtime, self.mask.run({self.tensor: every}), strict=True))
        made = {name for node in self.scores.nodes for name in node.output}.union(self.products)
        chosen = [node for node in self.scores.nodes if node.op_type == "Where" and node.input[0] in values]
        for node in chosen:
            if np.any(values.pop(node.input[0]) != (node.input[1] in made)):
                raise NotASite("the mask that depends on the input takes scores away where it masks nothing")
        if any(np.any(value) for value in values.values()):
            raise NotASite("the mask that depends on the input changes scores where it masks nothing")


def _same_but_masked(masked: np.ndarray, scores: np.ndarray, factors: np.ndarray, live: np.ndarray) -> bool:
    expected = np.where(factors == 0, -np.inf, scores)
    return np.array_equal(masked.astype(np.float64).reshape(scores.shape)[live], expected[live])


def _by_key(number: np.ndarray, key: np.ndarray, candidate: _Candidate) -> tuple[np.ndarray, np.ndarray]:
    """The column of each key number and of each row's diagonal, from the elements of every row."""
    keys, width = candidate.keys, candidate.width
    for element in range(len(number)):
        own = np.where(number[element] >= 0, number[element] - element * width, number[element])
        if not np.array_equal(own, number[0]) or number[0].max() >= width:
            raise NotASite(f"batch elements do not have the same columns of {candidate.tensor!r}")
    columns = np.full(len(keys.vectors[0]), -1, np.int64)
    diagonals = np.full(number.shape[2], -1, np.int64)
    for head, lists in enumerate(keys.lists):
        of_vector, own_diagonals = _of_head(number[0, head], key[0, head], candidate.tensor)
        diagonals = own_diagonals if head == 0 else diagonals
        used = np.unique(lists.keys)
        found = of_vector[keys.vectors[head][used] + 1]
        if np.any((columns[used] >= 0) & (columns[used] != found)) or not np.array_equal(diagonals, own_diagonals):
            raise NotASite("heads weigh their keys differently")
        columns[used] = found
    return columns, diagonals


def _of_head(number: np.ndarray, key: np.ndarray, tensor: str) -> tuple[np.ndarray, np.ndarray]:
    """For one head the column of each key vector (number + 1), and each row's diagonal."""
    of_vector = np.full(int(key.max()) + 2, -1, np.int64)
    follows, fixed = number >= 0, number == _FIXED
    of_vector[key[follows] + 1] = number[follows]
    if np.any(of_vector[key[follows] + 1] != number[follows]):
        raise NotASite(f"a key has another column of {tensor!r} in one row than in another")
    column = of_vector[key + 1]
    if np.any(column[fixed] < 0):
        raise NotASite("a key weighs 1 for every query, whatever the input says")
    diagonals = np.where(fixed, column, -1).max(axis=1)
    own = (column == diagonals[:, None]) & (number != _DEAD) & (diagonals >= 0)[:, None]
    if not np.array_equal(own, fixed):
        raise NotASite("a query has keys of several columns that weigh 1, whatever the input says")
    return of_vector, diagonals


def _in_model(graph: Graph, tensor: str) -> bool:
    """Whether a tensor stands in the model itself, and not in an operator that was written out."""
    if tensor in graph.inputs:
        return True
    return any(tensor in node.output for node in graph.model.graph.node)

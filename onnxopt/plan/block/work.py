"""What a block of convolutions computes: its stages, and which output of a stage each input of the next one is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.tables.fused import links_of
from onnxopt.plan.tables.pieces import MOST_ENTRIES, NoTables
from onnxopt.plan.tables.work import ConvWork

MOST_STAGES = 3
_AXES = 2


@dataclass(frozen=True, eq=False)
class BlockWork:
    """Convolutions one behind the other; the last one's residual and activation are the block's.

    ``sources[s][i]`` is what input ``i`` of stage ``s`` reads: a channel of x for the first stage, an output of the
    stage before for the others; -1 a channel of zeros. ``targets`` is the channel of y of each output of the last
    stage, -1 for none.
    """

    stages: tuple[ConvWork, ...]
    sources: tuple[IntArray, ...]
    targets: IntArray

    @property
    def last(self) -> ConvWork:
        """The stage that makes y."""
        return self.stages[-1]

    def links(self, stage: int) -> BoolArray:
        """Outputs of a stage x inputs: what is computed; an input of zeros adds nothing."""
        found: BoolArray = links_of(self.stages[stage]) & (self.sources[stage] >= 0)
        return found

    def structure(self) -> str:
        """A key of everything that a schedule depends on: connections and geometry, but no weight."""
        digest = hashlib.sha256()
        for number, stage in enumerate(self.stages):
            facts = (stage.channels, stage.size, stage.strides, stage.dilations, stage.pads, stage.weights.shape)
            plain = (stage.activation, stage.input_activation, stage.input_scales is None, stage.residual)
            digest.update(repr((facts, plain)).encode())
            digest.update(np.packbits(self.links(number)).tobytes() + self.sources[number].tobytes())
        digest.update(self.targets.tobytes())
        return digest.hexdigest()

    def is_channelwise(self, stage: int) -> bool:
        """Whether every output of a stage comes from one output of the stage before, and none goes to two."""
        links = self.links(stage)
        return bool(np.all(links.sum(axis=1) <= 1) and np.all(links.sum(axis=0) <= 1) and links.any())


def block_work(stages: Sequence[ConvWork]) -> BlockWork:
    """The block of some convolutions, each of which reads what the one before it makes.

    Raises :class:`NoTables` with the reason where no kernel computes it.
    """
    if not 2 <= len(stages) <= MOST_STAGES:
        raise NoTables(f"a block of {len(stages)} convolutions; kernels know 2 to {MOST_STAGES}")
    first, last = stages[0], stages[-1]
    if any(len(stage.size) > _AXES for stage in stages):
        raise NoTables(f"a convolution over more than {_AXES} axes")
    if any(stage.layout != "first" for stage in stages):
        raise NoTables("its channels come last")
    pointwise = prod(first.weights.shape[2:]) == 1 and not any(first.pads) and set(first.strides) == {1}
    if not pointwise:
        raise NoTables("its first convolution is not pointwise with stride 1")
    for number, stage in enumerate(stages):
        _check_stage(number, stage, stages)
    for word, channels, size in (
        ("input", first.channels, first.size),
        ("output", len(last.sums), last.output_size),
    ):
        if channels * prod(size) > MOST_ENTRIES:
            raise NoTables(f"a batch element of its {word} has more than {MOST_ENTRIES:,} elements")
    sources = [first.reads]
    for before, stage in pairwise(stages):
        made = np.append(_maker(before), -1)
        own = made[stage.reads]
        if len(set(own[own >= 0].tolist())) < int((own >= 0).sum()):
            raise NoTables("a channel between two of its convolutions is read twice")
        sources.append(own)
    targets = np.full(len(last.weights), -1, np.int64)
    maker = _maker(last)
    if np.any(maker < 0) or len(set(maker.tolist())) < len(maker):
        raise NoTables("channels of its result repeat an output, or nothing makes them")
    targets[maker] = np.arange(len(maker))
    return BlockWork(tuple(stages), tuple(np.asarray(s, np.int64) for s in sources), targets)


def _check_stage(number: int, stage: ConvWork, stages: Sequence[ConvWork]) -> None:
    """Whether a stage fits behind the one before it and computes nothing that only a border of the block may."""
    place = f"its convolution {number + 1}"
    if min(stage.output_size) < 1:
        raise NoTables(f"the kernel of {place} is larger than its padded input")
    if stage.mix is not None and (stage.mix.sum(axis=1) > 1).any():
        raise NoTables(f"outputs of {place} are added up")
    if number and (stage.channels, tuple(stage.size)) != (len(stages[number - 1].sums), stages[number - 1].output_size):
        raise NoTables(f"{place} does not read what the one before it makes")
    if number and (stage.input_scales is not None or stage.input_activation != "none"):
        raise NoTables(f"the inputs of {place} are scaled, shifted or activated")
    if stage.residual and number < len(stages) - 1:
        raise NoTables(f"a residual is added behind {place}")
    if number and any(pad < 0 for pad in stage.pads):
        raise NoTables(f"{place} has a negative padding")


def _maker(work: ConvWork) -> IntArray:
    """The output that makes each channel of a convolution's result; -1 where none does."""
    sums = work.sums
    return np.where(sums.any(axis=1), sums.argmax(axis=1), -1).astype(np.int64)

"""Whether the tables of a block of convolutions say exactly what it computes, connection by connection.

Every output of a stage has a digest of its bias and of its inputs' digests with their weights, so that a channel of y
has one of all that it is made of. The tables' digests are compared with those of the convolutions: what slots hold need
not be known, and no order matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from onnxopt.plan.block.types import BlockTables
from onnxopt.plan.block.work import BlockWork
from onnxopt.validate.failure import PlanError
from onnxopt.validate.launch import Array
from onnxopt.validate.reference_block import unpacked

_AXES = 2


def validate_block_contents(work: BlockWork, tables: BlockTables) -> None:
    """Prove that tables, which may be read back from a file, describe ``work``. Raises :class:`PlanError`."""
    check_block_contents(work, tables.kernel.to_json(), tables.arrays())


def check_block_contents(work: BlockWork, kernel: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """The same for a configuration and tables by name."""
    _check_kernel(work, kernel)
    paths = [stage["path"] for stage in kernel["stages"]]
    wanted = _wanted(work, arrays["w"].dtype)
    for line in {tuple(job[2:6]): job for job in arrays["jobs"].tolist()}.values():
        _check_job(work, arrays, paths, line, wanted)


def _check_kernel(work: BlockWork, kernel: Mapping[str, Any]) -> None:
    """Geometry, activations and channels of the configuration."""
    if len(kernel["stages"]) != len(work.stages):
        raise PlanError(f"ConvBlock: {len(kernel['stages'])} stages for {len(work.stages)} convolutions")
    for number, (stage, conv) in enumerate(zip(kernel["stages"], work.stages, strict=True)):
        rank = len(conv.size)

        def axes(values: Any, fill: int, rank: int = rank) -> list[int]:
            return [fill] * (_AXES - rank) + [int(v) for v in values]

        wanted: dict[str, Any] = {
            "activation": conv.activation,
            "input_size": axes(conv.size, 1),
            "output_size": axes(conv.output_size, 1),
            "kernel": axes(conv.weights.shape[2:], 1),
            "strides": axes(conv.strides, 1),
            "dilations": axes(conv.dilations, 1),
            "pads": axes(conv.pads[:rank], 0),
        }
        for name, value in wanted.items():
            if stage[name] != value:
                raise PlanError(f"ConvBlock, stage {number}: {name} is {stage[name]}, expected {value}")
    first, last = work.stages[0], work.last
    prologue = first.input_scales is not None or first.input_activation != "none"
    facts: dict[str, Any] = {
        "input_channels": first.channels,
        "output_channels": len(last.sums),
        "input_activation": first.input_activation,
        "prologue": prologue,
        "residual": last.residual,
    }
    for name, value in facts.items():
        if kernel[name] != value:
            raise PlanError(f"ConvBlock: {name} is {kernel[name]}, expected {value}")


def _check_job(
    work: BlockWork, arrays: Mapping[str, Array], paths: list[str], job: list[int], wanted: list[bytes]
) -> None:
    """Every channel of y that a job makes has the digest of what the convolutions compute for it."""
    begin, held = job[2], dict[int, bytes]()
    for number, conv in enumerate(work.stages):
        made: dict[int, bytes] = {}
        taps = prod(conv.weights.shape[2:])
        for line in arrays["parts"][begin : begin + job[3 + number]].tolist():
            given, weights = _taken_in(arrays, number, paths[number], line, taps, held)
            for index in range(line[1]):
                place = int(arrays["outputs"][line[0] + index])
                if place >= 0:
                    made[place] = _digest(arrays["b"][line[0] + index], *weights(index, given))
        begin += job[3 + number]
        held = made
    for channel, digest in held.items():
        if digest != wanted[channel]:
            raise PlanError(f"ConvBlock: channel {channel} takes in other inputs or weights than the convolutions do")


_Weights = Callable[[int, list[bytes | None]], tuple[list[bytes], list[Array]]]


def _taken_in(
    arrays: Mapping[str, Array], number: int, path: str, line: list[int], taps: int, held: Mapping[int, bytes]
) -> tuple[list[bytes | None], _Weights]:
    """The digests of a part's inputs, None for zeros, and what picks inputs and weights of one of its outputs."""
    if number == 0:
        given = [_channel(arrays, line[2] + i) for i in range(line[3])]
    else:
        count = line[1] if path == "channelwise" else line[3]
        given = [held.get(line[2] + i) for i in range(count)]
    if path == "channelwise":
        pitch = -(-line[1] // 8) * 8
        own = arrays["w"][line[4] : line[4] + taps * pitch].reshape(taps, pitch)
        return given, lambda index, inputs: _kept(inputs[index : index + 1], own[:, index][None])
    packed = unpacked(line, arrays["w"], taps)
    return given, lambda index, inputs: _kept(inputs, packed[:, index, : line[3]].T)


def _kept(inputs: Sequence[bytes | None], weights: Array) -> tuple[list[bytes], list[Array]]:
    """Inputs and their weights over the taps, without zeros."""
    live = np.flatnonzero((np.asarray(weights) != 0).any(axis=1)).tolist()
    pairs = [(digest, weights[i]) for i in live if (digest := inputs[i]) is not None]
    return [digest for digest, _ in pairs], [own for _, own in pairs]


def _channel(arrays: Mapping[str, Array], entry: int) -> bytes | None:
    channel = int(arrays["inputs"][entry])
    if channel < 0:
        return None
    if "input_scales" not in arrays:
        return _of_channel(channel, 1.0, 0.0)
    return _of_channel(channel, arrays["input_scales"][entry], arrays["input_shifts"][entry])


def _of_channel(channel: int, scale: float, shift: float) -> bytes:
    return channel.to_bytes(8, "little") + np.array([scale, shift], np.float32).tobytes()


def _digest(bias: float, inputs: Sequence[bytes], weights: Sequence[Array]) -> bytes:
    """What an output is: its bias, and its inputs with their weights in whatever order."""
    found = hashlib.sha256(np.float32(bias).tobytes())
    for item in sorted(
        digest + np.ascontiguousarray(own).tobytes() for digest, own in zip(inputs, weights, strict=True)
    ):
        found.update(len(item).to_bytes(8, "little") + item)
    return found.digest()


# Several schedules of a block are proved one behind the other.
@lru_cache(maxsize=1)
def _wanted(work: BlockWork, dtype: np.dtype) -> list[bytes]:
    """The digest of every channel of y by the convolutions themselves."""
    first = work.stages[0]
    count = first.weights.shape[1]
    scales = np.ones(count) if first.input_scales is None else first.input_scales
    shifts = np.zeros(count) if first.input_shifts is None else first.input_shifts
    held: list[bytes | None] = [
        None if channel < 0 else _of_channel(int(channel), scales[i], shifts[i])
        for i, channel in enumerate(work.sources[0].tolist())
    ]
    outputs: list[bytes] = []
    for number, conv in enumerate(work.stages):
        if number:
            held = [None if source < 0 else outputs[source] for source in work.sources[number].tolist()]
        weights = conv.weights.astype(dtype).reshape(*conv.weights.shape[:2], -1)
        bias = np.zeros(len(weights)) if conv.bias is None else conv.bias
        outputs = [_digest(bias[o], *_kept(held, weights[o])) for o in range(len(weights))]
    made = {int(channel): output for output, channel in enumerate(work.targets.tolist()) if channel >= 0}
    return [outputs[made[channel]] for channel in range(len(made))]

"""Whether a schedule for a group-convolution kernel computes exactly the connections that its site has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxopt.plan.schedule import ConvPart, ConvSchedule
from onnxopt.target.variant import ConvVariant
from onnxopt.validate.failure import PlanError
from onnxopt.validate.proof import check_proof


def validate_conv_schedule(
    links: npt.NDArray[np.bool_], schedule: ConvSchedule, *, pixels: int | None = None, name: str = "convolution"
) -> None:
    """Prove that every connection (``links``: outputs x inputs) is computed in exactly one part.

    Every part fits its variant and names channels that exist, each once; jobs name every pixel tile of every part once
    (``pixels``: output positions that are computed together; without it, tiles must agree on some number of them);
    ``needed``, ``computed`` and the proof are true. Outputs without connections may be in no part. Raises
    :class:`PlanError` with the first thing that is wrong; ``name`` says in messages which convolution.
    """
    if not schedule.variants:
        raise PlanError(f"{name}: the schedule has no variants")
    covered = np.zeros(links.shape, np.int32)
    computed = 0
    for number, part in enumerate(schedule.parts):
        variant = _check_part(links.shape, schedule, part, f"{name}, part {number}")
        covered[np.ix_(part.outputs, part.inputs)] += 1
        computed += _up(len(part.outputs), variant.output_granule) * _up(len(part.inputs), variant.input_granule)
    wrong = np.argwhere(links & (covered != 1))
    if len(wrong):
        output, at = wrong[0]
        raise PlanError(
            f"{name}: output {output} is connected to input {at} in {covered[output, at]} parts, expected 1"
        )
    for number, part in enumerate(schedule.parts):
        _check_use(links, part, f"{name}, part {number}")
    _check_jobs(schedule, pixels, name)
    for word, said, counted in (
        ("needed", schedule.needed, int(links.sum())),
        ("computed", schedule.computed, computed),
    ):
        if said != counted:
            raise PlanError(f"{name}: the schedule says {word} = {said} connections, counted {counted}")
    check_proof(name, schedule)


def _up(count: int, granule: int) -> int:
    return -(-count // granule) * granule


def _check_part(shape: tuple[int, ...], schedule: ConvSchedule, part: ConvPart, name: str) -> ConvVariant:
    if not 0 <= part.variant < len(schedule.variants):
        raise PlanError(f"{name}: variant {part.variant} does not exist, there are {len(schedule.variants)}")
    variant = schedule.variants[part.variant]
    if not len(part.outputs):
        raise PlanError(f"{name}: it has no output")
    if len(part.outputs) > variant.outputs:
        raise PlanError(f"{name}: {len(part.outputs)} outputs do not fit into {variant.describe()!r}")
    for kind, channels, count in (("output", part.outputs, shape[0]), ("input", part.inputs, shape[1])):
        wrong = np.flatnonzero((channels < 0) | (channels >= count))
        if wrong.size:
            raise PlanError(f"{name}: {kind} {channels[wrong[0]]} does not exist, there are {count}")
        if len(np.unique(channels)) < len(channels):
            raise PlanError(f"{name}: {kind} {_repeated(channels)} is in it more than once")
    return variant


def _check_use(links: npt.NDArray[np.bool_], part: ConvPart, name: str) -> None:
    """Inputs that no output of a part needs would be computed for nothing."""
    idle = np.flatnonzero(~links[np.ix_(part.outputs, part.inputs)].any(axis=0))
    if idle.size:
        raise PlanError(f"{name}: none of its outputs is connected to input {part.inputs[idle[0]]}")


def _repeated(channels: npt.NDArray[np.int64]) -> int:
    values, counts = np.unique(channels, return_counts=True)
    return int(values[counts > 1][0])


def _check_jobs(schedule: ConvSchedule, pixels: int | None, name: str) -> None:
    jobs = np.asarray(schedule.jobs)
    if jobs.ndim != 2 or jobs.shape[1] != 2:
        raise PlanError(f"{name}: jobs have the shape {jobs.shape}, expected (jobs, 2)")
    unknown = (jobs[:, 0] < 0) | (jobs[:, 0] >= len(schedule.parts))
    wrong = np.flatnonzero(unknown | (jobs[:, 1] < 0))
    if wrong.size:
        job = int(wrong[0])
        part, tile = jobs[job].tolist()
        if unknown[job]:
            raise PlanError(f"{name}, job {job}: part {part} does not exist, there are {len(schedule.parts)}")
        raise PlanError(f"{name}, job {job}: pixel tile {tile} does not exist")
    _, first, counts = np.unique(jobs, axis=0, return_index=True, return_counts=True)
    if np.any(counts > 1):
        part, tile = jobs[first[counts > 1].min()].tolist()
        raise PlanError(f"{name}: pixel tile {tile} of part {part} is in jobs more than once")
    low, high = 1, None
    for number, part in enumerate(schedule.parts):
        size = schedule.variants[part.variant].pixels
        own = np.sort(jobs[jobs[:, 0] == number, 1])
        tiles = len(own) if pixels is None else -(-pixels // size)
        lost = np.setdiff1d(np.arange(max(tiles, 1)), own)
        if lost.size:
            raise PlanError(f"{name}: pixel tile {lost[0]} of part {number} is in no job")
        if len(own) > tiles:
            raise PlanError(f"{name}: pixel tile {own[tiles]} of part {number} does not exist, there are {tiles}")
        low = max(low, (tiles - 1) * size + 1)
        high = tiles * size if high is None else min(high, tiles * size)
    if high is not None and low > high:
        raise PlanError(f"{name}: the pixel tiles of its parts cover different numbers of positions")

"""Some jobs of a convolution that together show all that its kernel does."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_Kind = tuple[int, ...]

_VARIANT, _OUTPUTS, _INPUTS, _PIXELS, _EXTRAS = 0, 2, 4, 7, 9
# Steps of a job beyond this many repeat what the earlier ones showed: stages of the pipeline come round again.
_TELLING_STEPS = 5
_LANES = 32
_LEAST_ELEMENTS = 2000


def sample_conv_jobs(kernel: Mapping[str, Any], tables: Mapping[str, Array], products: int) -> Array:
    """Numbers of jobs, ascending: the cheapest of every kind, as many kinds as ``products`` multiply-adds allow.

    Jobs are of one kind if they have the same variant, granules of outputs, number of steps over their inputs, tails
    in outputs, inputs and pixels, borders of x that they read over, images that they touch, and alike channels of
    zeros, outputs that go nowhere and extras. Every variant has at least one job, whatever that takes; with few
    elements, more jobs follow.
    """
    jobs = np.asarray(tables["jobs"])
    borders: dict[tuple[int, int], _Kind] = {}
    kinds = [_kind(kernel, tables, line, borders) for line in jobs.tolist()]
    cost = _products(kernel, jobs)
    order = np.argsort(cost, kind="stable").tolist()
    cheapest: dict[_Kind, int] = {}
    for number in order:
        cheapest.setdefault(kinds[number], number)
    chosen, seen, spent = [], set(), 0
    for kind, number in cheapest.items():
        if kind[0] not in seen or spent + cost[number] <= products:
            chosen.append(number)
            seen.add(kind[0])
            spent += int(cost[number])
    return np.array(sorted(chosen + _more(jobs, cost, order, chosen, products - spent)))


def _products(kernel: Mapping[str, Any], jobs: Array) -> Array:
    """Multiply-adds of each job; one without inputs still stores its pixels."""
    taps = prod(kernel["kernel"])
    wide = jobs.astype(np.int64)
    return np.asarray(wide[:, _OUTPUTS] * np.maximum(wide[:, _INPUTS] * taps, 1) * wide[:, _PIXELS])


def _more(jobs: Array, cost: Array, order: list[int], chosen: list[int], products: int) -> list[int]:
    """Further jobs, cheapest first, until there are enough elements to compare."""
    elements = jobs[:, _OUTPUTS].astype(np.int64) * jobs[:, _PIXELS]
    have, further, taken = int(elements[chosen].sum()), [], set(chosen)
    for number in order:
        if have >= _LEAST_ELEMENTS or cost[number] > products:
            break
        if number not in taken and jobs[number, _INPUTS]:
            further.append(number)
            products -= int(cost[number])
            have += int(elements[number])
    return further


def _kind(
    kernel: Mapping[str, Any], tables: Mapping[str, Array], line: list[int], borders: dict[tuple[int, int], _Kind]
) -> _Kind:
    variant = kernel["variants"][line[_VARIANT]]
    outputs, inputs, pixels = line[_OUTPUTS], line[_INPUTS], line[_PIXELS]
    channels = tables["inputs"][line[3] : line[3] + inputs]
    places = tables["outputs"][line[1] : line[1] + outputs]
    where = (line[6], pixels)
    if where not in borders:
        borders[where] = _borders(kernel, *where)
    return (
        line[_VARIANT],
        -(-outputs // variant["output_granule"]),
        min(-(-inputs // variant["inputs"]), _TELLING_STEPS),
        int(outputs % variant["output_granule"] == 0),
        int(inputs % variant["inputs"] == 0),
        int(inputs % variant["input_granule"] == 0),
        int(pixels == variant["pixels"]),
        int(pixels % _LANES == 0),
        *borders[where],
        int(np.any(channels < 0)),
        int(np.any(places < 0)),
        int(line[_EXTRAS] > 0),
    )


def _borders(kernel: Mapping[str, Any], begin: int, count: int) -> _Kind:
    """For each side of each axis whether a tap reads beyond it, and whether pixels are of several images."""
    positions = prod(kernel["output_size"])
    pixels = begin + np.arange(count)
    places = np.stack(np.unravel_index(pixels % positions, kernel["output_size"]))
    sides = []
    for axis in range(3):
        first = places[axis] * kernel["strides"][axis] - kernel["pads"][axis]
        last = first + (kernel["kernel"][axis] - 1) * kernel["dilations"][axis]
        sides += [int(np.any(first < 0)), int(np.any(last >= kernel["input_size"][axis]))]
    return (*sides, int(begin // positions != (begin + count - 1) // positions))

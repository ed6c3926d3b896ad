"""Outputs with more inputs than a part may have, cut into pieces that are computed apart and added up."""

from __future__ import annotations

import numpy as np

from onnxopt.discover.conv_site import BoolArray


def split_outputs(links: BoolArray, max_inputs: int) -> list[BoolArray]:
    """Connectivities with ``max_inputs`` inputs an output at most, which share no connection and have all of them.

    The first holds the outputs that need not be cut. The others are cut at the same places of one order of the inputs,
    so that pieces share inputs; inputs that the same outputs need stand together in it. Each is partitioned on its
    own: parts of pieces of one output then have no input in common, and no connection is computed twice.
    """
    long = links.sum(axis=1) > max_inputs
    if not long.any():
        return [links]
    used = np.flatnonzero(links[long].any(axis=0))
    order = used[np.lexsort(links[long][:, used])]
    result = [links & ~long[:, None]]
    for block in np.array_split(order, -(-len(order) // max_inputs)):
        inside = np.zeros(links.shape[1], bool)
        inside[block] = True
        result.append(links & long[:, None] & inside[None, :])
    return result

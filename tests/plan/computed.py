"""What tables compute, by the references; every set of tables is checked for launching first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.plan.tables import AttentionTables, ConvTables
from onnxopt.validate import validate_attention_launch, validate_conv_launch
from onnxopt.validate.reference_attention import merge_attention, sparse_attention
from onnxopt.validate.reference_conv import group_conv, sum_conv


def attended(
    site: AttentionSite,
    tables: AttentionTables,
    tensors: Mapping[str, NDArray[Any]],
    weight: NDArray[Any] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> NDArray[Any]:
    """The site's output for a batch, flat for each batch element, as the operators compute it.

    ``weight`` are the run-time weights of keys, by default those that the site describes.
    """
    if weight is None and site.weights is not None:
        held = np.asarray(tensors[site.weights.tensor], np.float64)
        weight = 1 - held if site.weights.inverted else held
    kernel = tables.configuration()["kernel"]
    merge = None if tables.merge is None else (tables.merge.configuration()["kernel"], tables.merge.arrays())
    validate_attention_launch(kernel, tables.arrays(), merge)
    q, k, v = (joined(tensors, names, kernel[side][0]) for side, names in zip("qkv", tables.inputs[:3], strict=True))
    results = sparse_attention(kernel, tables.arrays(), q, k, v, weight, dtype)
    return results[0] if merge is None else merge_attention(*merge, *results, dtype)


def joined(tensors: Mapping[str, NDArray[Any]], names: tuple[str, ...], elements: int) -> NDArray[Any]:
    """An operand's tensors as one, batch elements x elements."""
    if len(names) == 1:
        return tensors[names[0]].reshape(-1, elements)
    batch = sum(tensors[name].size for name in names) // elements
    return np.concatenate([tensors[name].reshape(batch, -1) for name in names], axis=1)


def convolved(tables: ConvTables, x: NDArray[Any], residual: NDArray[Any] | None = None) -> NDArray[Any]:
    """Batch x channels x positions, as the operators compute it."""
    kernel = tables.configuration()["kernel"]
    after = None if tables.sum is None else (tables.sum.configuration()["kernel"], tables.sum.arrays())
    validate_conv_launch(kernel, tables.arrays(), after)
    if after is None:
        return group_conv(kernel, tables.arrays(), x, residual)
    return sum_conv(*after, group_conv(kernel, tables.arrays(), x), residual)

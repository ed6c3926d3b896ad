"""From a convolution and what is fused with it to what an operator computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxopt.discover.conv_fusion import ConvFusion
from onnxopt.discover.conv_site import BoolArray, ConvSite
from onnxopt.plan.tables.work import ConvWork, conv_work


def fused_work(
    site: ConvSite, fusion: ConvFusion, weights: np.ndarray, bias: np.ndarray | None, size: Sequence[int]
) -> ConvWork:
    """The work of a site with what is fused around it, on an input of ``size`` positions.

    ``weights`` (outputs x inputs x kernel) and ``bias`` are the convolution's own; scales and shifts behind it become
    part of them, in float64.
    """
    work = conv_work(site, weights, bias, size, fusion.lead, fusion.tail)
    of_output = (-1, *[1] * (weights.ndim - 1))
    scaled = not (fusion.scales == 1).all()
    shift = fusion.shifts if bias is None else bias.astype(np.float64) * fusion.scales + fusion.shifts
    plain = fusion.input_function.is_linear_identity
    return replace(
        work,
        weights=weights.astype(np.float64) * fusion.scales.reshape(of_output) if scaled else weights,
        bias=shift if bias is not None or shift.any() else None,
        activation=fusion.activation,
        input_activation=fusion.input_function.activation,
        input_scales=None if plain else fusion.input_function.scales,
        input_shifts=None if plain else fusion.input_function.shifts,
        residual=fusion.residual is not None,
    )


def summed_before(work: ConvWork) -> ConvWork:
    """The same with the weights of outputs that are added up added up themselves: one operator, and not two."""
    if work.mix is None:
        return work
    sums = work.mix.astype(np.float64)
    weights = np.tensordot(sums, work.weights.astype(np.float64), axes=1)
    return replace(work, weights=weights, bias=None if work.bias is None else sums @ work.bias, mix=None)


def adds_up(work: ConvWork) -> bool:
    """Whether any channel is the sum of several outputs, or of one several times."""
    return work.mix is not None and bool((work.mix.sum(axis=1) > 1).any())


def links_of(work: ConvWork) -> BoolArray:
    """The connections that are computed, outputs x inputs: any weight of the slice is not zero."""
    return np.asarray((work.weights != 0).reshape(*work.weights.shape[:2], -1).any(axis=2))

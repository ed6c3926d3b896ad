"""What the convolution benchmark compares with: peers get the layer that an operator computes, and compute the same."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.conv_gpu_peers import PYTORCH, Convolution, of_layer, of_tables, peers
from benchmarks.conv_gpu_timing import cold_sets, operand_sets
from onnxopt.plan.algorithms.geometry import layer_geometry
from onnxopt.target.variant import ConvVariant
from tests.kernels.conv_cases import WISHES, ConvCase, made_case


def _expected(case: ConvCase) -> Convolution:
    own = case.tables.sum
    arrays = {**case.tables.arrays(), **({} if own is None else own.arrays())}
    conv = of_tables(case.tables.kernel.to_json(), None if own is None else own.kernel, arrays)
    assert isinstance(conv, Convolution)
    return conv


@pytest.mark.parametrize("wish", ["folded images", "added outputs", "repeated outputs, channels last"])
def test_peers_get_the_layer_that_the_tables_describe(wish: str) -> None:
    case = made_case(WISHES[wish], (ConvVariant("lanes", 4, 4, 64, 2, 1),), "fp32")
    conv, work = _expected(case), case.work
    dense = np.zeros((len(work.weights), work.channels, *work.weights.shape[2:]), np.float64)
    for number, channel in enumerate(work.reads):
        if channel >= 0:
            dense[:, channel] += work.weights[:, number]
    dense = np.einsum("yo,oc...->yc...", work.sums, dense)
    assert np.allclose(conv.weights.reshape(dense.shape), dense, atol=1e-5)
    live = (conv.weights != 0).any(axis=(2, 3))
    assert sum(len(o) * len(i) for o, i in conv.clusters) == live.sum()


def test_sets_of_operands_exceed_the_cache() -> None:
    conv = of_layer(layer_geometry((8, 8), (16, 16, 1, 1)).to_json(), 0)
    assert isinstance(conv, Convolution)
    one = 2 * (2 * 16 * 64 + 256)
    assert cold_sets(conv, 1, "fp16", 10 * one) == 30
    assert cold_sets(conv, 1, "fp16", 10**9) == 64


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: no peers to compare")
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_all_peers_compute_the_same(groups: int) -> None:
    import torch

    geometry = layer_geometry((7, 6), (16, 8 // groups, 3, 3), groups=groups, pads=(0, 1, 1, 1), strides=(2, 1))
    conv = of_layer(geometry.to_json(), 3)
    assert isinstance(conv, Convolution)
    conv = replace(conv, residual=True)
    ((x, residual),) = operand_sets(torch, conv, 2, 1, "cpu")
    plain = {name: make(x, residual)() for name, _, make in peers(torch, conv, "fp32")}
    expected = plain.pop("dense, channels first" if groups == 1 else "dense with zeros, channels first")
    assert len(plain) == (2 if groups == 1 else 6)
    assert torch.allclose(plain.pop(PYTORCH), expected + residual, atol=1e-5)
    assert all(torch.allclose(y, expected, atol=1e-5) for y in plain.values())

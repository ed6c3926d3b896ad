"""Any mask and any connectivity through the whole of `optimize`, whether or not its rewrite would pay."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxopt.decide
import onnxopt.sites
from onnxopt.api import OptimizeResult, optimize
from samples import build
from tests.lower.masked_attention import Pattern, masked_attention


def optimised(model: onnx.ModelProto) -> OptimizeResult:
    """Nothing is kept for being slow; `optimize` itself raises where the result does not agree with the original."""
    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(onnxopt.decide, "PREDICTED_MARGIN", 0.0),
        patch.object(onnxopt.decide, "MEASURABLE_GAIN", 0.0),
        patch.object(onnxopt.sites, "_CONV_MARGIN", 0.0),
    ):
        path = Path(name) / "model.onnx"
        onnx.save(model, path)
        result = optimize(path, target="cpu", objective="waste", measure=False, cache=Path(name) / "cache")
        assert result.verification is not None and result.verification.passed
        return result


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 3),
    own_masks=st.booleans(),
    density=st.sampled_from([0.05, 0.2]),
    batch=st.sampled_from([1, 2, None]),
)
def test_any_mask(seed: int, heads: int, own_masks: bool, density: float, batch: int | None) -> None:
    rng = np.random.default_rng(seed)
    # Two groups of queries that share no key, so that there is always something to save.
    live = rng.random((heads if own_masks else 1, 32, 32)) < density
    live[:, :16, 16:] = live[:, 16:, :16] = False
    live |= np.eye(32, dtype=bool)
    result = optimised(masked_attention(Pattern(live, heads, np.arange(32), 32), batch=batch))
    assert [s.kind for s in result.rewritten] == ["attention"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["condensenet_train", "pruned_random", "pruned_grouped"]))
def test_any_connectivity(seed: int, name: str) -> None:
    result = optimised(build(name, seed=seed).model)
    if name == "condensenet_train":  # slices that are zero at random share no structure, and are kept
        assert result.rewritten

"""Whatever the pattern: the rewritten attention equals the original, and is a valid model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxopt.decide import loses_digits
from onnxopt.discover.attention import find_attention
from onnxopt.discover.attention_site import AttentionSite, count
from onnxopt.lower.attention import lower_attention
from onnxopt.lower.rewrite import apply_rewrites, is_own_node
from onnxopt.model.graph import symbolic_batch, view
from onnxopt.plan.attention import plan_attention
from onnxopt.plan.rates import CpuRates
from onnxopt.plan.schedule import Objective
from onnxopt.target import load_target
from onnxopt.verification import verify_models
from samples import build
from tests.lower.masked_attention import Pattern, masked_attention, windowed_convolutions

SAMPLES = (
    "swin", "swin_fused", "swin_v2", "swin_padded", "longformer2d", "regionvit", "regionvit_masked",
    "neighbourhood", "masked_vit", "dense_masked", "empty_uniform", "empty_unmasked", "empty_zero", "empty_nan",
)  # fmt: skip


def rates() -> CpuRates:
    cpu = load_target("cpu").cpu
    assert cpu is not None
    return CpuRates.of(cpu)


def rewritten(model: onnx.ModelProto, objective: Objective = "time") -> tuple[onnx.ModelProto, list[AttentionSite]]:
    """The model with all its attention rewritten, whether or not that pays."""
    graph = view(model, batch=2 if symbolic_batch(model) else 1)
    sites, _ = find_attention(graph)
    plans = [plan_attention(site, rates(), objective) for site in sites]
    for site, plan in zip(sites, plans, strict=True):
        assert plan.computed >= plan.needed >= count(site).pairs_total
    return apply_rewrites(model, [lower_attention(s, p, graph) for s, p in zip(sites, plans, strict=True)]), sites


def check(model: onnx.ModelProto, objective: Objective = "time") -> list[AttentionSite]:
    result, sites = rewritten(model, objective)
    onnx.checker.check_model(result, full_check=True)
    report = verify_models(model, result, draws=1)
    assert report.passed, report.explain()
    return sites


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    tokens = draw(st.integers(2, 20))
    queries = draw(st.integers(1, tokens))
    heads = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    columns = draw(st.integers(1, 24))
    keys_of = rng.integers(0, tokens, columns) if draw(st.booleans()) else np.arange(min(columns, tokens))
    kinds = heads if draw(st.booleans()) else 1
    density = draw(st.sampled_from([0.05, 0.3, 0.8]))
    live = rng.random((kinds, queries, len(keys_of))) < density
    mask_value = draw(st.sampled_from([-np.inf, -100.0, -1e4, float(np.finfo(np.float32).min)]))
    guard = draw(st.booleans())
    if kinds > 1 or draw(st.booleans()):
        # A row is without keys in all heads or in none.
        live[:, :, 0] |= ~live.any(axis=2).all(axis=0) | (kinds > 1)
    bias = rng.standard_normal((draw(st.sampled_from([1, heads])), *live.shape[1:])).astype(np.float32)
    return Pattern(
        live,
        heads,
        keys_of,
        tokens,
        bias if draw(st.booleans()) else None,
        mask_value,
        draw(st.booleans()),
        guard,
    )


@settings(max_examples=60, deadline=None)
@given(patterns(), st.sampled_from([1, 2, None]))
def test_any_pattern_is_rewritten_into_an_equal_model(pattern: Pattern, batch: int | None) -> None:
    # Where a guard turns every row into zeros there is nothing to schedule; such a site is kept.
    assume(pattern.live.any() or not pattern.guard or pattern.mask_value != -np.inf)
    model = masked_attention(pattern, batch=batch)
    graph = view(model, batch=2 if batch is None else batch)
    # Sums of a bias and a large constant are kept as they are, because their order shows.
    assume(not any(loses_digits(site) for site in find_attention(graph)[0]))
    assert len(check(model)) == 1


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("batch", [1, None])
def test_every_published_pattern_is_rewritten_into_an_equal_model(name: str, batch: int | None) -> None:
    sample = build(name, batch=batch)
    assert len(check(sample.model)) == len(sample.attention)


@pytest.mark.parametrize("read_by", ["MatMul", "Conv"])
@pytest.mark.parametrize("batch", [1, 2, None])
def test_windows_before_channels_first_projections(read_by: str, batch: int | None) -> None:
    assert len(check(windowed_convolutions(read_by=read_by, batch=batch))) == 1


def test_waste_as_objective_computes_no_more_pairs_than_time() -> None:
    model = build("neighbourhood").model
    graph = view(model)
    for site in find_attention(graph)[0]:
        by_time, by_waste = (plan_attention(site, rates(), o) for o in ("time", "waste"))
        assert by_waste.computed <= by_time.computed
    check(model, "waste")


def test_what_was_written_is_marked_and_the_rest_keeps_its_names() -> None:
    model = build("swin").model
    result, _ = rewritten(model)
    before = {n.name for n in model.graph.node}
    assert all(is_own_node(n) or n.name in before for n in result.graph.node)
    assert any(is_own_node(n) for n in result.graph.node)
    assert [o.name for o in result.graph.output] == [o.name for o in model.graph.output]


def test_the_same_model_gives_the_same_bytes() -> None:
    first, again = (rewritten(build("longformer2d").model)[0].SerializeToString() for _ in range(2))
    assert first == again

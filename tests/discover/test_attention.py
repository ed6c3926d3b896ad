"""Attention of every sample and of the corpus: what discovery says about it, and that this is enough to
compute it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxopt.discover.attention import find_attention
from onnxopt.discover.attention_site import AttentionSite, count
from onnxopt.discover.refusal import Refusal
from onnxopt.model.graph import symbolic_batch, view
from samples import SAMPLES, Sample, build
from tests.discover.reference import deviations

SMALL: dict[str, dict[str, object]] = {"dense_masked": {"tokens": 128, "dim": 32, "heads": 2}}
ATTENTION = [name for name in SAMPLES if build(name, **SMALL.get(name, {})).attention]
OTHERS = [name for name in SAMPLES if name not in ATTENTION]
# One of each kind of exporter and pattern; the rest runs with `make test-all`.
SAMPLED = [
    "dyvit_s_07.dynamo.op18.dyn",
    "dyvit_s_policy.legacy.op17",
    "nat_3layer.legacy.op17",
    "regionvit_tiny_512_clone.dynamo.op18",
    "swin_tiny_224.legacy.op18.dyn",
    "swin_tiny_224_fused.dynamo.op18",
    "vil_tiny_224_exact.dynamo.op18",
    "vil_tiny_224_auto.dynamo.op18.dyn",
    "vit_mask_fused.legacy.op17",
]


def small(name: str, batch: int | None) -> Sample:
    return build(name, batch=batch, **SMALL.get(name, {}))


def found(model: onnx.ModelProto) -> tuple[list[AttentionSite], list[Refusal]]:
    return find_attention(view(model, batch=2 if symbolic_batch(model) else 1))


def all_pass(feeds: dict[str, NDArray[Any]], kinds: dict[str, str]) -> dict[str, NDArray[Any]]:
    """Masks known only at run time let everything through: that is what a site describes."""
    return {n: np.ones_like(v) if kinds[n] in ("policy", "mask") else v for n, v in feeds.items()}


def links(site: AttentionSite, queries: int, keys: int) -> NDArray[np.int64]:
    """How often each query token of each head uses each key token; phantoms and rows without keys left out."""
    result = np.zeros((site.heads, queries + 1, keys + 1), np.int64)
    asked, given = (_from_zero(tokens) for tokens in (site.query_tokens, site.key_tokens))
    for head in range(site.heads):
        lists = site.lists_of(head)
        for row in np.flatnonzero(~site.head_empty[head]):
            np.add.at(result, (head, asked[row], given[lists.list(int(lists.row_list[row]))]), 1)
    return result[:, :queries, :keys]


def _from_zero(tokens: NDArray[Any]) -> NDArray[Any]:
    return np.where(tokens < 0, -1, tokens - tokens[tokens >= 0].min())


@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("name", ATTENTION)
def test_a_sample_is_what_its_truth_says(name: str, batch: int | None) -> None:
    sample = small(name, batch)
    sites, refusals = found(sample.model)
    assert not refusals
    assert [site.node for site in sites] == [truth.node for truth in sample.attention]
    assert [site.id for site in sites] == [f"attention-{number}" for number in range(len(sites))]
    for site, truth in zip(sites, sample.attention, strict=True):
        counted = count(site)
        assert counted.queries == truth.queries
        assert counted.keys == truth.keys
        assert (counted.pairs, counted.pairs_total) == (truth.pairs, truth.pairs_total)
        assert counted.phantom_pairs == truth.phantom_pairs
        assert counted.empty_rows == truth.empty_rows
        assert (site.heads, site.head_dim) == (truth.heads, truth.head_dim)
        assert np.allclose(site.scale, truth.scale)
        assert site.bias_kind == truth.bias_kind
        assert bool(site.runtime) == truth.runtime_mask
        assert (site.empty_kind.value if site.empty_kind else "none") == truth.empty_result
        assert (site.node in site.nodes) and len(set(site.nodes)) == len(site.nodes)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_sample_has_the_adjacency_of_its_truth(name: str) -> None:
    sample = small(name, None)
    sites, _ = found(sample.model)
    for site, truth in zip(sites, sample.attention, strict=True):
        _, queries, keys = truth.adjacency.shape
        wanted = np.broadcast_to(truth.adjacency, (truth.heads, queries, keys))
        assert np.array_equal(links(site, queries, keys), wanted)
        assert len(site.lists) == truth.distinct_masks


@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("name", ATTENTION)
def test_a_sample_recomputed_from_its_sites_gives_the_models_own_tensors(name: str, batch: int | None) -> None:
    sample = small(name, batch)
    sites, _ = found(sample.model)
    feeds = all_pass(sample.draw(0, 3), dict(sample.inputs))
    assert all(deviation.small for deviation in deviations(sample.model, sites, feeds))


@pytest.mark.parametrize("name", ATTENTION)
def test_softmaxes_of_one_attention_share_a_group(name: str) -> None:
    sample = small(name, 1)
    sites, _ = found(sample.model)
    for site, truth in zip(sites, sample.attention, strict=True):
        together = {s.node for s in sites if s.group == site.group} if site.group else {site.node}
        wanted = {t.node for t in sample.attention if t.mixture == truth.mixture} if truth.mixture else {truth.node}
        assert together == wanted


@pytest.mark.parametrize("name", OTHERS)
def test_samples_without_attention_have_none(name: str) -> None:
    sites, _ = found(build(name).model)
    assert not sites


def test_a_wrong_key_does_not_go_unnoticed() -> None:
    sample = small("swin", 1)
    (site, *_), _ = found(sample.model)
    site.key_vectors[0, 3] += 1
    assert not deviations(sample.model, [site], sample.draw(0, 1))[0].small


@pytest.mark.corpus
@pytest.mark.parametrize("tag", SAMPLED)
def test_sites_of_exported_models(
    tag: str,
    corpus_model: Callable[[str], Path],
    corpus_manifest: dict[str, Any],
    corpus_feeds: Callable[..., dict[str, Any]],
) -> None:
    check_exported(tag, corpus_model(tag), corpus_manifest[tag], corpus_feeds(tag))


@pytest.mark.corpus_all
def test_sites_of_every_exported_model(
    corpus_model: Callable[[str], Path],
    corpus_manifest: dict[str, Any],
    corpus_feeds: Callable[..., dict[str, Any]],
) -> None:
    for tag, entry in corpus_manifest.items():
        if entry.get("attention_sites"):
            check_exported(tag, corpus_model(tag), entry, corpus_feeds(tag))
            gc.collect()


def check_exported(tag: str, path: Path, entry: dict[str, Any], feeds: dict[str, Any]) -> None:
    model = onnx.load(path)
    sites, _ = found(model)
    assert sites, tag
    got: Counter[tuple[int, ...]] = Counter()
    for site in sites:
        counted = count(site)
        got[counted.keys, counted.queries, counted.pairs, site.heads, site.head_dim] += 1
    wanted: Counter[tuple[int, ...]] = Counter()
    for item in entry.get("attention_sites", []):
        key = item["N"], item["nq"], item["nnz"] + item["dups"], item["heads"], item["d"]
        wanted[key] += item["count"]
    assert not wanted or got == wanted, tag
    kinds = {item["name"]: item["fill"] for item in entry["inputs"]}
    for deviation in deviations(model, sites, all_pass(feeds, kinds), most_pairs=1_000_000):
        assert deviation.small, (tag, deviation)

"""Ranks of lists: permutations, the same twice, with hidden structure found and limits kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxopt.discover.attention_site import KeyLists
from onnxopt.plan import clustering
from onnxopt.plan.clustering import linkage_rank, minhash_rank, rcm_rank, signature_rank
from onnxopt.plan.strips import CodedLists, coded
from tests.plan.patterns import Rows, any_rows, key_lists, random_mask

Rank = Callable[[CodedLists], NDArray[np.int64] | None]
RANKS: tuple[Rank, ...] = (minhash_rank, signature_rank, linkage_rank, rcm_rank)
rows_or_none = st.lists(st.lists(st.integers(0, 11), max_size=8), min_size=1, max_size=24)


@pytest.mark.parametrize("rank", RANKS)
@given(rows=st.one_of(any_rows, rows_or_none))
def test_ranks_are_permutations_of_the_lists(rank: Rank, rows: Rows) -> None:
    codes = coded(key_lists(rows))
    count = len(codes.offsets) - 1
    found = rank(codes)
    if found is None:
        assert count <= 2
    else:
        assert sorted(found.tolist()) == list(range(count))
        again = rank(codes)
        assert again is not None and found.tolist() == again.tolist()


def near_blocks(blocks: int, rows: int, keys: int, seed: int) -> tuple[KeyLists, NDArray[np.int64]]:
    """Hidden blocks whose rows are all different: each lacks one of its block's keys, a different one."""
    rng = np.random.default_rng(seed)
    block = rng.permutation(np.repeat(np.arange(blocks), rows))
    shuffled = rng.permutation(blocks * keys)
    lacking = {b: iter(rng.permutation(keys).tolist()) for b in range(blocks)}
    every = []
    for b in block.tolist():
        own = shuffled[b * keys : (b + 1) * keys].tolist()
        del own[next(lacking[b])]
        every.append(own)
    return key_lists(every), block


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [linkage_rank, rcm_rank])
def test_hidden_blocks_of_similar_lists_become_neighbours(rank: Rank, seed: int) -> None:
    lists, block = near_blocks(6, 9, 20, seed)
    ranks = rank(coded(lists))
    assert ranks is not None
    ordered = block[np.argsort(ranks[lists.row_list])]
    assert np.count_nonzero(np.diff(ordered)) == 5


def test_signatures_find_blocks_of_neighbouring_keys() -> None:
    # Signatures look at runs of 16 keys, so blocks of keys must not be scattered.
    rng = np.random.default_rng(0)
    block = rng.permutation(np.repeat(np.arange(6), 9))
    lists = key_lists([sorted(rng.choice(np.arange(b * 64, b * 64 + 64), 48, replace=False).tolist()) for b in block])
    ranks = signature_rank(coded(lists))
    assert ranks is not None
    assert np.count_nonzero(np.diff(block[np.argsort(ranks[lists.row_list])])) == 5


def test_min_wise_hashing_brings_near_equal_lists_together() -> None:
    lists, block = near_blocks(8, 10, 40, 0)
    ranks = minhash_rank(coded(lists))
    assert ranks is not None
    changes = np.count_nonzero(np.diff(block[np.argsort(ranks[lists.row_list])]))
    assert changes < np.count_nonzero(np.diff(block)) / 3


def test_beyond_their_limits_the_costly_ones_stand_back(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = coded(random_mask(40, 50, 0.2))
    assert all(rank(codes) is not None for rank in RANKS)
    monkeypatch.setattr(clustering, "CLUSTERED_LISTS", 39)
    monkeypatch.setattr(clustering, "_LINKED_LISTS", 39)
    monkeypatch.setattr(clustering, "_RCM_KEYS", len(codes.codes) - 1)
    assert minhash_rank(codes) is not None
    assert [rank(codes) for rank in RANKS[1:]] == [None, None, None]


@pytest.mark.parametrize("rank", RANKS)
def test_lists_without_any_key_are_ranked(rank: Rank) -> None:
    codes = coded(KeyLists(np.array([0, 1, 2]), np.zeros(4, np.int64), np.empty(0, np.int32)))
    ranks = rank(codes)
    assert ranks is not None and sorted(ranks.tolist()) == [0, 1, 2]

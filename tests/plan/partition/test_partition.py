"""Partitions are valid, no worse than known ones, and no better than their bounds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.discover.conv_site import BoolArray
from onnxopt.plan.partition import CostTable, Partition, partition


def padded(outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Connections that the matrix unit computes."""
    return -(-outputs // 8) * 8 * (-(-inputs // 16) * 16)


def small(outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Small granules, so that few outputs show rounding."""
    return -(-outputs // 2) * 2 * (-(-inputs // 3) * 3)


def timed(outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """A fixed cost of a part, and rounding in both."""
    return 0.7 + 0.11 * -(-outputs // 3) * (0.5 + -(-inputs // 2))


COSTS = {"padded": padded, "small": small, "timed": timed}


def check(links: BoolArray, found: Partition, table: CostTable, exactly: bool = True) -> None:
    """Every connection in exactly one part, every input of a part used, the value true."""
    covered = np.zeros(links.shape, int)
    for part in found.parts:
        assert len(np.unique(part.outputs)) == len(part.outputs) <= table.max_outputs
        covered[np.ix_(part.outputs, part.inputs)] += 1
        assert links[np.ix_(part.outputs, part.inputs)].any(axis=0).all()
    assert (covered[links] == 1).all()
    value = sum(table.of_part(len(part.outputs), len(part.inputs)) for part in found.parts)
    assert found.value == pytest.approx(value)
    assert found.bound <= found.value * (1 + 1e-9)


def optimum(links: BoolArray, table: CostTable) -> float:
    """The best of all partitions, by dynamic programming over sets of outputs."""
    rows = [row for row in links if row.any()]
    best = [0.0] + [np.inf] * (2 ** len(rows) - 1)
    for chosen in range(1, 2 ** len(rows)):
        part = chosen
        first = chosen & -chosen
        while part:
            if part & first and part.bit_count() <= table.max_outputs:
                union = np.logical_or.reduce([row for i, row in enumerate(rows) if part >> i & 1])
                cost = table.of_part(part.bit_count(), int(union.sum())) + best[chosen ^ part]
                best[chosen] = min(best[chosen], cost)
            part = (part - 1) & chosen
    return best[-1]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 10_000), st.sampled_from(sorted(COSTS)), st.integers(1, 8))
def test_small_instances_against_all_partitions(outputs: int, inputs: int, seed: int, cost: str, most: int) -> None:
    rng = np.random.default_rng(seed)
    links = rng.random((outputs, inputs)) < rng.choice([0.15, 0.4, 0.8])
    if rng.random() < 0.5:
        links = links[rng.integers(0, min(3, outputs), outputs)]
    if not links.any():
        return
    table = CostTable.of(COSTS[cost], most, inputs)
    found = partition(links, table, most)
    check(links, found, table)
    best = optimum(links, table)
    assert found.bound <= best * (1 + 1e-9)
    assert best <= found.value * (1 + 1e-9)
    if found.status == "optimal":
        assert found.value == pytest.approx(best)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(COSTS)))
def test_blocks_that_share_nothing_against_all_partitions(seed: int, cost: str) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, 3)
    widths = rng.integers(1, 5, 3)
    links = np.zeros((sizes.sum(), widths.sum()), bool)
    for k in range(3):
        rows, columns = slice(sizes[:k].sum(), sizes[: k + 1].sum()), slice(widths[:k].sum(), widths[: k + 1].sum())
        links[rows, columns] = True
    table = CostTable.of(COSTS[cost], 6, links.shape[1])
    found = partition(links, table, 6)
    check(links, found, table)
    assert found.bound <= optimum(links, table) * (1 + 1e-9) <= found.value * (1 + 2e-9)


def hidden(blocks: list[tuple[int, int]], rng: np.random.Generator, holes: float = 0.0) -> BoolArray:
    outputs, inputs = (sum(sizes) for sizes in zip(*blocks, strict=True))
    links = np.zeros((outputs, inputs), bool)
    row = column = 0
    for height, width in blocks:
        links[row : row + height, column : column + width] = rng.random((height, width)) >= holes
        row, column = row + height, column + width
    return links[rng.permutation(outputs)][:, rng.permutation(inputs)]


@pytest.mark.parametrize(
    "blocks",
    [
        [(64, 64)] * 16,
        [(128, 128)] * 8,
        [(32, 32)] * 32,
        [(256, 256)] * 4,
        [(16, 16)] * 64,
        [(8, 16), (24, 48), (32, 64), (64, 128), (128, 256), (256, 64), (512, 448)],
    ],
    ids=lambda blocks: f"{len(blocks)} blocks",
)
def test_hidden_blocks_are_found_exactly(blocks: list[tuple[int, int]]) -> None:
    links = hidden(blocks, np.random.default_rng(7))
    begin = time.process_time()
    found = partition(links, padded, 64)
    assert time.process_time() - begin < 2
    assert found.value == links.sum()
    assert found.status == "optimal"


def test_hidden_blocks_of_odd_sizes_waste_no_more_than_rounding() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(20, 90, 19)
    blocks = [(int(n), int(n)) for n in [*sizes, 1024 - sizes.sum()] if n > 0]
    links = hidden(blocks, rng)
    found = partition(links, padded, 64)
    rounded = sum(float(padded(np.array(n), np.array(n))) for n, _ in blocks)
    assert found.value <= rounded
    assert found.gap <= 0.02


def test_hidden_blocks_with_holes_are_found_through_components() -> None:
    links = hidden([(64, 64)] * 16, np.random.default_rng(5), holes=0.1)
    found = partition(links, padded, 64)
    assert found.value == 16 * 64 * 64
    assert found.gap <= 0.02


def test_narrow_groups_are_bundled() -> None:
    links = hidden([(4, 4)] * 32, np.random.default_rng(0))
    found = partition(links, padded, 64)
    assert found.value == 16 * 8 * 16
    assert found.status == "optimal"


def test_remainders_of_several_classes_share_a_part() -> None:
    rng = np.random.default_rng(0)
    rows = np.zeros((4, 100), bool)
    for k in range(4):
        rows[k, 15 * k : 15 * k + 45] = True
    links = np.repeat(rows, 49, axis=0)[rng.permutation(196)]
    found = partition(links, padded, 64)
    # 48 outputs of each class read 45 inputs, padded to 48; the four left over share a part of 90, padded to 96.
    assert found.value == 4 * 48 * 48 + 8 * 96
    assert found.status == "optimal"


def test_uneven_degrees_are_kept_apart() -> None:
    rng = np.random.default_rng(1)
    links = np.zeros((96, 256), bool)
    for output in range(96):
        links[output, rng.choice(256, 200 if output % 6 == 0 else 4, replace=False)] = True
    found = partition(links, padded, 64)
    heavy = links.sum(axis=1) == 200
    for part in found.parts:
        assert heavy[part.outputs].all() or not heavy[part.outputs].any()
    assert found.value <= 16 * 256 + 80 * 32 * 1.5


def test_long_outputs_are_cut_into_pieces_that_add_up() -> None:
    rng = np.random.default_rng(2)
    links = rng.random((40, 300)) < 0.1
    links[::8] = rng.random((5, 300)) < 0.8
    found = partition(links, padded, 64, max_inputs=128)
    check(links, found, CostTable.of(padded, 64, 300))
    assert max(len(part.inputs) for part in found.parts if links[part.outputs].sum(axis=1).max() > 128) <= 128
    owners = np.concatenate([part.outputs for part in found.parts])
    assert np.bincount(owners)[0] > 1


def test_outputs_without_inputs_and_inputs_without_outputs() -> None:
    links = np.zeros((12, 20), bool)
    links[2:10, 5:9] = True
    found = partition(links, padded, 64)
    (part,) = found.parts
    assert part.outputs.tolist() == list(range(2, 10))
    assert part.inputs.tolist() == [5, 6, 7, 8]
    assert partition(np.zeros((3, 4), bool), padded, 64).parts == ()


def test_random_connections_stay_within_a_tenth() -> None:
    rng = np.random.default_rng(0)
    links = rng.random((96, 160)) < 0.25
    found = partition(links, padded, 64)
    check(links, found, CostTable.of(padded, 64, 160))
    assert found.gap <= 0.1
    assert found.value < padded(np.array(96), np.array(160)) * 0.85


def test_the_same_connections_give_the_same_parts() -> None:
    links = np.random.default_rng(4).random((40, 60)) < 0.3
    first, second = (partition(links, padded, 64) for _ in range(2))
    assert first == second
    for a, b in zip(first.parts, second.parts, strict=True):
        assert np.array_equal(a.outputs, b.outputs)
        assert np.array_equal(a.inputs, b.inputs)


@pytest.mark.parametrize("wrong", [lambda p, q: -p * q, lambda p, q: p / q, lambda p, q: p * np.inf])
def test_a_cost_that_falls_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="cost of a part"):
        partition(np.ones((4, 4), bool), wrong, 4)  # type: ignore[arg-type]

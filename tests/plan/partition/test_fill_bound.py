"""Prices are checked, not believed: whatever they are, what they prove holds for every partition."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.discover.conv_site import BoolArray, IntArray
from onnxopt.plan.partition import CostTable, partition
from onnxopt.plan.partition.classes import Component, Unions, components, unions
from onnxopt.plan.partition.fill_bound import FillSearch, verified
from onnxopt.plan.partition.fill_bound import fill_bound as bound_of
from onnxopt.plan.partition.fill_cuts import Columns, cuts_of
from onnxopt.plan.partition.fill_program import FillProgram, Limits, Prices
from onnxopt.plan.partition.problem import FloatArray
from tests.plan.partition.test_partition import COSTS, optimum, padded


def case(seed: int, cost: str, most: int) -> tuple[BoolArray, Component, Unions, CostTable]:
    """Connections of one component, with its unions."""
    rng = np.random.default_rng(seed)
    links = rng.random((rng.integers(2, 8), rng.integers(2, 8))) < rng.choice([0.2, 0.4])
    links = links[rng.integers(0, len(links), rng.integers(2, 8))]
    links[:, 0] = True
    component = components(links)[0]
    table = CostTable.of(COSTS[cost], min(most, len(links)), links.shape[1])
    return links, component, unions(component), table


def all_columns(component: Component, family: Unions, table: CostTable) -> Columns:
    """Every union with every size, so that each part has a column of its own."""
    sizes = np.arange(1, table.max_outputs + 1)
    union, size = np.repeat(np.arange(len(family.size)), len(sizes)), np.tile(sizes, len(family.size))
    return Columns(family.fits, component.sizes, union, size, table.values[size, family.size[union]])


def random_parts(component: Component, family: Unions, columns: Columns, rng: np.random.Generator) -> IntArray:
    """How many parts of each column some partition has."""
    assert family.sets is not None
    label = np.repeat(np.arange(len(component.members)), component.sizes)
    label = rng.permutation(label)
    counts = np.zeros(len(columns.cost), np.int64)
    while len(label):
        size = int(rng.integers(1, min(len(label), int(columns.size.max())) + 1))
        together = component.inputs[label[:size]].any(axis=0)
        union = int(np.flatnonzero((family.sets == together).all(axis=1))[0])
        counts[np.flatnonzero((columns.union == union) & (columns.size == size))[0]] += 1
        label = label[size:]
    return counts


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(COSTS)), st.integers(1, 8))
def test_no_prices_prove_more_than_a_partition_costs(seed: int, cost: str, most: int) -> None:
    _, component, family, table = case(seed, cost, most)
    columns = all_columns(component, family, table)
    cuts, rng = cuts_of(component, family, columns), np.random.default_rng(seed)
    levels = rng.random((3, len(columns.cost))) < 0.5
    for _ in range(5):
        parts = random_parts(component, family, columns, rng)
        value = float(parts @ columns.cost)
        assert (cuts.rows @ parts >= cuts.least - 1e-9).all()
        high = np.where(rng.random(len(parts)) < 0.5, np.inf, parts + rng.integers(0, 2, len(parts)))
        level_high = np.where(rng.random(3) < 0.5, np.inf, levels @ parts)
        limits = Limits(np.maximum(parts - 1.0, 0), high, np.maximum(levels @ parts - 1.0, 0), level_high)
        prices = Prices(
            rng.normal(0, table.values.max() / 4, len(columns.amounts)),
            rng.normal(0, 1, len(cuts.least)) * (rng.random(len(cuts.least)) < 0.1),
            rng.normal(0, table.values.max() / 4, 3),
        )
        assert verified(columns, levels, cuts, prices, limits) <= value * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(COSTS)), st.integers(1, 8))
def test_the_bound_holds_and_does_not_fall_with_more_cases(seed: int, cost: str, most: int) -> None:
    links, component, family, table = case(seed, cost, most)
    values = [bound_of(component, family, table, cases).value for cases in (1, 5, 60)]
    assert values == sorted(values)
    assert values[-1] <= optimum(links, table) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(COSTS)))
def test_a_search_goes_on_where_it_was_left(seed: int, cost: str) -> None:
    _, component, family, table = case(seed, cost, 6)
    search = FillSearch(component, family, table)
    first = search.run(1)
    again = search.run(60, enough=first.value)
    assert (again.value, again.cases) == (first.value, first.cases)
    rest, whole = search.run(60), bound_of(component, family, table, 60)
    assert (rest.value, rest.cases) == (whole.value, whole.cases)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_program_that_lies_cannot_make_the_bound_wrong(seed: int) -> None:
    links, component, family, table = case(seed, "small", 6)
    rng = np.random.default_rng(seed)

    def lie(program: FillProgram, limits: Limits) -> tuple[Prices, FloatArray]:
        scale = float(program.columns.cost.max())
        prices = Prices(
            rng.random(len(program.columns.amounts)) * scale,
            rng.random(len(program.cuts.least)) * scale / len(program.cuts.least),
            rng.normal(0, scale, len(program.levels)),
        )
        return prices, rng.random(len(program.columns.cost)) * 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FillProgram, "solve", lie)
        value = bound_of(component, family, table).value
    assert 0 <= value <= optimum(links, table) * (1 + 1e-9)


def condensed(rng: np.random.Generator, outputs: int) -> BoolArray:
    """A learned group convolution: eight blocks of eight inputs, of which every output has one to four."""
    links = np.zeros((outputs, 64), bool)
    for row in links.reshape(outputs, 8, 8):
        row[rng.choice(8, rng.choice(4, p=[0.6, 0.27, 0.11, 0.02]) + 1, replace=False)] = True
    return links


@pytest.mark.parametrize(("seed", "outputs"), [(0, 180), (1, 260), (2, 350)])
def test_learned_groups_are_proved(seed: int, outputs: int) -> None:
    found = partition(condensed(np.random.default_rng(seed), outputs), padded, 64)
    assert found.gap <= 0.02


def test_without_its_solver_there_is_no_bound_but_the_partition_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    links, component, family, table = case(5, "small", 6)
    monkeypatch.setitem(sys.modules, "highspy", None)
    result = bound_of(component, family, table)
    assert result.value == 0
    assert "HiGHS failed" in result.note
    found = partition(links, table, 6)
    assert found.bound <= optimum(links, table) <= found.value


def test_a_component_of_unknown_unions_has_no_bound() -> None:
    _, component, family, table = case(3, "small", 6)
    assert bound_of(component, replace(family, exact=False), table).value == 0

"""What the lowering writes computes its site; whatever is spoilt in it is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper

from onnxopt.lower.rewrite import Rewrite
from onnxopt.validate import PlanError, validate_attention_plan, validate_attention_tables
from samples import SAMPLES, build
from tests.lower.masked_attention import Pattern, masked_attention
from tests.validate.cases import AttentionCase, attention_cases, nodes_of, patterns, table_of, with_node, with_table

Spoil = Callable[[AttentionCase, int], Rewrite]


def spoilt_index(case: AttentionCase, which: int, at: int, value: int | None) -> Rewrite:
    """Another vector for the first query (``which`` 0), or a live key (1) or its value (2) of it, in some batch."""
    gathers = [n for n in nodes_of(case.rewrite, "Gather") if n.input[0] not in results(case)]
    node = gathers[3 * (at % (len(gathers) // 3)) + which]
    index = table_of(case.rewrite, node)
    place = 0 if which == 0 else first_live(case, at % (len(gathers) // 3))
    index[0, 0, place] = index[0, 0, place] + 1 if value is None else value
    return with_table(case.rewrite, node, index)


def results(case: AttentionCase) -> set[str]:
    """The tensors that hold results."""
    made = {n.output[0] for n in nodes_of(case.rewrite, "MatMul")}
    for node in case.rewrite.nodes:
        if node.op_type in ("Reshape", "Concat", "Pad") and made.intersection(node.input):
            made.add(node.output[0])
    return made


def first_live(case: AttentionCase, bucket: int) -> int:
    """A key place that the first row of the first strip of a batch needs."""
    adds = added_behind(case)
    node = adds[bucket]
    if node is None:
        return 0
    added = table_of(case.rewrite, node)
    live = np.flatnonzero(added.reshape(-1, added.shape[-1])[0] != -np.inf)
    assume(live.size)
    return int(live[0])


def added_behind(case: AttentionCase) -> list[NodeProto | None]:
    """For each batch the node that adds mask and bias, if it has one."""
    by_input = {n.input[0]: n for n in nodes_of(case.rewrite, "Add")}
    scores = [n for n in nodes_of(case.rewrite, "MatMul") if n.output[0] in by_input or reads_softmax(case, n)]
    return [by_input.get(n.output[0]) for n in scores]


def reads_softmax(case: AttentionCase, node: NodeProto) -> bool:
    return any(node.output[0] == n.input[0] for n in nodes_of(case.rewrite, "Softmax"))


def spoilt_mask(case: AttentionCase, change: Callable[[np.ndarray, int], float]) -> Rewrite:
    adds = [n for n in added_behind(case) if n is not None]
    assume(adds)
    node = adds[0]
    added = table_of(case.rewrite, node)
    row = added.reshape(-1, added.shape[-1])[0]
    value = change(row, 0)
    assume(not np.isnan(value))
    return with_table(case.rewrite, node, added)


def mask_one(row: np.ndarray, _: int) -> float:
    live = np.flatnonzero(row != -np.inf)
    if not live.size:
        return np.nan
    row[live[-1]] = -np.inf
    return 0.0


def unmask_one(row: np.ndarray, _: int) -> float:
    masked = np.flatnonzero(row == -np.inf)
    if not masked.size:
        return np.nan
    row[masked[0]] = 0.0
    return 0.0


def bend_one(row: np.ndarray, _: int) -> float:
    live = np.flatnonzero(np.abs(row) < 1e3)
    if not live.size:
        return np.nan
    row[live[0]] = np.nextafter(row[live[0]], np.float32(1e4), dtype=np.float32)
    return 0.0


def swap_results(case: AttentionCase, at: int) -> Rewrite:
    gathers = [n for n in nodes_of(case.rewrite, "Gather") if n.input[0] in results(case)]
    assume(gathers)
    index = table_of(case.rewrite, gathers[0])
    other = np.flatnonzero(index != index[0])
    assume(other.size)
    index[[0, other[at % len(other)]]] = index[[other[at % len(other)], 0]]
    return with_table(case.rewrite, gathers[0], index)


def result_that_is_none(case: AttentionCase, value: int) -> Rewrite:
    gathers = [n for n in nodes_of(case.rewrite, "Gather") if n.input[0] in results(case)]
    assume(gathers)
    index = table_of(case.rewrite, gathers[0])
    index[-1] = value
    return with_table(case.rewrite, gathers[0], index)


def other_scale(case: AttentionCase, _: int) -> Rewrite:
    node = nodes_of(case.rewrite, "Mul")[0]
    return with_table(case.rewrite, node, np.nextafter(table_of(case.rewrite, node), np.float32(1)))


def other_axis(case: AttentionCase, _: int) -> Rewrite:
    def change(node: NodeProto) -> None:
        node.attribute[0].i = 3

    return with_node(case.rewrite, nodes_of(case.rewrite, "Softmax")[0], change)


def without_mask(case: AttentionCase, _: int) -> Rewrite:
    """Nobody adds the mask any more."""
    adds = nodes_of(case.rewrite, "Add")
    assume(adds and any((table_of(case.rewrite, n) != 0).any() for n in adds))
    node = next(n for n in adds if (table_of(case.rewrite, n) != 0).any())
    return with_table(case.rewrite, node, np.zeros_like(table_of(case.rewrite, node)))


SPOILT: dict[str, Spoil] = {
    "another query": lambda c, n: spoilt_index(c, 0, n, None),
    "another key": lambda c, n: spoilt_index(c, 1, n, None),
    "another value": lambda c, n: spoilt_index(c, 2, n, None),
    "a query that is none": lambda c, n: spoilt_index(c, 0, n, 10**6),
    "a negative query": lambda c, n: spoilt_index(c, 0, n, -1),
    "a key that is none": lambda c, n: spoilt_index(c, 1, n, 10**6),
    "a value that is none": lambda c, n: spoilt_index(c, 2, n, -1),
    "a pair masked": lambda c, n: spoilt_mask(c, mask_one),
    "a pair unmasked": lambda c, n: spoilt_mask(c, unmask_one),
    "a bias bent": lambda c, n: spoilt_mask(c, bend_one),
    "two results swapped": swap_results,
    "a result that is none": lambda c, n: result_that_is_none(c, 10**6),
    "a result from the end": lambda c, n: result_that_is_none(c, -1),
    "another scale": other_scale,
    "a softmax over queries": other_axis,
    "no mask": without_mask,
    "another output": lambda c, n: replace(c.rewrite, replaces=("elsewhere",)),
    "another site": lambda c, n: replace(c.rewrite, site="attention-9"),
    "another operator": lambda c, n: with_node(c.rewrite, c.rewrite.nodes[0], lambda x: setattr(x, "op_type", "Abs")),
    "no last node": lambda c, n: replace(c.rewrite, nodes=c.rewrite.nodes[:-1]),
    "a table missing": lambda c, n: replace(c.rewrite, tables=c.rewrite.tables[:-1]),
}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(patterns(), st.sampled_from([1, 2, None]))
def test_whatever_is_written_computes_its_site(pattern: Pattern, batch: int | None) -> None:
    (case,) = attention_cases(masked_attention(pattern, batch=batch))
    validate_attention_tables(case.site, case.rewrite, case.graph)


@pytest.mark.parametrize("name", [n for n in SAMPLES if build(n).attention])
@pytest.mark.parametrize("batch", [1, None])
def test_published_patterns_are_planned_and_written_right(name: str, batch: int | None) -> None:
    for case in attention_cases(build(name, batch=batch).model):
        validate_attention_plan(case.site, case.plan)
        validate_attention_tables(case.site, case.rewrite, case.graph)


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(pattern=patterns(), number=st.integers(0, 50))
def test_whatever_is_spoilt_is_found(spoil: Spoil, pattern: Pattern, number: int) -> None:
    (case,) = attention_cases(masked_attention(pattern))
    with pytest.raises(PlanError, match=r"^attention-0"):
        validate_attention_tables(case.site, spoil(case, number), case.graph)


def block_pattern(heads: int = 2) -> Pattern:
    """Two blocks of four queries that each need their own four keys."""
    live = np.kron(np.eye(2, dtype=bool), np.ones((4, 4), bool))[None]
    return Pattern(live, heads, np.arange(8), 8)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_another_vector_is_found(which: int) -> None:
    (case,) = attention_cases(masked_attention(block_pattern()))
    with pytest.raises(PlanError, match="head 0, query 0"):
        validate_attention_tables(case.site, spoilt_index(case, which, 0, None), case.graph)


def test_the_message_names_head_query_key_and_counts() -> None:
    (case,) = attention_cases(masked_attention(block_pattern(1)))
    node = nodes_of(case.rewrite, "Gather")[1]
    index = table_of(case.rewrite, node)
    index[0, 0, 1] = index[0, 0, 0]
    with pytest.raises(PlanError, match=r"head 0, query 0: .* is computed 1 times, expected 0; 4 pairs, expected 4"):
        validate_attention_tables(case.site, with_table(case.rewrite, node, index), case.graph)


def test_the_order_of_keys_within_a_strip_is_free() -> None:
    (case,) = attention_cases(masked_attention(block_pattern()))
    rewrite = case.rewrite
    for number in (1, 2):
        node = nodes_of(rewrite, "Gather")[number]
        rewrite = with_table(rewrite, node, table_of(rewrite, node)[..., ::-1], name=f"turned{number}")
    validate_attention_tables(case.site, rewrite, case.graph)


def test_a_transposed_output_is_found() -> None:
    (case,) = attention_cases(masked_attention(block_pattern(2)))
    *nodes, last = case.rewrite.nodes
    spoilt = replace(case.rewrite, nodes=(*nodes, *turned_behind(last)))
    with pytest.raises(PlanError, match="output"):
        validate_attention_tables(case.site, spoilt, case.graph)


def turned_behind(last: NodeProto) -> list[NodeProto]:
    """The last node, with rows and channels exchanged behind it."""
    before = NodeProto()
    before.CopyFrom(last)
    before.output[0] = "upright"
    return [before, helper.make_node("Transpose", ["upright"], [last.output[0]], name="turn", perm=[0, 2, 1])]

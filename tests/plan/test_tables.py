"""Tables mean what their site computes, for any schedule; a changed entry does not go unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, KeyWeights
from onnxopt.discover.operand import Operand, Source
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import AttentionTables, NoTables, RuntimeWeights, attention_tables
from onnxopt.sites import discover
from onnxopt.target.variant import AttentionVariant
from onnxopt.validate import (
    PlanError,
    validate_attention_contents,
    validate_attention_launch,
    validate_attention_schedule,
)
from samples import SAMPLES, build
from samples.reference import run
from tests.discover.reference import attend
from tests.lower.masked_attention import Pattern, masked_attention
from tests.plan.computed import attended
from tests.plan.schedules import SMALL, SWAPPED, TALL, VARIANTS, scheduled
from tests.plan.sites import Wish, made_site, tensors_of
from tests.validate.cases import patterns

SCHEDULES: dict[str, Callable[[AttentionSite], AttentionSchedule]] = {
    "even strips": lambda site: scheduled(site),
    "swapped": lambda site: scheduled(site, (SWAPPED,)),
    "any strips": lambda site: scheduled(site, VARIANTS, seed=1),
    "split keys": lambda site: scheduled(site, VARIANTS, seed=2, split_keys=11),
    "split lists": lambda site: scheduled(site, (TALL, SMALL), split_keys=19),
}


def close(got: NDArray[Any], wanted: NDArray[Any], within: float = 1e-6) -> bool:
    """Whether two results agree as parts of the largest value, with NaN in the same places."""
    if not np.array_equal(np.isnan(got), np.isnan(wanted)):
        return False
    largest = np.nanmax(np.abs(wanted), initial=0.0) or 1.0
    return bool(np.nanmax(np.abs(got - wanted), initial=0.0) <= within * largest)


def check(site: AttentionSite, schedule: AttentionSchedule, shapes: dict[str, tuple[int, ...]]) -> AttentionTables:
    """Make tables and compare what they compute with the site, for one and for two batches."""
    validate_attention_schedule(site, schedule)
    tables = attention_tables(site, schedule, shapes=shapes)
    validate_attention_contents(site, tables, shapes)
    twice = {name: (2 * shape[0], *shape[1:]) for name, shape in shapes.items()}
    for own in (shapes, twice):
        tensors = tensors_of(site, own)
        wanted = attend(site, tensors)
        assert close(attended(site, tables, tensors).reshape(wanted.shape), wanted)
    return tables


@pytest.mark.parametrize("cut", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "dense_masked"])
def test_tables_compute_the_sites_of_samples(name: str, cut: Callable[[AttentionSite], AttentionSchedule]) -> None:
    found = discover(build(name).model)
    for site in found.attention:
        if not (site.runtime and site.weights is None) and not (site.weights and cut(site).split_keys):
            check(site, cut(site), {n: found.graph.shape(n) or () for n in site.inputs})


@pytest.mark.parametrize("name", ["swin_traced", "neighbourhood", "longformer2d", "regionvit_masked", "empty_nan"])
def test_tables_compute_the_tensors_of_the_model(name: str) -> None:
    sample = build(name)
    found = discover(sample.model)
    for site in found.attention:
        values = run(sample.model, sample.draw(3, 2), [*site.inputs, site.output])
        tensors = dict(zip(site.inputs, values, strict=False))
        shapes = {n: found.graph.shape(n) or () for n in site.inputs}
        tables = attention_tables(site, scheduled(site, VARIANTS, seed=5), shapes=shapes)
        assert close(attended(site, tables, tensors).reshape(values[-1].shape), values[-1], 1e-5)


@settings(max_examples=60, deadline=None)
@given(patterns(), st.sampled_from([1, None]), st.integers(0, 99), st.sampled_from([0, 0, 1, 3, 8]))
def test_tables_compute_any_mask(pattern: Pattern, batch: int | None, seed: int, split: int) -> None:
    found = discover(masked_attention(pattern, batch=batch))
    (site,) = found.attention
    schedule = scheduled(site, VARIANTS, seed=seed, split_keys=split)
    check(site, schedule, {n: found.graph.shape(n) or () for n in site.inputs})


WISHES = {
    "packed": Wish(),
    "separate": Wish(packed=False, value_width=8),
    "grouped-query heads": Wish(heads=4, packed=False, grouped=True),
    "scattered": Wish(heads=3, scattered=True),
    "scattered, separate": Wish(heads=3, scattered=True, packed=False, value_width=8, batch=2),
    "channels first": Wish(channels_first=True, batch=2),
    "channels first, windows": Wish(channels_first=True, packed=False, rows=10, keys=14, batch=2),
    "two sources": Wish(packed=False, two_sources=True, scattered=True, batch=2),
    "phantoms": Wish(phantoms=True),
    "scattered phantoms": Wish(phantoms=True, scattered=True),
    "repeated keys": Wish(most=3, own_patterns=True),
    "own patterns": Wish(heads=3, own_patterns=True, bias=True),
    "bias": Wish(bias=True),
    "repeats": Wish(repeats=True),
    "zeros": Wish(zeros=True, rows=20),
    "all of the output": Wish(repeats=True, zeros=True, scattered=True, channels_first=True, packed=False, rows=20),
    "uniform": Wish(empty=EmptyRow.UNIFORM, bias=True, own_patterns=True),
    "unmasked": Wish(empty=EmptyRow.UNMASKED, bias=True, own_patterns=True),
    "zero": Wish(empty=EmptyRow.ZERO, bias=True, repeats=True),
    "nan": Wish(empty=EmptyRow.NAN, bias=True, own_patterns=True, heads=3),
    "everything": Wish(
        heads=3,
        rows=70,
        keys=90,
        most=3,
        scattered=True,
        phantoms=True,
        own_patterns=True,
        bias=True,
        repeats=True,
        zeros=True,
        batch=2,
        empty=EmptyRow.NAN,
    ),
}


@pytest.mark.parametrize("cut", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_tables_compute_made_up_sites(wish: Wish, cut: Callable[[AttentionSite], AttentionSchedule]) -> None:
    site, shapes = made_site(wish)
    check(site, cut(site), shapes)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tables_compute_any_site(data: st.DataObject) -> None:
    yes = st.booleans()
    first = data.draw(yes)
    wish = Wish(
        heads=data.draw(st.integers(1, 4)),
        rows=data.draw(st.integers(4, 40)),
        keys=data.draw(st.integers(6, 80)),
        value_width=data.draw(st.sampled_from([4, 8])),
        batch=data.draw(st.integers(1, 2)),
        most=data.draw(st.integers(1, 3)),
        packed=data.draw(yes),
        grouped=data.draw(yes),
        scattered=data.draw(yes),
        channels_first=first,
        two_sources=not first and data.draw(yes),
        phantoms=data.draw(yes),
        own_patterns=data.draw(yes),
        bias=data.draw(yes),
        empty=data.draw(st.sampled_from([None, *EmptyRow])),
        repeats=data.draw(yes),
        zeros=data.draw(yes),
    )
    site, shapes = made_site(wish, data.draw(st.integers(0, 9)))
    split = data.draw(st.sampled_from([0, 1, 16, 33]))
    check(site, scheduled(site, VARIANTS, seed=data.draw(st.integers(0, 9)), split_keys=split), shapes)


def test_heads_that_only_lie_elsewhere_share_their_tables() -> None:
    site, shapes = made_site(Wish(heads=4))
    tables = check(site, scheduled(site), shapes)
    assert not tables.kernel.own_values
    assert tables.values is None
    assert len(tables.rows) == 16
    assert len(tables.keys) == 16
    assert tables.jobs[:, 8].tolist() == [0, 4, 8, 12]


def test_grouped_query_heads_read_the_same_keys() -> None:
    site, shapes = made_site(Wish(heads=4, packed=False, grouped=True))
    tables = check(site, scheduled(site), shapes)
    assert tables.jobs[:, 9].tolist() == [0, 0, 4, 4]


def test_windows_that_look_alike_share_their_tiles() -> None:
    (site,) = discover(build("swin").model).attention[:1]
    schedule = scheduled(site, (AttentionVariant("mma", 16, 16, 1, 2),))
    tables = attention_tables(site, schedule)
    assert tables.tiles is not None and tables.biases is not None
    distinct = {tuple(line) for line in tables.tiles.tolist()} - {(-1, -1)}
    assert len(distinct) <= site.heads
    assert len(tables.biases) <= site.heads * 16 * 16
    assert len(tables.jobs) == 4 * site.heads


def test_pieces_begin_at_16_bytes_and_tables_are_int32() -> None:
    site, shapes = made_site(WISHES["everything"])
    tables = check(site, scheduled(site, VARIANTS, seed=3), shapes)
    for name, array in tables.arrays().items():
        assert array.dtype == (np.float32 if name in ("biases", "scales") else np.int32), name
    for column in (2, 4, 6):
        assert not np.any(tables.jobs[:, column] % 4)
    assert tables.tiles is not None
    live = tables.tiles[tables.tiles >= 0]
    assert live.size and not np.any(live % 4)


@pytest.mark.parametrize(("element", "kind"), [("fp16", "float16"), ("bf16", "bfloat16"), ("tf32", "float32")])
def test_biases_are_in_the_compute_type(element: Any, kind: str) -> None:
    site, shapes = made_site(Wish(bias=True, empty=EmptyRow.UNMASKED))
    tables = attention_tables(site, scheduled(site, element=element), shapes=shapes)
    assert tables.biases is not None and tables.biases.dtype.name == kind
    tensors = tensors_of(site, shapes)
    wanted = attend(site, tensors)
    assert close(attended(site, tables, tensors).reshape(wanted.shape), wanted, 1e-2)


def test_equal_input_gives_equal_tables_and_names_say_what_differs() -> None:
    site, shapes = made_site(WISHES["everything"])
    first = attention_tables(site, scheduled(site, VARIANTS, seed=3), shapes=shapes)
    again = attention_tables(site, scheduled(site, VARIANTS, seed=3), shapes=shapes)
    other = attention_tables(site, scheduled(site, VARIANTS, seed=4), shapes=shapes)
    assert first.configuration() == again.configuration()
    assert first.operator() == again.operator() != other.operator()
    assert first.operator().startswith("SparseAttention_")
    split = attention_tables(site, scheduled(site, split_keys=16), shapes=shapes)
    assert split.merge is not None and split.merge.operator().startswith("MergeAttention_")


@pytest.mark.parametrize("epsilons", [(0.0, 0.0), (1e-6 / 13, 1e-6), (0.5, 2.0)])
def test_runtime_weights(epsilons: tuple[float, float]) -> None:
    site, shapes = made_site(Wish(rows=13, scattered=True, bias=True, batch=2))
    tensors = tensors_of(site, shapes)
    columns = np.random.default_rng(0).permutation(13)
    weights = KeyWeights("policy", 13, columns, columns[::-1].copy(), epsilons)
    site = replace(site, runtime=("policy",), weights=weights)
    tables = attention_tables(site, scheduled(site, VARIANTS, seed=3), shapes=shapes)
    assert tables.inputs[3] == ("policy",)
    validate_attention_contents(site, tables, shapes)
    policy = np.random.default_rng(1).integers(0, 2, (2, 13)).astype(np.float32)
    policy[:, columns[0]] = 1
    got = attended(site, tables, tensors, policy)
    assert close(got.reshape(site.output_shape), _weighed(site, tensors, policy, weights))


def test_run_time_weights_that_a_site_does_not_know_are_given() -> None:
    site, shapes = made_site(Wish(rows=13))
    columns = np.arange(13)
    weights = RuntimeWeights("policy", 13, columns, columns, (0.0, 1e-6))
    known = KeyWeights("policy", 13, columns, columns, (0.0, 1e-6))
    schedule, masked = scheduled(site, VARIANTS, seed=3), replace(site, runtime=("policy",))
    given = attention_tables(masked, schedule, shapes=shapes, weights=weights)
    own = attention_tables(replace(masked, weights=known), schedule, shapes=shapes)
    assert given.operator() == own.operator()
    validate_attention_contents(masked, given, shapes)
    with pytest.raises(NoTables, match="run-time weights with split keys"):
        attention_tables(replace(masked, weights=known), scheduled(site, split_keys=4), shapes=shapes)


WRONG_WEIGHTS: dict[str, tuple[Callable[[KeyWeights], KeyWeights], str]] = {
    "tensor": (lambda w: replace(w, tensor="other"), "are 13 columns of"),
    "width": (lambda w: replace(w, width=14), "are 14 columns of"),
    "columns": (lambda w: replace(w, columns=np.roll(w.columns, 1)), "a key has column"),
    "diagonals": (lambda w: replace(w, diagonals=np.roll(w.diagonals, 1)), "sees column"),
    "epsilons": (lambda w: replace(w, epsilons=(0.0, 0.0)), "are added to weights and sum"),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_run_time_weights_do_not_go_unnoticed(wrong: str) -> None:
    site, shapes = made_site(Wish(rows=13, own_patterns=True, packed=False))
    weights = KeyWeights("policy", 13, np.arange(13), np.arange(13), (0.0, 1e-6))
    site = replace(site, runtime=("policy",), weights=weights)
    change, message = WRONG_WEIGHTS[wrong]
    tables = attention_tables(replace(site, weights=change(weights)), scheduled(site, VARIANTS, seed=3), shapes=shapes)
    with pytest.raises(PlanError, match=message):
        validate_attention_contents(site, tables, shapes)
    plain = attention_tables(replace(site, runtime=(), weights=None), scheduled(site), shapes=shapes)
    with pytest.raises(PlanError, match="leave out the run-time weights"):
        validate_attention_contents(site, plain, shapes)
    with pytest.raises(PlanError, match="which the site does not"):
        validate_attention_contents(replace(site, runtime=(), weights=None), tables, shapes)


def _weighed(
    site: AttentionSite, tensors: dict[str, NDArray[Any]], policy: NDArray[Any], weights: KeyWeights
) -> NDArray[Any]:
    """The attention of a site with one packed source, row by row."""
    vectors = tensors["qkv"].reshape(site.batch, -1, site.q.width)
    results = np.zeros((site.batch, site.heads * site.rows, site.v.width))
    for head in range(site.heads):
        lists, bias = site.lists_of(head), site.bias_of(head)
        assert bias is not None
        starts = lists.row_offsets()
        for row in range(site.rows):
            keys = lists.list(int(lists.row_list[row]))
            scores = np.einsum(
                "bc,bkc->bk",
                vectors[:, site.query_vectors[head, row]],
                vectors[:, site.key_vectors[head, keys]],
            )
            scores = scores * site.scale[head] + bias[starts[row] : starts[row + 1]]
            own = np.where(weights.columns[keys] == weights.diagonals[row], 1, policy[:, weights.columns[keys]])
            powers = own * np.exp(scores - scores.max(axis=1, keepdims=True))
            above, below = (np.float64(np.float32(value)) for value in weights.epsilons)
            mixed = np.einsum("bk,bkc->bc", powers + above, vectors[:, site.value_vectors[head, keys]])
            results[:, head * site.rows + row] = mixed / (powers.sum(axis=1, keepdims=True) + below)
    return results[:, site.slots].reshape(site.output_shape)


def test_what_tables_cannot_hold_is_refused_with_the_reason() -> None:
    site, shapes = made_site(Wish(packed=False, channels_first=True, two_sources=True))
    with pytest.raises(NoTables, match="'k0' has its channels first and is only one of several"):
        attention_tables(site, scheduled(site), shapes=shapes)
    site, shapes = made_site(Wish(channels_first=True))
    with pytest.raises(NoTables, match="the shape of 'qkv', which has its channels first, is not known"):
        attention_tables(site, scheduled(site))
    masked = replace(site, runtime=("mask",))
    with pytest.raises(NoTables, match="its mask depends on 'mask'"):
        attention_tables(masked, scheduled(site), shapes=shapes)
    site, shapes = made_site(Wish())
    large = Operand((Source("qkv", 2**26, 64, -1),), 4)
    with pytest.raises(NoTables, match="'qkv' has 4,294,967,296 elements a batch element"):
        attention_tables(replace(site, q=large), scheduled(site), shapes=shapes)
    with pytest.raises(NoTables, match="is no multiple of 16 rows x 16 keys"):
        attention_tables(site, scheduled(site, (AttentionVariant("mma", 24, 16, 1, 1),)), shapes=shapes)


def spoilt(tables: AttentionTables, name: str, change: Callable[[NDArray[Any]], object]) -> AttentionTables:
    array = np.array(getattr(tables, name))
    change(array)
    return replace(tables, **{name: array})


def added(*place: int, by: int = 1) -> Callable[[NDArray[Any]], object]:
    def change(array: NDArray[Any]) -> None:
        array[place] += by

    return change


Spoil = Callable[[AttentionTables], AttentionTables]
SPOILT: dict[str, Spoil] = {
    "a query one further": lambda t: spoilt(t, "rows", added(1, by=t.kernel.width)),
    "a query one channel off": lambda t: spoilt(t, "rows", added(1)),
    "a key one further": lambda t: spoilt(t, "keys", added(2, by=t.kernel.width)),
    "a key one channel off": lambda t: spoilt(t, "keys", added(2)),
    "a key that is none": lambda t: spoilt(t, "keys", added(2, by=10**6)),
    "a key that becomes a zero vector": lambda t: spoilt(t, "keys", lambda a: a.__setitem__(2, -1)),
    "a key below -1": lambda t: spoilt(t, "keys", lambda a: a.__setitem__(2, -2)),
    "a result elsewhere": lambda t: spoilt(t, "results", added(0)),
    "a result lost": lambda t: spoilt(t, "results", lambda a: a.__setitem__(0, -1)),
    "a result twice": lambda t: spoilt(t, "results", lambda a: a.__setitem__(0, a[1])),
    "two results exchanged": lambda t: spoilt(t, "results", lambda a: a.__setitem__(slice(0, 2), a[1::-1].copy())),
    "a mask bit": lambda t: spoilt(t, "masks", lambda a: a.__setitem__(0, a[0] ^ 2)),
    "a bias": lambda t: spoilt(t, "biases", lambda a: a.__setitem__(0, a[0] + 1)),
    "a mask left out": lambda t: spoilt(t, "tiles", lambda a: a.__setitem__((0, 0), -1)),
    "a bias left out": lambda t: spoilt(t, "tiles", lambda a: a.__setitem__((0, 1), -1)),
    "a mask beyond the pool": lambda t: spoilt(t, "tiles", lambda a: a.__setitem__((0, 0), 4096)),
    "a mask that is not aligned": lambda t: spoilt(t, "tiles", added(0, 0)),
    "a scale": lambda t: spoilt(t, "scales", lambda a: a.__setitem__(0, 2.0)),
    "a job dropped": lambda t: replace(t, jobs=t.jobs[1:]),
    "a job twice": lambda t: replace(t, jobs=np.concatenate([t.jobs, t.jobs[:1]])),
    "a variant that is none": lambda t: spoilt(t, "jobs", added(0, 0, by=9)),
    "a head that is none": lambda t: spoilt(t, "jobs", added(0, 1, by=9)),
    "a row left out": lambda t: spoilt(t, "jobs", added(0, 3, by=-1)),
    "a row too many": lambda t: spoilt(t, "jobs", added(0, 3)),
    "a key left out": lambda t: spoilt(t, "jobs", added(0, 5, by=-1)),
    "keys too many": lambda t: spoilt(t, "jobs", added(0, 5, by=16)),
    "shifted queries": lambda t: spoilt(t, "jobs", added(0, 8, by=t.kernel.width)),
    "shifted keys": lambda t: spoilt(t, "jobs", added(0, 9, by=t.kernel.width)),
    "shifted values": lambda t: spoilt(t, "jobs", added(0, 10, by=t.kernel.width)),
    "shifted results": lambda t: spoilt(t, "jobs", added(0, 11, by=t.kernel.value_width)),
    "a negative shift": lambda t: spoilt(t, "jobs", added(0, 9, by=-(10**6))),
    "rows from elsewhere": lambda t: spoilt(t, "jobs", added(0, 2, by=4)),
    "keys from elsewhere": lambda t: spoilt(t, "jobs", added(0, 4, by=4)),
    "tiles from elsewhere": lambda t: spoilt(t, "jobs", added(0, 7, by=2)),
    "a reserved column": lambda t: spoilt(t, "jobs", added(0, 15)),
    "an extra elsewhere": lambda t: spoilt(t, "extras", added(0, 1, by=4)),
    "an extra of another row": lambda t: spoilt(t, "extras", added(0, 0)),
    "a table missing": lambda t: replace(t, masks=None),
    "a table of another type": lambda t: replace(t, keys=t.keys.astype(np.int64)),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("variant", [SMALL, SWAPPED], ids=["plain", "swapped"])
def test_a_changed_entry_is_noticed(variant: AttentionVariant, spoil: Spoil) -> None:
    site, shapes = made_site(Wish(rows=40, keys=70, own_patterns=True, bias=True, repeats=True))
    tables = attention_tables(site, scheduled(site, (variant,)), shapes=shapes)
    tensors = tensors_of(site, shapes)
    wanted = attend(site, tensors)
    assert close(attended(site, tables, tensors).reshape(wanted.shape), wanted)
    changed = spoil(tables)
    with pytest.raises(PlanError):
        validate_attention_launch(changed.configuration()["kernel"], changed.arrays())
        validate_attention_contents(site, changed, shapes)
    try:
        got = attended(site, changed, tensors)
    except PlanError:
        return
    assert not close(got.reshape(wanted.shape), wanted)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_entry_that_is_read_is_noticed(data: st.DataObject) -> None:
    site, shapes = made_site(Wish(rows=20, keys=40, own_patterns=True))
    tables = attention_tables(site, scheduled(site, VARIANTS, seed=2), shapes=shapes)
    job = tables.jobs[data.draw(st.integers(0, len(tables.jobs) - 1))]
    name, column = data.draw(st.sampled_from([("rows", 2), ("results", 2), ("keys", 4)]))
    place = int(job[column]) + data.draw(st.integers(0, int(job[column + 1]) - 1))
    by = data.draw(st.sampled_from([-3, -1, 1, 4, 10**6, -(10**6)]))
    tensors = tensors_of(site, shapes)
    wanted = attend(site, tensors)
    changed = spoilt(tables, name, added(place, by=by))
    with pytest.raises(PlanError):
        validate_attention_launch(changed.configuration()["kernel"], changed.arrays())
        validate_attention_contents(site, changed, shapes)
    try:
        got = attended(site, changed, tensors)
    except PlanError:
        return
    assert not close(got.reshape(wanted.shape), wanted, 1e-9)


def test_a_merge_that_is_changed_is_noticed() -> None:
    site, shapes = made_site(Wish(rows=10, keys=40, zeros=True))
    tables = attention_tables(site, scheduled(site, split_keys=9), shapes=shapes)
    tensors = tensors_of(site, shapes)
    wanted = attend(site, tensors)
    assert tables.merge is not None
    for column, by in ((0, 1), (1, 1), (1, -1), (2, 4), (3, 1)):
        merges = tables.merge.merges.copy()
        merges[0, column] += by
        changed = replace(tables, merge=replace(tables.merge, merges=merges))
        with pytest.raises(PlanError):
            got = attended(site, changed, tensors)
            assert not close(got.reshape(wanted.shape), wanted)
            validate_attention_contents(site, changed, shapes)
    with pytest.raises(PlanError, match="a merge belongs to split keys"):
        validate_attention_launch(tables.configuration()["kernel"], tables.arrays())

"""The planner's benchmark: a run on small layers, and its goals on made-up results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import planner
from benchmarks.planner_goals import (
    beats,
    best_goals,
    bound_goals,
    cache_goals,
    fixed_shape_goals,
    gap_goals,
    layer_time_goals,
    model_time_goals,
    random_goals,
    rounded_need,
    structure_goals,
    waste_goals,
)
from benchmarks.planner_layers import AttentionLayer, ConvLayer, corpus_layers, layers_of, made_conv_layer
from benchmarks.planner_masks import hidden_blocks, longformer, neighbourhood
from benchmarks.planner_measure import Plan, Result
from benchmarks.planner_page import layer_lines
from onnxopt.errors import InputError
from onnxopt.plan.baselines import Baseline

PLAN = Plan(120, 5.0, 120.0, 118.0, 0.003, 0.04, "as is", "exact", 1.0, 0.9)


def made(name: str = "layer", **changes: object) -> Result:
    few = replace(PLAN, **{key: value for key, value in changes.items() if key in PLAN.__dataclass_fields__})
    fields = {key: value for key, value in changes.items() if key not in PLAN.__dataclass_fields__}
    others = (Baseline("fixed shape", 130, 5.5), Baseline("greedy blocks", 150, 7.0, 30))
    result = Result(name, "attention", ("m",), "sm_90", 100, few, few, others)
    return replace(result, **fields)


def test_small_layers_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    assert planner.main(["--quick", "--json", str(file)]) in (0, 1)
    page = capsys.readouterr().out
    assert all(f"## {section}. " in page for section in range(1, 7))
    assert "- target, where none is named: sm_90 (NVIDIA H200)" in page
    state = json.loads(file.read_text())
    assert state["schema"] == "onnxopt.planner_benchmark/1"
    assert {goal["section"] for goal in state["goals"]} == {1, 2, 3, 4, 5, 6}
    hidden = [goal for goal in state["goals"] if goal["section"] == 3]
    assert hidden and all(goal["met"] for goal in hidden)
    for result in state["others"]:
        assert result["waste"]["computed"] >= result["needed"]
        assert result["time"]["predicted_us"] > 0
        assert len(result["baselines"]) == (5 if result["kind"] == "attention" else 4)


def test_a_missing_corpus_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "CORPUS", tmp_path / "none")
    notes: dict[int, str] = {}
    assert planner.found_layers(planner.parse([]), notes) == []
    assert "is not at" in notes[6] and "--corpus" in notes[6]


def test_bad_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        planner.parse(["--corpus", str(tmp_path)])
    assert "it has no manifest.json" in capsys.readouterr().err
    with pytest.raises(InputError, match="'cpu' is no GPU"):
        planner.main(["--quick", "--target", "cpu"])
    (tmp_path / "manifest.json").write_text(json.dumps({"models": {"one": {}}}))
    with pytest.raises(InputError, match="no model 'two'; it has 1, such as 'one'"):
        planner.main(["--corpus", str(tmp_path), "--models", "two"])


@pytest.mark.corpus
def test_layers_of_a_model_of_the_corpus(corpus_dir: Path) -> None:
    layers = corpus_layers(corpus_dir, ["nat_3layer.legacy.op17"])
    attention = [layer for layer in layers if isinstance(layer, AttentionLayer)]
    assert attention
    assert all(layer.models == ("nat_3layer.legacy.op17",) for layer in layers)
    assert all(layer.needed > 0 for layer in layers)


def test_masks() -> None:
    # 14 chunks a side, the last ones of 5 tokens; 13 x 13 keys whatever the place.
    site = longformer(96, 7)
    assert sorted(set(site.lists[0].lengths.tolist())) == sorted(
        {a * b for a in (12, 14, 19, 21) for b in (12, 14, 19, 21)}
    )
    assert set(neighbourhood(64, 13).lists[0].lengths.tolist()) == {169}
    corner = neighbourhood(64, 13).lists[0]
    assert corner.list(corner.row_list[0]).tolist() == [64 * y + x for y in range(13) for x in range(13)]
    grid = longformer(8, 2).lists[0]
    assert grid.list(grid.row_list[3 * 8 + 3]).tolist() == [8 * y + x for y in range(6) for x in range(6)]


def test_hidden_blocks_are_blocks() -> None:
    links = hidden_blocks(60, 4, 1)
    assert links.sum() == 4 * 15 * 15
    assert len(np.unique(links, axis=0)) == 4
    layer = made_conv_layer("x. hidden", links)
    assert rounded_need(layer) == 4 * 16 * 16
    assert (layer.taps, layer.positions) == (1, 784)
    assert layer.moved_bytes == 2 * (60 * 784 * 2 + 900)
    assert rounded_need(made_conv_layer("x. single", np.eye(9, dtype=bool))) == 9


def test_waste() -> None:
    goals = waste_goals([(made(), 1.2), (made("other", computed=121, free_gap=-1.0), 1.2)])
    assert [goal.verdict for goal in goals] == ["met", "met", "met", "MISSED", "met", "MISSED"]
    assert goals[0].figure == "1.200"


def test_fixed_shapes_are_compared_for_every_target() -> None:
    slower = made("slow", predicted_us=6.0)
    goals = fixed_shape_goals([made(), slower, replace(made(), target="sm_80")])
    assert [goal.met for goal in goals] == [False, True]
    assert goals[0].figure.startswith("0.917 (slow)") and "slower on 1, equal on 0 of 2" in goals[0].figure
    assert goals[1].figure.startswith("1.100 (layer)")


def test_structure_counts_against_the_rounded_need() -> None:
    layer = made_conv_layer("family. hidden", hidden_blocks(60, 4, 1))
    results = [made("family. hidden", computed=1024, needed=900), made("family. hidden", computed=1025, needed=900)]
    assert [structure_goals([layer], [result])[0].met for result in results] == [True, False]


def test_gaps() -> None:
    assert all(goal.met for goal in gap_goals([made(str(n)) for n in range(3)]))
    wide = [*(made(str(n)) for n in range(19)), made("wide", gap=0.03)]
    by_what = {goal.what: goal for goal in gap_goals(wide)}
    assert by_what["time, all, 20 layers: gap at most 0.5%"].met
    assert not by_what["time, all: largest gap"].met
    assert by_what["time, all: largest gap"].figure == "3.00% (wide); at most 2% on 95.0%"
    assert not random_goals([made("r, seed 0", gap=0.1), made("r, seed 1", gap=0.11)])[0].met


def test_bounds_of_any_strips_hold_for_other_methods() -> None:
    def bounded(value: float, **changes: float) -> Result:
        return made(
            value=value, time=replace(PLAN, value=5.0, free_gap=-1.0), waste=replace(PLAN, value=value, **changes)
        )

    assert bound_goals([bounded(120.0)])[0].figure == "0 of 1"
    low = bound_goals([bounded(200.0)])[0]
    assert (low.met, low.figure) == (False, "1 of 1: layer (fixed shape)")
    # The bound of the searched space alone says nothing about other orders.
    assert bound_goals([bounded(200.0, bound=131.0, free_gap=-1.0)])[0].met
    assert not bound_goals([replace(bounded(120.0), time=replace(PLAN, value=6.0, free_gap=0.0))])[0].met


def test_seconds() -> None:
    assert [goal.met for goal in layer_time_goals([made(seconds=2.1)])] == [False, False]
    assert [goal.met for goal in model_time_goals([made(seconds=5.0), made("b", seconds=4.9)])] == [True, True]
    assert [goal.met for goal in model_time_goals([made(seconds=5.0), made("b", seconds=5.1)])] == [False, False]
    assert [goal.met for goal in cache_goals({"one": 0.04, "two": 0.06})] == [True, False]


def test_best_in_both() -> None:
    assert beats(made()) == (True, True)
    assert beats(made(computed=131)) == (False, True)
    assert beats(made(predicted_us=5.6)) == (True, False)
    unplanned = replace(made("left"), waste=None, time=None, note="why")
    goals = best_goals([made(), made("bad", computed=131), unplanned])
    assert [goal.figure for goal in goals] == ["1 of 2; not on bad", "2 of 2"]
    lines = "\n".join(layer_lines([made(), unplanned]))
    assert "| layer | 100 | 120 / 5.00 | 120 / 5.00 |  |  | 130 / 5.50 |  | 150 / 7.00 (30% again) | both |" in lines
    assert "- left: why" in lines


def test_equal_layers_have_equal_signatures() -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = [
        numpy_helper.from_array(np.full((4, 2, 1, 1), value, np.float32), name) for name, value in (("a", 1), ("b", 2))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], name="first", group=2),
        helper.make_node("Conv", ["h", "b"], ["y"], name="second", group=2),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 5, 5]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    found = list(layers_of("tag", model))
    assert len(found) == 2
    assert found[0][0] == found[1][0]
    assert all(isinstance(layer, ConvLayer) and layer.needed == 8 for _, layer in found)

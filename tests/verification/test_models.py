"""Whole comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import InputError, MissingError, VerificationError
from onnxopt.verification import sessions
from onnxopt.verification.inputs import draw_inputs
from onnxopt.verification.models import verify_models

ModelMaker = Callable[..., onnx.ModelProto]
Network = Callable[..., onnx.ModelProto]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SITES = [("first-site", "h"), ("second-site", "a"), ("third-site", "s")]
node = helper.make_node


def changed(model: onnx.ModelProto, weight: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = (tensor for tensor in copy.graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), weight))
    return copy


def slightly_off(values: np.ndarray) -> np.ndarray:
    return values * (1 + 1e-3 * np.random.default_rng(1).standard_normal(values.shape))


def test_a_model_agrees_with_itself(network: Network) -> None:
    report = verify_models(network(), network(), draws=2, sites=SITES)
    assert report.passed
    assert len(report.draws) == 2
    assert report.first_bad_site is None
    assert {draw.batch for draw in report.draws} == {1}
    assert report.worst is not None
    assert "2 runs agree" in report.explain()


def test_the_reference_is_float64_where_every_operator_has_it(network: Network) -> None:
    report = verify_models(network(), network())
    assert report.reference == "float64"
    assert report.worst is not None
    assert 0 < report.worst.max_error < 1e-5


def test_the_reference_is_the_original_where_an_operator_lacks_float64(network: Network) -> None:
    report = verify_models(network(activation="Erf"), network(activation="Erf"))
    assert report.reference == "original"
    assert report.passed
    assert report.worst is not None
    assert report.worst.max_error == 0


@pytest.mark.parametrize("activation", ["Tanh", "Erf"])
@pytest.mark.parametrize(("weight", "site"), [("w1", "first-site"), ("w2", "third-site")])
def test_a_wrong_weight_fails_at_its_site(network: Network, activation: str, weight: str, site: str) -> None:
    original = network(activation=activation)
    report = verify_models(original, changed(original, weight, slightly_off), sites=SITES)
    assert not report.passed
    assert report.first_bad_site is not None
    assert report.first_bad_site.site == site
    assert not report.first_bad_site.output.passed
    assert f"the first site that is off is {site}" in report.explain()


def test_sites_that_are_not_in_both_models_are_named(network: Network) -> None:
    original = network()
    wrong = changed(original, "w2", slightly_off)
    report = verify_models(original, wrong, sites=[("gone", "nowhere"), *SITES[:2]])
    assert report.unwatched_sites == ("gone",)
    assert report.first_bad_site is None
    assert any("every watched site agrees" in note for note in report.notes)


def test_many_sites_are_searched_in_the_given_order(network: Network) -> None:
    original = network()
    sites = [(f"good-{index}", "h") for index in range(20)] + [("bad", "s"), ("later", "y")]
    report = verify_models(original, changed(original, "w2", slightly_off), sites=sites)
    assert report.first_bad_site is not None
    assert report.first_bad_site.site == "bad"


def test_a_symbolic_batch_is_tried_at_one_and_three(network: Network) -> None:
    report = verify_models(network(batch="n"), network(batch="rows"), draws=2)
    assert [(draw.batch, draw.draw) for draw in report.draws] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert {output.shape for draw in report.draws for output in draw.outputs} == {(1, 8), (3, 8)}
    chosen = verify_models(network(batch="n"), network(batch="n"), draws=1, batches=[5])
    assert [draw.batch for draw in chosen.draws] == [5]


def test_a_batch_that_was_frozen_is_found(make: ModelMaker) -> None:
    def flat(shape: list[int]) -> onnx.ModelProto:
        return make(
            [node("Reshape", ["x", "shape"], ["y"])],
            [("x", FLOAT, ["n", 2, 6])],
            [("y", FLOAT, None)],  # type: ignore[list-item]
            {"shape": np.array(shape)},
        )

    with pytest.raises(VerificationError, match="cannot run the optimised model"):
        verify_models(flat([0, 12]), flat([1, 12]))
    report = verify_models(flat([0, 12]), flat([-1, 6]))
    assert not report.passed
    assert "shape [2, 6] instead of [1, 12]" in report.explain()


def test_the_same_seed_gives_the_same_report_and_another_seed_other_inputs(network: Network) -> None:
    original = network()
    other = changed(original, "w1", lambda values: values * (1 + 1e-7))
    texts = [json.dumps(verify_models(original, other, seed=seed).to_json()) for seed in (0, 0, 1)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_a_draw_can_be_repeated_from_its_report(network: Network) -> None:
    original = network(batch="n")
    draw = verify_models(original, original).draws[-1]
    assert draw.seed is not None
    assert draw.batch == 3
    inputs = draw_inputs(original, seed=draw.seed, batch=draw.batch)
    again = verify_models(original, original, inputs=inputs)
    assert again.draws[0].outputs == draw.outputs
    assert again.draws[0].seed is None


def test_the_report_is_json(network: Network) -> None:
    original = network()
    report = verify_models(original, changed(original, "w1", lambda values: values * np.nan), sites=SITES)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["schema"] == "onnxopt.verify/1"
    assert data["passed"] is False
    assert data["first_bad_site"]["site"] == "first-site"
    assert data["draws"][0]["outputs"][0]["max_error"] is None
    assert "NaN in" in data["draws"][0]["outputs"][0]["reason"]


def test_inputs_and_outputs_that_differ_are_named(make: ModelMaker) -> None:
    def model(shape: list[int | str], kind: int = FLOAT, output: str = "y") -> onnx.ModelProto:
        return make([node("Relu", ["x"], [output])], [("x", kind, shape)], [(output, kind, shape)])

    base = model([2, 3])
    for other, message in (
        (model([2, 4]), r"input 'x' is float\[2, 3\] in the original and float\[2, 4\] in the candidate"),
        (model(["n", 3]), r"float\[n, 3\] in the candidate"),
        (model([2, 3], TensorProto.DOUBLE), r"output 'y' is float\[2, 3\] .* double\[2, 3\]"),
        (model([2, 3], output="z"), "output 'y' is missing from the candidate; output 'z' is only in"),
        (model([6]), r"float\[6\] in the candidate"),
    ):
        with pytest.raises(VerificationError, match=message):
            verify_models(base, other)
    more = make([node("Add", ["x", "b"], ["y"])], [("x", FLOAT, [2, 3]), ("b", FLOAT, [3])], [("y", FLOAT, [2, 3])])
    with pytest.raises(VerificationError, match="input 'b' is only in the candidate"):
        verify_models(base, more)


def test_an_original_that_does_not_run_is_bad_input(make: ModelMaker) -> None:
    broken = make([node("Relu", ["missing"], ["y"])], [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    with pytest.raises(InputError, match="cannot run the original model"):
        verify_models(broken, broken)
    with pytest.raises(InputError, match="0 draws"):
        verify_models(broken, broken, draws=0)


def test_nan_of_the_original_stays_where_it_is(make: ModelMaker) -> None:
    def masked(shift: int) -> onnx.ModelProto:
        rows = np.zeros((4, 4), np.float32)
        rows[shift] = -np.inf
        return make(
            [node("Add", ["x", "mask"], ["s"]), node("Softmax", ["s"], ["y"])],
            [("x", FLOAT, [4, 4])],
            [("y", FLOAT, [4, 4])],
            {"mask": rows},
        )

    assert verify_models(masked(1), masked(1)).passed
    moved = verify_models(masked(1), masked(2))
    assert not moved.passed
    assert "NaN in 4 places against 4 of the original, first different at [1, 0]" in moved.explain()


def test_a_sum_that_overflows_in_float32_alone_makes_the_original_the_reference(make: ModelMaker) -> None:
    low = np.full((3, 3), np.finfo(np.float32).min, np.float32)
    nodes = [node("Add", ["x", "a"], ["p"]), node("Add", ["p", "a"], ["s"]), node("Softmax", ["s"], ["y"])]
    model = make(nodes, [("x", FLOAT, [3, 3])], [("y", FLOAT, [3, 3])], {"a": low})
    report = verify_models(model, model)
    assert report.passed
    assert report.reference == "original"
    assert any("in float64 differs from the original itself" in note for note in report.notes)


def chooser(make: ModelMaker, weight: np.ndarray, table: np.ndarray | None = None) -> onnx.ModelProto:
    """Picks the row of a table that belongs to the largest of some scores."""
    nodes = [
        node("MatMul", ["x", "w"], ["scores"]),
        node("TopK", ["scores", "k"], ["best", "rows"], name="pick"),
        node("Gather", ["table", "rows"], ["y"]),
    ]
    rows = weight.shape[1]
    values = np.arange(rows, dtype=np.float32) + 1 if table is None else table
    weights = {"w": weight, "k": np.array([1]), "table": values}
    return make(nodes, [("x", FLOAT, [1, 4])], [("y", FLOAT, [1, 1])], weights)


def test_a_near_tie_is_drawn_again(make: ModelMaker) -> None:
    rng = np.random.default_rng(0)
    # Two columns are equal but for rounding: they tie where one of them wins, and others often win.
    weight = rng.standard_normal((4, 6)).astype(np.float32)
    weight[:, 1] = weight[:, 0]
    other = weight.copy()
    other[:, 1] *= np.float32(1 + 3e-7)
    report = verify_models(chooser(make, weight), chooser(make, other), draws=12)
    assert report.passed
    assert len(report.draws) == 12
    assert report.redrawn
    assert {draw.tie for draw in report.redrawn} == {"TopK 'pick'"}
    assert any("drawn again" in note for note in report.notes)


def test_ties_on_every_draw_fail(make: ModelMaker) -> None:
    above, below = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    above[:, 1] += np.float32(2e-7)
    below[:, 1] -= np.float32(2e-7)
    report = verify_models(chooser(make, above), chooser(make, below), draws=2)
    assert not report.passed
    assert len(report.redrawn) >= 8
    assert any(draw.tie for draw in report.draws)
    assert any("no input without such a difference" in note for note in report.notes)


def test_a_wrong_score_is_no_tie(make: ModelMaker) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    report = verify_models(chooser(make, weight), chooser(make, weight[:, ::-1].copy()), draws=6)
    assert not report.passed
    assert not report.redrawn


def test_a_wrong_value_beside_a_right_decision_is_no_tie(make: ModelMaker) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    wrong = chooser(make, weight, np.arange(6, dtype=np.float32) + 1.01)
    report = verify_models(chooser(make, weight), wrong)
    assert not report.passed
    assert not report.redrawn


def test_a_half_precision_model_is_held_to_its_own_error(network: Network) -> None:
    original = network(elem_type=TensorProto.FLOAT16, batch=64)
    report = verify_models(original, original)
    assert report.passed
    assert report.reference.startswith("widened")
    assert report.worst is not None
    assert 1e-4 < report.worst.max_error < 1e-2
    assert report.worst.max_bound == pytest.approx(2 * report.worst.max_error, rel=0.5)
    wrong = network(elem_type=TensorProto.FLOAT16, batch=64, change=0.05)
    assert not verify_models(original, wrong).passed


def test_a_half_precision_candidate_is_held_to_the_baseline(network: Network) -> None:
    original, half = network(batch=64), network(elem_type=TensorProto.FLOAT16, batch=64)
    report = verify_models(original, half, baseline=half)
    assert report.passed
    assert report.reference == "original"
    wrong = network(elem_type=TensorProto.FLOAT16, batch=64, change=0.05)
    failed = verify_models(original, wrong, baseline=half, sites=SITES)
    assert not failed.passed
    assert failed.first_bad_site is not None
    assert failed.first_bad_site.site == "third-site"
    with pytest.raises(VerificationError, match="float16"):
        verify_models(original, half)


def test_bfloat16_is_compared_in_float32(network: Network) -> None:
    original = network(elem_type=TensorProto.BFLOAT16)
    report = verify_models(original, original)
    assert report.passed
    assert report.reference == "widened bfloat16"
    assert not verify_models(original, network(elem_type=TensorProto.BFLOAT16, change=0.05)).passed


def test_integer_outputs_must_be_equal(make: ModelMaker) -> None:
    def counted(offset: int) -> onnx.ModelProto:
        nodes = [node("Cast", ["x"], ["c"], to=INT64), node("Add", ["c", "o"], ["y"])]
        return make(nodes, [("x", FLOAT, [5])], [("y", INT64, [5])], {"o": np.array([offset])})

    assert verify_models(counted(1), counted(1)).passed
    assert not verify_models(counted(1), counted(2)).passed


def with_custom_node(
    make: ModelMaker, weight: np.ndarray, declared: bool = True, level: float = 1.0
) -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w"], ["before"]),
        node("Mystery", ["before", "w"], ["middle"], name="mystery", domain="elsewhere", level=level),
        node("MatMul", ["middle", "v"], ["y"]),
    ]
    return make(
        nodes,
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 4])],
        {"w": np.eye(4, dtype=np.float32), "v": weight},
        values=[("middle", FLOAT, ["n", 4])] if declared else [],
        domains=["elsewhere"],
    )


def test_models_are_compared_around_an_unknown_operator(make: ModelMaker) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    model = with_custom_node(make, weight)
    report = verify_models(model, model)
    assert report.passed
    assert {output.name for draw in report.draws for output in draw.outputs} == {"before", "y"}
    assert any("'mystery' (elsewhere.Mystery)" in note for note in report.notes)
    assert not verify_models(model, with_custom_node(make, weight * np.float32(1.01))).passed
    given = {"x": np.ones((3, 4), np.float32)}
    assert verify_models(model, model, inputs=given).draws[0].outputs[0].shape == (3, 4)


def test_an_unknown_operator_must_be_unchanged_and_declared(make: ModelMaker) -> None:
    weight = np.eye(4, dtype=np.float32)
    model = with_custom_node(make, weight)
    with pytest.raises(VerificationError, match="differs there"):
        verify_models(model, with_custom_node(make, weight, level=2.0))
    bare = with_custom_node(make, weight, declared=False)
    with pytest.raises(MissingError, match="does not declare the type and shape of 'middle'"):
        verify_models(bare, bare)
    plain = make([node("MatMul", ["x", "v"], ["y"])], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], {"v": weight})
    with pytest.raises(VerificationError, match="missing from the candidate"):
        verify_models(model, plain)
    with pytest.raises(VerificationError, match="not in the original"):
        verify_models(plain, model)


def test_models_too_large_for_one_buffer_go_through_files(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    write = sessions.write_model

    def small_write(model: onnx.ModelProto, path: Path) -> None:
        written.append(path)
        write(model, path, inline_limit=100)

    monkeypatch.setattr(sessions, "INLINE_LIMIT", 100)
    monkeypatch.setattr(sessions, "write_model", small_write)
    assert verify_models(network(), network()).passed
    assert written
    assert not any(path.parent.exists() for path in written)


def test_a_batch_that_is_symbolic_in_name_only_is_compared_at_one(make: ModelMaker) -> None:
    nodes = [node("Reshape", ["x", "shape"], ["y"])]
    model = make(nodes, [("x", FLOAT, ["n", 2, 6])], [("y", FLOAT, [1, 12])], {"shape": np.array([1, 12])})
    report = verify_models(model, model)
    assert report.passed
    assert {draw.batch for draw in report.draws} == {1}
    assert any("only batch 1 was compared" in note for note in report.notes)
    with pytest.raises(InputError, match="cannot run the original model"):
        verify_models(model, model, batches=[1, 3])


def test_given_inputs_must_be_those_of_the_model(network: Network) -> None:
    x = np.ones((2, 16), np.float32)
    for inputs in ({}, {"z": x}, {"x": x, "z": x}):
        with pytest.raises(InputError, match=r"the model takes exactly 'x' float\[2, 16\]"):
            verify_models(network(), network(), inputs=inputs)


def test_progress_is_told(network: Network) -> None:
    original = network()
    told: list[str] = []
    verify_models(original, changed(original, "w1", slightly_off), sites=SITES, progress=told.append)
    assert told[0] == "choosing the reference"
    assert told[-1] == "looking for the first site that is off"


@pytest.mark.corpus
@pytest.mark.parametrize("tag", ["shufflenet1_g2.dynamo.op18", "dyvit_s_07.dynamo.op18.dyn"])
def test_a_real_model_agrees_with_a_copy_that_differs_by_rounding(
    corpus_model: Callable[[str], Path], tag: str
) -> None:
    original = onnx.load(corpus_model(tag))
    nudged = onnx.ModelProto()
    nudged.CopyFrom(original)
    for index, tensor in enumerate(nudged.graph.initializer):
        if tensor.data_type == FLOAT and len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            noise = 1 + 1e-7 * np.random.default_rng(index).standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values * noise).astype(np.float32), tensor.name))
    report = verify_models(original, nudged, draws=1)
    assert report.passed, report.explain()
    assert report.worst is not None
    assert report.worst.max_error > 0

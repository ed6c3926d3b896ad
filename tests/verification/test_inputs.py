"""Drawn inputs follow the graph; given ones are checked."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.errors import InputError
from onnxopt.verification.inputs import draw_inputs, load_inputs

ModelMaker = Callable[..., onnx.ModelProto]
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node
ONE = {"one": np.float32(1.0).reshape(())}


def is_binary(values: np.ndarray) -> bool:
    return set(np.unique(values.astype(np.float64))) == {0.0, 1.0}


def test_float_data_is_standard_normal_and_depends_on_seed_and_batch_alone(make: ModelMaker) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Relu", ["z"], ["b"])]
    values = [("x", FLOAT, ["n", 500]), ("z", FLOAT, [4, 500])]
    outputs = [("a", FLOAT, ["n", 500]), ("b", FLOAT, [4, 500])]
    model, swapped = make(nodes, values, outputs), make(nodes[::-1], values[::-1], outputs)
    first = draw_inputs(model, seed=1, batch=4)
    assert first["x"].shape == (4, 500)
    assert first["x"].dtype == np.float32
    assert abs(float(first["x"].mean())) < 0.1
    assert abs(float(first["x"].std()) - 1) < 0.1
    assert not np.array_equal(first["x"], first["z"])
    for name, array in draw_inputs(swapped, seed=1, batch=4).items():
        np.testing.assert_array_equal(array, first[name])
    assert not np.array_equal(draw_inputs(model, seed=2, batch=4)["x"], first["x"])


def test_a_policy_blended_with_the_diagonal_is_zero_or_one(make: ModelMaker) -> None:
    nodes = [
        node("Reshape", ["policy", "shape"], ["row"]),
        node("Sub", ["one", "row"], ["hidden"]),
        node("Mul", ["hidden", "eye"], ["diagonal"]),
        node("Add", ["row", "diagonal"], ["weights"]),
        node("Mul", ["x", "weights"], ["y"]),
    ]
    weights = {**ONE, "shape": np.array([2, 1, 1, 30]), "eye": np.eye(30, dtype=np.float32)[None, None]}
    inputs = [("policy", FLOAT, [2, 30, 1]), ("x", FLOAT, [2, 1, 30, 30])]
    drawn = draw_inputs(make(nodes, inputs, [("y", FLOAT, [2, 1, 30, 30])], weights), seed=0, batch=1)
    assert is_binary(drawn["policy"])
    assert drawn["policy"].dtype == np.float32
    assert np.all(drawn["policy"][:, 0] == 1)
    assert not is_binary(drawn["x"])


@pytest.mark.parametrize("elem_type", [FLOAT, INT64, TensorProto.INT32, TensorProto.FLOAT16])
def test_an_additive_mask_is_zero_or_one(make: ModelMaker, elem_type: int) -> None:
    nodes = [
        node("Cast", ["mask"], ["m"], to=FLOAT),
        node("Unsqueeze", ["m", "axes"], ["wide"]),
        node("Sub", ["one", "wide"], ["hidden"]),
        node("Mul", ["hidden", "low"], ["bias"]),
        node("Add", ["x", "bias"], ["y"]),
    ]
    weights = {**ONE, "axes": np.array([1, 2]), "low": np.float32(-10000).reshape(1)}
    inputs = [("mask", elem_type, ["n", 20]), ("x", FLOAT, ["n", 2, 20, 20])]
    drawn = draw_inputs(make(nodes, inputs, [("y", FLOAT, ["n", 2, 20, 20])], weights), seed=3, batch=5)
    assert drawn["mask"].shape == (5, 20)
    assert is_binary(drawn["mask"])
    assert np.all(drawn["mask"][:, 0] == 1)
    assert np.all(drawn["mask"][:, -1] == 0)
    assert drawn["mask"].dtype == helper.tensor_dtype_to_np_dtype(elem_type)


@pytest.mark.parametrize("through", ["Cast", "Equal"])
def test_a_float_condition_is_zero_or_one(make: ModelMaker, through: str) -> None:
    condition = node("Cast", ["m"], ["c"], to=BOOL) if through == "Cast" else node("Equal", ["m", "one"], ["c"])
    model = make(
        [condition, node("Where", ["c", "x", "one"], ["y"])],
        [("m", FLOAT, [6, 6]), ("x", FLOAT, [6, 6])],
        [("y", FLOAT, [6, 6])],
        ONE,
    )
    drawn = draw_inputs(model, seed=0, batch=1)
    assert is_binary(drawn["m"])
    assert not is_binary(drawn["x"])


def test_a_threshold_and_a_scaled_image_stay_data(make: ModelMaker) -> None:
    nodes = [
        node("Greater", ["x", "zero"], ["positive"]),
        node("Mul", ["x", "slope"], ["small"]),
        node("Where", ["positive", "x", "small"], ["a"]),
        node("Sub", ["x", "mean"], ["centred"]),
        node("Mul", ["centred", "scale"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    numbers = {"zero": 0.0, "slope": 0.01, "mean": 0.5, "scale": -255.0}
    weights = {name: np.float32(value).reshape(1) for name, value in numbers.items()}
    drawn = draw_inputs(make(nodes, [("x", FLOAT, [8, 8])], [("y", FLOAT, [8, 8])], weights), seed=0, batch=1)
    assert np.unique(drawn["x"]).size == 64


def test_ids_lie_in_the_rows_of_their_tables_even_where_a_mask_is_made_of_them(make: ModelMaker) -> None:
    nodes = [
        node("Gather", ["words", "ids"], ["e"]),
        node("Gather", ["types", "kinds"], ["t"]),
        node("Add", ["places", "two"], ["shifted"]),
        node("Gather", ["positions", "shifted"], ["p"]),
        node("Add", ["e", "t"], ["et"]),
        node("Add", ["et", "p"], ["y"]),
        node("Equal", ["ids", "two"], ["padding"]),
        node("Where", ["padding", "two", "ids"], ["k"]),
    ]
    weights = {
        "words": np.zeros((50, 4), np.float32),
        "types": np.zeros((2, 4), np.float32),
        "positions": np.zeros((12, 4), np.float32),
        "two": np.array(2),
    }
    inputs = [(name, INT64, ["n", 100]) for name in ("ids", "kinds", "places")]
    outputs = [("y", FLOAT, ["n", 100, 4]), ("k", INT64, ["n", 100])]
    drawn = draw_inputs(make(nodes, inputs, outputs, weights), seed=0, batch=3)
    for name, low, high in (("ids", 0, 50), ("kinds", 0, 2), ("places", 0, 10)):
        assert drawn[name].min() == low
        assert drawn[name].max() == high - 1


def test_other_integers_and_booleans(make: ModelMaker) -> None:
    types = {"flag": BOOL, "count": INT64, "pixels": TensorProto.UINT8, "scalar": BOOL}
    shapes: dict[str, list[int]] = {"flag": [9, 9], "count": [9, 9], "pixels": [1, 3, 20, 20], "scalar": []}
    model = make(
        [node("Identity", [name], [f"{name}_out"]) for name in types],
        [(name, kind, shapes[name]) for name, kind in types.items()],
        [(f"{name}_out", kind, shapes[name]) for name, kind in types.items()],
    )
    drawn = draw_inputs(model, seed=0, batch=1)
    assert drawn["flag"].dtype == np.bool_
    assert is_binary(drawn["flag"])
    assert is_binary(drawn["count"])
    assert drawn["pixels"].max() > 200
    assert drawn["scalar"].shape == ()
    assert bool(drawn["scalar"])


def test_inputs_that_cannot_be_drawn_are_refused(make: ModelMaker) -> None:
    def model(kind: int, shape: list[int | str]) -> onnx.ModelProto:
        return make([node("Identity", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])

    with pytest.raises(InputError, match=r"'x' \(float\[1, width\]\) has a symbolic size at axis 1"):
        draw_inputs(model(FLOAT, [1, "width"]), seed=0, batch=1)
    with pytest.raises(InputError, match="only float, integer and boolean"):
        draw_inputs(model(TensorProto.STRING, [1]), seed=0, batch=1)
    with pytest.raises(InputError, match="at most"):
        draw_inputs(model(FLOAT, [1 << 20, 1 << 20]), seed=0, batch=1)
    with pytest.raises(InputError, match="batch 0"):
        draw_inputs(model(FLOAT, ["n"]), seed=0, batch=0)
    shapeless = model(FLOAT, [1])
    shapeless.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match="has no shape"):
        draw_inputs(shapeless, seed=0, batch=1)


@pytest.fixture
def pair(make: ModelMaker) -> onnx.ModelProto:
    return make(
        [node("Relu", ["x"], ["a"]), node("Identity", ["ids"], ["b"])],
        [("x", FLOAT, ["n", 4]), ("ids", INT64, ["n", 2])],
        [("a", FLOAT, ["n", 4]), ("b", INT64, ["n", 2])],
    )


def test_given_inputs_are_read_as_they_are(pair: onnx.ModelProto, tmp_path: Path) -> None:
    given = {"x": np.ones((3, 4), np.float32), "ids": np.arange(6).reshape(3, 2)}
    path = tmp_path / "f.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, **given)
        loaded = load_inputs(path, pair)
        assert loaded.keys() == given.keys()
        for name, array in given.items():
            np.testing.assert_array_equal(loaded[name], array)


X, IDS = np.ones((3, 4), np.float32), np.zeros((3, 2), np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "'ids' is missing; expected exactly 'x' float\\[n, 4\\], 'ids' int64\\[n, 2\\]"),
        ({"x": X, "ids": IDS, "extra": X}, "'extra' is no input"),
        ({"x": X[:, :3], "ids": IDS}, "'x' is float32\\[3, 3\\]; expected float\\[n, 4\\]"),
        ({"x": X, "ids": IDS[:2]}, "'ids' is int64\\[2, 2\\].*n is already 3"),
        ({"x": X.astype(np.float64), "ids": IDS}, "'x' is float64"),
        ({"x": X[:0], "ids": IDS[:0]}, "'x' is float32\\[0, 4\\]"),
    ],
)
def test_given_inputs_that_do_not_fit_are_refused(
    pair: onnx.ModelProto, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "f.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        load_inputs(tmp_path / "f.npz", pair)


def test_pickled_objects_are_never_loaded(pair: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), ids=IDS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pickled Python objects, which are never loaded"):
        load_inputs(path, pair)
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        load_inputs(path, pair)


@pytest.mark.parametrize("second", ["x", "x.npy"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice_is_refused(pair: onnx.ModelProto, tmp_path: Path, second: str) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, x=X, ids=IDS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(second, archive.read("x.npy"))
    with pytest.raises(InputError, match="holds an array twice; expected exactly 'x'"):
        load_inputs(path, pair)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(make: ModelMaker, tmp_path: Path) -> None:
    model = make([node("Relu", ["x"], ["y"])], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])])
    path = tmp_path / "f.npz"
    for rows, message in ((1 << 20, "cut short"), (1 << 40, "at most")):
        with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 4)}
            np.lib.format.write_array_header_1_0(stream, header)
        with pytest.raises(InputError, match=message):
            load_inputs(path, model)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data[:-30]])
def test_damaged_and_missing_files_are_refused(
    pair: onnx.ModelProto, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, x=X, ids=IDS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"f\.npz: not a readable"):
        load_inputs(path, pair)
    with pytest.raises(InputError, match="no such file"):
        load_inputs(tmp_path / "none.npz", pair)


def test_a_scalar_stays_a_scalar(make: ModelMaker, tmp_path: Path) -> None:
    model = make([node("Identity", ["x"], ["y"])], [("x", FLOAT, [])], [("y", FLOAT, [])])
    np.savez(tmp_path / "f.npz", x=np.float32(2).reshape(()))
    assert load_inputs(tmp_path / "f.npz", model)["x"].shape == ()


def test_bfloat16_is_given_as_float32(make: ModelMaker, tmp_path: Path) -> None:
    kind = TensorProto.BFLOAT16
    model = make([node("Identity", ["x"], ["y"])], [("x", kind, [2])], [("y", kind, [2])])
    np.savez(tmp_path / "f.npz", x=np.array([1, 2], np.float32))
    loaded = load_inputs(tmp_path / "f.npz", model)["x"]
    assert loaded.dtype == helper.tensor_dtype_to_np_dtype(kind)
    assert [float(value) for value in loaded] == [1.0, 2.0]


@pytest.mark.corpus
def test_the_policy_of_a_real_model_is_recognised(corpus_model: Callable[[str], Path]) -> None:
    for tag in ("dyvit_s_policy.dynamo.op18", "dyvit_s_policy.legacy.op17"):
        drawn = draw_inputs(onnx.load(corpus_model(tag)), seed=0, batch=1)
        assert is_binary(drawn["x1"])
        assert not is_binary(drawn["x"])

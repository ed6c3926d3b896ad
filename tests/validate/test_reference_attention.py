"""The reference on tables written by hand from the page that describes them, and its results worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxopt.validate import PlanError, validate_attention_launch
from onnxopt.validate.reference_attention import merge_attention, sparse_attention

WIDTH = 2


def variant(**fields: Any) -> dict[str, Any]:
    shape = {"path": "mma", "rows": 16, "keys": 16, "warps": 1, "stages": 1, "swapped": False}
    return {**shape, "row_granule": 16, "key_granule": 16, **fields}


def kernel(**fields: Any) -> dict[str, Any]:
    """Two query rows, three keys, one head of two channels; q, k and v are tensors of their own."""
    plain = {"own_values": False, "masks": False, "biases": False, "extras": False, "split": False, "weights": False}
    return {
        "element": "fp32",
        "variants": [variant()],
        "heads": 1,
        "width": WIDTH,
        "value_width": WIDTH,
        "q": [4, 1],
        "k": [6, 1],
        "v": [6, 1],
        "y": [4, 1],
        "slots": 0,
        "columns": 0,
        **plain,
        **fields,
    }


def padded(entries: list[int], length: int = 16, fill: int = -1) -> NDArray[np.int32]:
    return np.array(entries + [fill] * (length - len(entries)), np.int32)


def job(**fields: int) -> NDArray[np.int32]:
    names = ["variant", "head", "row_begin", "row_count", "key_begin", "key_count", "value_begin", "tile_begin"]
    names += ["q_shift", "k_shift", "v_shift", "y_shift", "extra_begin", "extra_count", "a", "b"]
    line = dict.fromkeys(names, 0) | {"row_count": 2, "key_count": 3} | fields
    return np.array([[line[name] for name in names]], np.int32)


def tables(**own: NDArray[Any]) -> dict[str, NDArray[Any]]:
    order = ["jobs", "rows", "results", "keys", "values", "tiles", "masks", "biases", "scales", "extras"]
    order += ["columns", "diagonals", "epsilons"]
    made = {
        "jobs": job(),
        "rows": padded([0, 2]),
        "results": padded([0, 2]),
        "keys": padded([0, 2, 4]),
        "scales": np.array([0.5], np.float32),
        **own,
    }
    return {name: made[name] for name in order if name in made}


Q = np.array([[1.0, 0.0], [0.0, 2.0]])
K = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, -1.0]])
V = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])


def by_hand(scores: NDArray[Any], v: NDArray[Any] = V) -> NDArray[Any]:
    powers = np.exp(scores)
    return np.asarray(powers @ v / powers.sum(axis=1, keepdims=True))


def attend(config: dict[str, Any], own: dict[str, NDArray[Any]], **inputs: NDArray[Any]) -> NDArray[Any]:
    given = {"q": Q, "k": K, "v": V, **inputs}
    validate_attention_launch(config, own)
    return sparse_attention(config, own, **given)[0].reshape(-1, WIDTH)


def test_a_strip_without_masks() -> None:
    assert np.allclose(attend(kernel(), tables()), by_hand(0.5 * Q @ K.T))


def test_results_go_where_the_table_says() -> None:
    got = attend(kernel(), tables(results=padded([2, 0])))
    assert np.allclose(got, by_hand(0.5 * Q @ K.T)[::-1])


def test_a_mask_and_a_bias() -> None:
    needed = np.array([[1, 0, 1], [1, 1, 0]], bool)
    masks = padded([0b101, 0b011], 16, 0)
    biases = np.zeros((16, 16), np.float32)
    biases[:2, :3] = [[1, 0, -2], [0, 3, 0]]
    own = tables(masks=masks, biases=biases.reshape(-1), tiles=np.array([[0, 0]], np.int32))
    scores = np.where(needed, 0.5 * Q @ K.T + biases[:2, :3], -np.inf)
    assert np.allclose(attend(kernel(masks=True, biases=True), own), by_hand(scores))


def test_a_swapped_variant_has_its_tiles_turned() -> None:
    shape = variant(rows=8, swapped=True, row_granule=8)
    masks = padded([0b11, 0b10, 0b01], 16, 0)
    biases = np.zeros((16, 8), np.float32)
    biases[:3, :2] = np.array([[1, 0], [0, 3], [-2, 0]])
    own = tables(masks=masks, biases=biases.reshape(-1), tiles=np.array([[0, 0]], np.int32))
    needed = np.array([[1, 0, 1], [1, 1, 0]], bool)
    scores = np.where(needed, 0.5 * Q @ K.T + biases[:3, :2].T, -np.inf)
    assert np.allclose(attend(kernel(variants=[shape], masks=True, biases=True), own), by_hand(scores))


def test_zero_vectors_share_the_softmax() -> None:
    own = tables(keys=padded([0, -1, 4]))
    zeroed = 0.5 * Q @ np.where([[True], [False], [True]], K, 0).T
    assert np.allclose(attend(kernel(), own), by_hand(zeroed, np.where([[True], [False], [True]], V, 0)))


def test_a_row_that_needs_none_of_its_keys_is_nan_and_a_job_without_keys_zero() -> None:
    masks = padded([0b111, 0], 16, 0)
    got = attend(kernel(masks=True), tables(masks=masks, tiles=np.array([[0, -1]], np.int32)))
    assert np.allclose(got[0], by_hand(0.5 * Q @ K.T)[0])
    assert np.isnan(got[1]).all()
    assert not attend(kernel(), tables(jobs=job(key_count=0))).any()


def test_channels_first_and_values_of_their_own() -> None:
    config = kernel(own_values=True, q=[4, 2], v=[6, 3], y=[4, 2])
    own = tables(rows=padded([0, 1]), results=padded([0, 1]), values=padded([0, 1, 2]))
    got = attend(config, own, q=Q.T.copy(), v=V.T.copy())
    assert np.allclose(got.T, by_hand(0.5 * Q @ K.T))


def test_shifts_repeats_and_a_batch() -> None:
    config = kernel(extras=True, y=[6, 1], q=[6, 1])
    own = tables(
        jobs=job(q_shift=2, y_shift=2, extra_count=1),
        rows=padded([0, 2]),
        results=padded([0, 2]),
        extras=np.array([[1, 0], [-1, -1]], np.int32),
    )
    q = np.concatenate([np.zeros((1, 2)), Q])
    got = attend(config, own, q=np.stack([q, 2 * q]), k=np.stack([K, K]), v=np.stack([V, V])).reshape(2, 3, 2)
    for batch in range(2):
        wanted = by_hand(0.5 * (batch + 1) * Q @ K.T)
        assert np.allclose(got[batch], wanted[[1, 0, 1]])


def test_split_keys_are_merged() -> None:
    jobs = np.concatenate([job(key_count=2), job(key_begin=16, key_count=1, value_begin=16, y_shift=1)])
    own = tables(jobs=jobs, keys=np.concatenate([padded([0, 2]), padded([4])]), results=padded([0, 2]))
    config = kernel(split=True, slots=4)
    merge = {"element": "fp32", "value_width": WIDTH, "slots": 4, "y": [6, 1]}
    lines = {"merges": np.array([[0, 2, 2, 0], [2, 2, 0, 0], [0, 0, 4, 0]], np.int32)}
    validate_attention_launch(config, own, (merge, lines))
    partial, lse = sparse_attention(config, own, Q, K, V)
    scores = 0.5 * Q @ K.T
    first = np.log(np.exp(scores[:, :2]).sum(axis=1))
    assert np.allclose(lse[0], np.stack([first, scores[:, 2]], axis=1).reshape(-1))
    y = merge_attention(merge, lines, partial, lse).reshape(3, 2)
    assert np.allclose(y, np.concatenate([by_hand(scores)[::-1], np.zeros((1, 2))]))


def test_runtime_weights() -> None:
    config = kernel(weights=True, columns=3)
    own = tables(columns=padded([0, 1, 2]), diagonals=padded([1, -1]), epsilons=np.array([0.25, 0.5], np.float32))
    weight = np.array([[1.0, 0.0, 0.0]])
    scores = 0.5 * Q @ K.T
    powers = np.exp(scores - scores.max(axis=1, keepdims=True)) * np.array([[1, 1, 0], [1, 0, 0]])
    wanted = (powers + 0.25) @ V / (powers.sum(axis=1, keepdims=True) + 0.5)
    assert np.allclose(attend(config, own, weight=weight), wanted)


def test_an_output_that_is_not_written_once_is_refused() -> None:
    with pytest.raises(PlanError, match="element 2 of 'y' is written 0 times"):
        sparse_attention(kernel(), tables(results=padded([0, -1])), Q, K, V)
    with pytest.raises(PlanError, match="element 0 of 'y' is written 2 times"):
        sparse_attention(kernel(), tables(results=padded([0, 0])), Q, K, V)


def test_it_computes_in_the_type_that_is_asked_for() -> None:
    got = sparse_attention(kernel(), tables(), Q, K, V, dtype=np.float32)[0]
    assert got.dtype == np.float32
    assert np.allclose(got.reshape(2, 2), by_hand(0.5 * Q @ K.T), rtol=1e-5)

"""The reference on tables written by hand from the page that describes them, and its results worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxopt.validate import PlanError, validate_conv_launch
from onnxopt.validate.reference_conv import activated, group_conv, sum_conv


def kernel(**fields: Any) -> dict[str, Any]:
    """One part of two outputs and two inputs of three channels, pointwise over four positions."""
    shape = {"path": "lanes", "outputs": 4, "inputs": 2, "pixels": 8, "warps": 1, "stages": 1}
    plain: dict[str, Any] = {"prologue": False, "residual": False, "extras": False, "split": False, "slots": 0}
    return {
        "element": "fp32",
        "variants": [{**shape, "output_granule": 1, "input_granule": 1}],
        "layout": "first",
        "input_channels": 3,
        "output_channels": 2,
        "input_size": [1, 1, 4],
        "output_size": [1, 1, 4],
        "kernel": [1, 1, 1],
        "strides": [1, 1, 1],
        "dilations": [1, 1, 1],
        "pads": [0, 0, 0],
        "images": 1,
        "activation": "none",
        "input_activation": "none",
        **plain,
        **fields,
    }


def job(**fields: int) -> NDArray[np.int32]:
    names = ["variant", "output_begin", "outputs", "input_begin", "inputs", "weight_begin", "pixel_begin", "pixels"]
    names += ["extra_begin", "extras", "a", "b"]
    line = dict.fromkeys(names, 0) | {"outputs": 2, "inputs": 2, "pixels": 4} | fields
    return np.array([[line[name] for name in names]], np.int32)


def tables(**own: NDArray[Any]) -> dict[str, NDArray[Any]]:
    order = ["w", "b", "jobs", "outputs", "inputs", "input_scales", "input_shifts", "extras"]
    made = {
        "w": np.array([1, 2, 3, 4], np.float32),
        "b": np.array([10, 20, 0, 0], np.float32),
        "jobs": job(),
        "outputs": np.array([0, 1, -1, -1], np.int32),
        "inputs": np.array([0, 2, -1, -1], np.int32),
        **own,
    }
    return {name: made[name] for name in order if made.get(name) is not None}


W = np.array([[1.0, 2.0], [3.0, 4.0]])
X = np.arange(24.0).reshape(2, 3, 4) - 9
PLAIN = np.einsum("oi,bip->bop", W, X[:, [0, 2]]) + np.array([[10], [20]])


def convolve(config: dict[str, Any], own: dict[str, NDArray[Any]], **inputs: NDArray[Any]) -> NDArray[Any]:
    validate_conv_launch(config, own)
    return group_conv(config, own, X, **inputs)


def test_channels_are_gathered_and_scattered() -> None:
    assert np.allclose(convolve(kernel(), tables()), PLAIN)
    swapped = tables(outputs=np.array([1, 0, -1, -1], np.int32))
    assert np.allclose(convolve(kernel(), swapped), PLAIN[:, ::-1])


def test_a_channel_of_zeros_and_a_part_without_inputs() -> None:
    own = tables(inputs=np.array([-1, 2, -1, -1], np.int32))
    wanted = np.einsum("o,bp->bop", W[:, 1], X[:, 2]) + np.array([[10], [20]])
    assert np.allclose(convolve(kernel(), own), wanted)
    alone = convolve(kernel(), tables(jobs=job(inputs=0)))
    assert np.allclose(alone, np.broadcast_to([[10.0], [20.0]], (2, 2, 4)))


def test_residual_comes_before_the_activation() -> None:
    added = np.linspace(-30, 30, 16).reshape(2, 2, 4)
    for name in ("relu", "hardswish", "silu"):
        got = convolve(kernel(residual=True, activation=name), tables(), residual=added)
        assert np.allclose(got, activated(name, PLAIN + added))


def test_activations() -> None:
    x = np.array([-4.0, -1.0, 0.0, 2.0, 5.0])
    assert activated("relu", x).tolist() == [0, 0, 0, 2, 5]
    assert np.allclose(activated("hardswish", x), [0, -1 / 3, 0, 5 / 3, 5])
    assert np.allclose(activated("silu", x), x / (1 + np.exp(-x)))


def test_padding_is_zero_behind_the_prologue() -> None:
    config = kernel(kernel=[1, 1, 2], pads=[0, 0, 1], output_size=[1, 1, 4], prologue=True, input_activation="relu")
    own = tables(
        w=np.array([1, 2, 3, 4, 5, 6, 7, 8], np.float32),
        input_scales=np.array([2, 1, 0, 0], np.float32),
        input_shifts=np.array([3, -1, 0, 0], np.float32),
    )
    seen = np.maximum(X[:, [0, 2]] * [[2], [1]] + [[3], [-1]], 0)
    before = np.concatenate([np.zeros((2, 2, 1)), seen[:, :, :-1]], axis=2)
    wanted = np.einsum("oi,bip->bop", W, before) + np.einsum("oi,bip->bop", W + 4, seen) + [[10], [20]]
    assert np.allclose(convolve(config, own), wanted)


def test_images_are_folded_into_one_row_of_pixels() -> None:
    jobs = np.concatenate([job(pixels=8), job(pixel_begin=8, pixels=4)])
    got = convolve(kernel(images=3), tables(jobs=jobs))
    assert np.allclose(got, PLAIN)


def test_channels_last() -> None:
    got = group_conv(kernel(layout="last"), tables(), X.transpose(0, 2, 1))
    assert np.allclose(got, PLAIN.transpose(0, 2, 1))


def test_an_extra_repeats_an_output() -> None:
    own = tables(jobs=job(extras=1), extras=np.array([[1, 2], [-1, -1]], np.int32))
    got = convolve(kernel(extras=True, output_channels=3), own)
    assert np.allclose(got, PLAIN[:, [0, 1, 1]])


def test_partial_rows_are_added_up() -> None:
    config = kernel(split=True, slots=2)
    own = tables(b=None)  # type: ignore[arg-type]
    summed = {"element": "fp32", "layout": "first", "output_channels": 3, "output_size": [1, 1, 4]}
    summed |= {"activation": "relu", "residual": False, "slots": 2}
    after = {
        "b": np.array([1, 2, 3], np.float32),
        "sum_begin": np.array([0, 1, 4, 4], np.int32),
        "sum_rows": np.array([1, 0, 0, 1], np.int32),
    }
    validate_conv_launch(config, own, (summed, after))
    rows = PLAIN - [[10], [20]]
    wanted = np.stack([rows[:, 1] + 1, 2 * rows[:, 0] + rows[:, 1] + 2, np.full((2, 4), 3.0)], axis=1)
    assert np.allclose(sum_conv(summed, after, group_conv(config, own, X)), np.maximum(wanted, 0))


def test_an_output_that_is_not_written_once_is_refused() -> None:
    with pytest.raises(PlanError, match="pixel 3 of channel 0 is written 0 times"):
        group_conv(kernel(), tables(jobs=job(pixels=3)), X)
    with pytest.raises(PlanError, match="pixel 0 of channel 0 is written 2 times"):
        group_conv(kernel(), tables(outputs=np.array([0, 0, -1, -1], np.int32)), X)

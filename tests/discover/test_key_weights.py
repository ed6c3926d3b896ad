"""What a mask that depends on the input does to the keys: understood in many forms and proved, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxopt.discover.attention import find_attention
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.model.graph import Graph, symbolic_batch, view
from onnxopt.plan.tables import NoTables, attention_tables
from onnxopt.validate import validate_attention_contents
from samples.reference import run
from tests.discover.reference import attend, deviations
from tests.discover.test_attention_operator import FOUR
from tests.discover.test_attention_operator import feeds as operator_feeds
from tests.discover.test_attention_operator import model as operator_model
from tests.discover.weighed_attention import CHANNELS, FORMS, REFUSED, TOKENS, weighed_attention
from tests.plan.computed import attended
from tests.plan.schedules import VARIANTS, scheduled


def seen(model: onnx.ModelProto) -> tuple[Graph, list[AttentionSite]]:
    graph = view(model, batch=2 if symbolic_batch(model) else 1)
    sites, refusals = find_attention(graph)
    assert not refusals
    return graph, sites


def masks(kind: str, batch: int, seed: int) -> list[NDArray[Any]]:
    """Weights of all keys, of some, of none and, if they are real, in parts."""
    rng = np.random.default_rng(seed)
    dtype = {"float": np.float32, "bool": np.bool_, "int64": np.int64}[kind]
    shape = (batch, TOKENS, 1)
    some = [np.ones(shape), rng.integers(0, 2, shape), np.zeros(shape)]
    return [value.astype(dtype) for value in (some if kind != "float" else [*some, rng.random(shape)])]


@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_what_the_model_does_with_its_mask(form: str, batch: int | None) -> None:
    kind, body = FORMS[form]
    model = weighed_attention(kind, body, batch)
    _, (site,) = seen(model)
    assert site.weights is not None and not site.unweighed
    assert np.array_equal(site.weights.columns, np.arange(TOKENS))
    assert np.array_equal(site.weights.diagonals, np.arange(TOKENS) if "eye" in body else np.full(TOKENS, -1))
    assert site.weights.inverted == (form == "padding")
    tables = attention_tables(site, scheduled(site, VARIANTS, seed=1))
    validate_attention_contents(site, tables)
    count = batch or 3
    x = np.random.default_rng(2).standard_normal((count, TOKENS, CHANNELS)).astype(np.float32)
    for mask in masks(kind, count, 3):
        feeds = {"x": x, "mask": mask}
        names = [*site.inputs, site.output]
        tensors = dict(zip(names, run(model, feeds, names), strict=True))
        (deviation,) = deviations(model, [site], feeds)
        assert deviation.small
        got = attended(site, tables, tensors).reshape(x.shape)
        assert np.allclose(got, tensors[site.output].reshape(x.shape), 1e-4, 1e-5, equal_nan=True)


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_weights_of_keys_is_said_to_be_none(form: str) -> None:
    kind, body, reason = REFUSED[form]
    _, (site,) = seen(weighed_attention(kind, body))
    assert site.weights is None and site.runtime
    with pytest.raises(NoTables, match=reason):
        attention_tables(site, scheduled(site, VARIANTS))


def test_the_smallest_epsilon_makes_a_guarded_row_zero() -> None:
    _, (site,) = seen(weighed_attention(*FORMS["guarded mask"]))
    assert site.weights is not None
    above, below = np.array(site.weights.epsilons, np.float32)
    assert above == 0 and below == np.finfo(np.float32).tiny


@pytest.mark.parametrize("shape", [(2, 4, 1, 7), (2, 1, 5, 7), (1, 1, 1, 7)])
def test_masks_of_the_attention_operator_that_are_no_weights_of_keys(shape: tuple[int, ...]) -> None:
    _, (site,) = seen(operator_model(FOUR, runtime_mask=(TensorProto.BOOL, shape)))
    assert site.weights is None and site.unweighed


def test_a_mask_of_the_attention_operator() -> None:
    built = operator_model(FOUR, runtime_mask=(TensorProto.BOOL, (2, 1, 5, 7)))
    # The operator wants a row of the mask for each query.
    built.graph.input[3].CopyFrom(helper.make_tensor_value_info("padding", TensorProto.BOOL, (2, 7)))
    built.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 1, 7]), "wide"))
    built.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 5, 7]), "high"))
    built.graph.node.insert(0, helper.make_node("Expand", ["row", "high"], ["mask"]))
    built.graph.node.insert(0, helper.make_node("Reshape", ["padding", "wide"], ["row"]))
    _, (site,) = seen(built)
    assert site.weights is not None and site.weights.tensor == "padding"
    for mask in (np.random.default_rng(0).random((2, 7)) < 0.5, np.zeros((2, 7), bool)):
        assert deviations(built, [site], operator_feeds(built) | {"padding": mask})[0].small


def test_wrong_weights_do_not_go_unnoticed() -> None:
    model = weighed_attention(*FORMS["policy"])
    _, (site,) = seen(model)
    assert site.weights is not None
    feeds = {
        "x": np.random.default_rng(0).standard_normal((2, TOKENS, CHANNELS)).astype(np.float32),
        "mask": masks("float", 2, 1)[3],
    }
    for changed in (
        replace(site.weights, columns=np.roll(site.weights.columns, 1)),
        replace(site.weights, diagonals=np.full(TOKENS, -1)),
        replace(site.weights, epsilons=(0.0, site.weights.epsilons[1])),
        replace(site.weights, inverted=True),
    ):
        assert not deviations(model, [replace(site, weights=changed)], feeds)[0].small


@pytest.mark.corpus
@pytest.mark.parametrize("tag", ["dyvit_s_policy.dynamo.op18", "dyvit_s_policy.legacy.op17"])
def test_policies_of_exported_models(
    tag: str, corpus_model: Callable[[str], Path], corpus_feeds: Callable[..., dict[str, Any]]
) -> None:
    model = onnx.load(corpus_model(tag))
    _, sites = seen(model)
    assert len(sites) == 12
    for site in sites:
        assert site.weights is not None and site.weights.tensor == "x1" and site.weights.width == 197
        assert np.array_equal(site.weights.columns, site.weights.diagonals)
    site = sites[5]
    tables = attention_tables(site, scheduled(site, VARIANTS, seed=1))
    validate_attention_contents(site, tables)
    rng = np.random.default_rng(0)
    policy = np.where(rng.random(197) < 0.5, rng.integers(0, 2, 197), rng.random(197)).astype(np.float32)
    names = [*site.inputs, site.output]
    feeds = corpus_feeds(tag) | {"x1": policy.reshape(1, 197, 1)}
    tensors = dict(zip(names, run(model, feeds, names), strict=True))
    wanted = tensors[site.output]
    for got in (attend(site, tensors), attended(site, tables, tensors).reshape(wanted.shape)):
        assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()

"""ONNX's own Attention operator: discovery against ONNX Runtime's kernel for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxopt.discover.attention import find_attention
from onnxopt.discover.attention_operator import write_out_attention
from onnxopt.discover.attention_site import AttentionSite, EmptyRow, count
from onnxopt.model.graph import view
from tests.discover.reference import deviations

KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.bool_): TensorProto.BOOL}


def model(
    shapes: list[tuple[int, ...]],
    constant_mask: NDArray[Any] | None = None,
    runtime_mask: tuple[int, tuple[int, ...]] | None = None,
    outputs: tuple[str, ...] = ("y",),
    inputs: tuple[str, ...] = ("q", "k", "v"),
    name: str = "attend",
    **attributes: Any,
) -> onnx.ModelProto:
    declared = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("qkv", shapes, strict=True)]
    tensors = []
    if constant_mask is not None:
        tensors.append(numpy_helper.from_array(constant_mask, "mask"))
        inputs = (*inputs, "mask")
    if runtime_mask is not None:
        declared.append(helper.make_tensor_value_info("mask", *runtime_mask))
        inputs = (*inputs, "mask")
    node = helper.make_node("Attention", inputs, outputs, name=name, **attributes)
    results = [helper.make_empty_tensor_value_info(o) for o in outputs if o]
    graph = helper.make_graph([node], "operator", declared, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def feeds(built: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    result: dict[str, NDArray[Any]] = {}
    for value in built.graph.input:
        shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        boolean = value.type.tensor_type.elem_type == TensorProto.BOOL
        result[value.name] = np.ones(shape, bool) if boolean else rng.standard_normal(shape).astype(np.float32)
    return result


def found(built: onnx.ModelProto) -> AttentionSite:
    (site,), refusals = find_attention(view(built))
    assert not refusals
    assert (site.node, site.op, site.nodes, site.output) == ("attend", "Attention", ("attend",), "y")
    assert set(site.inputs) <= {"q", "k", "v"}
    return site


FOUR = [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6)]
GROUPED = [(2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)]
SHARED = [(1, 4, 5, 8), (1, 1, 7, 8), (1, 1, 7, 8)]
FOLDED = [(2, 5, 32), (2, 7, 16), (2, 7, 12)]
SPLIT = {"q_num_heads": 4, "kv_num_heads": 2}


def some_mask(*shape: int, empty: bool = False) -> NDArray[np.bool_]:
    mask = np.random.default_rng(1).random(shape) < 0.5
    mask[..., 0] = True
    if empty:
        mask[..., 2, :] = False
    return mask


@pytest.mark.parametrize(
    ("shapes", "attributes"), [(FOUR, {}), (GROUPED, {}), (SHARED, {}), (FOLDED, SPLIT), (FOUR, {"scale": 0.7})]
)
@pytest.mark.parametrize(
    "mask",
    [
        None,
        some_mask(5, 7),
        some_mask(5, 7, empty=True),
        some_mask(4, 5, 7),
        np.where(some_mask(1, 4, 5, 7), np.float32(0.25), np.float32(-np.inf)),
        np.where(some_mask(5, 7, empty=True), np.float32(0), np.float32(-np.inf)),
        np.random.default_rng(2).standard_normal((4, 5, 7)).astype(np.float32),
    ],
)
@pytest.mark.parametrize("causal", [0, 1])
def test_every_form_is_read_as_the_kernel_computes_it(
    shapes: list[tuple[int, ...]], attributes: dict[str, Any], mask: NDArray[Any] | None, causal: int
) -> None:
    built = model(shapes, mask, is_causal=causal, **attributes)
    site = found(built)
    (deviation,) = deviations(built, [site], feeds(built))
    assert deviation.small
    assert (site.heads, site.rows, site.q.width) == (4, 5, 8)
    assert site.v.width == (8 if shapes is SHARED else 6)
    live = np.ones((4, 5, 7), bool)
    if mask is not None and (mask.dtype == np.bool_ or np.isneginf(mask).any()):
        live = np.broadcast_to(mask if mask.dtype == np.bool_ else np.isfinite(mask), (1, 4, 5, 7))[0]
    if causal:
        live = live & np.tri(5, 7, dtype=bool)
    counted = count(site)
    assert counted.pairs_total == live.sum()
    empty = int((~live.any(axis=-1)).all(axis=0).sum())
    assert (counted.queries, counted.empty_rows) == (5 - empty, empty)
    assert site.empty_kind is (EmptyRow.ZERO if not live.any(axis=-1).all() else None)
    assert len(site.lists) == len({head.tobytes() for head in live})


def test_heads_that_differ_in_their_empty_rows() -> None:
    mask = some_mask(4, 5, 7)
    mask[1, 3] = mask[2, 0] = False
    built = model(FOUR, mask)
    site = found(built)
    assert deviations(built, [site], feeds(built))[0].small
    assert not site.empty.any()
    assert np.argwhere(site.head_empty).tolist() == [[1, 3], [2, 0]]
    assert count(site).pairs_total == mask.sum()


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.BOOL])
@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7)])
def test_a_mask_that_is_an_input_is_named_and_not_frozen(kind: int, shape: tuple[int, ...]) -> None:
    built = model(FOUR, runtime_mask=(kind, shape))
    site = found(built)
    assert site.runtime == ("mask",)
    assert count(site).pairs == 35 * 4 // 4
    passing = feeds(built) | {"mask": np.ones(shape, bool) if kind == TensorProto.BOOL else np.zeros(shape, np.float32)}
    assert deviations(built, [site], passing)[0].small


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"softcap": 2.5}, "softcap is 2.5"),
        ({"outputs": ("y", "", "", "scores")}, "its scores ('scores')"),
        ({"outputs": ("y", "keys", "values")}, "present keys ('keys')"),
        ({"constant_mask": np.ones((3, 7), np.bool_)}, "mask 'mask' of shape [3, 7] does not fit"),
        ({"shapes": [(2, 4, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)]}, "do not fit together"),
        ({"shapes": FOLDED}, "q_num_heads is 0"),
    ],
)
def test_what_cannot_be_proved_is_refused_by_name_and_value(options: dict[str, Any], reason: str) -> None:
    built = model(**({"shapes": FOUR} | options))
    sites, (refusal,) = find_attention(view(built))
    assert not sites
    assert (refusal.node, refusal.op) == ("attend", "Attention")
    assert reason in refusal.reason


def test_past_keys_are_refused() -> None:
    shapes = [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)]
    built = model(shapes, inputs=("q", "k", "v", "", "past_k", "past_v"))
    for name in ("past_k", "past_v"):
        built.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 4, 3, 8)))
    sites, (refusal,) = find_attention(view(built))
    assert not sites
    assert "past keys ('past_k')" in refusal.reason


def test_a_view_without_the_operator_stays_the_same() -> None:
    built = model(FOUR)
    built.graph.node[0].domain = "somewhere.else"
    graph = view(built)
    assert write_out_attention(graph).graph is graph


def test_the_model_itself_is_not_touched() -> None:
    built = model(FOUR, some_mask(5, 7))
    before = built.SerializeToString()
    found(built)
    assert built.SerializeToString() == before


def test_an_unnamed_operator_is_named_by_its_output() -> None:
    (site,), _ = find_attention(view(model(FOUR, name="")))
    assert (site.node, site.nodes) == ("y", ("y",))

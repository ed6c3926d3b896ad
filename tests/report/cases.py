"""Sites and schedules by hand, and packages that hold them, for the tests of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.deploy.manifest import Source as ModelSource
from onnxopt.deploy.manifest import write_manifest
from onnxopt.discover.attention_site import AttentionSite, KeyLists
from onnxopt.discover.operand import Operand, Source
from onnxopt.package import PLAN, write_json
from onnxopt.plan.schedule import AttentionSchedule, Forecast, PatternSchedule, Proof
from onnxopt.plan.strips import Strip
from onnxopt.report.figures import FIGURES, figures_document
from onnxopt.report.picture import Picture
from onnxopt.target.variant import AttentionVariant


def attention_site(
    lists: Sequence[KeyLists],
    keys: int,
    *,
    head_lists: Sequence[int] = (0,),
    biased: bool = False,
    query_tokens: np.ndarray | None = None,
    key_tokens: np.ndarray | None = None,
) -> AttentionSite:
    """A site with the given key lists; its vectors are where they would be in a plain export."""
    rows, heads = len(lists[0].row_list), len(head_lists)
    operand = Operand((Source("x", max(rows, keys), 32 * heads, -1),), 32)
    bias = tuple(np.ones(int(lists[number].lengths.sum()), np.float32) for number in head_lists) if biased else ()
    return AttentionSite(
        id="attention-0",
        node="softmax",
        op="Softmax",
        nodes=("qk", "softmax", "av"),
        heads=heads,
        rows=rows,
        scale=np.ones(heads, np.float32),
        q=operand,
        k=operand,
        v=operand,
        query_vectors=np.zeros((heads, rows), np.int64),
        key_vectors=np.zeros((heads, keys), np.int64),
        value_vectors=np.zeros((heads, keys), np.int64),
        head_lists=np.array(head_lists),
        lists=tuple(lists),
        head_bias=np.arange(heads) if biased else np.full(heads, -1),
        biases=bias,
        empty=np.zeros(rows, bool),
        head_empty=np.zeros((heads, rows), bool),
        empty_kind=None,
        output="y",
        output_shape=(1, rows, 32 * heads),
        channel_axis=-1,
        slots=np.zeros((rows, heads), np.int64),
        query_tokens=np.arange(rows) if query_tokens is None else query_tokens,
        key_tokens=np.arange(keys) if key_tokens is None else key_tokens,
        tokens=keys,
        batch=1,
        runtime=(),
    )


def schedule(
    parts: Sequence[tuple[Sequence[int], int, str, Sequence[Strip]]], variant: AttentionVariant
) -> AttentionSchedule:
    """A schedule of one variant; each part is (heads, lists, order, strips)."""
    patterns = tuple(
        PatternSchedule(tuple(heads), lists, order, tuple(strips), (0,) * len(strips))
        for heads, lists, order, strips in parts
    )
    return AttentionSchedule(
        site="attention-0",
        objective="time",
        element="fp16",
        variants=(variant,),
        resident=2,
        parts=patterns,
        jobs=np.zeros((0, 3), np.int64),
        split_keys=0,
        needed=1,
        computed=1,
        forecast=Forecast(1.0, 1.0, 0.1, False),
        proof=Proof(1.0, 1.0, "by hand", "optimal", 1, "made by hand"),
    )


def neighbourhood(side: int, window: int) -> KeyLists:
    """Each token of a square attends to the window around it, which is moved inwards at the border."""
    starts = np.clip(np.arange(side) - window // 2, 0, side - window)
    spans = starts[:, None] + np.arange(window)
    keys = (spans[:, None, :, None] * side + spans[None, :, None, :]).reshape(side * side, -1)
    distinct, row_list = np.unique(keys, axis=0, return_inverse=True)
    offsets = np.arange(len(distinct) + 1, dtype=np.int64) * distinct.shape[1]
    return KeyLists(row_list.reshape(-1).astype(np.int32), offsets, distinct.reshape(-1).astype(np.int32))


def longformer(tokens: int, block: int) -> KeyLists:
    """Key 0 and query 0 see everything; the others the block that they are in and its two neighbours."""
    lists = [np.arange(tokens, dtype=np.int32)]
    blocks = -(-(tokens - 1) // block)
    for number in range(blocks):
        low, high = max(0, number - 1) * block + 1, min(tokens, (number + 2) * block + 1)
        lists.append(np.concatenate([[0], np.arange(low, high)]).astype(np.int32))
    row_list = np.concatenate([[0], 1 + np.arange(tokens - 1) // block]).astype(np.int32)
    offsets = np.cumsum([0] + [len(keys) for keys in lists]).astype(np.int64)
    return KeyLists(row_list, offsets, np.concatenate(lists))


def strips_of(lists: KeyLists, cuts: Sequence[np.ndarray]) -> list[Strip]:
    """The strips of the given rows; their key lists are the unions of what the rows need, each key once."""
    result = []
    for rows in cuts:
        own = np.unique(lists.row_list[rows])
        keys = np.unique(np.concatenate([lists.list(int(index)) for index in own]))
        result.append(Strip(rows, keys, len(own) == 1))
    return result


def square_cuts(side: int, square: int) -> list[np.ndarray]:
    """The tokens of a square grid in small squares."""
    numbers = np.arange(side * side).reshape(side // square, square, side // square, square)
    return list(numbers.transpose(0, 2, 1, 3).reshape(-1, square * square))


def plan_site(number: int = 0, kind: str = "attention", **changes: Any) -> dict[str, Any]:
    """An entry of ``sites`` in ``plan.json`` with a schedule."""
    found: dict[str, Any] = (
        {"queries": 64, "keys": 64, "heads": 3, "head_dim": 32, "distinct_masks": 1, "bias": "per_head"}
        if kind == "attention"
        else {"out_channels": 64, "in_channels": 64, "kernel": [1, 1], "groups": 1, "pattern": "pruned"}
    )
    return {
        "id": f"{kind}-{number}",
        "kind": kind,
        "nodes": [f"/layer.{number}/Softmax"],
        **found,
        "density": 0.25,
        "decision": "rewrite",
        "reason": "measured 1.84 times as fast",
        "predicted_gain": 1.7,
        "measured_gain": 1.84,
        "reorder": ["as is"],
        "variants": [{"heads": 3, "strips": 4, "rows": 16, "keys": 16}],
        "needed": 1024,
        "computed": 1280,
        "waste": 1.25,
        "predicted_us": 12.345,
        "bound_us": 10.1,
        "gap": 0.004,
        "solver": {"name": "enumeration", "status": "optimal", "nodes": 12},
        "certificate": "every order and cut was compared",
    } | changes


def plan_document(sites: Sequence[dict[str, Any]], refusals: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """A ``plan.json``."""
    return {
        "schema": "onnxopt.plan/1",
        "model": {"path": "swin.onnx", "opset": 17, "nodes": 321},
        "target": "sm_89",
        "form": "portable",
        "sites": list(sites),
        "refusals": list(refusals),
    }


def write_package(folder: Path, plan: dict[str, Any], pictures: Mapping[str, Sequence[Picture]] | None) -> Path:
    """A package that holds a plan, a model of a few bytes, and pictures unless they are None."""
    folder.mkdir(parents=True)
    (folder / "model.portable.onnx").write_bytes(b"a model")
    write_json(folder / PLAN, plan)
    if pictures is not None:
        write_json(folder / FIGURES, figures_document(pictures))
    list_in_manifest(folder)
    return folder


def list_in_manifest(folder: Path) -> None:
    """Make the manifest say what lies in the folder."""
    write_manifest(
        folder,
        target="sm_89",
        versions={"onnxopt": "0.1.0", "onnxruntime": "1.20.0"},
        source=ModelSource("0" * 64, 17),
        files=[path.name for path in folder.iterdir() if path.name != "manifest.json"],
    )

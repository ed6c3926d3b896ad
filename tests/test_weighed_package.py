"""Attention with run-time weights through all of `optimize` and `verify`, on tile times that let its kernel win."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt import api
from onnxopt.discover.attention_site import KeyLists, KeyWeights
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.lower.plugin_nodes import plugin_sites
from onnxopt.measure.site_requests import site_requests
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.site_reports import Form
from onnxopt.target import load_target
from onnxopt.target.tile_records import TileRecord
from onnxopt.target.tile_store import FILE_NAME, add_records
from onnxopt.target.variant import AttentionVariant, Element
from onnxopt.verification.package_kernels import verify_kernels
from samples import build as sample
from tests.discover.weighed_attention import FORMS, REFUSED, weighed_attention
from tests.plan.patterns import site_of
from tests.target.records import RECORD


def measured(folder: Path, width: int, element: Element) -> Path:
    """The folder with a record for every shape of an H200, each just as fast as the model says."""
    gpu = load_target("sm_90").need_gpu_profile()
    cost = AttentionCost.of(gpu, width, width, element)
    folder.mkdir(exist_ok=True)
    add_records(folder / FILE_NAME, [_record(cost, variant, element) for variant in cost.variants()])
    return folder


def _record(cost: AttentionCost, variant: AttentionVariant, element: Element) -> TileRecord:
    rows, keys = variant.rows, 4 * variant.keys
    microseconds = cost.strip_us(variant, np.array([rows]), np.array([keys]), 1, False)[0]
    resources = cost.resources(variant)
    return replace(
        RECORD,
        element=element,
        variant=variant.describe(),
        widths=(cost.width, cost.value_width),
        extent=(rows, keys),
        masked=False,
        resident=1,
        microseconds=float(microseconds),
        threads=resources.threads,
        registers=resources.registers_per_thread,
        shared_bytes=resources.shared_memory_bytes,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weighed") / "model.onnx"
    path.write_bytes(sample("dynamicvit_policy").to_bytes())
    return path


def test_a_policy_is_written_verified_and_emulated(model: Path) -> None:
    cache = measured(model.parent / "fp16", 8, "fp16")
    result = api.optimize(model, model.parent / "out", target="sm_90", form="plugin", kernel_dtype="fp16", cache=cache)
    (site,) = result.rewritten
    assert "by measured tile times" in site.reason
    assert result.verification is not None and result.verification.passed
    (plugin,) = plugin_sites(onnx.load(result.package / "model.onnx"))
    assert plugin.attention.operands["weight"] and plugin.attention.kernel["columns"] == 50
    report = api.verify(model, result.package, kernels=True, cache=model.parent)
    assert report.passed
    own, *tactics = verify_kernels(result.package, cache=model.parent / "emulated", orders=(2,))
    assert own.tactic is None and all(kernel.passed and kernel.jobs for kernel in (own, *tactics))


def test_the_portable_form_keeps_it(model: Path) -> None:
    cache = measured(model.parent / "both", 8, "fp32")
    asked: dict[Form, Element | None] = {"plugin": "fp32", "portable": None}
    sites = {
        form: api.inspect(model, target="sm_90", form=form, kernel_dtype=dtype, cache=cache).sites[0]
        for form, dtype in asked.items()
    }
    assert sites["plugin"].decision == "rewrite"
    assert sites["portable"].decision == "keep"
    assert sites["portable"].reason == "its mask depends on the model's input 'policy', so its pattern is not fixed"


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32", "fp32"])
def test_masks_in_front_of_a_plain_softmax_are_kept(element: Element, tmp_path: Path) -> None:
    for form, wanted in (("mask", "softmax that adds no epsilon"), ("guarded mask", "no epsilon"), ("policy", "")):
        path = tmp_path / "model.onnx"
        path.write_bytes(weighed_attention(*FORMS[form]).SerializeToString())
        cache = measured(tmp_path / "cache", 2, element)
        (site,) = api.inspect(path, target="sm_90", form="plugin", kernel_dtype=element, cache=cache).sites
        assert (site.decision == "rewrite") == (not wanted)
        assert wanted in site.reason
        if wanted:
            assert f"more than {16 if element == 'fp16' else 87}" in site.reason


def test_an_epsilon_that_fp16_cannot_hold_is_a_reason_to_keep(tmp_path: Path) -> None:
    kind, body = FORMS["no epsilon in front"]
    small = weighed_attention(kind, body)
    value = next(t for t in small.graph.initializer if t.name == "eps_below")
    value.CopyFrom(onnx.numpy_helper.from_array(np.array([1e-9], np.float32), "eps_below"))
    path = tmp_path / "model.onnx"
    path.write_bytes(small.SerializeToString())
    wanted: dict[Element, str] = {"fp16": "keep", "bf16": "rewrite"}
    for element, decision in wanted.items():
        cache = measured(tmp_path / "cache", 2, element)
        (site,) = api.inspect(path, target="sm_90", form="plugin", kernel_dtype=element, cache=cache).sites
        assert site.decision == decision
        assert ("less than the smallest number of fp16" in site.reason) == (decision == "keep")


def test_why_a_mask_is_no_weights_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(weighed_attention(*REFUSED["a finite mask"][:2]).SerializeToString())
    (site,) = api.inspect(path, target="sm_90", cache=tmp_path).sites
    assert site.decision == "keep"
    assert site.reason.startswith("its mask depends on the model's input 'mask', so its pattern is not fixed; ")
    assert "no infinite constant" in site.reason


def test_weighed_keys_are_never_split(tmp_path: Path) -> None:
    keys, none = 8192, np.full(1, -1)
    lists = KeyLists(np.zeros(1, np.int32), np.array([0, keys]), np.arange(keys, dtype=np.int32))
    plain = site_of([lists], keys)
    weights = KeyWeights("mask", keys, np.arange(keys), none, (0.0, 1e-6))
    planner = KernelPlanner.at(load_target("sm_90").need_gpu_profile(), "time", tmp_path)
    assert planner.attention(plain)[0].split_keys
    # The cache keeps the two apart.
    (schedule,) = planner.attention(replace(plain, weights=weights))
    assert not schedule.split_keys
    assert planner.attention(plain)[0].split_keys


def test_requests_for_a_gpu_have_what_optimize_would_use(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "masked.onnx"
    path.write_bytes(weighed_attention(*FORMS["mask"]).SerializeToString())
    planner = KernelPlanner.at(load_target("sm_90").need_gpu_profile(), "time", None)
    requests, left_out = site_requests([model, path], planner)
    (request,) = requests
    assert request.kernel["weights"] and "columns" in request.tables
    ((name, reason),) = left_out
    assert name == "masked/attention-0" and "no epsilon" in reason


@pytest.mark.corpus
def test_the_policy_of_an_exported_model(corpus_model: Callable[[str], Path], tmp_path: Path) -> None:
    path = corpus_model("dyvit_s_policy.dynamo.op18")
    cache = measured(tmp_path / "cache", 64, "fp16")
    result = api.optimize(path, tmp_path / "out", target="sm_90", form="plugin", kernel_dtype="fp16", cache=cache)
    assert result.verification is not None and result.verification.passed
    sites = plugin_sites(onnx.load(result.package / "model.onnx"))
    assert len(sites) == 12
    assert len({site.attention.operator for site in sites}) == 1
    kernels = verify_kernels(result.package, cache=tmp_path / "emulated", orders=(1,))
    assert [kernel.tactic for kernel in kernels].count(None) == 1
    assert all(kernel.passed for kernel in kernels)

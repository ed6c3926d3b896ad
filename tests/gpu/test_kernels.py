"""The kernels on this machine's GPU, against float64; without a GPU nothing here can run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.kernels.compiler import architecture_for
from onnxopt.measure.job.build import Request, build_job
from onnxopt.measure.job.runner import main
from onnxopt.measure.site_requests import site_request
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.roofline import check_element
from onnxopt.plan.tables import attention_tables
from onnxopt.target import GpuProfile, load_target
from onnxopt.target.device import find_device
from onnxopt.target.variant import AttentionVariant, Element
from tests.kernels.sites import WISHES
from tests.plan.schedules import scheduled
from tests.plan.sites import made_site


@pytest.fixture(scope="module")
def gpu() -> GpuProfile:
    """The profile of this machine's GPU."""
    found = find_device()
    if found.device is None:
        pytest.skip(f"no GPU: {found.reason}")
    return load_target(found.device.architecture).need_gpu_profile()


def requests_for(gpu: GpuProfile, element: Element) -> Iterator[Request]:
    """Every shape that the planner chooses from, on sites of all kinds in turn, and with split keys."""
    cost = AttentionCost.of(gpu, 32, 32, element)
    for number, variant in enumerate(cost.variants()):
        names = sorted(WISHES)
        name = names[number % len(names)]
        yield _request(name, variant, element, 0)
        yield _request("plain", variant, element, 40)


def _request(name: str, variant: AttentionVariant, element: Element, split: int) -> Request:
    site, shapes = made_site(WISHES[name], seed=3)
    schedule = scheduled(site, (variant,), seed=4, split_keys=split, element=element)
    tables = attention_tables(site, schedule, shapes=shapes)
    label = f"{element}/{variant.describe()}/{name}{'/split' if split else ''}"
    return site_request(label, schedule, tables, batch=2)


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32", "fp32"])
def test_every_shape_agrees_with_float64(gpu: GpuProfile, element: Element, tmp_path: Path) -> None:
    try:
        check_element(gpu, element)
    except InputError as reason:
        pytest.skip(str(reason))
    build_job(tmp_path / "job", list(requests_for(gpu, element)), [architecture_for(gpu.architecture)])
    code = main([str(tmp_path / "job"), "--out", str(tmp_path / "results")])
    results = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert [result["id"] for result in results if not result["passed"]] == []
    assert code == 0

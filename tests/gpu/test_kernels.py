"""The kernels on this machine's GPU, against float64; without a GPU nothing here can run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.kernels.compiler import architecture_for
from onnxopt.measure.job.algorithm_operator import algorithm_channels, algorithm_kernel
from onnxopt.measure.job.build import Request, build_job
from onnxopt.measure.job.runner import main
from onnxopt.measure.site_requests import site_request
from onnxopt.plan.algorithms.steps import ALGORITHMS, algorithm_refusal, algorithm_steps
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.roofline import check_element
from onnxopt.plan.tables import attention_tables
from onnxopt.target import GpuProfile, load_target
from onnxopt.target.device import find_device
from onnxopt.target.variant import AttentionVariant, Element
from tests.kernels.conv_cases import WISHES as CONV_WISHES
from tests.kernels.conv_cases import made_case
from tests.kernels.sites import WISHES
from tests.plan.schedules import scheduled
from tests.plan.sites import made_site
from tests.validate.test_reference_algorithms import CASES

# Taps and positions of late and early layers.
_CONV_SIZES = ((1, 49), (9, 49), (1, 784), (9, 784))


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


def conv_requests(gpu: GpuProfile, element: Element) -> Iterator[Request]:
    """Every shape of the convolution kernel, on layers of all kinds in turn; some of these are added up behind it."""
    names = sorted(CONV_WISHES)
    variants = {
        v for taps, positions in _CONV_SIZES for v in GroupConvCost.of(gpu, taps, positions, element).variants()
    }
    for number, variant in enumerate(sorted(variants)):
        for name in dict.fromkeys((names[number % len(names)], "added outputs")):
            case = made_case(CONV_WISHES[name], (variant,), element)
            own = case.tables.sum
            yield Request(
                id=f"{element}/{variant.describe()}/{name}",
                kind="conv",
                purpose="site",
                kernel=case.tables.kernel.to_json(),
                tables={**case.tables.arrays(), **({} if own is None else own.arrays())},
                second_kernel=None if own is None else own.kernel,
                resident=1,
                batch=case.batch,
                needed=1,
                computed=1,
                predicted_us=1.0,
                bound_us=1.0,
            )


def algorithm_requests(element: Element) -> Iterator[Request]:
    """Every algorithm on a layer that it computes."""
    for name in ALGORITHMS:
        layer = next(case for case in CASES.values() if not algorithm_refusal(name, case))
        steps = algorithm_steps(name, layer, element)
        kernel, channels = algorithm_kernel(name, layer, element, steps), algorithm_channels(layer)
        yield Request(f"{element}/{name}", "algorithm", "site", kernel, channels, None, 1, 2, 1, 1, 1.0, 1.0)


def check_on_gpu(gpu: GpuProfile, requests: Iterable[Request], folder: Path) -> None:
    """Build a job, run it, and expect every entry to agree with float64."""
    build_job(folder / "job", list(requests), [architecture_for(gpu.architecture)])
    code = main([str(folder / "job"), "--out", str(folder / "results")])
    results = [json.loads(line) for line in (folder / "results").read_text().splitlines()]
    assert [result["id"] for result in results if not result["passed"]] == []
    assert code == 0


def skip_lacking(gpu: GpuProfile, element: Element) -> None:
    """Skip where the GPU does not compute in a type."""
    try:
        check_element(gpu, element)
    except InputError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32", "fp32"])
def test_every_shape_agrees_with_float64(gpu: GpuProfile, element: Element, tmp_path: Path) -> None:
    skip_lacking(gpu, element)
    check_on_gpu(gpu, requests_for(gpu, element), tmp_path)


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32", "fp32"])
def test_every_convolution_agrees_with_float64(gpu: GpuProfile, element: Element, tmp_path: Path) -> None:
    skip_lacking(gpu, element)
    check_on_gpu(gpu, conv_requests(gpu, element), tmp_path)


@pytest.mark.parametrize("element", ["fp16", "bf16", "tf32", "fp32"])
def test_every_algorithm_agrees_with_float64(gpu: GpuProfile, element: Element, tmp_path: Path) -> None:
    skip_lacking(gpu, element)
    check_on_gpu(gpu, algorithm_requests(element), tmp_path)

"""Matrix instructions in kernels that NVRTC compiled, run by the CPU runner of PTX."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from onnxopt.emulate import EmulationError, Uninitialised, build_cpu_kernel
from onnxopt.kernels.nvrtc import run_nvrtc
from onnxopt.kernels.source_tree import SourceTree
from tests.emulate import matrix_formulas as isa

_SOURCE = Path(__file__).with_name("matrix_kernels.cu")
ORDERS = (0, 1, 2, 3)
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


@cache
def ptx_of(architecture: str, *defines: str) -> str:
    tree = SourceTree(_SOURCE.name, _SOURCE.read_bytes(), ())
    compiled = run_nvrtc(tree, [f"--gpu-architecture={architecture}", *(f"-D{define}" for define in defines)])
    assert compiled.ptx is not None, compiled.log
    return compiled.ptx


@pytest.mark.parametrize(("architecture", "kind"), [("sm_80", "f16"), ("sm_80", "bf16"), ("sm_120", "f16")])
def test_product_of_one_warp(architecture: str, kind: str, built: Path) -> None:
    kernel = build_cpu_kernel(ptx_of(architecture, "PRODUCT", f'KIND="{kind}"'), "multiply", built)
    rng = np.random.default_rng(0)
    a, b = (isa.encode(rng.normal(size=shape), kind) for shape in ((16, 16), (16, 8)))
    c = rng.normal(size=(16, 8)).astype(np.float32)
    for order in ORDERS:
        d = np.zeros((32, 4), np.float32)
        lanes = np.ascontiguousarray(isa.distribute(c, isa.C))
        arguments = [a, b, lanes, Uninitialised(d)]
        kernel.run(grid=(1, 1, 1), block=(32, 1, 1), shared_bytes=0, arguments=arguments, order=order)
        exact = isa.decode(a, kind) @ isa.decode(b, kind) + c
        np.testing.assert_allclose(isa.collect(d, isa.C, 16, 8), exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a"])
def test_three_ways_to_transpose(architecture: str, built: Path) -> None:
    kernel = build_cpu_kernel(ptx_of(architecture, "TRANSPOSE"), "transpose", built)
    matrix = np.random.default_rng(1).integers(0, 65536, (8, 8)).astype(np.uint16)
    for order in ORDERS:
        results = [np.zeros((8, 8), np.uint16) for _ in range(3)]
        arguments = [matrix, *map(Uninitialised, results)]
        kernel.run(grid=(1, 1, 1), block=(32, 1, 1), shared_bytes=0, arguments=arguments, order=order)
        for result in results:
            np.testing.assert_array_equal(result, matrix.T)


def warpgroup_product(built: Path, order: int, *defines: str, kind: str = "f16") -> tuple[Floats, Floats]:
    """What the kernel gives for random matrices, and the product in float64."""
    ptx = ptx_of("sm_90a", "WARPGROUP", f'KIND="{kind}"', *defines)
    kernel = build_cpu_kernel(ptx, "multiply_warpgroup", built)
    rng = np.random.default_rng(2)
    a, b = (isa.encode(rng.normal(size=(rows, 64)), kind) for rows in (64, 16))
    d = np.zeros((4, 32, 8), np.float32)
    arguments = [a, b, Uninitialised(d)]
    kernel.run(grid=(1, 1, 1), block=(128, 1, 1), shared_bytes=8192 + 2048, arguments=arguments, order=order)
    tiles = [isa.collect(d[:, :, 4 * i : 4 * i + 4], isa.C, 16, 8) for i in range(2)]
    return np.concatenate(tiles, axis=-1).reshape(64, 16), isa.decode(a, kind) @ isa.decode(b, kind).T


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_product_of_a_warpgroup(kind: str, built: Path) -> None:
    for order in ORDERS:
        d, exact = warpgroup_product(built, order, kind=kind)
        np.testing.assert_allclose(d, exact, rtol=1e-6, atol=1e-6)


def test_reading_an_accumulator_before_the_wait_is_an_error(built: Path) -> None:
    for order in ORDERS:
        with pytest.raises(EmulationError, match="wgmma"):
            warpgroup_product(built, order, "NO_WAIT")


def test_shared_memory_without_a_proxy_fence_is_an_error(built: Path) -> None:
    for order in ORDERS:
        with pytest.raises(EmulationError, match=r"fence\.proxy\.async"):
            warpgroup_product(built, order, "NO_PROXY_FENCE")

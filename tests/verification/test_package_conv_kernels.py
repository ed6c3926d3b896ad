"""Convolution kernels of a package, emulated."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from onnxopt import api
from onnxopt.deploy.manifest import Source, write_manifest
from onnxopt.deploy.packaged_kernels import cubin_name, ptx_name
from onnxopt.errors import InputError
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.lower.plugin_convolutions import plugin_convolutions
from onnxopt.package import package_files
from onnxopt.target.variant import ConvVariant
from onnxopt.verification.package_kernels import verify_kernels
from samples import build
from samples.builder import GraphBuilder
from samples.convolution import conv
from tests.lower.conv_plugin_models import in_plugin_form


def test_an_optimised_model_passes_with_its_kernels(tmp_path: Path, programs: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build("shuffle_gather").to_bytes())
    result = api.optimize(
        path, tmp_path / "package", target="sm_90", form="plugin", kernel_dtype="fp16", cache=tmp_path, verify=False
    )
    written = [site.id for site in result.sites if site.rewrite is not None]
    assert [site.planned.get("computed_by") for site in result.sites if site.id not in written] == ["conv-0"] * 2
    reports = verify_kernels(result.package, cache=programs, orders=(1,))
    assert written == ["conv-0"] and {report.sites for report in reports} == {("conv-0",)}
    assert [report.tactic for report in reports] == [None, *range(1, len(reports))] and len(reports) > 1
    assert all(report.passed and report.jobs for report in reports), [report.explain() for report in reports]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A package whose one convolution has its inputs split, so that a second kernel adds up; its operators."""
    g = GraphBuilder("split", seed=0, batch=None)
    x = g.input("x", 32, 5, 4)
    g.output("y", g.op("Relu", g.op("Add", conv(g, x, 32, 32, (1, 1), groups=2)[0], x)), 32, 5, 4)
    variants = (ConvVariant("mma", 16, 16, 64, 2, 2),)
    model, _ = in_plugin_form(g.model(), variants=variants, seed=1, pieces=2)
    (plugin,) = plugin_convolutions(model)
    assert plugin.sum is not None and plugin.sum.kernel["residual"]
    sources = {
        plugin.convolution.operator: group_conv_source(plugin.convolution.kernel, 1),
        plugin.sum.operator: sum_conv_source(plugin.sum.kernel),
    }
    place = tmp_path_factory.mktemp("split") / "package"
    (place / "kernels").mkdir(parents=True)
    onnx.save(model, place / "model.onnx")
    for operator, source in sources.items():
        kernel = compile_kernel(source, "sm_80")
        (place / cubin_name(operator, "sm_80")).write_bytes(kernel.cubin)
        (place / ptx_name(operator)).write_text(kernel.ptx)
    listed(place)
    return place, list(sources)


def listed(place: Path) -> None:
    """Write the manifest of what is there."""
    source = Source("0" * 64, 18)
    write_manifest(place, target="sm_80", versions={"onnxopt": "0"}, source=source, files=package_files(place))


def test_split_outputs_are_two_kernels(split: tuple[Path, list[str]], programs: Path) -> None:
    place, operators = split
    reports = verify_kernels(place, cache=programs, orders=(2,))
    assert [report.operator for report in reports] == operators
    assert all(report.passed for report in reports), [report.explain() for report in reports]


def test_a_kernel_that_computes_something_else_is_found(
    split: tuple[Path, list[str]], programs: Path, tmp_path: Path
) -> None:
    place = tmp_path / "package"
    shutil.copytree(split[0], place)
    ptx = place / ptx_name(split[1][1])
    text = ptx.read_text()
    assert "add.f32" in text
    ptx.write_text(text.replace("add.f32", "sub.f32"))
    listed(place)
    first, second = verify_kernels(place, cache=programs, orders=(0,))
    assert first.passed and not second.passed


def test_a_package_without_one_of_its_kernels_is_refused(split: tuple[Path, list[str]], tmp_path: Path) -> None:
    place = tmp_path / "package"
    shutil.copytree(split[0], place)
    (place / ptx_name(split[1][0])).unlink()
    listed(place)
    with pytest.raises(InputError, match=f"its manifest lists no kernel of the operator {split[1][0]}"):
        verify_kernels(place)

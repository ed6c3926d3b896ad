"""Convolutions that are wrong, absurd or tampered with, from end to end: a reason with figures, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from onnxopt import api, convolution_kernels
from onnxopt.cli import app
from onnxopt.deploy.aot_model import AOT_MODEL
from onnxopt.deploy.launcher_model import LAUNCHER_MODEL
from onnxopt.deploy.manifest import read_manifest, write_manifest
from onnxopt.deploy.operators_file import OPERATORS_FILE
from onnxopt.errors import InputError
from onnxopt.package import package_files
from onnxopt.plan.tables.types import configuration_of, operator_name
from onnxopt.verification.package_kernels import verify_kernels

Array = NDArray[Any]
Change = Callable[[dict[str, Any], dict[str, Array]], None]

_X = (1, 32, 8, 8)


def weights(*shape: int, first: float | None = None) -> Array:
    made = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if first is not None:
        made.flat[0] = first
    return made


W = weights(32, 8, 3, 3)


def convolution(x: tuple[int, ...], w: Array, b: Array | None = None, **attributes: Any) -> onnx.ModelProto:
    """A model of a single Conv, whose output's shape it does not say."""
    given = {"w": w} if b is None else {"w": w, "b": b}
    node = helper.make_node("Conv", ["x", *given], ["y"], name="conv", **{"group": 4, **attributes})
    graph = helper.make_graph(
        [node],
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in given.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def onnxopt(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*words])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def inspected(model: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    code, out, err = onnxopt("inspect", str(path), "--target", "sm_90", "--form", "plugin", "--json")
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


NO_SITES: dict[str, tuple[onnx.ModelProto, str]] = {
    "a kernel larger than its input": (
        convolution(_X, weights(32, 8, 3, 11), pads=[1, 1, 1, 1]),
        "its kernel is larger than its padded input: along axis 1 11 taps with dilation 1 reach over 11 positions of",
    ),
    "a kernel that only its dilation makes too large": (
        convolution(_X, W, dilations=[1, 10**9]),
        "along axis 1 3 taps with dilation 1,000,000,000 reach over 2,000,000,001 positions of 8",
    ),
    "a kernel without padding in the mode VALID": (
        convolution((1, 32, 2, 8), W, pads=[1, 1, 1, 1], auto_pad="VALID"),
        "along axis 0 3 taps with dilation 1 reach over 3 positions of 2",
    ),
    "no dilation": (convolution(_X, W, dilations=[0, 1]), "its dilations are [0, 1]; allowed for 2 axes: 2 whole"),
    "a dilation of 63 bits": (convolution(_X, W, dilations=[2**62, 1]), "[4,611,686,018,427,387,904, 1]; allowed"),
    "negative strides": (convolution(_X, W, strides=[1, -1]), "its strides are [1, -1]; allowed for 2 axes: 2 whole"),
    "negative pads": (convolution(_X, W, pads=[0, 0, -1, 0]), "its pads are [0, 0, -1, 0]; allowed for 2 axes: 4"),
    "pads of one side": (convolution(_X, W, pads=[1, 1]), "its pads are [1, 1]; allowed for 2 axes: 4 whole"),
    "other taps than the weights": (
        convolution(_X, W, kernel_shape=[5, 5]),
        "its kernel_shape is [5, 5], its weights have [3, 3] taps",
    ),
    "an unknown mode": (convolution(_X, W, auto_pad="SAME"), "its auto_pad is 'SAME'; allowed: NOTSET, VALID"),
    "no groups": (convolution(_X, W, group=0), "in 0 groups do not fit its input of 32 channels"),
    "negative groups": (convolution(_X, W, group=-4), "in -4 groups do not fit its input of 32 channels"),
    "groups of 63 bits": (convolution(_X, W, group=2**62), "groups do not fit its input of 32 channels"),
    "a bias that is too short": (
        convolution(_X, W, weights(31)),
        "its bias has the shape [31]; allowed for 32 outputs: [32]",
    ),
    "weights of other axes": (
        convolution(_X, weights(32, 8, 3)),
        "its weights have 1 axes of taps, its input 2 of positions",
    ),
    "no outputs": (convolution(_X, weights(0, 8, 3, 3)), "its weights have the shape [0, 8, 3, 3]"),
    "no taps": (convolution(_X, weights(32, 8, 0, 3)), "its weights have the shape [32, 8, 0, 3]"),
}


@pytest.mark.parametrize("name", NO_SITES)
def test_what_nothing_could_compute_is_no_site(name: str, tmp_path: Path) -> None:
    model, message = NO_SITES[name]
    document = inspected(model, tmp_path)
    assert document["sites"] == []
    (refusal,) = document["refusals"]
    assert (refusal["node"], refusal["op"]) == ("conv", "Conv")
    assert message in refusal["reason"]


KEPT: dict[str, tuple[onnx.ModelProto, str]] = {
    "pads beyond all positions": (
        convolution(_X, W, pads=[10**5] * 4),
        "the convolution has 40,002,400,036 positions; allowed: 1 to 2,147,483,648",
    ),
    "weights that are not numbers": (
        convolution(_X, weights(32, 8, 3, 3, first=np.nan)),
        "1 of the numbers of its weights are NaN or infinite",
    ),
    "infinite weights": (
        convolution(_X, weights(32, 8, 3, 3, first=-np.inf)),
        "1 of the numbers of its weights are NaN or infinite",
    ),
    "a bias that is no number": (
        convolution(_X, W, weights(32, first=np.nan)),
        "1 of the numbers of its bias are NaN or infinite",
    ),
    "more channels than can be unpacked": (
        convolution((1, 65536, 1, 1), weights(65536, 1, 1, 1), group=65536),
        "its weights between all channels are 4,294,967,296 numbers; allowed: ",
    ),
    "more axes than kernels have": (
        convolution((1, 32, 2, 2, 2, 2), weights(32, 8, 1, 1, 1, 1)),
        "a convolution over 4 axes; kernels know 1 to 3",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_no_kernel_should_compute_is_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow: what cannot be written must be found out before it is decided that it wins.
    monkeypatch.setattr(convolution_kernels, "PREDICTED_MARGIN", 0.0)
    model, message = KEPT[name]
    (site,) = inspected(model, tmp_path)["sites"]
    assert site["decision"] == "keep"
    assert message in site["reason"]


def test_a_bias_beyond_fp16_and_a_stride_beyond_addresses_keep_their_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_kernels, "PREDICTED_MARGIN", 0.0)
    for model, message in (
        (convolution(_X, W, weights(32, first=1e30)), "its bias is beyond the largest number of fp16; choose bf16"),
        (
            convolution(_X, W, strides=[10**9, 1]),
            "'strides' [1, 1000000000, 1] move by 8,000,000,065 positions of the input 1 x 8 x 8; allowed: up to",
        ),
    ):
        path, folder = tmp_path / "model.onnx", tmp_path / "package"
        path.write_bytes(model.SerializeToString())
        words = ["--target", "sm_90", "--form", "plugin", "--kernel-dtype", "fp16", "--no-verify"]
        code, _, err = onnxopt("optimize", str(path), "-o", str(folder), *words)
        assert code == 0, err
        (site,) = json.loads((folder / "plan.json").read_text())["sites"]
        assert site["decision"] == "keep"
        assert message in site["reason"]
        shutil.rmtree(folder)


@pytest.mark.parametrize("shape", [(1, 0, 8, 8), (0, 32, 8, 8), (1, 32, 0, 8), (1, 32, 2**31, 2**31)])
def test_tensors_that_hold_nothing_or_too_much_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(convolution(shape, W).SerializeToString())
    code, _, err = onnxopt("inspect", str(path), "--target", "sm_90", "--form", "plugin")
    assert code == 2
    assert f"input 'x' has the shape {list(shape)}" in err


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with one operator, beside its model."""
    folder = tmp_path_factory.mktemp("conv")
    model = convolution(_X, W, weights(32), pads=[1] * 4)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution_kernels, "PREDICTED_MARGIN", 0.0)
        api.optimize(
            *(folder / "model.onnx", folder / "package"),
            target="sm_90",
            form="plugin",
            kernel_dtype="fp16",
            cache=folder / "cache",
            verify=False,
        )
    return folder / "package"


def tampered(package: Path, place: Path, change: Change, *, renamed: bool) -> Path:
    """A copy of a package with other tables or another configuration of its first convolution.

    With ``renamed`` the operator's name, its files and the manifest are made to fit, and what would tell otherwise is
    left out, as a forger would.
    """
    shutil.copytree(package, place)
    model = onnx.load(place / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type.startswith("GroupConv"))
    function = next(function for function in model.functions if function.name == node.op_type)
    configuration = json.loads(function.doc_string)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    named = {name: given for name, given in zip(function.input, node.input, strict=True) if given in held}
    tables = {name: numpy_helper.to_array(held[given]).copy() for name, given in named.items()}
    change(configuration["kernel"], tables)
    for name, table in tables.items():
        held[named[name]].CopyFrom(numpy_helper.from_array(table, named[name]))
    function.doc_string = json.dumps(configuration)
    if renamed:
        before = node.op_type
        configuration = configuration_of("GroupConv", configuration["kernel"], tables)
        node.op_type = function.name = operator_name(configuration)
        function.doc_string = json.dumps(configuration)
        for noted in model.metadata_props:
            noted.key = noted.key.replace(before, node.op_type)
        for path in list((place / "kernels").glob(f"{before}.*")):
            path.rename(path.with_name(path.name.replace(before, node.op_type)))
        for file in (AOT_MODEL, OPERATORS_FILE, LAUNCHER_MODEL):
            (place / file).unlink(missing_ok=True)
    onnx.save(model, place / "model.onnx")
    old = read_manifest(package)
    files = package_files(place)
    write_manifest(place, target=old.target, versions=old.versions, source=old.source, files=files)
    return place


def _set(table: str, place: Any, value: Any) -> Change:
    def change(_: dict[str, Any], tables: dict[str, Array]) -> None:
        tables[table][place] = value

    return change


def _configure(**values: Any) -> Change:
    def change(kernel: dict[str, Any], _: dict[str, Array]) -> None:
        kernel.update(values)

    return change


def _without_jobs(_: dict[str, Any], tables: dict[str, Array]) -> None:
    tables["jobs"] = tables["jobs"][:0]


def _wide_weights(_: dict[str, Any], tables: dict[str, Array]) -> None:
    tables["w"] = tables["w"].astype(np.float64)


def _one_output_twice(_: dict[str, Any], tables: dict[str, Array]) -> None:
    first, second = np.flatnonzero(tables["outputs"] >= 0)[:2]
    tables["outputs"][second] = tables["outputs"][first]


FORGED: dict[str, tuple[Change, str]] = {
    "an input channel that x does not have": (
        _set("inputs", 0, 10**6),
        "job 0: channel 1000000 of 'inputs', but there are 32",
    ),
    "an input channel below none": (_set("inputs", 0, -2), "job 0: an entry of 'inputs' is -2, below -1"),
    "an output channel that y does not have": (
        _set("outputs", 0, 10**6),
        "job 0: channel 1000000 of 'outputs', but there are 32",
    ),
    "a channel that two outputs write": (_one_output_twice, "is written 2 times, expected once"),
    "a shape that the kernel does not have": (_set("jobs", (0, 0), 99), "variant 99 does not exist"),
    "more outputs than the tile has": (_set("jobs", (0, 2), 10**6), "job 0: 1000000 outputs, its variant takes 1 to"),
    "inputs beyond their table": (_set("jobs", (0, 3), 2**30), "entries of 'inputs' from 1073741824 on, which has"),
    "fewer than no inputs": (_set("jobs", (0, 4), -1), "job 0: -1 entries of 'inputs' from 0 on"),
    "weights beyond their table": (_set("jobs", (0, 5), 2**30), "entries of 'w' from 1073741824 on, which has"),
    "pixels in front of the first": (_set("jobs", (0, 6), -64), "pixels from -64 on, but there are 64"),
    "pixels behind the last": (_set("jobs", (0, 6), 2**30), "pixels from 1073741824 on, but there are 64"),
    "further places that there are none of": (_set("jobs", (0, 9), 1), "job 0: 1 extras from 0 on do not exist"),
    "fewer than no further places": (_set("jobs", (0, 9), -1), "job 0: -1 extras from 0 on do not exist"),
    "more positions than jobs compute": (
        _configure(output_size=[1, 8000, 8000]),
        "all jobs write 2048 elements at most, expected 2048000000",
    ),
    "no jobs": (_without_jobs, "table 'jobs' has 0 entries, expected 1 to 2147483647"),
    "weights of another type": (_wide_weights, "table 'w' is float64, expected float16 or bfloat16 or float32"),
    "an input of other channels": (_configure(input_channels=1), "of 'inputs', but there are 1"),
    "no positions": (_configure(output_size=[1, 0, 1]), "'output_size' is 0; allowed: 1 or more"),
    "negative pads": (_configure(pads=[0, -1, 0]), "'pads[1]' is -1; allowed: whole numbers from 0 to 2,147,483,647"),
    "strides of nothing": (_configure(strides=[1, 0, 1]), "'strides[1]' is 0; allowed: whole numbers from 1 to"),
    "no images": (_configure(images=0), "'images' is 0; allowed: whole numbers from 1"),
    "an unknown activation": (_configure(activation="tanh"), "'activation' is 'tanh'; allowed: none, relu, hardswish"),
    "an unknown type": (_configure(element="int8"), "'element' is 'int8'; allowed: fp16, bf16, tf32, fp32"),
    "no shapes": (_configure(variants=[]), "'variants' are 0 shapes; allowed: 1 to 64 shapes"),
    "shapes that are none": (_configure(variants=[1]), "shape 0: 1 is not an object with 'path', 'outputs'"),
    "axes that are none": (_configure(kernel="3x3"), "'kernel' is '3x3'; allowed: 3 numbers, one an axis"),
}


@pytest.mark.parametrize("name", FORGED)
def test_tables_that_are_not_those_of_their_name_are_refused(name: str, package: Path, tmp_path: Path) -> None:
    wrong = tampered(package, tmp_path / "wrong", FORGED[name][0], renamed=False)
    with pytest.raises(InputError, match="are not those that it is named after; optimize the original model again"):
        verify_kernels(wrong)


@pytest.mark.parametrize("name", FORGED)
def test_forged_tables_are_refused_before_anything_runs(name: str, package: Path, tmp_path: Path) -> None:
    change, message = FORGED[name]
    forged = tampered(package, tmp_path / "forged", change, renamed=True)
    code, _, err = onnxopt("verify", str(package.parent / "model.onnx"), str(forged), "--kernels")
    assert code == 2, err
    assert message in err
    assert "emulating" not in err


def test_forged_weights_that_are_not_numbers_are_computed_as_such(package: Path, tmp_path: Path) -> None:
    """Nothing is wrong with the kernel then: its results are NaN where the reference's are."""
    forged = tampered(package, tmp_path / "forged", _set("w", 0, np.nan), renamed=True)
    (report,) = verify_kernels(forged, cache=package.parent / "cache")
    assert report.passed

"""Tactics in a package, emulated among the tables of the others: what is caught, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

from onnxopt import api
from onnxopt.deploy.aot_model import AOT_MODEL, operator_of
from onnxopt.deploy.launcher_model import LAUNCHER_MODEL
from onnxopt.deploy.manifest import read_manifest, write_manifest
from onnxopt.deploy.operators_file import OPERATORS_FILE
from onnxopt.deploy.packaged_kernels import ptx_name
from onnxopt.errors import InputError
from onnxopt.lower.rewrite import is_plugin_node
from onnxopt.package import package_files
from onnxopt.plan.tables.types import configuration_of
from onnxopt.verification import VerifyReport
from onnxopt.verification.kernel_report import KernelReport
from onnxopt.verification.outcome import with_kernels
from onnxopt.verification.package_kernels import verify_kernels
from samples import build as sample

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tactics")
    (folder / "model.onnx").write_bytes(sample("neighbourhood").to_bytes())
    return api.optimize(
        folder / "model.onnx",
        folder / "package",
        target="sm_90",
        form="plugin",
        kernel_dtype="fp16",
        cache=folder / "cache",
        verify=False,
    ).package


def changed(package: Path, place: Path, change: Change) -> Path:
    """A copy of a package after a change, with a manifest that lists what it is then."""
    shutil.copytree(package, place)
    change(place)
    old = read_manifest(package)
    write_manifest(place, target=old.target, versions=old.versions, source=old.source, files=package_files(place))
    return place


def emulated(package: Path, programs: Path) -> dict[int | None, KernelReport]:
    """What was found of the operator's own kernel and of each tactic that was run, by its number."""
    reports = verify_kernels(package, orders=(0,), cache=programs)
    return {report.tactic: report for report in reports}


def described(package: Path) -> dict[str, Any]:
    """The one operator in ``operators.json``."""
    (operator,) = json.loads((package / OPERATORS_FILE).read_text())["operators"]
    found: dict[str, Any] = operator
    return found


def describe(package: Path, operator: dict[str, Any]) -> None:
    document = json.loads((package / OPERATORS_FILE).read_text())
    (package / OPERATORS_FILE).write_text(json.dumps({**document, "operators": [operator]}))


def plugin_node(model: ModelProto) -> NodeProto:
    (node,) = filter(is_plugin_node, model.graph.node)
    return node


def place_of(operator: dict[str, Any], tactic: int, name: str) -> int:
    """Which input of an operator a table of a tactic is."""
    first = operator["tactics"][tactic]["first_table"]
    place = next(n for n, port in enumerate(operator["tables"]) if n >= first and port["name"] == name)
    return len(operator["operands"]) + place


def table_of(model: ModelProto, place: int) -> npt.NDArray[Any]:
    """An input of the operator that is a constant."""
    wanted = plugin_node(model).input[place]
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == wanted))


def give_table(model: ModelProto, place: int, table: npt.NDArray[Any]) -> None:
    """Another constant for an input; tactics may share the one that was there."""
    model.graph.initializer.append(numpy_helper.from_array(table, "given"))
    plugin_node(model).input[place] = "given"


def with_ptx(package: Path, tactic: int, edit: Callable[[str], str]) -> None:
    path = package / ptx_name(f"{described(package)['name']}.{tactic}")
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))


def without_exponentials(text: str) -> str:
    return text.replace("ex2.approx.ftz.f32", "mov.f32")


def for_another(text: str) -> str:
    return text.replace(".target sm_90a", ".target sm_80")


def test_a_wrong_tactic_is_caught_and_named(package: Path, programs: Path, tmp_path: Path) -> None:
    wrong = changed(package, tmp_path / "wrong", lambda place: with_ptx(place, 1, without_exponentials))
    found = emulated(wrong, programs)
    assert {tactic: report.passed for tactic, report in found.items()} == {None: True, 1: False}
    assert found[1].label == "attention-0, tactic 1"
    report = with_kernels(VerifyReport(True, "float64", 0, ()), tuple(found.values()))
    assert not report.passed
    assert report.explain().startswith("the kernel of attention-0, tactic 1, emulated: ")


def test_a_first_tactic_of_other_code_is_run_by_itself(package: Path, programs: Path, tmp_path: Path) -> None:
    wrong = changed(package, tmp_path / "wrong", lambda place: with_ptx(place, 0, for_another))
    found = emulated(wrong, programs)
    assert {tactic: report.passed for tactic, report in found.items()} == {None: True, 0: False, 1: True}
    assert "is for sm_80, expected sm_90a" in found[0].problem
    assert not found[None].alike


def test_a_tactic_that_reads_the_table_of_another_is_caught(package: Path, programs: Path, tmp_path: Path) -> None:
    operator = described(package)
    operands = len(operator["operands"])
    own, other = (operands + operator["tactics"][tactic]["first_table"] for tactic in (1, 0))

    def redirected(text: str) -> str:
        return text.replace(f"[sparse_attention_param_{own}]", f"[sparse_attention_param_{other}]")

    found = emulated(changed(package, tmp_path / "wrong", lambda place: with_ptx(place, 1, redirected)), programs)
    assert f"argument {other}" in found[1].problem
    assert found[None].passed


def test_a_table_that_was_changed_is_refused(package: Path, tmp_path: Path) -> None:
    def other_jobs(place: Path) -> None:
        model = onnx.load(place / AOT_MODEL)
        jobs = place_of(described(place), 1, "jobs")
        give_table(model, jobs, 1 + table_of(model, jobs))
        onnx.save(model, place / AOT_MODEL)

    wrong = changed(package, tmp_path / "wrong", other_jobs)
    with pytest.raises(InputError, match=r"model\.aot\.onnx: node .*: the tables of a tactic are not those"):
        verify_kernels(wrong)


def test_forged_tables_are_refused_before_anything_runs(package: Path, tmp_path: Path) -> None:
    def forged(place: Path) -> None:
        """A tactic with jobs that lie behind its tables, with names and hashes made to fit."""
        model, operator = onnx.load(place / AOT_MODEL), described(place)
        tactic = operator["tactics"][1]
        configuration = tactic["configuration"]
        places = {name: place_of(operator, 1, name) for name in configuration["shapes"]}
        # The hash is that of the tables in the order of the inputs.
        arrays = {name: table_of(model, places[name]) for name in sorted(places, key=lambda name: places[name])}
        arrays["jobs"] = np.where(arrays["jobs"] == 0, arrays["jobs"], 1_000_000).astype(np.int32)
        give_table(model, places["jobs"], arrays["jobs"])
        tactic["configuration"] = configuration_of(configuration["operator"], configuration["kernel"], arrays)
        before, after = operator["name"], operator_of([each["configuration"] for each in operator["tactics"]])
        operator["name"] = plugin_node(model).op_type = after
        for path in list((place / "kernels").glob(f"{before}.*")):
            path.rename(path.with_name(path.name.replace(before, after)))
        describe(place, operator)
        onnx.save(model, place / AOT_MODEL)

    wrong = changed(package, tmp_path / "wrong", forged)
    told: list[int] = []
    with pytest.raises(InputError, match=r"model\.aot\.onnx: attention-0, tactic 1: .*1000000"):
        verify_kernels(wrong, progress=lambda done, _: told.append(done))
    assert not told


def test_a_launch_that_is_not_the_kernels_is_caught(package: Path, programs: Path, tmp_path: Path) -> None:
    def less_memory(place: Path) -> None:
        operator = described(place)
        operator["tactics"][1]["shared_bytes"] -= 16
        describe(place, operator)

    found = emulated(changed(package, tmp_path / "wrong", less_memory), programs)
    assert "operators.json launches it with" in found[1].problem
    assert found[None].passed


def test_what_belongs_together_has_to_be_there(package: Path, tmp_path: Path) -> None:
    for name in (AOT_MODEL, OPERATORS_FILE):

        def without(place: Path, name: str = name) -> None:
            (place / name).unlink()

        incomplete = changed(package, tmp_path / name, without)
        with pytest.raises(InputError, match=f"{name} is not in "):
            verify_kernels(incomplete)
    (ptx,) = (package / "kernels").glob("*.1.ptx")
    incomplete = changed(package, tmp_path / "kernel", lambda place: (place / "kernels" / ptx.name).unlink())
    with pytest.raises(InputError, match=f"lists no kernel of the operator {ptx.stem}"):
        verify_kernels(incomplete)


def test_without_files_for_tensorrt_the_operators_alone_are_run(package: Path, programs: Path, tmp_path: Path) -> None:
    def without(place: Path) -> None:
        for name in (AOT_MODEL, OPERATORS_FILE, LAUNCHER_MODEL):
            (place / name).unlink()

    found = emulated(changed(package, tmp_path / "plain", without), programs)
    assert list(found) == [None]
    assert found[None].passed and not found[None].alike

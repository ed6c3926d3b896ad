"""The generated plugin module, held against NVIDIA's own plugin code: its checks, its registry, its plugin objects."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import pytest

from onnxopt.deploy.engine_operators import Port
from onnxopt.deploy.module_text import KernelFiles, operator_section, parameter_names
from onnxopt.deploy.plugin_module import PLUGIN_MODULE, module_text, write_module
from onnxopt.errors import InputError
from tests.deploy.lean_answers import check_answer, check_nodes
from tests.deploy.lean_made_up import small, with_files
from tests.deploy.lean_packages import (
    MODELS,
    SMALL,
    TALL,
    Package,
    answers,
    ask,
    attention,
    code_of,
    needs_lean,
    packaged,
    with_two_tactics,
)

BATCHES = (1, 2, 5)
QUICK = ("attention", "split", "sum", "block")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Package]:
    """A package of one of the small models, made on first use."""
    made: dict[str, Package] = {}

    def get(name: str) -> Package:
        if name not in made:
            made[name] = packaged(tmp_path_factory.mktemp("modules") / name, MODELS[name]())
        return made[name]

    return get


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A package whose attention has two tactics."""
    return with_two_tactics(tmp_path_factory.mktemp("modules") / "two", [attention(SMALL), attention(TALL)])


@needs_lean
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n not in QUICK)])
def test_the_plugin_objects_say_what_the_operators_are(package: Callable[[str], Package], name: str) -> None:
    own = package(name)
    said = answers(own.module, own.operators, BATCHES)
    assert list(said) == [operator.name for operator in own.operators]
    for operator in own.operators:
        check_answer(operator, said[operator.name], own.folder, BATCHES)
        assert code_of(said[operator.name]["tactics"][0]).decode() == own.kernels[operator.name][0].ptx
    assert check_nodes(own.model, own.plugin, own.operators, said) >= len(own.operators)


@needs_lean
def test_every_tactic_has_its_own_kernel_and_launch(two: Package) -> None:
    (operator,) = two.operators
    said = answers(two.module, two.operators, BATCHES)[operator.name]
    check_answer(operator, said, two.folder, BATCHES)
    first, second = said["tactics"]
    assert first["code"] != second["code"]
    assert first["launches"][0] != second["launches"][0]
    assert [code_of(tactic).decode() for tactic in said["tactics"]] == [k.ptx for k in two.kernels[operator.name]]
    inputs = [port.name for port in operator.operands] + [name for n in two.nodes[operator.name] for name in n.tables]
    assert len(parameter_names(operator)) == len(inputs)


@needs_lean
def test_any_sizes_and_types_are_written(tmp_path: Path) -> None:
    operator = small()
    module = write_module(with_files(tmp_path, operator), [operator], "sm_90")
    said = answers(module, [operator], (1, 4))[operator.name]
    check_answer(operator, said, tmp_path, (1, 4))
    assert said["output_shapes"] == [[[3, 8], [2, 2, 3]], [[12, 8], [2, 8, 3]]]
    assert [launch["grid_x"] for launch in said["tactics"][0]["launches"]] == [3, 6]
    assert [launch["grid_x"] for launch in said["tactics"][1]["launches"]] == [5, 20]
    assert parameter_names(operator) == ("x", "residual", "jobs_1", "outputs_1", "jobs_2")


@needs_lean
def test_machine_code_is_given_where_that_is_asked_for(tmp_path: Path) -> None:
    operator = small()
    module = write_module(with_files(tmp_path, operator), [operator], "sm_90")
    said = answers(module, [operator], (1,), form="cubin")[operator.name]
    assert [code_of(tactic) for tactic in said["tactics"]] == [b"machine code 0", b"machine code 1"]
    said = answers(module, [operator], (1,), form="sass")[operator.name]
    assert said["error"] == "ValueError: CODE_FORM is 'sass'; allowed: ptx, cubin"


@needs_lean
def test_a_kernel_that_is_another_or_missing_is_refused(tmp_path: Path) -> None:
    operator = small()
    module = write_module(with_files(tmp_path, operator), [operator], "sm_90")
    kernel = tmp_path / "kernels" / f"{operator.name}.1.ptx"
    kernel.write_text("PTX 2")
    error = answers(module, [operator], (1,))[operator.name]["error"]
    assert f"{kernel} is not the kernel that belongs to this module: its SHA-256 is " in error
    kernel.unlink()
    error = answers(module, [operator], (1,))[operator.name]["error"]
    assert error == f"RuntimeError: cannot read the kernel {kernel}: No such file or directory; get the package again"


MUTATIONS = {
    "a tensor without annotation": ("x: TensorDesc, residual", "x, residual", "does not have a type annotation"),
    "a tensor by another name": (
        "def compiled(\n        x: TensorDesc",
        "def compiled(\n        other: TensorDesc",
        "Unexpected tensor 'other' specified",
    ),
    "an attribute that is not registered": (
        "outputs: tuple[TensorDesc, TensorDesc],\n        tactic: int",
        "size: int, outputs: tuple[TensorDesc, TensorDesc],\n        tactic: int",
        "Unexpected attribute 'size' specified in aot_impl function",
    ),
    "no result of the kernel": (
        " -> tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:\n        return ahead",
        ":\n        return ahead",
        "No return annotation found for aot_impl function",
    ),
    "a launch of another type": (
        "trtp.KernelLaunchParams, trtp.SymIntExprs]:\n        return ahead",
        "int, trtp.SymIntExprs]:\n        return ahead",
        "Argument at index 2 of return annotation is",
    ),
    "code that is a number": (
        "tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:\n        return ahead",
        "tuple[str, int, trtp.KernelLaunchParams, trtp.SymIntExprs]:\n        return ahead",
        "Return annotation for argument at 1 is",
    ),
    "an attribute of a type that is none": (
        "jobs_2: TensorDesc,\n    ) ->",
        "jobs_2: TensorDesc, kinds: list,\n    ) ->",
        "is not a supported",
    ),
    "formats without their type": ("-> list[trtp.AutoTuneCombination]", "-> list[int]", "Return types can only be"),
    "no stream": ("        stream: int,\n", "", "does not match the expected input arg schema"),
    "outputs that are no tuple": ("outputs: tuple[Tensor, Tensor]", "outputs: Tensor", "'outputs' should be of type"),
}


@needs_lean
def test_nvidias_checks_refuse_what_is_wrong(tmp_path: Path) -> None:
    operator = small()
    text = module_text(with_files(tmp_path, operator), [operator], "sm_90")
    places = []
    for number, (before, after, _) in enumerate(MUTATIONS.values()):
        assert before in text, before
        place = tmp_path / f"mutant{number}.py"
        # Each under a name of its own, as the registry keeps what it has.
        place.write_text(text.replace(before, after).replace(operator.name, f"{operator.name}{number:02}"))
        places.append(str(place))
    found = ask("imports", modules=places, versions=[""] * len(places))
    for (what, (_, _, expected)), error in zip(MUTATIONS.items(), found, strict=True):
        assert error.startswith("ValueError: "), what
        assert expected in error, what


@needs_lean
def test_fields_that_an_operator_does_not_have_are_refused(tmp_path: Path) -> None:
    operator = small()
    module = write_module(with_files(tmp_path, operator), [operator], "sm_90")
    (error,) = ask("refusals", module=str(module), names=[operator.name], field="scale")
    assert "Unexpected attribute scale provided to create_plugin" in error


def test_the_text_stands_alone_and_is_the_same_each_time(tmp_path: Path) -> None:
    operator = small()
    with_files(tmp_path, operator)
    text = write_module(tmp_path, [operator], "sm_90").read_text(encoding="ascii")
    copy = shutil.copytree(tmp_path, tmp_path.parent / "copy")
    assert write_module(copy, [operator], "sm_90").read_text() == text
    tree = ast.parse(text)
    froms = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    plain = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    outside = {name for name in froms | plain if name and name.partition(".")[0] not in sys.stdlib_module_names}
    # Annotations that are texts would not pass NVIDIA's checks.
    assert "__future__" not in froms
    assert outside == {"tensorrt", "tensorrt.plugin", "cuda.bindings"}
    words = ("check", "--isolated", "--no-cache", "--line-length=120", "--select=E,F,W,B,I,UP,RET,SIM", PLUGIN_MODULE)
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([ruff, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_text_says_what_it_is_for(tmp_path: Path) -> None:
    operator = small()
    with_files(tmp_path, operator)
    hopper = module_text(tmp_path, [operator], "sm_90")
    assert "COMPUTE_CAPABILITY = (9, 0)" in hopper
    assert "is for sm_90a alone" in hopper
    with_files(tmp_path, operator, "sm_89")
    ada = module_text(tmp_path, [operator], "sm_89")
    assert "COMPUTE_CAPABILITY = (8, 9)" in ada
    assert "A newer one can load their PTX too" in ada


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "x'); import os"}, 'the name "x\'); import os"; allowed'),
        ({"name": "CODE_FORM"}, "the name 'CODE_FORM'; allowed"),
        ({"operands": ()}, "no operand"),
        ({"operands": (Port("x y", "fp16", (None,)),)}, "a tensor 'x y' of type 'fp16'"),
        ({"operands": (Port("x", "int8", (None,)),)}, "a tensor 'x' of type 'int8'"),
        ({"operands": (Port("x", "fp16", (None,) + (1,) * 8),)}, "'x' has 9 sizes; TensorRT takes up to 8"),
        ({"operands": (Port("x", "fp16", (None,)),) * 2}, "two inputs are called 'x'"),
        ({"tables": ()}, "the tables of its tactics are not its 0 tables"),
    ],
)
def test_what_cannot_be_written_is_refused(changes: dict[str, Any], reason: str) -> None:
    operator, files = small(), KernelFiles("kernel.0", "0" * 64, "f" * 64)
    with pytest.raises(InputError) as refused:
        operator_section(Template(""), replace(operator, **changes), [files] * 2, "sm_90a")
    assert reason in str(refused.value)


def test_kernels_architectures_and_names_are_checked(tmp_path: Path) -> None:
    operator = small()
    with pytest.raises(InputError, match=f"{operator.name}.0.ptx"):
        module_text(tmp_path, [operator], "sm_90")
    with_files(tmp_path, operator)
    with pytest.raises(InputError, match="kernels cannot be compiled for 'sm_1'"):
        module_text(tmp_path, [operator], "sm_1")
    with pytest.raises(InputError, match="registers each name once"):
        module_text(tmp_path, [operator, operator], "sm_90")

"""Every convolution kernel that plans ask for, without running it: no local memory, its instructions, room for blocks.

A few kernels are compiled by every run, all of them by ``make test-all``.
"""

from __future__ import annotations

import re

import pytest

from onnxopt.kernels.compilation import ARCHITECTURES, CompiledKernel, architecture_for
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_launch import SUM_THREADS, group_conv_launch, group_conv_parameters, sum_conv_parameters
from onnxopt.kernels.conv_sass import check_conv_sass
from onnxopt.kernels.conv_source import sum_conv_source
from onnxopt.kernels.sass import check_occupancy, instructions, mnemonics
from onnxopt.target import load_target
from onnxopt.target.architecture import LACKING_TYPES
from tests.kernels.configurations import read_ceilings
from tests.kernels.conv_configurations import CEILINGS, LAYERS, ConvConfiguration, read_conv_configurations

_ALL = read_conv_configurations()
_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
_PARAMETER = re.compile(r"\.param\s+\.(u64|u32)\b")


def _cases() -> list[object]:
    return [pytest.param(c, id=c.name, marks=() if c.quick else pytest.mark.slow) for c in _ALL]


@pytest.mark.parametrize("configuration", _cases())
def test_a_planned_kernel_is_what_the_plan_counts_on(configuration: ConvConfiguration) -> None:
    kernel, compiled = configuration.kernel, configuration.compile()
    taken = compiled.report
    assert (taken.stack, taken.spill_stores, taken.spill_loads) == (0, 0, 0)
    assert check_conv_sass(compiled, kernel) == []
    assert check_occupancy(compiled, load_target(configuration.target).need_gpu_profile()) == []
    assert group_conv_launch(kernel, 7, 3 * kernel["images"], taken).grid == 21
    assert _parameters(compiled) == _expected(group_conv_parameters(kernel))
    ceilings = read_ceilings(compiled.compiler, CEILINGS)
    if ceilings is None:
        pytest.skip(
            f"no golden figures for {compiled.compiler}; `python -m tests.kernels.conv_configurations` measures"
        )
    ceiling = ceilings[configuration.name]
    assert taken.registers <= ceiling["registers"]
    assert taken.shared <= ceiling["shared"]


def _parameters(compiled: CompiledKernel) -> list[str]:
    """The types of an entry's parameters."""
    begin = compiled.ptx.index(f".entry {compiled.source.entry}(")
    return _PARAMETER.findall(compiled.ptx[begin : compiled.ptx.index(")", begin)])


def _expected(names: tuple[str, ...]) -> list[str]:
    return ["u32" if name == "batch" else "u64" for name in names]


def test_every_architecture_element_and_path_is_among_the_kernels() -> None:
    assert {c.target for c in _ALL if c.quick} == set(_TARGETS)
    assert {architecture_for(target) for target in _TARGETS} <= set(ARCHITECTURES)
    assert {v["path"] for c in _ALL if c.quick for v in c.kernel["variants"]} >= {"mma", "lanes"}
    seen = {(c.kernel["element"], v["path"]) for c in _ALL for v in c.kernel["variants"]}
    assert seen >= {(element, "mma") for element in ("fp16", "bf16", "tf32", "fp32")}
    assert {element for element, path in seen if path == "lanes"} >= {"fp16", "fp32"}
    for flag in ("prologue", "residual", "extras", "split"):
        assert {c.kernel[flag] for c in _ALL} == {False, True}
    assert {c.kernel["layout"] for c in _ALL} == {"first", "last"}
    assert {c.kernel["activation"] for c in _ALL} == {"none", "relu", "hardswish", "silu"}
    assert any(c.kernel["images"] > 1 for c in _ALL)
    assert all(any(c.name.startswith(layer) for c in _ALL) for layer in LAYERS)
    assert len({c.name for c in _ALL}) == len(_ALL)


@pytest.mark.parametrize(("number", "target"), list(enumerate(_TARGETS)))
def test_the_sum_of_partial_rows(number: int, target: str) -> None:
    elements = [e for e in ("fp16", "bf16", "tf32", "fp32") if e not in LACKING_TYPES.get(target, ())]
    kernel = {
        "element": elements[number % len(elements)],
        "layout": ("first", "last")[number // 2 % 2],
        "output_channels": 33,
        "output_size": [1, 7, 7],
        "activation": ("none", "relu", "hardswish", "silu")[number // 2],
        "residual": number % 3 == 0,
        "slots": 90,
    }
    compiled = compile_kernel(sum_conv_source(kernel), architecture_for(target))
    assert compiled.report.threads == SUM_THREADS
    assert compiled.report.dynamic_shared == 0
    assert _parameters(compiled) == _expected(sum_conv_parameters(kernel))
    found = mnemonics(instructions(compiled.cubin))
    assert not found["LDL"] + found["STL"]

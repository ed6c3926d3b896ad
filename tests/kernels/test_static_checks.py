"""Every kernel that plans ask for, without running it: no local memory, the instructions of its path, room for blocks.

A few kernels are compiled by every run, all of them by ``make test-all``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxopt.kernels.compilation import ARCHITECTURES, CompiledKernel, architecture_for
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.launch import MERGE_PARAMETERS, MERGE_WARPS, attention_launch, parameter_names
from onnxopt.kernels.sass import check_occupancy, check_sass, instructions, mnemonics
from onnxopt.kernels.source import merge_source
from onnxopt.target import load_target
from onnxopt.target.architecture import LACKING_TYPES
from tests.kernels.configurations import Configuration, read_ceilings, read_configurations

_ALL = read_configurations()
_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
_PARAMETER = re.compile(r"\.param\s+\.(u64|u32)\b")


def _cases() -> list[object]:
    return [pytest.param(c, id=c.name, marks=() if c.quick else pytest.mark.slow) for c in _ALL]


@pytest.mark.parametrize("configuration", _cases())
def test_a_planned_kernel_is_what_the_plan_counts_on(configuration: Configuration) -> None:
    compiled = configuration.compile()
    taken = compiled.report
    assert (taken.stack, taken.spill_stores, taken.spill_loads) == (0, 0, 0)
    assert check_sass(compiled, configuration.kernel) == []
    assert check_occupancy(compiled, load_target(configuration.target).need_gpu_profile()) == []
    assert attention_launch(configuration.kernel, 7, 2, taken).grid == 14
    assert _parameters(compiled) == ["u32" if n == "batch" else "u64" for n in parameter_names(configuration.kernel)]
    ceilings = read_ceilings(compiled.compiler)
    if ceilings is None:
        pytest.skip(
            f"no golden figures for {compiled.compiler}; `python -m tests.kernels.configurations` measures them"
        )
    ceiling = ceilings[configuration.name]
    assert taken.registers <= ceiling["registers"]
    assert taken.shared <= ceiling["shared"]


def _parameters(compiled: CompiledKernel) -> list[str]:
    """The types of an entry's parameters."""
    begin = compiled.ptx.index(f".entry {compiled.source.entry}(")
    return _PARAMETER.findall(compiled.ptx[begin : compiled.ptx.index(")", begin)])


def test_every_architecture_element_and_path_is_among_the_kernels() -> None:
    assert {c.target for c in _ALL if c.quick} == set(_TARGETS)
    assert {architecture_for(target) for target in _TARGETS} <= set(ARCHITECTURES)
    seen = {(c.kernel["element"], v["path"], v["swapped"]) for c in _ALL for v in c.kernel["variants"]}
    halves = {(e, path, swapped) for e in ("fp16", "bf16") for path in ("mma", "wgmma") for swapped in (False, True)}
    assert seen == halves | {("tf32", "mma", False), ("fp32", "mma", False)}
    for flag in ("own_values", "masks", "biases", "extras", "split", "weights"):
        assert {c.kernel[flag] for c in _ALL} == {False, True}
    assert {16, 32, 64, 128, 256} <= {c.kernel["width"] for c in _ALL}
    assert any(c.kernel[name][1] > 1 for c in _ALL for name in "qkvy")
    assert len({c.name for c in _ALL}) == len(_ALL)


@pytest.mark.parametrize("target", _TARGETS)
def test_the_merge_of_split_keys(target: str, tmp_path: Path) -> None:
    elements = [e for e in ("fp16", "bf16", "tf32", "fp32") if e not in LACKING_TYPES.get(target, ())]
    for element, width in zip(elements, (32, 64, 20, 256), strict=False):
        kernel = {"element": element, "value_width": width, "slots": 40, "y": [width * 10, 1]}
        compiled = compile_kernel(merge_source(kernel), architecture_for(target))
        assert compiled.report.threads == 32 * MERGE_WARPS
        assert compiled.report.dynamic_shared == 0
        assert _parameters(compiled) == ["u32" if name == "batch" else "u64" for name in MERGE_PARAMETERS]
    found = mnemonics(instructions(compiled.cubin))
    assert not found["LDL"] + found["STL"]

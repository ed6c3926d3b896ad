"""Kernels that are called with tables of other kernels too compute what they compute alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.emulate import CpuKernel, Uninitialised, build_cpu_kernel
from onnxopt.errors import InputError
from onnxopt.kernels.algorithm_source import ALGORITHM_FILES, algorithm_source
from onnxopt.kernels.block_source import conv_block_source
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.kernels.source import MOST_OTHERS, KernelSource, attention_source, merge_source, others_of, with_others
from onnxopt.plan.algorithms.steps import algorithm_steps
from onnxopt.plan.tables import RuntimeWeights, attention_tables
from onnxopt.target.variant import AttentionVariant, ConvVariant
from onnxopt.verification.algorithm_kernels import check_algorithm
from onnxopt.verification.block_kernels import check_conv_block
from onnxopt.verification.conv_kernels import check_group_conv, check_sum_conv
from onnxopt.verification.kernels import check_attention, check_merge
from onnxopt.verification.same_code import same_code
from tests.kernels.block_cases import SMALL as SMALL_BLOCK
from tests.kernels.block_cases import WISHES as BLOCK_WISHES
from tests.kernels.block_cases import made_case as made_block_case
from tests.kernels.conv_cases import WISHES, made_case
from tests.kernels.small import attention_kernel
from tests.plan.schedules import scheduled
from tests.plan.sites import Wish, made_site
from tests.validate.test_reference_algorithms import CASES

_ARCHITECTURE = "sm_80"
_ONCE = (0,)
_BEFORE, _AFTER = 3, 5
# Where no tensor lies, and a kernel that reads there is stopped.
_NOWHERE = (np.uint64(0), np.uint64(0x7EADBEEF00000000))
_PARAMETER = re.compile(r"\.param\s+\.(u64|u32)\b")
_USE = re.compile(r"(_param_)(\d+)")

# Operands in front of the tables, as docs/tables.md and docs/algorithms.md list them.
_OPERANDS = {
    "sparse_attention": 3,
    "merge_attention": 2,
    "group_conv": 2,
    "conv_block": 2,
    "sum_conv": 2,
    "conv_scalar": 2,
    "conv_unfold": 1,
    "conv_product": 2,
    "conv_shift_add": 2,
    "conv_direct": 2,
    "conv_slices": 2,
    "winograd_input": 1,
    "winograd_output": 2,
}


@dataclass(frozen=True)
class Recorded:
    """A launch as a check made it; outputs are as they were in front of it."""

    entry: str
    arguments: list[Any]
    launch: dict[str, Any]

    def outputs(self, ptx: str, cache: Path, others: tuple[int, int] | None = None, operands: int = 0) -> list[bytes]:
        """What a kernel makes of the same arguments, with unused pointers among them where it has ``others``."""
        given = [_copy(argument) for argument in self.arguments]
        made = [argument.array for argument in given if isinstance(argument, Uninitialised)]
        if others is not None:
            batch = next(place for place, value in enumerate(given) if isinstance(value, np.int32))
            before, after = ([_NOWHERE[n % 2] for n in range(count)] for count in others)
            given = [*given[:operands], *before, *given[operands:batch], *after, *given[batch:]]
        build_cpu_kernel(ptx, self.entry, cache).run(arguments=given, **self.launch)
        return [array.tobytes() for array in made]


def _copy(argument: Any) -> Any:
    if isinstance(argument, Uninitialised):
        return Uninitialised(argument.array.copy())
    return argument


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The launches of kernels on the CPU from now on."""
    launches: list[Recorded] = []
    run = CpuKernel.run

    def record(kernel: CpuKernel, **launch: Any) -> Any:
        arguments = [_copy(argument) for argument in launch["arguments"]]
        size = {name: launch[name] for name in ("grid", "block", "shared_bytes", "order")}
        launches.append(Recorded(kernel.program.entry, arguments, size))
        return run(kernel, **launch)

    monkeypatch.setattr(CpuKernel, "run", record)
    return launches


@dataclass(frozen=True)
class Family:
    """Kernels that follow each other, and the check that launches them one after the other on the CPU."""

    sources: list[KernelSource]
    check: Callable[[list[CompiledKernel], Path], bool]


def _attention(split: int = 0, weighed: bool = False) -> Family:
    wish = Wish(rows=20, keys=50, width=16, value_width=16, bias=True)
    site, shapes = made_site(wish, 1)
    weights = None
    if weighed:
        columns = np.random.default_rng(0).permutation(50)
        weights = RuntimeWeights("policy", 50, columns, columns[:20].copy(), (0.01, 0.5))
        site = replace(site, runtime=("policy",))
    schedule = scheduled(site, (AttentionVariant("mma", 32, 32, 2, 2),), split_keys=split, element="fp16")
    tables = attention_tables(site, schedule, shapes=shapes, weights=weights)
    kernel, merge = tables.kernel.to_json(), tables.merge

    def check(compiled: list[CompiledKernel], cache: Path) -> bool:
        found = [check_attention(compiled[0], kernel, tables.arrays(), pairs=6_000, orders=_ONCE, cache=cache)]
        if merge is not None:
            own, lines = merge.configuration()["kernel"], merge.arrays()["merges"]
            found.append(check_merge(compiled[1], own, lines, orders=_ONCE, cache=cache))
        return all(each.passed for each in found)

    merging = [] if merge is None else [merge_source(merge.configuration()["kernel"])]
    return Family([attention_source(kernel, 1), *merging], check)


def _convolution(wish: str, variant: ConvVariant) -> Family:
    tables = made_case(WISHES[wish], (variant,), "fp16").tables
    kernel, added = tables.kernel.to_json(), tables.sum

    def check(compiled: list[CompiledKernel], cache: Path) -> bool:
        found = [check_group_conv(compiled[0], kernel, tables.arrays(), orders=_ONCE, cache=cache)]
        if added is not None:
            found.append(check_sum_conv(compiled[1], added.kernel, added.arrays(), orders=_ONCE, cache=cache))
        return all(each.passed for each in found)

    adding = [] if added is None else [sum_conv_source(added.kernel)]
    return Family([group_conv_source(kernel, 1), *adding], check)


def _block() -> Family:
    tables = made_block_case(BLOCK_WISHES["shuffle"], SMALL_BLOCK, "fp16").tables
    kernel = tables.kernel.to_json()

    def check(compiled: list[CompiledKernel], cache: Path) -> bool:
        (own,) = compiled
        return check_conv_block(own, kernel, tables.arrays(), products=400_000, orders=_ONCE, cache=cache).passed

    return Family([conv_block_source(kernel, 1)], check)


def _algorithm(name: str, case: str) -> Family:
    steps = algorithm_steps(name, CASES[case], "fp16", residual=True)

    def check(compiled: list[CompiledKernel], cache: Path) -> bool:
        return check_algorithm(
            name, CASES[case], "fp16", _ARCHITECTURE, steps=steps, residual=True, batch=1, orders=_ONCE, cache=cache
        ).passed

    return Family([algorithm_source(step.operator, step.kernel) for step in steps], check)


_MMA, _LANES = ConvVariant("mma", 16, 16, 32, 2, 2), ConvVariant("lanes", 4, 1, 32, 1, 1)

_FAMILIES: dict[str, Callable[[], Family]] = {
    "attention": _attention,
    "attention and merge": lambda: _attention(split=24),
    "attention with weights": lambda: _attention(weighed=True),
    "convolution on the matrix unit": lambda: _convolution("repeated outputs", _MMA),
    "convolution in lanes": lambda: _convolution("prologue", _LANES),
    "convolution and sum": lambda: _convolution("split inputs", _MMA),
    "block": _block,
    "scalar-matrix": lambda: _algorithm("scalar_matrix", "one axis"),
    "kn2row": lambda: _algorithm("kn2row", "one axis"),
    "im2col": lambda: _algorithm("im2col", "one axis"),
    "direct": lambda: _algorithm("direct", "one axis"),
    "slices and sum": lambda: _algorithm("depthwise", "3x3"),
    "depthwise": lambda: _algorithm("depthwise", "depthwise"),
    "winograd": lambda: _algorithm("winograd_2x2", "3x3 asymmetric"),
}
_QUICK = ("scalar-matrix", "convolution and sum")


@pytest.mark.parametrize("family", _FAMILIES)
def test_only_the_numbers_of_parameters_differ(family: str, programs: Path) -> None:
    for source in _FAMILIES[family]().sources:
        plain = _lines(compile_kernel(source, _ARCHITECTURE, programs).ptx, source)
        among = _lines(compile_kernel(with_others(source, _BEFORE, _AFTER), _ARCHITECTURE, programs).ptx, source)
        first = _operands(source)
        own = plain.declared.index("u32")
        unused = ["u64"] * (_BEFORE + _AFTER)
        assert among.declared == [*plain.declared[:own], *unused, *plain.declared[own:]]
        moved = [*range(first), *(n + _BEFORE for n in range(first, own))]
        moved += [n + _BEFORE + _AFTER for n in range(own, len(plain.declared))]
        assert among.body == _renumbered(plain.body, moved)


@pytest.mark.parametrize("family", _FAMILIES)
def test_the_code_is_found_to_be_the_same(family: str, programs: Path) -> None:
    for source in _FAMILIES[family]().sources:
        plain = compile_kernel(source, _ARCHITECTURE, programs).ptx
        among = compile_kernel(with_others(source, _BEFORE, _AFTER), _ARCHITECTURE, programs).ptx
        operands, own = _operands(source), _lines(plain, source).declared.index("u32")
        inputs, others = (operands, own - operands), (_BEFORE, _AFTER)
        assert same_code(plain, among, source.entry, inputs, others)
        assert not same_code(plain, among, source.entry, inputs, (_AFTER, _BEFORE)) or own == operands
        assert not same_code(plain, plain, source.entry, inputs, others)
        assert not same_code(plain, among.replace("_param_0]", "_param_1]"), source.entry, inputs, others)
        assert not same_code(plain, f"{among}//", source.entry, inputs, others)
        assert not same_code(plain, among, "another_entry", inputs, others)


@pytest.mark.parametrize(
    "family",
    [
        "convolution and sum",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("attention and merge", "attention with weights", "block")
        ),
    ],
)
def test_checks_call_a_kernel_among_others(family: str, programs: Path) -> None:
    made = _FAMILIES[family]()
    sources = [with_others(source, _BEFORE, _AFTER) for source in made.sources]
    assert [others_of(source) for source in sources] == [(_BEFORE, _AFTER)] * len(sources)
    assert made.check([compile_kernel(source, _ARCHITECTURE, programs) for source in sources], programs)


@pytest.mark.parametrize("family", [pytest.param(n, marks=() if n in _QUICK else pytest.mark.slow) for n in _FAMILIES])
def test_unused_tables_change_no_result(family: str, recorded: list[Recorded], programs: Path) -> None:
    made = _FAMILIES[family]()
    compiled = [compile_kernel(source, _ARCHITECTURE, programs) for source in made.sources]
    assert made.check(compiled, programs)
    launches = list(recorded)
    for plain, launch in zip(compiled, launches, strict=True):
        assert plain.source.entry == launch.entry
        among = compile_kernel(with_others(plain.source, _BEFORE, _AFTER), _ARCHITECTURE, programs)
        expected = launch.outputs(plain.ptx, programs)
        assert launch.outputs(among.ptx, programs, (_BEFORE, _AFTER), _operands(plain.source)) == expected
        assert any(any(output) for output in expected)


def test_every_entry_is_among_the_families() -> None:
    attention, convolutions = {"sparse_attention", "merge_attention"}, {"group_conv", "sum_conv", "conv_block"}
    found = {source.entry for made in _FAMILIES.values() for source in made().sources}
    assert found == set(_OPERANDS) == attention | convolutions | set(ALGORITHM_FILES.values())


def _operands(source: KernelSource) -> int:
    """Operands of one kernel: without a residual one fewer, with run-time weights one more."""
    fewer, more = source.define("RESIDUAL") == "0", source.define("WEIGHTS") == "1"
    return _OPERANDS[source.entry] - int(fewer) + int(more)


def _renumbered(body: str, moved: list[int]) -> str:
    """PTX whose parameters have other numbers."""
    return _USE.sub(lambda found: f"{found[1]}{moved[int(found[2])]}", body)


@dataclass(frozen=True)
class Lines:
    """An entry in PTX: the types of its parameters, and what follows them."""

    declared: list[str]
    body: str


def _lines(ptx: str, source: KernelSource) -> Lines:
    begin = ptx.index(f".entry {source.entry}(")
    end = ptx.index(")", begin)
    return Lines(_PARAMETER.findall(ptx[begin:end]), ptx[end:])


def test_as_many_as_there_may_be(programs: Path) -> None:
    source = merge_source({"element": "fp16", "value_width": 32, "slots": 8, "y": [128, 1]})
    among = compile_kernel(with_others(source, MOST_OTHERS, MOST_OTHERS - 1), _ARCHITECTURE, programs)
    assert _lines(among.ptx, source).declared == ["u64"] * (3 + 2 * MOST_OTHERS - 1) + ["u32", "u64"]


def test_without_others_a_source_is_what_it_was() -> None:
    source = attention_source(attention_kernel(), 1)
    assert with_others(source, 0, 0) is source
    among = with_others(source, 2, 0)
    assert among.defines == (*source.defines, ("OTHERS_BEFORE", "2"), ("OTHERS_AFTER", "0"))
    assert with_others(with_others(source, 4, 1), 2, 0) == among
    assert with_others(among, 0, 0) == source


@pytest.mark.parametrize(("before", "after"), [(65, 0), (0, 65), (-1, 2), (0, -3)])
def test_other_numbers_of_others_are_refused(before: int, after: int) -> None:
    with pytest.raises(InputError, match=r"among others: 'OTHERS_(BEFORE|AFTER)' is -?\d+; allowed: .* 0 to 64"):
        with_others(attention_source(attention_kernel(), 1), before, after)

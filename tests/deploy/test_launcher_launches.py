"""What the launcher asks of the CUDA driver, by a stand-in for it, and the kernels run on the CPU with exactly that."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxopt.deploy.launcher_fields import ArgumentKind
from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.target.device import find_device
from onnxopt.verification.kernel_rule import stored
from tests.deploy.launcher_cases import FAMILIES, batches_of, case, headers_are_there, parsed_fields, parts_of_workspace
from tests.deploy.launcher_cases import Launched as Node
from tests.deploy.launcher_executions import KEPT, execution_of, judged_execution, run_on_gpu
from tests.deploy.launcher_host import Host
from tests.deploy.launcher_requests import CONTEXT, STREAM, Answer, Launched, Request, Run

pytestmark = headers_are_there

Array = npt.NDArray[Any]

_HERE = Path(__file__).parent
_WORKSPACE = 0x7000_0000_0000


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, under the name by which the driver is looked for."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of the driver")
    library = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([*command, str(_HERE / "launcher_fake_cuda.c")], check=True)
    return library


@pytest.fixture
def asked(launcher: Path, fake_cuda: Path, tmp_path: Path) -> Any:
    """What a process with the stand-in answers to a request."""

    def ask(request: Request) -> Answer:
        place = tmp_path / "request.pickle"
        place.write_bytes(pickle.dumps(request))
        command = [sys.executable, str(_HERE / "launcher_launch_child.py"), str(launcher), str(fake_cuda), str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        found = pickle.loads(place.with_suffix(".answer").read_bytes())
        assert isinstance(found, Answer)
        return found

    return ask


def pointer(kind: ArgumentKind, index: int) -> int:
    """A made-up address of an input or output; the workspace's parts follow from where it begins."""
    return {"input": 0x1000_0000_0000, "output": 0x2000_0000_0000}[kind] + index * 0x1_0000_0000


def run_of(node: Node, batch: int) -> Run:
    inputs, outputs = node.inputs(batch), node.outputs(batch)
    pointers = [pointer("input", n) for n in range(len(inputs))] + [pointer("output", n) for n in range(len(outputs))]
    return Run(inputs, outputs, pointers, _WORKSPACE if len(node.operators) == 2 else 0)


def request_for(node: Node, batches: Sequence[int], names: list[str]) -> Request:
    parameters = {
        kernel.source.entry: "p" * (len(operator.operands) + len(operator.tables)) + "i" + "p" * len(operator.outputs)
        for operator, kernel in zip(node.operators, node.kernels, strict=True)
    }
    return Request(parsed_fields(node.node, names), parameters, [run_of(node, batch) for batch in batches])


def expected_values(node: Node, batch: int) -> Iterator[list[int]]:
    """The arguments of each kernel by the description of its operator: operands, tables, the batch, outputs."""
    parts = [_WORKSPACE + begin for begin, _ in parts_of_workspace(node, batch)]
    given = len(node.operators[0].operands)
    first = 0
    for number, operator in enumerate(node.operators):
        tables = [pointer("input", given + first + n) for n in range(len(operator.tables))]
        first += len(operator.tables)
        last = number + 1 == len(node.operators)
        operands = parts if number else [pointer("input", n) for n in range(given)]
        outputs = [pointer("output", n) for n in range(len(operator.outputs))] if last else parts
        yield [*operands, *tables, batch, *outputs]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_driver_is_asked_for_what_the_operators_say(
    family: str, launcher: Path, asked: Any, programs: Path
) -> None:
    names = Host(launcher).field_names()
    for node in case(family).launched:
        batches = batches_of(node)
        answer = asked(request_for(node, batches, names))
        for batch, launches in zip(batches, answer.runs, strict=True):
            assert not isinstance(launches, str), launches
            check_launches(node, batch, launches)
        assert (answer.loaded, answer.early, answer.unloaded) == (len(node.operators), 0, len(node.operators))
        check_results(node, batches[-1], answer.runs[-1], names, programs)


def check_launches(node: Node, batch: int, launches: Sequence[Launched]) -> None:
    assert [launch.values for launch in launches] == list(expected_values(node, batch))
    for operator, kernel, launch in zip(node.operators, node.kernels, launches, strict=True):
        tactic = operator.tactics[0]
        assert launch.entry == tactic.entry
        assert (launch.grid, launch.block) == ((tactic.grid.blocks(batch), 1, 1), (tactic.threads, 1, 1))
        assert launch.shared == launch.shared_allowed == tactic.shared_bytes
        assert launch.stream == STREAM
        assert launch.image == kernel.cubin[:256]


def check_results(node: Node, batch: int, launches: Sequence[Launched], names: list[str], programs: Path) -> None:
    """Run each launch on the CPU, with what its addresses stand for, and judge it by the numeric rule."""
    execution, drawn = execution_of(node, batch, names)
    memory: dict[int, Array | Uninitialised] = {pointer("input", n): a for n, a in enumerate(execution.arrays)}
    for operator, kernel, launch in zip(node.operators, node.kernels, launches, strict=True):
        count = len(launch.values) - len(operator.outputs)
        for address, output in zip(launch.values[count:], operator.outputs, strict=True):
            empty = np.full(batch * output.elements, np.nan, np.float32)
            memory[address] = Uninitialised(stored(KEPT[output.type], empty))
        given = [memory[value] for value in launch.values[: count - 1]]
        made = [memory[value] for value in launch.values[count:]]
        program = build_cpu_kernel(kernel.ptx, launch.entry, programs)
        program.run(launch.grid, launch.block, launch.shared, [*given, np.int32(launch.values[count - 1]), *made])
        # What one kernel has written the next one only reads.
        memory |= {a: m.array for a, m in memory.items() if isinstance(m, Uninitialised)}
    found = [memory[pointer("output", n)] for n in range(len(node.operators[-1].outputs))]
    for judgement in judged_execution(node, batch, drawn, [*found, *workspace_of(node, batch, memory)]):
        assert judgement.passed, judgement.explain()


def workspace_of(node: Node, batch: int, memory: Mapping[int, Array | Uninitialised]) -> list[Array]:
    """The bytes of the workspace, where there is one."""
    parts = parts_of_workspace(node, batch)
    if not parts:
        return []
    found = np.zeros(sum(parts[-1]), np.uint8)
    for begin, size in parts:
        found[begin : begin + size] = np.asarray(memory[_WORKSPACE + begin]).view(np.uint8)
    return [found]


def test_kernels_are_loaded_once_for_each_context(launcher: Path, asked: Any) -> None:
    node = case("scalar").launched[0]
    request = request_for(node, [1, 1, 2, 2], Host(launcher).field_names())
    runs = [replace(run, context=CONTEXT + number % 2) for number, run in enumerate(request.runs)]
    answer = asked(replace(request, runs=runs))
    # What belongs to the context that is not current in the end goes with that context.
    assert (answer.loaded, answer.unloaded) == (2, 1)
    assert [launches[0].module for launches in answer.runs] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("device", "image"),
    [((8, 0, 166912), 0), ((8, 6, 101376), 0), ((8, 9, 101376), 1), ((12, 0, 101376), None)],
)
def test_each_gpu_gets_the_code_that_suits_it_best(
    device: tuple[int, int, int], image: int | None, launcher: Path, asked: Any
) -> None:
    """Kernels are there for sm_80 and sm_89: a GPU of the same generation takes the nearest, another one PTX."""
    node = case("scalar").launched[0]
    answer = asked(replace(request_for(node, [1], Host(launcher).field_names()), device=device))
    found = answer.runs[0][0].image
    kernel = node.kernels[0]
    assert found == (kernel.ptx.encode()[:256] if image is None else node.cubins[0][image][:256])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": (7, 5, 65536)}, "compute capability 7.5, but the engine has kernels for sm_80, sm_89"),
        ({"fail": ("cuModuleLoadDataEx", 209)}, "the assembler's own words): no kernel image is available"),
        ({"fail": ("cuModuleGetFunction", 500)}, "has no kernel"),
        ({"fail": ("cuFuncSetAttribute", 1)}, "bytes of shared memory"),
        ({"fail": ("cuLaunchKernel", 701)}, "cannot be launched: some error (CUDA error 701)"),
        ({"fail": ("cuCtxGetCurrent", 3)}, "context cannot be asked for"),
    ],
)
def test_what_the_driver_refuses_is_told(change: dict[str, Any], words: str, launcher: Path, asked: Any) -> None:
    node = case("scalar").launched[0]
    answer = asked(replace(request_for(node, [2], Host(launcher).field_names()), **change))
    assert isinstance(answer.runs[0], str)
    assert words in answer.runs[0]
    assert node.operators[0].name in answer.runs[0]
    assert answer.loaded == answer.unloaded


def test_without_a_context_or_a_workspace_nothing_is_launched(launcher: Path, asked: Any) -> None:
    node = case("split").launched[0]
    request = request_for(node, batches_of(node), Host(launcher).field_names())
    runs = [replace(request.runs[0], context=0), replace(request.runs[0], workspace=0)]
    answer = asked(replace(request, runs=runs))
    assert "no CUDA context is current" in answer.runs[0]
    assert "gave no workspace" in answer.runs[1]


def test_the_program_for_a_gpu_runs_as_far_as_there_is_one(launcher: Path, fake_cuda: Path, tmp_path: Path) -> None:
    """With the stand-in nothing is computed: what comes back is what was there, and everything was asked for."""
    names = Host(launcher).field_names()
    nodes = [case("scalar").launched[0], case("split").launched[0]]
    executions = [execution_of(node, batches_of(node)[-1], names)[0] for node in nodes]
    wrong = replace(executions[0], inputs=[replace(executions[0].inputs[0], sizes=(5,)), *executions[0].inputs[1:]])
    place = tmp_path / "request.pickle"
    place.write_bytes(pickle.dumps([*executions, wrong]))
    done = run_on_gpu(launcher, place, {"LD_LIBRARY_PATH": str(fake_cuda.parent)})
    assert done.returncode == 0, done.stderr
    *found, refusal = pickle.loads(place.with_suffix(".answer").read_bytes())
    for node, outputs in zip(nodes, found, strict=True):
        assert not isinstance(outputs, str), outputs
        assert len(outputs) == len(node.operators[-1].outputs) + (len(node.operators) == 2)
        assert all((array.view(np.uint8) == 0xFF).all() for array in outputs)
    assert "input 0 is 5, expected a multiple of" in refusal


def test_without_a_driver_the_program_for_a_gpu_says_so(launcher: Path, tmp_path: Path) -> None:
    if find_device().device is not None:
        pytest.skip("this machine has a GPU, and so a driver")
    place = tmp_path / "request.pickle"
    place.write_bytes(pickle.dumps([]))
    done = run_on_gpu(launcher, place, {})
    assert done.returncode == 4
    assert done.stderr.startswith("no GPU: ")


def test_too_little_shared_memory_is_told(launcher: Path, asked: Any) -> None:
    node = case("split").launched[0]
    wanted = node.operators[0].tactics[0].shared_bytes
    request = request_for(node, batches_of(node), Host(launcher).field_names())
    answer = asked(replace(request, device=(8, 0, wanted - 1)))
    assert f"takes {wanted} bytes of shared memory, this GPU gives a block {wanted - 1}" in answer.runs[0]

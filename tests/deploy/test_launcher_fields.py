"""The reading of fields and the arithmetic of launches, in a build that checks every access to memory.

The program needs no TensorRT; what it is given are the fields of real kernels, whole, damaged in one place with the old
checksum, and damaged with a checksum that fits.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from onnxopt.deploy.engine_operators import Grid, Output
from onnxopt.deploy.launcher_fields import (
    Field as Value,
)
from onnxopt.deploy.launcher_fields import (
    LauncherInput,
    LauncherKernel,
    LauncherProgram,
    checksum,
    field_bytes,
    launcher_fields,
)
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import KernelSource
from onnxopt.resources import resource_dir
from tests.deploy.launcher_host import CHAR, INT8, INT32, Field

_HERE = Path(__file__).parent
_TYPES = {INT32: 0, CHAR: 1, INT8: 2}
_OTHER = 3
_PARTS = ("fields", "images", "launch", "program")
_SUM = "checksum"

Ask = Callable[[Sequence[list[Field]], Sequence[int]], list[str]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, which stops at the first access out of bounds and the first undefined operation."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    source = resource_dir("plugins") / "launcher" / "source"
    program = tmp_path_factory.mktemp("reader") / "reader"
    files = [str(source / f"{part}.cpp") for part in _PARTS]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0", "-std=c++17", f"-I{source}"]
    done = subprocess.run(
        [compiler, *checks, str(_HERE / "launcher_unit.cpp"), *files, "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find -lasan" in done.stderr or "libasan" in done.stderr:
        pytest.skip("g++ has no address sanitizer here")
    assert done.returncode == 0, done.stderr[-3000:]
    return program


@pytest.fixture
def ask(reader: Path) -> Ask:
    """What the program says of each list of fields, for some batches."""

    def answers(requests: Sequence[list[Field]], batches: Sequence[int] = ()) -> list[str]:
        message = b"".join(_request(fields, batches) for fields in requests)
        done = subprocess.run([str(reader)], input=message, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
        lines = done.stdout.decode().splitlines()
        assert len(lines) == len(requests)
        return lines

    return answers


def _request(fields: Sequence[Field], batches: Sequence[int]) -> bytes:
    def block(data: bytes) -> bytes:
        return struct.pack("<q", len(data)) + data

    written = struct.pack("<q", len(fields))
    for field in fields:
        written += block(field.name.encode()) + struct.pack("<qq", _TYPES.get(field.type, _OTHER), field.length)
        written += block(field.data or b"")
    return written + struct.pack(f"<{1 + len(batches)}q", len(batches), *batches)


def compiled(architecture: str, entry: str = "entry") -> CompiledKernel:
    """A kernel whose code is none, but begins as code does."""
    report = ResourceReport(32, 0, 1024, 0, 0, 0, 128)
    cubin = b"\x7fELF" + f"{architecture} {entry}".encode()
    return CompiledKernel(KernelSource("a.cu", entry, ()), architecture, cubin, ".version 9.0", report, "13.0")


def program(architectures: Sequence[str] = ("sm_80", "sm_89")) -> LauncherProgram:
    """Two kernels with a workspace of two parts between them."""
    first = LauncherKernel(
        entry="first_half",
        grid=Grid(5, 1, 1),
        threads=128,
        shared_bytes=70_000,
        arguments=(("input", 0), ("input", 1), ("unused", 0), ("batch", 0), ("workspace", 0), ("workspace", 1)),
        compiled=tuple(compiled(architecture, "first_half") for architecture in architectures),
    )
    second = LauncherKernel(
        entry="second_half",
        grid=Grid(1, 10, 4),
        threads=256,
        shared_bytes=0,
        arguments=(("workspace", 0), ("workspace", 1), ("input", 2), ("batch", 0), ("output", 0)),
        compiled=tuple(compiled(architecture, "second_half") for architecture in architectures),
    )
    inputs = (LauncherInput("fp16", False, 24), LauncherInput("int32", True, 7), LauncherInput("bf16", True, 3))
    outputs = (Output("y", "float32", (None, 4, 5), 60),)
    return LauncherProgram("Attention_0", inputs, outputs, (48, 12), (first, second))


def as_fields(values: dict[str, Value]) -> list[Field]:
    """Fields as a parser gives them."""

    def one(name: str, value: Value) -> Field:
        data = field_bytes(value)
        kind = INT8 if isinstance(value, bytes) else CHAR if isinstance(value, str) else INT32
        return Field(name, kind, data, len(data) // (4 if kind == INT32 else 1))

    return [one(name, value) for name, value in values.items()]


def summed(values: dict[str, Value]) -> list[Field]:
    """Fields with the checksum that they should have."""
    content = {name: value for name, value in values.items() if name != _SUM}
    return as_fields({**content, _SUM: checksum(content)})


def test_a_program_is_read_and_launched(ask: Ask) -> None:
    (line,) = ask([as_fields(launcher_fields(program()))], [1, 3, 1000])
    # The second kernel has 10 lines for each batch element, 4 to a block; parts of the workspace begin at 256.
    assert line == "ok 5@89 3@89 512 15@89 8@89 512 5000@89 2500@89 60160"


def test_a_text_without_a_zero_behind_it_is_the_same(ask: Ask) -> None:
    fields = as_fields(launcher_fields(program()))
    bare = [replace(f, data=(f.data or b"")[:-1], length=f.length - 1) if f.type == CHAR else f for f in fields]
    assert ask([bare]) == ["ok"]
    assert ask([fields[::-1]]) == ["ok"]


def test_every_changed_byte_is_refused(ask: Ask) -> None:
    """Whatever a field says, and whichever bit of it changes."""
    fields = as_fields(launcher_fields(program()))
    draw = random.Random(0)
    requests = []
    for place, field in enumerate(fields):
        data = field.data or b""
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 1 << draw.randrange(8)
            requests.append([*fields[:place], replace(field, data=bytes(changed)), *fields[place + 1 :]])
    lines = ask(requests)
    assert len(lines) > 500
    assert [line for line in lines if not line.startswith("refused: ")] == []


def test_fields_that_are_cut_lengthened_or_of_another_type_are_refused(ask: Ask) -> None:
    fields = as_fields(launcher_fields(program()))
    requests = []
    for place, field in enumerate(fields):
        data, size = field.data or b"", 4 if field.type == INT32 else 1
        others = [replace(field, type=kind) for kind in (*_TYPES, 7) if kind != field.type]
        # A claim that goes beyond the data must be refused by its number before anything is read.
        others += [replace(field, length=length) for length in (0, -1, -(1 << 31), (1 << 31) - 1)]
        others += [replace(field, data=None)]
        others += [replace(field, data=data[: keep * size], length=keep) for keep in range(1, field.length)][-300:]
        others += [replace(field, data=data + b"\1" * size, length=field.length + 1)]
        others += [replace(field, name="other"), replace(field, name=fields[place - 1].name)]
        requests += [[*fields[:place], other, *fields[place + 1 :]] for other in others]
        requests += [[*fields[:place], *fields[place + 1 :]], [*fields, field]]
    # Without the zero behind it a text is the same text.
    bare = {(f.name, f.length - 1) for f in fields if f.type == CHAR}
    for request, line in zip(requests, ask(requests), strict=True):
        same = any((field.name, field.length) in bare for field in request)
        assert line.startswith("refused: ") or same, request


WRONG: dict[str, tuple[dict[str, Value], str]] = {
    "a newer format": ({"format": (2,)}, "a newer launcher library is needed"),
    "two formats": ({"format": (1, 1)}, "numbers more than"),
    "a name that is none": ({"operator": "a b"}, "'operator' is 'a b'"),
    "a type": ({"inputs": (11, 0, 24)}, "has the type 11"),
    "half an input": ({"inputs": (10, 0, 24, 6)}, "is missing, the field ends after 4"),
    "a first input that is a table": ({"inputs": (10, 1, 24, 6, 1, 7, 16, 1, 3)}, "first input is a table"),
    "an empty input": ({"inputs": (10, 0, 0)}, "elements of an input is 0"),
    "an output without size": ({"outputs": (1, 60, 3, -1, 0, 5)}, "size of 0"),
    "two open sizes": ({"outputs": (1, 60, 3, -1, -1, 5)}, "several sizes"),
    "many dimensions": ({"outputs": (1, 60, 9, *range(1, 10))}, "number of dimensions is 9"),
    "parts that are not there": ({"workspace": (3, 48, 12)}, "bytes of a part is missing"),
    "an entry that is none": ({"entries": "first_half,2"}, "the name '2'"),
    "one entry": ({"entries": "first_half"}, "numbers more than"),
    "no threads": ({"launches": (5, 1, 1, 0, 7, 1, 10, 4, 256, 0)}, "threads of a block is 0"),
    "a grid of parts of nothing": ({"launches": (5, 1, 0, 128, 7, 1, 10, 4, 256, 0)}, "size of a grid is 0"),
    "an argument that is not there": ({"arguments": (1, 0, 3, 1, 2, 0)}, "index of an argument is 3"),
    "an output that nothing writes": ({"arguments": (1, 0, 0, 1, 1, 0)}, "no kernel is given output 0"),
    "a kind": ({"arguments": (1, 5, 0, 1, 2, 0)}, "kind of an argument is 5"),
    "code that is none": ({"code": b"nothing at all"}, "does not begin as"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_makes_no_sense_is_refused_by_name(name: str, ask: Ask) -> None:
    changed, words = WRONG[name]
    (line,) = ask([summed({**launcher_fields(program()), **changed})])
    assert line.startswith("refused: ")
    assert words in line


def test_code_is_read_without_trust(ask: Ask) -> None:
    """Any number of the field with the images may be anything, though the checksum fits."""
    values = launcher_fields(program())
    code = values["code"]
    assert isinstance(code, bytes)
    requests = []
    for place in range(0, 16 + 6 * 32, 4):
        for number in (0, 1, 3, 17, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            changed = code[:place] + struct.pack("<I", number) + code[place + 4 :]
            requests.append(summed({**values, "code": changed}))
    requests += [summed({**values, "code": code[:size]}) for size in range(1, len(code), 3)]
    lines = ask(requests, [1])
    assert {line.partition(" ")[0] for line in lines} == {"refused:", "ok"}
    assert sum(line.startswith("refused: ") for line in lines) > len(lines) // 2


def test_numbers_drawn_at_random_never_crash(ask: Ask) -> None:
    draw = random.Random(1)
    values = launcher_fields(program())
    requests = []
    for _ in range(1500):
        name = draw.choice(["inputs", "outputs", "workspace", "launches", "arguments"])
        numbers = list(values[name])
        for _ in range(draw.randint(1, 3)):
            numbers[draw.randrange(len(numbers))] = draw.choice([-1, 0, 1, 2, 2**15, 2**31 - 1, draw.randrange(64)])
        requests.append(summed({**values, name: tuple(int(number) for number in numbers)}))
    lines = ask(requests, [1, 2**31 - 1])
    assert {line.partition(" ")[0] for line in lines} == {"refused:", "ok"}


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (2**31 - 1, "blocks of first_half"),
        (2**31, "at most 2147483647 times as many"),
        (429_496_730, "blocks of first_half"),
    ],
)
def test_a_batch_that_makes_too_large_a_grid_is_refused(batch: int, words: str, ask: Ask) -> None:
    (line,) = ask([as_fields(launcher_fields(program()))], [batch])
    assert words in line


def test_the_largest_batch_fits(ask: Ask) -> None:
    (line,) = ask([as_fields(launcher_fields(program()))], [429_496_729])
    assert line.startswith("ok 2147483645@89")


def test_an_empty_batch_is_no_batch(ask: Ask) -> None:
    (line,) = ask([as_fields(launcher_fields(program()))], [0])
    assert "a batch of 0" in line


@pytest.mark.parametrize(
    ("architectures", "found"),
    [
        (("sm_80",), "80"),
        (("sm_75",), "75"),
        (("sm_80", "sm_86"), "86"),
        (("sm_86", "sm_87"), "86"),
        (("sm_89", "sm_90a"), "89"),
        (("sm_90a",), None),
        (("sm_120",), None),
    ],
)
def test_a_gpu_gets_what_it_can_run(architectures: Sequence[str], found: str | None, ask: Ask) -> None:
    """The GPU is an sm_89: machine code of its generation, else older PTX, never what is for another alone."""
    (line,) = ask([as_fields(launcher_fields(program(architectures)))], [1])
    if found is None:
        assert "compute capability 8.9" in line
        assert architectures[0] in line
    else:
        assert line.startswith(f"ok 5@{found} ")

"""Which source the kernel of a block of convolutions is compiled from, and how it is launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from onnxopt.errors import InputError
from onnxopt.kernels.arguments import Launch, Tensor, Wanted, check_report, checked_grid, ordered_arguments
from onnxopt.kernels.conv_source import ACTIVATIONS
from onnxopt.kernels.fields import (
    HALVES,
    LARGEST,
    MOST_THREADS,
    check_resident,
    element_field,
    flag_field,
    integer_field,
    word_field,
)
from onnxopt.kernels.report import ResourceReport
from onnxopt.kernels.source import KernelSource

BLOCK_FILE = "conv/block/conv_block.cu"
BLOCK_ENTRY = "conv_block"

_WHAT = "block kernel"
_JOB_COLUMNS = _PART_COLUMNS = 8
_PATHS = ("products", "channelwise")
_SIZES = ("input_size", "output_size", "kernel", "strides", "dilations", "pads")
_SHAPE = {"warps": MOST_THREADS // 32, "columns": MOST_THREADS // 32, "granules": 8, "blocks": 16, "step": 256}
_AXES = 2


def conv_block_source(kernel: Mapping[str, Any], resident: int) -> KernelSource:
    """The source of a block's kernel from the ``kernel`` part of its operator's configuration.

    ``resident`` is the number of blocks that the plan counts on for each multiprocessor, 1 to 32. Raises InputError,
    naming the field, its value and what is allowed, for everything that the kernel is not written for.
    """
    element = element_field(_WHAT, kernel)
    if element not in HALVES:
        raise InputError(f"{_WHAT}: 'element' is {element!r}; allowed: {', '.join(HALVES)}")
    shape = _shape(kernel)
    stages = kernel.get("stages")
    if isinstance(stages, str) or not isinstance(stages, Sequence) or not 2 <= len(stages) <= 3:
        raise InputError(f"{_WHAT}: 'stages' are {stages!r:.80}; allowed: 2 or 3 stages")
    texts = [_stage(number, stage, number == len(stages) - 1) for number, stage in enumerate(stages)]
    for number in range(1, len(stages)):
        if list(stages[number]["input_size"]) != list(stages[number - 1]["output_size"]):
            raise InputError(
                f"{_WHAT}: stage {number} reads {stages[number]['input_size']} positions, but the one before it makes "
                f"{stages[number - 1]['output_size']}"
            )
    _check_first(stages[0])
    for side, number in (("input", 0), ("output", -1)):
        count = integer_field(_WHAT, kernel, f"{side}_channels", 1)
        if count * prod(stages[number][f"{side}_size"]) > LARGEST:
            raise InputError(f"{_WHAT}: more than {LARGEST:,} elements of its {side}; allowed: up to {LARGEST:,}")
    before = word_field(_WHAT, kernel, "input_activation", ACTIVATIONS)
    prologue = flag_field(_WHAT, kernel, "prologue")
    if before != "none" and not prologue:
        raise InputError(
            f"{_WHAT}: 'input_activation' is {before!r}, but 'prologue' is false; allowed without it: none"
        )
    check_resident(_WHAT, resident)
    defines = (
        ("ELEMENT", element),
        *(("COLUMN_WARPS" if name == "columns" else name.upper(), str(value)) for name, value in shape.items()),
        ("RESIDENT", str(resident)),
        ("ROWS", str(integer_field(_WHAT, kernel, "rows", 1, stages[-1]["output_size"][0]))),
        ("PARTS", str(integer_field(_WHAT, kernel, "parts", len(stages), 4096))),
        ("STAGES", "".join(texts)),
        ("INPUT_CHANNELS", str(kernel["input_channels"])),
        ("OUTPUT_CHANNELS", str(kernel["output_channels"])),
        ("INPUT_ACTIVATION", before),
        ("PROLOGUE", str(int(prologue))),
        ("RESIDUAL", str(int(flag_field(_WHAT, kernel, "residual")))),
    )
    return KernelSource(BLOCK_FILE, BLOCK_ENTRY, defines)


def conv_block_launch(kernel: Mapping[str, Any], jobs: int, batch: int, report: ResourceReport) -> Launch:
    """One block for every job of every batch element; ``report`` is that of the compiled kernel.

    Raises InputError where the grid is empty or too large, or the report is about another number of threads.
    """
    threads = 32 * _shape(kernel)["warps"]
    check_report(threads, report)
    return Launch(
        checked_grid("ConvBlock", {"jobs": jobs, "batch": batch}, jobs * batch), threads, report.dynamic_shared
    )


def conv_block_parameters(kernel: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of the kernel's entry, in order: its operands, its tables, ``batch``, its output."""
    prologue = ("input_scales", "input_shifts") if kernel["prologue"] else ()
    residual = ("residual",) if kernel["residual"] else ()
    return ("x", *residual, "w", "b", "jobs", "parts", "outputs", "inputs", *prologue, "batch", "y")


def conv_block_arguments(kernel: Mapping[str, Any], tensors: Mapping[str, Tensor], batch: int) -> list[Any]:
    """The arguments of the kernel in the order of :func:`conv_block_parameters`, ``batch`` as a number.

    Raises InputError where the configuration is not supported, and where a tensor is missing, superfluous, or of
    another type or shape than the configuration says.
    """
    conv_block_source(kernel, resident=1)
    element, stages = kernel["element"], kernel["stages"]
    y = (batch, kernel["output_channels"] * prod(stages[-1]["output_size"]))
    wanted = {
        "x": Wanted(element, (batch, kernel["input_channels"] * prod(stages[0]["input_size"])), flat=True),
        "w": Wanted(element, (None,)),
        "b": Wanted("float32", (None,)),
        "residual": Wanted(element, y, flat=True),
        "jobs": Wanted("int32", (None, _JOB_COLUMNS)),
        "parts": Wanted("int32", (None, _PART_COLUMNS)),
        **{name: Wanted("int32", (None,)) for name in ("outputs", "inputs")},
        **{name: Wanted("float32", (None,)) for name in ("input_scales", "input_shifts")},
        "y": Wanted(element, y, flat=True),
    }
    parallel = {"b": "outputs", "input_scales": "inputs", "input_shifts": "inputs"}
    return ordered_arguments("ConvBlock", conv_block_parameters(kernel), wanted, tensors, batch, parallel)


def _shape(kernel: Mapping[str, Any]) -> dict[str, int]:
    document = kernel.get("shape")
    if not isinstance(document, Mapping):
        raise InputError(f"{_WHAT}: 'shape' is {document!r:.80}; allowed: an object with {', '.join(_SHAPE)}")
    shape = {name: integer_field(f"{_WHAT}, 'shape'", document, name, 1, most) for name, most in _SHAPE.items()}
    if shape["warps"] % shape["columns"]:
        raise InputError(
            f"{_WHAT}: {shape['warps']} warps in {shape['columns']} columns; allowed: columns that divide the warps"
        )
    rows = 16 * shape["granules"] * (shape["warps"] // shape["columns"])
    if rows != 32 and (rows % 64 or rows & (rows - 1)):
        raise InputError(f"{_WHAT}: {rows} positions a step; allowed: 32, 64, 128 and further powers of two")
    if shape["step"] not in (32, 64, 128, 256):
        raise InputError(f"{_WHAT}: 'step' is {shape['step']}; allowed: 32, 64, 128, 256")
    if shape["blocks"] % 2 and shape["blocks"] > 1:
        raise InputError(f"{_WHAT}: 'blocks' is {shape['blocks']}; allowed: 1 and even numbers")
    return shape


def _stage(number: int, stage: Any, last: bool) -> str:
    what = f"{_WHAT}, stage {number}"
    if not isinstance(stage, Mapping):
        raise InputError(f"{what}: {stage!r:.80} is not an object with 'path', 'activation', 'slots' and sizes")
    path = word_field(what, stage, "path", _PATHS)
    if path == "channelwise" and (number == 0 or last):
        raise InputError(f"{what}: 'path' is 'channelwise'; allowed for the first and the last stage: products")
    activation = word_field(what, stage, "activation", ACTIVATIONS)
    slots = integer_field(what, stage, "slots", 0, LARGEST)
    if (slots == 0) != last or (slots and slots % 16 != 8):
        raise InputError(
            f"{what}: 'slots' is {slots}; allowed: 0 for the last stage, else 8 more than a multiple of 16"
        )
    numbers = []
    for name in _SIZES:
        values = stage.get(name)
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != _AXES:
            raise InputError(f"{what}: {name!r} is {values!r:.80}; allowed: {_AXES} numbers, one an axis")
        of_axis = {f"{name}[{axis}]": value for axis, value in enumerate(values)}
        numbers += [integer_field(what, of_axis, field, 0 if name == "pads" else 1, 1 << 20) for field in of_axis]
    return f"STAGE({path},{activation},{','.join(map(str, numbers))},{slots})"


def _check_first(stage: Mapping[str, Any]) -> None:
    plain = {"kernel": [1, 1], "strides": [1, 1], "pads": [0, 0], "output_size": list(stage["input_size"])}
    for name, wanted in plain.items():
        if list(stage[name]) != wanted:
            raise InputError(f"{_WHAT}: {name!r} of its first stage is {list(stage[name])}; allowed: {wanted}")

"""The text file of a package with the commands of NVIDIA's ``trtexec`` for its models and engines."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from onnxopt.deploy.batch_range import BatchRange
from onnxopt.deploy.launcher import INCLUDE_VARIABLE, LIBRARY
from onnxopt.deploy.launcher_model import LAUNCHER_MODEL
from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write
from onnxopt.model.graph import runtime_inputs, symbolic_batch, view

COMMANDS = "trtexec.txt"

# Beside the package: what is in one but not in its manifest keeps it from being replaced.
_LAUNCHER_ENGINE = "../model.launcher.engine"
_LINE = 118


def write_commands(folder: Path, model: ModelProto, batch: BatchRange | None = None) -> Path:
    """Write ``trtexec.txt`` into a package; see :func:`commands_text`. Returns where it lies."""
    place = folder / COMMANDS
    atomic_write(place, commands_text(model, batch or BatchRange()).encode())
    return place


def commands_text(model: ModelProto, batch: BatchRange) -> str:
    """How to build and run an engine of ``model.launcher.onnx`` with trtexec; ``batch`` counts where it is open.

    ``model`` is any form of the package's model: only its inputs are read. Raises InputError for an input whose size is
    not known but for its batch.
    """
    odd = [tensor.name for tensor in runtime_inputs(model.graph) if not _can_be_named(tensor.name)]
    shapes = [] if odd else _shapes(model, batch)
    plugins = ["trtexec", f"--staticPlugins=/path/to/{LIBRARY}"]
    build = [*plugins, f"--onnx={LAUNCHER_MODEL}", "--stronglyTyped", "--noTF32", f"--saveEngine={_LAUNCHER_ENGINE}"]
    load = [*plugins, f"--loadEngine={_LAUNCHER_ENGINE}"]
    best = [f"--shapes={shapes[1]}"] if shapes else []
    ranges = [f"--{name}Shapes={text}" for name, text in zip(("min", "opt", "max"), shapes, strict=False)]
    parts = [
        f"""{LAUNCHER_MODEL} holds the kernels of this package. TensorRT 10 or 11 reads it with the
        launcher library, which is built once for all models, where onnxopt is installed and TensorRT's headers are:""",
        _command([f"{INCLUDE_VARIABLE}=/path/to/TensorRT/include", "python", "-m", "onnxopt.deploy.launcher"]),
        """In the package's folder, with the path of the library that this has made, trtexec builds an engine on the
        machine that will run it. TensorRT 11 is always strongly typed and ignores that flag. Without --noTF32 float32
        products may be rounded to TF32, with which nothing was verified.""",
        _command([*build, *ranges]),
        "The engine holds the kernels, and needs the library wherever it is loaded:",
        _command([*load, *best]),
        """An engine that `onnxopt build --engine tensorrt` makes of the generated module, its default way, needs no
        library at all:""",
        _command(["trtexec", "--loadEngine=model.tensorrt.engine", *best]),
    ]
    if odd and symbolic_batch(model):
        parts.append(
            f"""The commands are for batch 1: trtexec cannot be told the sizes of the input {odd[0][:80]!r}, for it
            splits names at commas and quotes. Rename it in the model for other batches."""
        )
    return "\n\n".join(part if part.startswith("  ") else textwrap.fill(_flat(part), _LINE) for part in parts) + "\n"


def _shapes(model: ModelProto, batch: BatchRange) -> list[str]:
    """The sizes of all inputs at the smallest, best and largest batch; nothing where the batch is fixed."""
    if not symbolic_batch(model):
        return []
    return [_sizes(model, size) for size in batch.sizes]


def _sizes(model: ModelProto, batch: int) -> str:
    graph = view(model, batch=batch)
    written = []
    for tensor in runtime_inputs(model.graph):
        shape = graph.shape(tensor.name)
        if shape is None:
            raise InputError(f"input '{tensor.name}': its size is not known; export it with fixed sizes but the batch")
        written.append(f"{tensor.name}:{'x'.join(map(str, shape)) or 'scalar'}")
    return ",".join(written)


def _can_be_named(name: str) -> bool:
    return name.isprintable() and not any(mark in name for mark in ",'")


def _command(words: Sequence[str]) -> str:
    """A command for a shell, one word in a line where it is long."""
    quoted = [shlex.quote(word) for word in words]
    joined = "  " + " ".join(quoted)
    return joined if len(joined) <= _LINE else "  " + " \\\n    ".join(quoted)


def _flat(text: str) -> str:
    return " ".join(text.split())

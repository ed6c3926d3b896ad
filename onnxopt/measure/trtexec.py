"""Command lines for trtexec, NVIDIA's program that builds and times engines.

Options are those of TensorRT 10.9 to 11.x as ``sampleOptions.cpp`` of NVIDIA's public sources reads them. TensorRT 11
took over four of them as its defaults (``--useCudaGraph``, ``--useSpinWait``, ``--noDataTransfers``,
``--separateProfileRun``) and ``--stronglyTyped`` as the only way there is; it still reads them, and only warns. So one
line serves every version, and means the same to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from onnxopt.errors import InputError
from onnxopt.model.graph import runtime_inputs

MAX_PERCENTILES = 16
# An hour of milliseconds, and more seconds or inferences than anybody waits for.
_MOST = 3_600_000


@dataclass(frozen=True)
class Timing:
    """How long trtexec measures: at least ``iterations`` inferences and ``duration`` seconds, after ``warm_up`` ms.

    ``average_runs`` inferences make one line of its log. ``percentiles`` are of 100.
    """

    warm_up: int = 500
    duration: int = 10
    iterations: int = 100
    average_runs: int = 100
    percentiles: tuple[float, ...] = (50, 90, 95, 99)

    def __post_init__(self) -> None:
        for name, value, least in (
            ("warm-up in milliseconds", self.warm_up, 0),
            ("duration in seconds", self.duration, 0),
            ("number of iterations", self.iterations, 1),
            ("number of runs that are averaged", self.average_runs, 1),
        ):
            if not least <= value <= _MOST:
                raise InputError(f"the {name} is {value}; allowed: {least} to {_MOST}")
        if not 1 <= len(self.percentiles) <= MAX_PERCENTILES:
            raise InputError(f"{len(self.percentiles)} percentiles; allowed: 1 to {MAX_PERCENTILES}")
        for percent in self.percentiles:
            if not 0 <= percent <= 100:
                raise InputError(f"the percentile {percent} is not allowed; allowed: 0 to 100")


@dataclass(frozen=True)
class InputShape:
    """The shapes of an input of dynamic size: the smallest and largest of the engine, and the one that is timed."""

    name: str
    least: tuple[int, ...]
    timed: tuple[int, ...]
    most: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or any(mark in self.name for mark in ",'"):
            raise InputError(
                f"the input '{self.name}' cannot be named in trtexec's --shapes, which splits at commas and quotes; "
                "rename it in the model, or give the model a fixed batch"
            )
        if not len(self.least) == len(self.timed) == len(self.most):
            raise InputError(f"the shapes of the input '{self.name}' do not have the same number of axes")
        if not all(0 <= a <= b <= c for a, b, c in zip(self.least, self.timed, self.most, strict=True)):
            raise InputError(
                f"the shapes of the input '{self.name}' are {self.least}, {self.timed} and {self.most}; allowed: from "
                "the smallest to the largest"
            )


@dataclass(frozen=True)
class Exports:
    """Where trtexec writes its JSON files: each inference's times, times by layer, and what the layers are."""

    times: Path
    profile: Path
    layers: Path


def input_shapes(model: ModelProto, *, batch: int = 1, most: int | None = None) -> tuple[InputShape, ...]:
    """The shapes to name for a model with a symbolic batch; none for a model of fixed sizes.

    The engine takes batches from 1 to ``most`` (by default the timed ``batch``) and is tuned for ``batch``. Raises
    InputError where an input has another symbolic axis than the first, or a batch is out of range.
    """
    largest = batch if most is None else most
    if not 1 <= batch <= largest <= 1 << 20:
        raise InputError(
            f"batch {batch} of at most {largest}; allowed: 1 to the largest batch, and that up to {1 << 20}"
        )
    shapes = []
    for value in runtime_inputs(model.graph):
        axes = value.type.tensor_type.shape.dim
        symbolic = [index for index, axis in enumerate(axes) if not axis.HasField("dim_value")]
        if any(index > 0 for index in symbolic):
            raise InputError(
                f"the input '{value.name}' has other symbolic axes than the batch, and trtexec needs a size for each; "
                "export the model with fixed sizes behind the first axis"
            )
        if symbolic:
            rest = tuple(int(axis.dim_value) for axis in axes[1:])
            shapes.append(InputShape(value.name, (1, *rest), (batch, *rest), (largest, *rest)))
    return tuple(shapes)


def trtexec_command(
    program: str | Path = "trtexec",
    *,
    onnx: str | Path | None = None,
    engine: str | Path | None = None,
    save_engine: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    shapes: Sequence[InputShape] = (),
    timing: Timing = Timing(),
    timing_cache: str | Path | None = None,
    exports: Exports | None = None,
) -> list[str]:
    """The arguments, program first, that build and time the model ``onnx``, or time the engine ``engine``.

    A model is built strongly typed, in its own types, with the nodes that each layer was made from in the engine, and
    the timing cache is read and added to. ``plugins`` are libraries loaded before; an engine that was built with one
    needs it again. The CPU spins while it waits, inputs stay on the GPU, launches are one CUDA graph, and layers are
    timed in a run of their own. Raises InputError unless there is one of model and engine.
    """
    if (onnx is None) == (engine is None):
        raise InputError("trtexec takes either a model or an engine; give one of the two")
    if engine is not None and save_engine is not None:
        raise InputError(f"{save_engine}: an engine that is loaded is not saved again; leave out one of the two")
    line = [str(program)]
    if onnx is not None:
        line += [f"--onnx={onnx}", "--stronglyTyped", "--profilingVerbosity=detailed"]
        line += [] if save_engine is None else [f"--saveEngine={save_engine}"]
        line += [] if timing_cache is None else [f"--timingCacheFile={timing_cache}"]
    else:
        line.append(f"--loadEngine={engine}")
    line += [f"--staticPlugins={path}" for path in plugins]
    line += _shape_arguments(shapes, building=onnx is not None)
    line += _timing_arguments(timing)
    if exports is not None:
        line += [
            f"--exportTimes={exports.times}",
            f"--exportProfile={exports.profile}",
            f"--exportLayerInfo={exports.layers}",
        ]
    return line


def _shape_arguments(shapes: Sequence[InputShape], *, building: bool) -> list[str]:
    """The range of an engine that is built, and the shapes that are timed."""
    if not shapes:
        return []
    timed = "--shapes=" + ",".join(_shape(shape.name, shape.timed) for shape in shapes)
    if not building:
        return [timed]
    return [
        "--minShapes=" + ",".join(_shape(shape.name, shape.least) for shape in shapes),
        "--optShapes=" + ",".join(_shape(shape.name, shape.timed) for shape in shapes),
        "--maxShapes=" + ",".join(_shape(shape.name, shape.most) for shape in shapes),
        timed,
    ]


def _shape(name: str, sizes: tuple[int, ...]) -> str:
    return f"{name}:{'x'.join(str(size) for size in sizes) or 'scalar'}"


def _timing_arguments(timing: Timing) -> list[str]:
    return [
        f"--warmUp={timing.warm_up}",
        f"--duration={timing.duration}",
        f"--iterations={timing.iterations}",
        f"--avgRuns={timing.average_runs}",
        "--percentile=" + ",".join(f"{value:g}" for value in timing.percentiles),
        "--useCudaGraph",
        "--useSpinWait",
        "--noDataTransfers",
        "--dumpProfile",
        "--separateProfileRun",
    ]

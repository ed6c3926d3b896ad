"""What the commands' options have in common."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Form(str, Enum):
    """What a site becomes."""

    plugin = "plugin"
    portable = "portable"


class WrittenForm(str, Enum):
    """The forms that can be written."""

    plugin = "plugin"
    portable = "portable"
    both = "both"


class Dtype(str, Enum):
    """The types that a model as a whole is written in."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


class KernelDtype(str, Enum):
    """The types that kernels compute in."""

    fp16 = "fp16"
    bf16 = "bf16"
    tf32 = "tf32"
    fp32 = "fp32"


class EngineKind(str, Enum):
    """The engines that can be built."""

    rtx = "rtx"
    tensorrt = "tensorrt"


class EngineWay(str, Enum):
    """How operators of our own get into an engine of TensorRT."""

    aot = "aot"
    launcher = "launcher"
    portable = "portable"


class TrtexecWay(str, Enum):
    """How trtexec runs a package."""

    launcher = "launcher"
    engine = "engine"
    portable = "portable"


class Objective(str, Enum):
    """What a schedule minimises."""

    time = "time"
    waste = "waste"


@dataclass(frozen=True)
class Settings:
    """The options that come before the command."""

    cache: Path | None
    verbose: bool


ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)]
TargetName = Annotated[
    str, typer.Option("--target", metavar="T", help="cpu, an architecture such as sm_89, a GPU's name, or auto.")
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Convert the whole model to this type first (default: none).", show_default=False),
]
ConvertIo = Annotated[
    bool,
    typer.Option("--convert-io", help="With --dtype: inputs and outputs get the type too."),
]
KernelDtypeOption = Annotated[
    KernelDtype | None,
    typer.Option(
        "--kernel-dtype", help="The type that kernels compute in (default: that of the tensors).", show_default=False
    ),
]
ConvAlgorithms = Annotated[
    bool,
    typer.Option("--conv-algorithms", help="Choose an algorithm for every dense convolution (plugin form)."),
]
Workspace = Annotated[
    float | None,
    typer.Option(
        "--workspace",
        metavar="MB",
        help="What the algorithms may take beside the tensors of the model (default: any).",
        show_default=False,
    ),
]
Winograd = Annotated[
    bool, typer.Option("--winograd", help="Also choose among Winograd's, whose error has a bound of its own.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def cache_folder(settings: Settings) -> Path:
    """Where measurements are kept."""
    from onnxopt.measure.paths import default_cache_dir

    return settings.cache or default_cache_dir()

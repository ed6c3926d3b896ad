"""The layers of a job for ``conv_gpu.py``: which entries compute each, and how often networks have it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError

SCHEMA = "onnxopt.conv-layers/1"
FILE = "conv_gpu.json"
GROUP_CONV = "group_conv"
"""The name of the planner's best kernel for a layer, where algorithms are not compared."""


@dataclass(frozen=True)
class Layer:
    """A distinct layer: how often each of ``networks`` has it, and the job's entry for each way to compute it.

    ``ways`` go by the algorithm's name and, behind a stroke, by the layout where there are several. ``connections``
    are live pairs of channels; ``bound_us`` is what no computation in the compute type undercuts. ``geometry`` and
    ``record`` (the fields of a layer's record that do not come from measuring) are there where algorithms are compared.
    """

    id: str
    networks: Mapping[str, int]
    ways: Mapping[str, str]
    connections: int
    bound_us: float
    geometry: Mapping[str, Any] | None = None
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Layers:
    """All layers of a job, in the compute type ``element``; ``left_out`` are others by name with the reason."""

    element: str
    target: str
    layers: tuple[Layer, ...]
    left_out: Sequence[tuple[str, str]] = field(default_factory=tuple)


def write_layers(folder: Path, layers: Layers) -> None:
    """Write the file beside a job's own."""
    document = {"schema": SCHEMA, **asdict(layers)}
    (folder / FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def read_layers(folder: Path) -> Layers:
    """Read the file; raises InputError where it is not there, or another version's."""
    path = folder / FILE
    try:
        document = json.loads(path.read_text())
        if document.pop("schema") != SCHEMA:
            raise InputError(f"{path}: another version's; make the job again with benchmarks.conv_gpu_job")
        layers = tuple(Layer(**fields) for fields in document["layers"])
        left_out = tuple((name, reason) for name, reason in document["left_out"])
        return Layers(document["element"], document["target"], layers, left_out)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a folder that benchmarks.conv_gpu_job has written") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); make the job again") from None

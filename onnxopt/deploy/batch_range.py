"""The batches that an engine takes."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from onnxopt.errors import InputError
from onnxopt.model.graph import runtime_inputs


@dataclass(frozen=True)
class BatchRange:
    """The batches that an engine takes, and the one that it is tuned for."""

    smallest: int = 1
    best: int = 1
    largest: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.best <= self.largest < 1 << 31:
            raise InputError(
                f"the batches {self.smallest},{self.best},{self.largest} are no range; allowed: the smallest, the one "
                "to tune for and the largest, each 1 or more and none below the one before it, for example 1,8,32"
            )

    @property
    def sizes(self) -> list[int]:
        """The smallest, the one that the engine is tuned for, and the largest."""
        return [self.smallest, self.best, self.largest]


def parse_batch(text: str) -> BatchRange:
    """``4`` as the only batch, ``1,8,32`` as the smallest, the one to tune for and the largest.

    Raises InputError for anything else.
    """
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() and len(part) < 12 for part in parts):
        raise InputError(f"--batch is '{text[:60]}'; allowed: one number, or three such as 1,8,32")
    sizes = [int(part) for part in parts]
    return BatchRange(*(sizes if len(sizes) == 3 else sizes * 3))


def check_batch(model: ModelProto, label: str, asked: BatchRange | None) -> None:
    """Raise InputError where a batch is asked for and the model has none to choose."""
    fed = runtime_inputs(model.graph)
    symbolic = any(not dim.HasField("dim_value") for value in fed for dim in value.type.tensor_type.shape.dim)
    if asked is not None and not symbolic:
        raise InputError(f"--batch: {label} has a fixed batch; leave out --batch, or export it with a symbolic one")

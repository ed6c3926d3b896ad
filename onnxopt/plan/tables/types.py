"""The tables of an attention, as ``docs/tables.md`` describes them, and the configuration that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxopt.plan.tables.addresses import TensorLayout
from onnxopt.target.variant import AttentionVariant, Element

VERSION = 1

JOB_COLUMNS = (
    "variant",
    "head",
    "row_begin",
    "row_count",
    "key_begin",
    "key_count",
    "value_begin",
    "tile_begin",
    "q_shift",
    "k_shift",
    "v_shift",
    "y_shift",
    "extra_begin",
    "extra_count",
    "reserved_14",
    "reserved_15",
)


@dataclass(frozen=True)
class RuntimeWeights:
    """Weights of keys that are known only when the model runs.

    ``tensor`` is batch x columns; key number ``j`` of the site has column ``columns[j]``, row ``r`` sees column
    ``diagonals[r]`` (or -1) with weight 1. ``epsilons`` are added to every weight and to their sum.
    """

    tensor: str
    width: int
    columns: np.ndarray = field(repr=False)
    diagonals: np.ndarray = field(repr=False)
    epsilons: tuple[float, float]


@dataclass(frozen=True)
class AttentionKernel:
    """What the attention kernel is specialised for; ``slots`` is 0 where key lists are not split."""

    element: Element
    variants: tuple[AttentionVariant, ...]
    heads: int
    width: int
    value_width: int
    q: TensorLayout
    k: TensorLayout
    v: TensorLayout
    y: TensorLayout
    own_values: bool
    masks: bool
    biases: bool
    extras: bool
    slots: int
    columns: int

    def to_json(self) -> dict[str, Any]:
        """The ``kernel`` part of the configuration."""
        return {
            "element": self.element,
            "variants": [_attention_variant(v) for v in self.variants],
            "heads": self.heads,
            "width": self.width,
            "value_width": self.value_width,
            **{name: getattr(self, name).to_json() for name in "qkvy"},
            **{name: getattr(self, name) for name in ("own_values", "masks", "biases", "extras")},
            "split": self.slots > 0,
            "slots": self.slots,
            "weights": self.columns > 0,
            "columns": self.columns,
        }


def _attention_variant(v: AttentionVariant) -> dict[str, Any]:
    return {
        "path": v.path,
        "rows": v.rows,
        "keys": v.keys,
        "warps": v.warps,
        "stages": v.stages,
        "swapped": v.swapped,
        "row_granule": v.row_granule,
        "key_granule": v.key_granule,
    }


@dataclass(frozen=True, eq=False)
class MergeTables:
    """The second operator of an attention whose key lists are split."""

    kernel: Mapping[str, Any]
    merges: np.ndarray = field(repr=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables by name, in the order of the operator's inputs."""
        return {"merges": self.merges}

    def configuration(self) -> dict[str, Any]:
        """What the operator's name is the hash of."""
        return configuration_of("MergeAttention", self.kernel, self.arrays())

    def operator(self) -> str:
        """The operator's name."""
        return operator_name(self.configuration())


@dataclass(frozen=True, eq=False)
class AttentionTables:
    """One attention site for the kernels. ``inputs`` are the tensors of q, k and v, to be joined where there are
    several, and of the run-time weights; tables that the configuration leaves out are None.
    """

    site: str
    inputs: tuple[tuple[str, ...], ...]
    output: str
    kernel: AttentionKernel
    jobs: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)
    results: np.ndarray = field(repr=False)
    keys: np.ndarray = field(repr=False)
    values: np.ndarray | None = field(repr=False)
    tiles: np.ndarray | None = field(repr=False)
    masks: np.ndarray | None = field(repr=False)
    biases: np.ndarray | None = field(repr=False)
    scales: np.ndarray = field(repr=False)
    extras: np.ndarray | None = field(repr=False)
    columns: np.ndarray | None = field(repr=False)
    diagonals: np.ndarray | None = field(repr=False)
    epsilons: np.ndarray | None = field(repr=False)
    merge: MergeTables | None = field(repr=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables that there are, by name, in the order of the operator's inputs."""
        names = (
            *("jobs", "rows", "results", "keys", "values", "tiles", "masks", "biases", "scales", "extras"),
            *("columns", "diagonals", "epsilons"),
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def configuration(self) -> dict[str, Any]:
        """What the operator's name is the hash of; its ``kernel`` is all that the kernel's source depends on."""
        return configuration_of("SparseAttention", self.kernel.to_json(), self.arrays())

    def operator(self) -> str:
        """The operator's name."""
        return operator_name(self.configuration())


def configuration_of(operator: str, kernel: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What an operator is named after: its kernel, and the shapes and a digest of its tables."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "operator": operator,
        "version": VERSION,
        "kernel": dict(kernel),
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "tables": digest.hexdigest(),
    }


def operator_name(configuration: Mapping[str, Any]) -> str:
    """``SparseAttention_0123456789abcdef``: the operator and the hash of its configuration."""
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    return f"{configuration['operator']}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"

"""Constants of a whole-model program that do not travel: drawn from a seed, or packed from what was drawn.

Needs NumPy only. What is made from a recipe is the same on every machine: drawn numbers are held against their hash,
and whoever writes a recipe has compared what it makes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError
from onnxopt.plan.algorithms.geometry import LayerGeometry
from onnxopt.plan.algorithms.packing import packed_weights
from onnxopt.plan.tables.compute_type import compute_type, in_type

Array = npt.NDArray[Any]
Recipe = Mapping[str, Any]
"""How a constant is made, as JSON. ``drawn``: shape, seed, size and hash. ``steps``: by the packing of an algorithm.
``parts``: as GroupConv reads it, by its own tables. The last two name the drawn ``weights`` and their ``scales``."""

# Columns of a job of GroupConv.
_VARIANT, _OUTPUTS, _INPUTS, _WEIGHTS = 0, 1, 3, 5


def drawn_recipe(values: Array, seed: int) -> Recipe:
    """Numbers in the place of a tensor's: normal, of the same mean size, each one that fp16 holds."""
    size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) or 1.0
    plain: dict[str, Any] = {"shape": list(values.shape), "seed": seed, "size": size}
    return {"drawn": {**plain, "sha256": _hash(_draw(plain))}}


@dataclass(frozen=True, eq=False)
class WeightMaker:
    """Makes constants from their recipes; what was drawn is kept for the next program."""

    _known: dict[str, Array] = field(default_factory=dict)

    def drawn(self, recipe: Recipe) -> Array:
        """The numbers in float32. Raises InputError where this NumPy draws others than that of the recipe."""
        spec = recipe["drawn"]
        key = json.dumps(spec, sort_keys=True)
        if key not in self._known:
            halves = _draw(spec)
            if _hash(halves) != spec["sha256"]:
                raise InputError(
                    f"NumPy {np.__version__} draws other numbers from seed {spec['seed']} than the one that the job "
                    "was made with; use that version, or make the job again"
                )
            self._known[key] = halves.astype(np.float32)
        return self._known[key]

    def packed(self, recipe: Recipe, tables: Mapping[str, Array]) -> Array:
        """The table ``w`` of a kernel; ``tables`` are its others."""
        weights = self.drawn(recipe["weights"])
        if recipe["scales"] is not None:
            scales = np.asarray(recipe["scales"], np.float64)
            weights = weights * scales.reshape(-1, *[1] * (weights.ndim - 1))
        if "parts" in recipe:
            return _parts(recipe["parts"], weights, tables)
        own = recipe["steps"]
        geometry = LayerGeometry(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in own["geometry"].items()}
        )
        steps: Any = [SimpleNamespace(operator=name, kernel=kernel) for name, kernel in own["kernels"].items()]
        return packed_weights(own["algorithm"], geometry, own["element"], steps, weights)["w"]


def _draw(spec: Mapping[str, Any]) -> Array:
    values = np.random.default_rng(spec["seed"]).standard_normal(tuple(spec["shape"]), dtype=np.float32)
    halves = np.asarray(values * np.float32(spec["size"]), np.float16)
    # A number that becomes 0 would be a connection less.
    return np.where(halves == 0, np.finfo(np.float16).tiny, halves)


def _hash(halves: Array) -> str:
    return sha256(halves.tobytes()).hexdigest()


def _parts(own: Mapping[str, Any], weights: Array, tables: Mapping[str, Array]) -> Array:
    """Piece after piece: taps x outputs x inputs of a part, both in whole granules."""
    dense = weights.reshape(*weights.shape[:2], -1)
    jobs, outputs, inputs = (np.asarray(tables[name]) for name in ("jobs", "outputs", "inputs"))
    w = np.zeros(own["size"], compute_type(own["element"]))
    _, first = np.unique(jobs[:, _WEIGHTS], return_index=True)
    for job in jobs[first]:
        begin, (high, wide) = job[_WEIGHTS], own["granules"][job[_VARIANT]]
        rows = outputs[job[_OUTPUTS] : job[_OUTPUTS] + job[_OUTPUTS + 1]]
        columns = inputs[job[_INPUTS] : job[_INPUTS] + job[_INPUTS + 1]]
        shape = (dense.shape[2], -(-len(rows) // high) * high, -(-len(columns) // wide) * wide)
        piece = np.zeros(shape, np.float64)
        piece[:, : len(rows), : len(columns)] = dense[np.ix_(rows, columns)].transpose(2, 0, 1)
        w[begin : begin + piece.size] = in_type(piece.reshape(-1), w.dtype)
    return w

"""A model as a list of operators with everything static decided: what a whole-model job carries and a host runs.

Needs NumPy only. Shapes, axes and other parameters are attributes of a node, so a host never reads a tensor to learn
what to do, which is what a CUDA graph asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.whole_model_weights import Recipe, WeightMaker
from onnxopt.errors import InputError

Array = npt.NDArray[Any]

SCHEMA = "onnxopt.whole_model/1"
LAUNCH = "Launch"
"""The operator of a kernel of our own; its attributes say what is launched, see ``whole_model_kernels``."""

TABLE = "table:"
"""Constants whose names begin so are handed to kernels bit by bit; all others may change their type."""

_FOLDER = "constants"
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Node:
    """One operator; ``inputs`` and ``outputs`` name tensors, an absent input is an empty name."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def reads(self) -> tuple[str, ...]:
        """Every tensor that the node needs, the tables of a kernel included."""
        tables = self.attributes["tables"].values() if self.op == LAUNCH else ()
        return (*(name for name in self.inputs if name), *tables)


@dataclass(frozen=True, eq=False)
class Program:
    """Nodes in topological order, the constants they read, and the tensors that go in and come out.

    Constants with a recipe are made where the program is read.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array] = field(repr=False)
    recipes: Mapping[str, Recipe] = field(default_factory=dict, repr=False)

    def node_of(self, tensor: str) -> Node | None:
        """What makes a tensor; None for inputs and constants."""
        return next((node for node in self.nodes if tensor in node.outputs), None)


def pruned(program: Program, keep: Iterable[str] = ()) -> Program:
    """The program without what neither its outputs nor the tensors of ``keep`` need."""
    wanted = {*program.outputs, *keep}
    nodes: list[Node] = []
    for node in reversed(program.nodes):
        if not wanted.isdisjoint(node.outputs):
            nodes.append(node)
            wanted.update(node.reads())
    constants = {name: array for name, array in program.constants.items() if name in wanted}
    recipes = {name: recipe for name, recipe in program.recipes.items() if name in wanted}
    return replace(program, nodes=tuple(reversed(nodes)), constants=constants, recipes=recipes)


def write_program(program: Program, folder: Path, name: str, dtype: str) -> None:
    """Write ``name`` below ``folder``; constants lie beside it by their content, floats in the type of the host.

    Equal constants of several programs are stored once. A finite number that fp16 cannot hold becomes its largest one,
    as converters of models do: masks made of -1e9 stay finite.
    """
    (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
    files = {
        key: program.recipes.get(key) or _stored(folder, key, array, dtype) for key, array in program.constants.items()
    }
    document = {
        "schema": SCHEMA,
        "dtype": dtype,
        "inputs": program.inputs,
        "outputs": program.outputs,
        "constants": files,
        "nodes": [
            {"op": n.op, "name": n.name, "inputs": n.inputs, "outputs": n.outputs, "attributes": dict(n.attributes)}
            for n in program.nodes
        ],
    }
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, sort_keys=True) + "\n")


def read_program(folder: Path, name: str, maker: WeightMaker | None = None) -> Program:
    """What :func:`write_program` wrote; raises InputError where it is something else.

    ``maker`` makes the constants that have a recipe; one for several programs draws equal ones once.
    """
    path = folder / name
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            raise InputError(f"{path}: schema {document['schema']!r}, expected {SCHEMA!r}; make the job again")
        nodes = tuple(
            Node(n["op"], n["name"], tuple(n["inputs"]), tuple(n["outputs"]), n["attributes"])
            for n in document["nodes"]
        )
        constants = _constants(folder, document, maker or WeightMaker())
        return Program(tuple(document["inputs"]), tuple(document["outputs"]), nodes, constants)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a folder made by whole_model_gpu_job") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); make the job again") from None


def for_host(array: Array, dtype: str) -> Array:
    """A constant as a host that computes in ``dtype`` (fp16 or fp32) holds it."""
    if array.dtype.kind == "f":
        array = np.asarray(array, np.float64 if dtype == "fp16" else np.float32)
        if dtype == "fp16":
            finite = np.isfinite(array)
            array = np.where(finite, np.clip(array, -_LARGEST_HALF, _LARGEST_HALF), array).astype(np.float16)
        return array
    return array if array.dtype.kind == "b" else array.astype(np.int64)


def last_uses(nodes: Sequence[Node], outputs: Iterable[str]) -> dict[int, tuple[str, ...]]:
    """For each node's number the tensors that nothing needs behind it."""
    last = {name: number for number, node in enumerate(nodes) for name in (*node.outputs, *node.inputs) if name}
    kept = set(outputs)
    found: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in kept:
            found.setdefault(number, []).append(name)
    return {number: tuple(names) for number, names in found.items()}


def _stored(folder: Path, key: str, array: Array, dtype: str) -> str:
    plain = np.ascontiguousarray(array if key.startswith(TABLE) else for_host(array, dtype)).reshape(array.shape)
    digest = sha256(f"{plain.dtype.str}{plain.shape}".encode() + plain.tobytes()).hexdigest()[:20]
    file = f"{_FOLDER}/{digest}.npy"
    if not (folder / file).exists():
        np.save(folder / file, plain, allow_pickle=False)
    return file


def _constants(folder: Path, document: Mapping[str, Any], maker: WeightMaker) -> dict[str, Array]:
    """In the order of the document; recipes need the tables that are there as files."""
    given: Mapping[str, Any] = document["constants"]
    loaded = {key: _loaded(folder, file) for key, file in given.items() if isinstance(file, str)}
    found = {}
    for key, recipe in given.items():
        if key in loaded:
            found[key] = loaded[key]
        elif "drawn" in recipe:
            found[key] = for_host(maker.drawn(recipe), document["dtype"])
        else:
            found[key] = maker.packed(recipe, {name: loaded[table] for name, table in recipe["tables"].items()})
    return found


def _loaded(folder: Path, file: str) -> Array:
    if not (folder / file).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the file {file!r} lies outside of the folder")
    array: Array = np.load(folder / file, allow_pickle=False)
    return array

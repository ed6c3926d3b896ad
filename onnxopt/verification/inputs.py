"""Inputs for a comparison: random ones as the model expects them, or the user's own from an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Set
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from onnxopt.errors import InputError
from onnxopt.verification.interface import FLOAT_TYPES, INTEGER_TYPES, TensorSpec, concrete_shape, input_specs
from onnxopt.verification.usage import InputKind, InputUse, input_uses

Array = npt.NDArray[np.generic]

MAX_INPUT_BYTES = 8 << 30
# RuntimeError is what zipfile says to an encrypted member and, as NotImplementedError, to an odd compression.
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError)
_DRAWABLE = FLOAT_TYPES | INTEGER_TYPES | {onnx.TensorProto.BOOL}


def draw_inputs(model: onnx.ModelProto, *, seed: int, batch: int) -> dict[str, Array]:
    """Random inputs for `model`, by name, each as the graph uses it (see `onnxopt.verification.usage`).

    Float data is standard normal. A mask holds 0 and 1, and every row of it (its last axis longer than 1)
    starts with 1 and ends with 0, so that both values occur and whichever of them hides a key, another key
    stays visible. Ids lie in the rows of the table that they pick from. A symbolic first dimension becomes
    `batch`. The same model, seed and batch give the same arrays, whatever the order of the inputs.

    Raises InputError for an input whose type or shape cannot be drawn.
    """
    uses = input_uses(model)
    return {spec.name: _draw(spec, uses[spec.name], seed, batch) for spec in input_specs(model)}


def _draw(spec: TensorSpec, use: InputUse, seed: int, batch: int) -> Array:
    if spec.elem_type not in _DRAWABLE:
        raise InputError(
            f"input '{spec.name}' ({spec.describe()}) is of a type for which no values can be drawn: only "
            f"float, integer and "
            "boolean tensors are supported"
        )
    shape = concrete_shape(spec, batch)
    _check_size(spec, shape, "the model")
    rng = np.random.default_rng(np.random.SeedSequence([seed, batch, zlib.crc32(spec.name.encode())]))
    if use.kind is InputKind.NORMAL:
        return rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    if use.kind is InputKind.MASK:
        return _draw_mask(rng, shape).astype(spec.dtype)
    return rng.integers(use.low, use.high, shape).astype(spec.dtype)


def _draw_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    values = np.asarray(rng.integers(0, 2, shape))
    first_axis = 1 if len(shape) > 1 else 0
    row_axis = next((axis for axis in reversed(range(first_axis, len(shape))) if shape[axis] > 1), None)
    if row_axis is None:
        return np.ones_like(values)
    rows = np.moveaxis(values, row_axis, -1)
    rows[..., -1] = 0
    rows[..., 0] = 1
    return values


def _check_size(spec: TensorSpec, shape: tuple[int, ...], source: str) -> None:
    size = spec.dtype.itemsize
    for length in shape:
        size *= length
    if size > MAX_INPUT_BYTES:
        raise InputError(
            f"input '{spec.name}' of shape {list(shape)} in {source} takes {size} bytes; at most "
            f"{MAX_INPUT_BYTES} are allowed"
        )


def load_inputs(path: str | Path, model: onnx.ModelProto) -> dict[str, Array]:
    """Reads the inputs of `model` from an .npz file: one array per input, under the input's name.

    Types and shapes must be those of the model; a symbolic size takes any value of 1 or more, the same
    wherever the same symbol stands. bfloat16, which .npz cannot hold, is given as float32. The file is
    untrusted: nothing is unpickled, and headers are checked before memory is taken.

    Raises InputError naming the array, what it is and what was expected.
    """
    path = Path(path)
    specs = {spec.name: spec for spec in input_specs(model)}
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
            if len(sizes) != len(archive.infolist()):
                # Of two members for one name another could be loaded than was looked at.
                raise InputError(f"{path}: holds an array twice; expected exactly {_expected(specs)}")
            _check_names(path, sizes.keys(), specs)
            symbols: dict[str, int] = {}
            for name, spec in specs.items():
                _check_header(path, archive, spec, sizes[name], symbols)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name].astype(spec.dtype, order="C") for name, spec in specs.items()}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give an .npz file with the arrays {_expected(specs)}") from error
    except _UNREADABLE as error:
        raise InputError(
            f"{path}: not a readable .npz file ({error}); write it with numpy.savez and the arrays {_expected(specs)}"
        ) from error


def _expected(specs: dict[str, TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}' {spec.describe()}" for spec in specs.values())


def _check_names(path: Path, names: Set[str], specs: dict[str, TensorSpec]) -> None:
    missing, extra = sorted(specs.keys() - names), sorted(names - specs.keys())
    if missing or extra:
        wrong = [f"'{name}' is missing" for name in missing]
        wrong += [f"'{name}' is no input of the model" for name in extra]
        raise InputError(f"{path}: {', '.join(wrong)}; expected exactly {_expected(specs)}")


def _check_header(
    path: Path, archive: zipfile.ZipFile, spec: TensorSpec, stored_bytes: int, symbols: dict[str, int]
) -> None:
    shape, dtype = _read_header(archive, spec.name)
    expected = f"expected {spec.describe()}"
    if dtype.hasobject:
        raise InputError(f"{path}: '{spec.name}' holds pickled Python objects, which are never loaded; {expected}")
    wanted = np.dtype(np.float32) if spec.elem_type == onnx.TensorProto.BFLOAT16 else spec.dtype
    if dtype != wanted:
        raise InputError(f"{path}: '{spec.name}' is {dtype}{list(shape)}; {expected} (as {wanted} in the file)")
    fits = spec.shape is None or (
        len(shape) == len(spec.shape) and all(map(_size_fits, shape, spec.shape, [symbols] * len(shape)))
    )
    if not fits:
        known = "".join(f", {name} is already {size}" for name, size in symbols.items())
        raise InputError(f"{path}: '{spec.name}' is {dtype}{list(shape)}; {expected}{known}")
    _check_size(spec, shape, str(path))
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > stored_bytes:
        raise InputError(f"{path}: '{spec.name}' is cut short: {stored_bytes} bytes cannot hold {dtype}{list(shape)}")


def _read_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    members = archive.namelist()
    with archive.open(f"{name}.npy" if f"{name}.npy" in members else name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        return tuple(shape), dtype


def _size_fits(found: int, allowed: int | str, symbols: dict[str, int]) -> bool:
    if isinstance(allowed, int):
        return found == allowed
    return found >= 1 and (allowed == "" or symbols.setdefault(allowed, found) == found)

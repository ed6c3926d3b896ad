"""Which source a step of a convolution algorithm is compiled from: all that its configuration decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from onnxopt.errors import InputError
from onnxopt.kernels.conv_source import sum_conv_source
from onnxopt.kernels.fields import (
    LARGEST,
    MOST_SIDE,
    MOST_STAGES,
    MOST_THREADS,
    element_field,
    flag_field,
    integer_field,
    word_field,
)
from onnxopt.kernels.source import KernelSource
from onnxopt.plan.algorithms.tiles import PIECE_BYTES
from onnxopt.plan.roofline import ELEMENT_BYTES

ALGORITHM_FILES: Mapping[str, str] = {
    "ConvScalar": "conv_scalar",
    "ConvUnfold": "conv_unfold",
    "ConvProduct": "conv_product",
    "ConvShiftAdd": "conv_shift_add",
    "ConvDirect": "conv_direct",
    "ConvSlices": "conv_slices",
    "WinogradInput": "winograd_input",
    "WinogradOutput": "winograd_output",
}
"""The operators of steps, and the source of each; its entry has the same name."""

_ACTIVATIONS = ("none", "relu", "hardswish", "silu")
_SIZES = ("input_size", "output_size", "kernel")
_STEPS = ("strides", "dilations")
_MOST_OWN = 8
_MOST_MATRICES = 64

Defines = list[tuple[str, str]]


def algorithm_source(operator: str, kernel: Mapping[str, Any]) -> KernelSource:
    """The source of a step from its ``operator`` without the hash and the ``kernel`` part of its configuration.

    Takes ``SumConv`` too. Raises InputError, naming the field, its value and what is allowed, for everything that the
    kernel is not written for.
    """
    if operator == "SumConv":
        return sum_conv_source(kernel)
    if operator not in ALGORITHM_FILES:
        allowed = ", ".join([*ALGORITHM_FILES, "SumConv"])
        raise InputError(f"a convolution algorithm's step {operator[:40]!r}; allowed: {allowed}")
    defines: Defines = [("ELEMENT", element_field(operator, kernel))]
    for reader in _READERS[operator]:
        defines += reader(operator, kernel)
    file = ALGORITHM_FILES[operator]
    return KernelSource(f"conv/algorithms/{file}.cu", file, tuple(defines))


def _geometry(what: str, kernel: Mapping[str, Any]) -> Defines:
    channels = {name: integer_field(what, kernel, name, 1) for name in ("input_channels", "output_channels")}
    least = {**dict.fromkeys((*_SIZES, *_STEPS), 1), "pads": 0}
    axes = {name: _three(what, kernel, name, smallest) for name, smallest in least.items()}
    for word in ("input", "output"):
        count = channels[f"{word}_channels"] * prod(axes[f"{word}_size"])
        _check_elements(what, word, count)
    groups = integer_field(what, kernel, "groups", 1)
    if groups > 1 and (what != "ConvSlices" or groups != channels["input_channels"]):
        raise InputError(
            f"{what}: 'groups' is {groups}; allowed: 1, in ConvSlices also {channels['input_channels']}, one for each "
            "input channel"
        )
    if channels["output_channels"] % groups:
        raise InputError(
            f"{what}: {channels['output_channels']} output channels in {groups} groups; allowed: equal groups"
        )
    named = {**{name: str(value) for name, value in channels.items()}, "groups": str(groups)}
    named |= {name: ",".join(map(str, values)) for name, values in axes.items()}
    return [(name.upper(), value) for name, value in named.items()]


def _finish(what: str, kernel: Mapping[str, Any]) -> Defines:
    activation = word_field(what, kernel, "activation", _ACTIVATIONS)
    return [("ACTIVATION", activation), ("RESIDUAL", str(int(flag_field(what, kernel, "residual"))))]


def _raw(what: str, kernel: Mapping[str, Any]) -> Defines:
    raw = flag_field(what, kernel, "raw")
    if raw and (kernel.get("residual") or kernel.get("activation") != "none"):
        raise InputError(f"{what}: sums without bias have activation and residual; allowed: 'none' and false")
    return [("RAW", str(int(raw)))]


def _threads(what: str, kernel: Mapping[str, Any]) -> Defines:
    threads = integer_field(what, kernel, "threads", 32, MOST_THREADS)
    if threads % 32:
        raise InputError(f"{what}: 'threads' is {threads}; allowed: whole warps of 32")
    return [("THREADS", str(threads))]


def _own_positions(what: str, kernel: Mapping[str, Any]) -> Defines:
    return [("OWN_POSITIONS", str(integer_field(what, kernel, "own_positions", 1, _MOST_OWN)))]


def _pitch(what: str, kernel: Mapping[str, Any]) -> Defines:
    """Of rows that a step writes: all positions or tiles, in whole pieces."""
    pitch = integer_field(what, kernel, "pitch", 1)
    unfold = what == "ConvUnfold"
    positions = prod(kernel["output_size"]) if unfold else winograd_tiles(kernel)
    piece = PIECE_BYTES // ELEMENT_BYTES[kernel["element"]]
    if pitch < positions or pitch % piece:
        raise InputError(
            f"{what}: rows of {pitch} elements for {positions} places; allowed: multiples of {piece} that hold them"
        )
    matrices = prod(kernel["kernel"]) if unfold else (kernel["tile"] + 2) ** 2
    _check_elements(what, "output", matrices * kernel["input_channels"] * pitch)
    return [("PITCH", str(pitch))]


def _products(what: str, kernel: Mapping[str, Any]) -> Defines:
    """Of products that a step reads."""
    if what == "ConvShiftAdd":
        places = prod(kernel["kernel"]) * prod(kernel["input_size"])
    else:
        places = (kernel["tile"] + 2) ** 2 * winograd_tiles(kernel)
    _check_elements(what, "products", places * kernel["output_channels"])
    return []


def winograd_tiles(kernel: Mapping[str, Any]) -> int:
    """Tiles of an output plane."""
    return prod(-(-size // kernel["tile"]) for size in kernel["output_size"][1:])


def _check_elements(what: str, word: str, count: int) -> None:
    if count > LARGEST:
        raise InputError(f"{what}: {count:,} elements of {word} a batch element; allowed: {LARGEST:,}")


def _tile(what: str, kernel: Mapping[str, Any]) -> Defines:
    tile = integer_field(what, kernel, "tile", 2, 4)
    expected = {"kernel": [1, 3, 3], "strides": [1, 1, 1], "dilations": [1, 1, 1]}
    wrong = next((name for name, value in expected.items() if list(kernel[name]) != value), None)
    if wrong is not None or tile == 3 or kernel["input_size"][0] != 1 or kernel["pads"][0] != 0:
        seen = {name: kernel[name] for name in ("tile", *expected, "input_size", "pads")}
        raise InputError(
            f"{what}: {seen}; allowed: tiles of 2 or 4, 3x3 taps with strides and dilations of 1, one plane deep"
        )
    return [("TILE", str(tile))]


def _product(what: str, kernel: Mapping[str, Any]) -> Defines:
    names = {"matrices": _MOST_MATRICES, "rows": LARGEST, "depth": LARGEST, "positions": LARGEST, "pitch": LARGEST}
    numbers = {name: integer_field(what, kernel, name, 1, most) for name, most in names.items()}
    if numbers["pitch"] < numbers["positions"]:
        raise InputError(
            f"{what}: rows of {numbers['pitch']} for {numbers['positions']} positions; allowed: so many or more"
        )
    if not kernel.get("raw") and numbers["matrices"] != 1:
        raise InputError(f"{what}: {numbers['matrices']} matrices are one y; allowed: 1, or several with 'raw'")
    for word, count in (
        ("columns", numbers["matrices"] * numbers["depth"] * numbers["pitch"]),
        ("results", numbers["matrices"] * numbers["rows"] * numbers["positions"]),
    ):
        _check_elements(what, word, count)
    tile = {name: integer_field(what, kernel, name, 16, MOST_SIDE) for name in ("block_rows", "block_positions")}
    tile["stages"] = integer_field(what, kernel, "stages", 2, MOST_STAGES)
    tile["warps"] = integer_field(what, kernel, "warps", 1, MOST_THREADS // 32)
    tile["row_warps"] = integer_field(what, kernel, "row_warps", 1, tile["warps"])
    beside = tile["warps"] // tile["row_warps"]
    if beside * tile["row_warps"] != tile["warps"]:
        raise InputError(f"{what}: {tile['row_warps']} of {tile['warps']} warps divide the rows; allowed: divisors")
    for name, parts in (("block_rows", tile["row_warps"]), ("block_positions", beside)):
        if tile[name] % (16 * parts):
            raise InputError(f"{what}: {name!r} is {tile[name]} for {parts} warps; allowed: multiples of {16 * parts}")
    return [(name.upper(), str(value)) for name, value in {**numbers, **tile}.items()]


def _patch(what: str, kernel: Mapping[str, Any]) -> Defines:
    names = ("tile_height", "tile_width", "block_outputs", "own_outputs", "position_warps")
    tile = {name: integer_field(what, kernel, name, 1, MOST_SIDE) for name in names}
    tile["own_positions"] = integer_field(what, kernel, "own_positions", 1, _MOST_OWN)
    if tile["block_outputs"] % tile["own_outputs"] or tile["own_outputs"] > _MOST_OWN:
        raise InputError(
            f"{what}: {tile['own_outputs']} of a block's {tile['block_outputs']} channels in a warp; allowed: divisors "
            f"up to {_MOST_OWN}"
        )
    warps = tile["block_outputs"] // tile["own_outputs"] * tile["position_warps"]
    if 32 * warps > MOST_THREADS:
        raise InputError(f"{what}: {32 * warps} threads a block; allowed: up to {MOST_THREADS}")
    held = 32 * tile["own_positions"] * tile["position_warps"]
    if tile["tile_height"] * tile["tile_width"] > held:
        raise InputError(
            f"{what}: a rectangle of {tile['tile_height']} x {tile['tile_width']} positions; allowed: {held}, as many "
            "as lanes hold"
        )
    return [(name.upper(), str(value)) for name, value in tile.items()]


def _block_inputs(what: str, kernel: Mapping[str, Any]) -> Defines:
    return [("BLOCK_INPUTS", str(integer_field(what, kernel, "block_inputs", 1, MOST_SIDE)))]


def _slices(what: str, kernel: Mapping[str, Any]) -> Defines:
    inputs, grouped = kernel["input_channels"], kernel["groups"] > 1
    slices = integer_field(what, kernel, "slices", 1, inputs)
    if grouped and (slices != inputs or kernel["raw"]):
        raise InputError(f"{what}: {slices} slices of a depthwise layer; allowed: {inputs}, and 'raw' false")
    if not grouped and kernel["raw"] != (slices > 1):
        raise InputError(f"{what}: {slices} slices with 'raw' {kernel['raw']}; allowed: 'raw' where there are several")
    if kernel["raw"]:
        _check_elements(what, "partial planes", slices * kernel["output_channels"] * prod(kernel["output_size"]))
    return [("SLICES", str(slices))]


def _three(what: str, kernel: Mapping[str, Any], name: str, least: int) -> list[int]:
    values = kernel.get(name)
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 3:
        raise InputError(f"{what}: {name!r} is {values!r:.80}; allowed: three numbers, of depth, height and width")
    named = dict(zip(("depth", "height", "width"), values, strict=True))
    return [integer_field(f"{what}, {name!r}", named, axis, least) for axis in named]


_READERS: Mapping[str, tuple[Callable[[str, Mapping[str, Any]], Defines], ...]] = {
    "ConvScalar": (_geometry, _finish, _threads, _own_positions),
    "ConvUnfold": (_geometry, _threads, _pitch),
    "ConvProduct": (_finish, _raw, _product),
    "ConvShiftAdd": (_geometry, _finish, _threads, _products),
    "ConvDirect": (_geometry, _finish, _patch, _block_inputs),
    "ConvSlices": (_geometry, _finish, _raw, _patch, _slices),
    "WinogradInput": (_geometry, _threads, _tile, _pitch),
    "WinogradOutput": (_geometry, _finish, _threads, _tile, _products),
}

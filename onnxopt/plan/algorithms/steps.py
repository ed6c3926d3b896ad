"""The steps of each convolution algorithm, as ``docs/algorithms.md`` describes them: one kernel each.

Tensors between steps are ordinary tensors of the model: the workspace that the choice of algorithms counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from onnxopt.errors import InputError
from onnxopt.plan.algorithms.geometry import LayerGeometry
from onnxopt.plan.algorithms.tiles import (
    MOST_SHARED,
    PIECE_BYTES,
    PatchTile,
    channel_bytes,
    direct_tile,
    product_tile,
    slice_count,
    slices_tile,
)
from onnxopt.plan.roofline import ELEMENT_BYTES
from onnxopt.target.variant import Element

Algorithm = Literal["scalar_matrix", "kn2row", "im2col", "direct", "depthwise", "winograd_2x2", "winograd_4x4"]
ALGORITHMS: tuple[Algorithm, ...] = (
    "scalar_matrix",
    "kn2row",
    "im2col",
    "direct",
    "depthwise",
    "winograd_2x2",
    "winograd_4x4",
)
WINOGRAD_TILES: Mapping[str, int] = {"winograd_2x2": 2, "winograd_4x4": 4}
"""Positions of an output tile along each axis. These algorithms are used only where they are asked for."""

_ELEMENTWISE_THREADS = 256
_SCALAR_THREADS = 128
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class AlgorithmStep:
    """One kernel: an operator without workspace of its own.

    ``operator`` is its name without the hash, ``kernel`` all that its source depends on. ``inputs`` and ``outputs``
    name the tensors in the kernel's order: first ``x`` of the layer or what a step before made, then ``residual`` of
    the layer, then ``w``, ``b`` and tables of :func:`onnxopt.plan.algorithms.packing.packed_weights`. ``output_type``
    is a compute type or ``float32``, ``output_shape`` that of one batch element. ``workspace_bytes`` are those of all
    tensors between steps that exist while it runs, for one batch element.
    """

    operator: str
    kernel: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_type: Element | Literal["float32"]
    output_shape: tuple[int, ...]
    workspace_bytes: int = 0


def algorithm_refusal(name: str, geometry: LayerGeometry) -> str:
    """Why an algorithm does not compute a layer, with the figures; empty where it does.

    Raises InputError for a name that is not in :data:`ALGORITHMS`.
    """
    if name not in ALGORITHMS:
        raise InputError(f"a convolution algorithm {name[:40]!r}; allowed: {', '.join(ALGORITHMS)}")
    groups, inputs = geometry.groups, geometry.input_channels
    if name != "depthwise" and groups != 1:
        return f"{name} computes layers of one group; this one has {groups} groups of {inputs // groups} channels"
    if name == "depthwise" and groups not in (1, inputs):
        return f"depthwise computes layers of one group or of {inputs}, one for each channel; this one has {groups}"
    if name in WINOGRAD_TILES and not _filters_3x3(geometry):
        return (
            f"{name} computes 3x3 layers with strides and dilations of 1; this one is "
            f"{'x'.join(map(str, geometry.kernel))} with strides {geometry.strides} and dilations {geometry.dilations}"
        )
    if name in ("direct", "depthwise"):
        tile = direct_tile(geometry) if name == "direct" else slices_tile(geometry)
        need = channel_bytes(geometry, tile.height, tile.width, tile.block_outputs)
        if need > MOST_SHARED:
            return (
                f"{name} holds one channel's patch and weights in shared memory, {need:,} bytes for "
                f"{geometry.taps} taps; allowed: {MOST_SHARED:,}"
            )
    return ""


def algorithm_steps(
    name: str,
    geometry: LayerGeometry,
    element: Element,
    *,
    activation: str = "none",
    residual: bool = False,
) -> tuple[AlgorithmStep, ...]:
    """The steps of an algorithm for a layer, in order.

    Raises InputError with the reason of :func:`algorithm_refusal`, and where a tensor between steps has 2^31 or more
    elements for one batch element.
    """
    reason = algorithm_refusal(name, geometry)
    if reason:
        raise InputError(f"{reason}; choose another algorithm for this layer")
    maker = _Maker(geometry, element, activation, residual)
    if name == "scalar_matrix":
        steps = [maker.scalar()]
    elif name == "direct":
        steps = [maker.direct()]
    elif name == "depthwise":
        steps = maker.depthwise()
    elif name in WINOGRAD_TILES:
        steps = maker.winograd(WINOGRAD_TILES[name])
    elif geometry.pointwise:
        steps = [maker.product("x", geometry.input_channels, geometry.positions, geometry.output_channels)]
    else:
        steps = maker.kn2row() if name == "kn2row" else maker.im2col()
    for step in steps:
        if prod(step.output_shape) > _LARGEST:
            raise InputError(
                f"{name}: {step.outputs[0]!r} has {prod(step.output_shape):,} elements a batch element; allowed: "
                f"{_LARGEST:,}; choose another algorithm for this layer"
            )
    return _with_workspace(steps)


def workspace_bytes(name: str, geometry: LayerGeometry, element: Element, batch: int) -> int:
    """The most that tensors between the steps of an algorithm take at one time. Raises as :func:`algorithm_steps`."""
    return batch * max(step.workspace_bytes for step in algorithm_steps(name, geometry, element))


def _with_workspace(steps: list[AlgorithmStep]) -> tuple[AlgorithmStep, ...]:
    """A tensor exists from the step that makes it to the last one that reads it."""
    made = {step.outputs[0]: (number, _bytes(step)) for number, step in enumerate(steps[:-1])}
    read = {name: number for number, step in enumerate(steps) for name in step.inputs}
    result = []
    for number, step in enumerate(steps):
        alive = [size for name, (first, size) in made.items() if first <= number <= read[name]]
        result.append(replace(step, workspace_bytes=sum(alive)))
    return tuple(result)


def _bytes(step: AlgorithmStep) -> int:
    return prod(step.output_shape) * (4 if step.output_type == "float32" else ELEMENT_BYTES[step.output_type])


def _filters_3x3(geometry: LayerGeometry) -> bool:
    ones = (1, 1, 1)
    flat = geometry.input_size[0] == 1 and geometry.pads[0] == 0
    return flat and geometry.kernel == (1, 3, 3) and geometry.strides == ones and geometry.dilations == ones


@dataclass(frozen=True)
class _Maker:
    geometry: LayerGeometry
    element: Element
    activation: str
    residual: bool

    def scalar(self) -> AlgorithmStep:
        blocks = self.geometry.output_channels * -(-self.geometry.positions // _SCALAR_THREADS)
        own = 4 if self.geometry.positions >= 4 * _SCALAR_THREADS and blocks >= 1024 else 1
        return self._last("ConvScalar", ("x", "w"), {"threads": _SCALAR_THREADS, "own_positions": own})

    def direct(self) -> AlgorithmStep:
        tile = direct_tile(self.geometry)
        return self._last("ConvDirect", ("x", "w"), {**_patch_fields(tile), "block_inputs": tile.block_inputs})

    def depthwise(self) -> list[AlgorithmStep]:
        geometry, slices = self.geometry, slice_count(self.geometry)
        fields = {**_patch_fields(slices_tile(geometry)), "slices": slices}
        if geometry.depthwise or slices == 1:
            return [self._last("ConvSlices", ("x", "w"), {**fields, "raw": False})]
        rows = slices * geometry.output_channels
        raw = {"raw": True, "activation": "none", "residual": False}
        first = self._step("ConvSlices", {**fields, **raw}, ("x", "w"), "partial", (rows, geometry.positions), True)
        kernel = {
            "element": self.element,
            "layout": "first",
            "output_channels": geometry.output_channels,
            "output_size": list(geometry.output_size),
            **self._finish(),
            "slots": rows,
        }
        names = self._inputs("partial", "b", "sum_begin", "sum_rows")
        shape = (geometry.output_channels, geometry.positions)
        return [first, AlgorithmStep("SumConv", kernel, names, ("y",), self.element, shape)]

    def im2col(self) -> list[AlgorithmStep]:
        geometry = self.geometry
        depth, pitch = geometry.input_channels * geometry.taps, self._pitch(geometry.positions)
        fields = {"pitch": pitch, "threads": _ELEMENTWISE_THREADS}
        unfold = self._step("ConvUnfold", fields, ("x",), "columns", (depth, pitch))
        return [unfold, self.product("columns", depth, pitch, geometry.output_channels)]

    def kn2row(self) -> list[AlgorithmStep]:
        geometry = self.geometry
        rows, positions = geometry.taps * geometry.output_channels, geometry.input_positions
        kernel = self._product_kernel(1, rows, geometry.input_channels, positions, positions, raw=True)
        product = AlgorithmStep("ConvProduct", kernel, ("x", "w"), ("products",), "float32", (1, rows, positions))
        return [product, self._last("ConvShiftAdd", ("products",), {"threads": _ELEMENTWISE_THREADS})]

    def winograd(self, tile: int) -> list[AlgorithmStep]:
        geometry = self.geometry
        entries = (tile + 2) ** 2
        tiles = prod(-(-size // tile) for size in geometry.output_size[1:])
        pitch = self._pitch(tiles)
        inputs, outputs = geometry.input_channels, geometry.output_channels
        fields = {"tile": tile, "threads": _ELEMENTWISE_THREADS}
        shape = (entries, inputs, pitch)
        made = self._step("WinogradInput", {**fields, "pitch": pitch}, ("x",), "transformed", shape)
        kernel = self._product_kernel(entries, outputs, inputs, tiles, pitch, raw=True)
        shape = (entries, outputs, tiles)
        product = AlgorithmStep("ConvProduct", kernel, ("transformed", "w"), ("products",), "float32", shape)
        return [made, product, self._last("WinogradOutput", ("products",), fields)]

    def product(self, columns: str, depth: int, pitch: int, rows: int) -> AlgorithmStep:
        """A product that is all of ``y``."""
        positions = self.geometry.positions
        kernel = self._product_kernel(1, rows, depth, positions, pitch, raw=False)
        names = self._inputs(columns, "w", "b")
        return AlgorithmStep("ConvProduct", kernel, names, ("y",), self.element, (rows, positions))

    def _product_kernel(
        self, matrices: int, rows: int, depth: int, positions: int, pitch: int, *, raw: bool
    ) -> dict[str, Any]:
        tile = product_tile(matrices, rows, positions)
        return {
            "element": self.element,
            "matrices": matrices,
            "rows": rows,
            "depth": depth,
            "positions": positions,
            "pitch": pitch,
            "raw": raw,
            **({"activation": "none", "residual": False} if raw else self._finish()),
            "block_rows": tile.rows,
            "block_positions": tile.positions,
            "stages": tile.stages,
            "warps": tile.warps,
            "row_warps": tile.row_warps,
        }

    def _last(self, operator: str, inputs: tuple[str, ...], fields: Mapping[str, Any]) -> AlgorithmStep:
        shape = (self.geometry.output_channels, self.geometry.positions)
        names = self._inputs(*inputs, "b")
        return self._step(operator, {**self._finish(), **fields}, names, "y", shape)

    def _step(
        self,
        operator: str,
        fields: Mapping[str, Any],
        inputs: tuple[str, ...],
        output: str,
        shape: tuple[int, ...],
        sums: bool = False,
    ) -> AlgorithmStep:
        kernel = {"element": self.element, **self.geometry.to_json(), **fields}
        return AlgorithmStep(operator, kernel, inputs, (output,), "float32" if sums else self.element, shape)

    def _finish(self) -> dict[str, Any]:
        return {"activation": self.activation, "residual": self.residual}

    def _inputs(self, first: str, *tables: str) -> tuple[str, ...]:
        """Those of a step that makes ``y``: operands, then tables."""
        return (first, *(["residual"] if self.residual else []), *tables)

    def _pitch(self, positions: int) -> int:
        piece = PIECE_BYTES // ELEMENT_BYTES[self.element]
        return -(-positions // piece) * piece


def _patch_fields(tile: PatchTile) -> dict[str, int]:
    return {
        "tile_height": tile.height,
        "tile_width": tile.width,
        "block_outputs": tile.block_outputs,
        "own_outputs": tile.own_outputs,
        "own_positions": tile.own_positions,
        "position_warps": tile.position_warps,
    }

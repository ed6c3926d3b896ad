"""Blocks of convolutions made up for tests of their kernel, by the networks that they are modelled on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxopt.kernels.block_source import conv_block_source
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.plan.block import BlockShape, BlockTables, BlockWork, block_tables, block_work
from onnxopt.plan.block.bundles import bundle, components, within
from onnxopt.plan.block.types import BlockSchedule
from onnxopt.plan.tables.work import Activation, ConvWork
from onnxopt.target.variant import Element
from onnxopt.validate.block_contents import validate_block_contents
from onnxopt.validate.block_launch import validate_block_launch
from onnxopt.verification.block_kernels import check_conv_block
from onnxopt.verification.kernels import ORDERS, KernelCheck

SMALL = BlockShape(warps=2, columns=1, granules=1, blocks=2, step=32)
WIDE = BlockShape(warps=4, columns=2, granules=2, blocks=2, step=64)


@dataclass(frozen=True)
class BlockWish:
    """A block: a pointwise convolution in ``groups``, a shuffle, then the convolutions named in ``form``.

    ``shuffle`` has depthwise 3x3 and a pointwise convolution in groups behind it, ``condense`` a 3x3 in groups,
    ``dense`` a grouped 3x3 and a pointwise one. ``together`` components make a bundle, ``rows`` rows at a time.
    """

    form: str = "shuffle"
    inputs: int = 24
    middle: int = 12
    outputs: int = 24
    groups: int = 2
    size: tuple[int, int] = (8, 8)
    stride: int = 1
    dilation: int = 1
    kernel: int = 3
    prologue: bool = False
    residual: bool = False
    activation: Activation = "relu"
    rows: int = 3
    together: int = 1
    batch: int = 2


WISHES: dict[str, BlockWish] = {
    "shuffle": BlockWish(residual=True),
    "shuffle of stride 2": BlockWish(size=(9, 8), stride=2, activation="none", rows=2),
    "odd channels, 7 x 7": BlockWish(*("shuffle", 45, 21, 39, 3, (7, 7)), residual=True, rows=7, batch=3),
    "two components together": BlockWish(*("shuffle", 36, 12, 18, 3, (6, 10)), together=2, rows=4, activation="silu"),
    "condense": BlockWish(*("condense", 40, 16, 8, 4, (6, 16)), prologue=True, activation="none", rows=4, together=4),
    "condense, 7 x 7": BlockWish(*("condense", 72, 24, 12, 4, (7, 7)), prologue=True, rows=3),
    "dense between": BlockWish(*("dense", 20, 24, 30, 2, (7, 6)), rows=5, residual=True, together=2),
    "5 x 5, dilated": BlockWish(*("shuffle", 16, 10, 12, 1, (9, 12)), kernel=5, dilation=2, activation="hardswish"),
}
"""Kinds of blocks by name."""


@dataclass(frozen=True, eq=False)
class BlockCase:
    """The tables of a made-up block, which were validated."""

    work: BlockWork
    tables: BlockTables


def made_block(wish: BlockWish, seed: int = 0) -> BlockWork:
    """The block that a wish describes, with random weights of about one over the root of the number of inputs."""
    rng = np.random.default_rng(seed)
    order = np.arange(wish.middle).reshape(wish.groups, -1).T.reshape(-1)
    shuffled = np.eye(wish.middle, dtype=np.int64)[order]
    scaled = {
        "input_activation": "relu",
        "input_scales": rng.uniform(0.5, 2, wish.inputs),
        "input_shifts": rng.standard_normal(wish.inputs),
    }
    reads = rng.permutation(wish.inputs) if wish.prologue else np.arange(wish.inputs)
    first = _conv(rng, wish.middle, wish.inputs, wish.groups, 1, wish.size)
    first = replace(first, mix=shuffled, reads=reads, activation="relu", **(scaled if wish.prologue else {}))
    stages = [first]
    if wish.form != "condense":
        groups = wish.middle if wish.form == "shuffle" else wish.groups
        between = _conv(rng, wish.middle, wish.middle, groups, wish.kernel, wish.size, wish.stride, wish.dilation)
        stages.append(replace(between, activation="none" if wish.form == "shuffle" else "relu"))
        last = _conv(rng, wish.outputs, wish.middle, wish.groups, 1, between.output_size)
    else:
        last = _conv(rng, wish.outputs, wish.middle, wish.groups, wish.kernel, wish.size, wish.stride)
    stages.append(replace(last, activation=wish.activation, residual=wish.residual))
    return block_work(stages)


def made_case(wish: BlockWish, shape: BlockShape, element: Element, seed: int = 3) -> BlockCase:
    """The validated tables of a wish for a kernel of some shape and type."""
    work = made_block(wish, seed)
    found = components(work)
    joined = [np.concatenate(found[n : n + wish.together]) for n in range(0, len(found), wish.together)]
    bundles = tuple(within(bundle(work, outputs), shape.outputs) for outputs in joined)
    tables = block_tables(work, BlockSchedule(shape, wish.rows, 1, bundles, element))
    validate_block_launch(tables.kernel.to_json(), tables.arrays())
    validate_block_contents(work, tables)
    return BlockCase(work, tables)


def check_case(
    wish: BlockWish,
    shape: BlockShape,
    architecture: str,
    element: Element,
    programs: Path,
    *,
    orders: tuple[int, ...] = ORDERS,
    folder: Path | None = None,
) -> KernelCheck:
    """What running a case's kernel showed; ``programs`` is for what compilers make, ``folder`` has the sources."""
    case = made_case(wish, shape, element)
    kernel = case.tables.kernel.to_json()
    compiled = compile_kernel(conv_block_source(kernel, 1), architecture, programs, folder)
    assert compiled.report.dynamic_shared == case.tables.kernel.shared_bytes
    assert compiled.report.spill_stores == compiled.report.stack == 0
    arrays = case.tables.arrays()
    return check_conv_block(compiled, kernel, arrays, batch=wish.batch, orders=orders, cache=programs)


def _conv(
    rng: np.random.Generator,
    outputs: int,
    inputs: int,
    groups: int,
    kernel: int,
    size: tuple[int, ...],
    stride: int = 1,
    dilation: int = 1,
) -> ConvWork:
    links = (np.arange(outputs)[:, None] * groups // outputs) == (np.arange(inputs) * groups // inputs)
    fan = int(links.sum(axis=1).max()) * kernel * kernel
    weights = rng.standard_normal((outputs, inputs, kernel, kernel)) / np.sqrt(fan) * links[:, :, None, None]
    pad = dilation * (kernel - 1) // 2
    bias = rng.standard_normal(outputs)
    return ConvWork(weights, bias, inputs, size, np.arange(inputs), (stride,) * 2, (dilation,) * 2, (pad,) * 4)

"""Convolutions made up for tests of kernels, each with some of the things that a graph may ask for.

A case fits every path and type: ``check_case`` compiles its kernels, runs their PTX on the CPU and judges the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from onnxopt.kernels.compiler import compile_kernel
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.plan.tables import ConvTables, ConvWork, conv_tables
from onnxopt.plan.tables.work import Activation
from onnxopt.target.variant import ConvVariant, Element
from onnxopt.validate import validate_conv_contents, validate_conv_launch
from onnxopt.verification.conv_kernels import PRODUCTS, check_group_conv, check_sum_conv
from onnxopt.verification.kernels import ORDERS, KernelCheck
from tests.plan.conv_schedules import conv_scheduled

Mix = Literal["", "moved", "repeated", "added"]


@dataclass(frozen=True)
class ConvWish:
    """What a convolution has; axes are as many as ``size`` has, ``pads`` those in front and then those behind.

    ``groups`` of channels are connected, and of those connections a share ``dense``; the outputs ``idle`` have none.
    With ``gathered``, inputs read channels of x that are repeated, left out and zeros. ``mix`` moves the outputs to
    other channels of y: ``repeated`` ones go to two, one to none, and a channel gets nothing; ``added`` ones are
    summed up. ``pieces`` is how often the inputs of a part are cut. Parts are random unless ``in_order``.
    """

    inputs: int = 20
    outputs: int = 12
    size: tuple[int, ...] = (6, 7)
    kernel: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    groups: int = 1
    dense: float = 1.0
    idle: int = 0
    gathered: bool = False
    mix: Mix = ""
    bias: bool = True
    activation: Activation = "none"
    input_activation: Activation = "none"
    scaled: bool = False
    residual: bool = False
    layout: Literal["first", "last"] = "first"
    pieces: int = 1
    images: int = 1
    batch: int = 2
    in_order: bool = False


_THREE = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}

WISHES: dict[str, ConvWish] = {
    "pointwise": ConvWish(40, 24, (9, 8), activation="relu"),
    "many inputs": ConvWish(150, 17, (5, 5), bias=False, in_order=True),
    "many outputs": ConvWish(18, 139, (3, 7), residual=True, in_order=True, layout="last"),
    "three by three": ConvWish(20, 20, (9, 11), **_THREE, in_order=True),  # type: ignore[arg-type]
    "strided": ConvWish(21, 13, (10, 9), (3, 3), (2, 1), pads=(0, 1, 1, 0), activation="hardswish"),
    "strided pointwise": ConvWish(16, 16, (9, 9), strides=(2, 2), layout="last", activation="silu"),
    "dilated": ConvWish(18, 9, (8, 9), (3, 3), dilations=(2, 3), pads=(2, 3, 2, 3), residual=True),
    "windows in padding": ConvWish(8, 8, (2, 3), (2, 2), pads=(3, 2, 2, 3), layout="last"),
    "one axis": ConvWish(24, 10, (70,), (5,), (2,), pads=(3, 1), activation="silu"),
    "three axes": ConvWish(17, 8, (4, 5, 6), (2, 3, 3), (1, 2, 1), (2, 1, 1), (1, 0, 1, 0, 2, 1)),
    "folded images": ConvWish(33, 16, (3, 3), (3, 3), pads=(1,) * 4, images=3, batch=5, residual=True),
    "folded images, channels last": ConvWish(32, 24, (2, 5), images=8, batch=3, activation="relu", layout="last"),
    "depthwise": ConvWish(33, 33, (7, 9), **_THREE, groups=33, activation="relu"),  # type: ignore[arg-type]
    "depthwise, channels last": ConvWish(40, 40, (7, 7), (5, 5), (2, 2), pads=(2,) * 4, groups=40, layout="last"),
    "multiplier": ConvWish(8, 24, (6, 6), **_THREE, groups=8, activation="hardswish"),  # type: ignore[arg-type]
    "grouped": ConvWish(48, 32, (7, 7), groups=4, in_order=True, activation="relu", layout="last"),
    "grouped three by three": ConvWish(36, 36, (8, 8), **_THREE, groups=3),  # type: ignore[arg-type]
    "pruned": ConvWish(40, 30, (6, 11), dense=0.25, idle=3, activation="relu"),
    "pruned three by three": ConvWish(24, 24, (7, 7), **_THREE, dense=0.3, idle=2, layout="last"),  # type: ignore[arg-type]
    "gathered inputs": ConvWish(37, 19, (6, 7), gathered=True, residual=True, activation="relu"),
    "gathered inputs, channels last": ConvWish(37, 19, (6, 7), gathered=True, layout="last"),
    "moved outputs": ConvWish(24, 24, (7, 7), groups=2, mix="moved", activation="relu"),
    "repeated outputs": ConvWish(24, 21, (6, 7), mix="repeated", residual=True, activation="hardswish"),
    "repeated outputs, channels last": ConvWish(24, 21, (6, 7), mix="repeated", idle=1, layout="last"),
    "split inputs": ConvWish(50, 12, (6, 7), pieces=3, residual=True, activation="silu"),
    "split inputs, channels last": ConvWish(30, 12, (5, 5), **_THREE, pieces=2, layout="last"),  # type: ignore[arg-type]
    "added outputs": ConvWish(24, 20, (6, 7), mix="added", residual=True, activation="relu", images=2, batch=3),
    "prologue": ConvWish(20, 12, (6, 7), **_THREE, scaled=True, input_activation="relu"),  # type: ignore[arg-type]
    "prologue of gathered inputs": ConvWish(
        *(37, 16, (6, 7), (1, 3)), pads=(0, 2, 0, 1), gathered=True, scaled=True, input_activation="silu", layout="last"
    ),
    "prologue without scales": ConvWish(24, 8, (6, 7), input_activation="hardswish", residual=True),
    "prologue of split inputs": ConvWish(40, 12, (6, 7), scaled=True, input_activation="relu", pieces=2),
    "one of each": ConvWish(1, 1, (1, 1), batch=1),
    "odd": ConvWish(13, 7, (5, 3), **_THREE, residual=True, layout="last", batch=3),  # type: ignore[arg-type]
}
"""Kinds of convolutions by name."""


@dataclass(frozen=True, eq=False)
class ConvCase:
    """The tables of a made-up convolution, which were validated, and the batch that it is computed with."""

    work: ConvWork
    tables: ConvTables
    batch: int


def made_work(wish: ConvWish, seed: int = 0) -> ConvWork:
    """The convolution that a wish describes, with random weights of about one over the root of the number of inputs."""
    rng, rank = np.random.default_rng(seed), len(wish.size)
    links = _links(wish, rng)
    fan = max(1, int(links.sum(axis=1).max())) * prod(wish.kernel)
    weights = rng.standard_normal((*links.shape, *wish.kernel)) / np.sqrt(fan)
    weights *= links.reshape(*links.shape, *(1,) * rank)
    channels, reads = wish.inputs, np.arange(wish.inputs)
    if wish.gathered:
        # Every fifth reads nothing; the others repeat some channels of a few more than there are, and skip some.
        channels = wish.inputs + 3
        reads = np.where(reads % 5 == 4, -1, rng.integers(channels, size=wish.inputs))
    return ConvWork(
        weights,
        rng.standard_normal(wish.outputs) if wish.bias else None,
        channels,
        wish.size,
        reads,
        wish.strides or (1,) * rank,
        wish.dilations or (1,) * rank,
        wish.pads or (0,) * 2 * rank,
        mix=_mix(wish, rng),
        activation=wish.activation,
        input_activation=wish.input_activation,
        input_scales=rng.uniform(0.5, 2, wish.inputs) if wish.scaled else None,
        input_shifts=rng.standard_normal(wish.inputs) if wish.scaled else None,
        residual=wish.residual,
        layout=wish.layout,
    )


def made_case(wish: ConvWish, variants: Sequence[ConvVariant], element: Element, seed: int = 3) -> ConvCase:
    """The tables of a wish for kernels of some shapes and a type."""
    work = made_work(wish, seed)
    schedule = conv_scheduled(
        work,
        variants,
        seed=None if wish.in_order else seed,
        pieces=wish.pieces,
        images=wish.images,
        element=element,
    )
    tables = conv_tables(work, schedule, images=wish.images)
    summed = None if tables.sum is None else (tables.sum.kernel, tables.sum.arrays())
    validate_conv_launch(tables.kernel.to_json(), tables.arrays(), summed)
    validate_conv_contents(work, tables)
    return ConvCase(work, tables, wish.batch)


def check_case(
    wish: ConvWish,
    variants: Sequence[ConvVariant],
    architecture: str,
    element: Element,
    programs: Path,
    *,
    products: int = PRODUCTS,
    orders: Sequence[int] = ORDERS,
) -> list[KernelCheck]:
    """What running a case's convolution kernel showed, and its sum kernel where it has one.

    ``programs`` is the folder for what compilers make.
    """
    case = made_case(wish, variants, element)
    kernel = case.tables.kernel.to_json()
    compiled = compile_kernel(group_conv_source(kernel, 1), architecture, programs)
    arrays = case.tables.arrays()
    given = {"batch": case.batch, "orders": orders, "cache": programs}
    checks = [check_group_conv(compiled, kernel, arrays, products=products, **given)]  # type: ignore[arg-type]
    if case.tables.sum is not None:
        own = case.tables.sum
        added = compile_kernel(sum_conv_source(own.kernel), architecture, programs)
        checks.append(check_sum_conv(added, own.kernel, own.arrays(), **given))  # type: ignore[arg-type]
    return checks


def _links(wish: ConvWish, rng: np.random.Generator) -> np.ndarray:
    """Outputs x inputs: what is connected. Every output that is not idle keeps an input."""
    outputs, inputs = np.arange(wish.outputs), np.arange(wish.inputs)
    links = (outputs[:, None] * wish.groups // wish.outputs) == (inputs * wish.groups // wish.inputs)
    kept = links & (rng.random(links.shape) < wish.dense)
    lost = ~kept.any(axis=1)
    kept[lost, links[lost].argmax(axis=1)] = True
    kept[: wish.idle] = False
    return np.asarray(kept)


def _mix(wish: ConvWish, rng: np.random.Generator) -> np.ndarray | None:
    count = wish.outputs
    if not wish.mix:
        return None
    if wish.mix == "moved":
        return np.eye(count, dtype=np.int64)[rng.permutation(count)]
    mix = np.zeros((count + 4, count), np.int64)
    # The last output goes nowhere; the last channel gets nothing.
    mix[rng.permutation(count + 3)[: count - 1], np.arange(count - 1)] = 1
    free = np.flatnonzero(~mix[:-1].any(axis=1))
    mix[free, rng.integers(count - 1, size=len(free))] = 1
    if wish.mix == "added":
        mix[0, :3] += 1
        mix[1, 0] = 2
    return mix

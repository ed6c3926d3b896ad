"""Convolution algorithms judged without a GPU: the PTX of their steps is run in order on the CPU.

What this shows is called emulated, as in :mod:`onnxopt.verification.kernels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.emulate import Uninitialised, build_cpu_kernel
from onnxopt.kernels.algorithm_launch import algorithm_launch, algorithm_parameters, algorithm_sizes
from onnxopt.kernels.algorithm_source import algorithm_source
from onnxopt.kernels.arguments import Launch
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.plan.algorithms.geometry import LayerGeometry
from onnxopt.plan.algorithms.packing import packed_weights
from onnxopt.plan.algorithms.steps import AlgorithmStep, algorithm_steps
from onnxopt.target.variant import Element
from onnxopt.verification.algorithm_rule import bound_share, draw_layer, judge_layer, judge_step
from onnxopt.verification.kernel_rule import Judgement, loaded, stored
from onnxopt.verification.kernels import ORDERS, KernelCheck

Array = npt.NDArray[Any]

BLOCKS = 64
"""Blocks of a step that a check of one operator runs: the first ones."""


@dataclass(frozen=True)
class StepCheck:
    """What one step showed, in each order of lanes, on the inputs that the steps before it made."""

    operator: str
    blocks: int
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True)
class AlgorithmCheck:
    """What running an algorithm on the CPU showed: its steps one by one, and ``y`` in each order of lanes.

    ``bound`` is Winograd's own for the worst case, as a share of the largest value like the errors.
    """

    name: str
    element: str
    architecture: str
    batch: int
    orders: tuple[int, ...]
    steps: tuple[StepCheck, ...]
    whole: tuple[Judgement, ...]
    bound: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every step and the whole agreed in every order."""
        return all(j.passed for j in self._judgements())

    def explain(self) -> str:
        """What failed first, or how far the whole is within what is allowed."""
        for step in self.steps:
            for judgement in step.judgements:
                if not judgement.passed:
                    return f"{self.name}, {step.operator}: {judgement.explain()}"
        worst = max(self.whole, key=lambda j: (not j.passed, j.max_error / (j.max_bound or 1.0)))
        own = "" if self.bound is None else f"; its bound is {self.bound:.3g}"
        return f"{self.name} {self.element} {self.architecture}: {worst.explain()}{own}"

    def _judgements(self) -> list[Judgement]:
        return [*(j for step in self.steps for j in step.judgements), *self.whole]


def check_algorithm(
    name: str,
    geometry: LayerGeometry,
    element: Element,
    architecture: str,
    *,
    activation: str = "none",
    residual: bool = False,
    steps: Sequence[AlgorithmStep] | None = None,
    batch: int = 2,
    seed: int = 0,
    orders: Sequence[int] = ORDERS,
    cache: Path | None = None,
    folder: Path | None = None,
) -> AlgorithmCheck:
    """Compile the steps of an algorithm for a layer and run their PTX in sequence, in several orders of lanes.

    Each step is judged by the numeric rule on what the steps before it made, and the whole as
    :func:`onnxopt.verification.algorithm_rule.judge_layer` does. ``steps`` may be given with other tiles than the
    planner's. ``folder`` holds the sources, by default those of this package. Raises as :func:`algorithm_steps` and
    ``compile_kernel`` do, and :class:`onnxopt.OnnxOptError` with the PTX's line where a kernel reads or writes what it
    must not, diverges or does not end.
    """
    steps = steps or algorithm_steps(name, geometry, element, activation=activation, residual=residual)
    layer = geometry.to_json()
    operands = draw_layer(layer, element, residual, batch, seed)
    compiled = [compile_kernel(algorithm_source(s.operator, s.kernel), architecture, cache, folder) for s in steps]
    constants = _constants(name, geometry, element, steps, operands.weights)
    given = {"x": stored(element, operands.x), "b": operands.b, **constants}
    if operands.residual is not None:
        given["residual"] = stored(element, operands.residual)
    found: list[list[Judgement]] = [[] for _ in steps]
    blocks = [0] * len(steps)
    whole = []
    for order in orders:
        tensors = dict(given)
        types: dict[str, str] = dict.fromkeys(("x", "w", "residual"), element)
        for number, (step, own) in enumerate(zip(steps, compiled, strict=True)):
            run = _run_step(step, own, tensors, batch, order, cache)
            tensors[step.outputs[0]], types[step.outputs[0]] = run.output.array, _stored_type(step)
            found[number].append(_judged(step, tensors, types, run))
            blocks[number] = run.blocks
        y = loaded(element, tensors["y"])
        whole.append(judge_layer(name, layer, element, activation, operands, y))
    checks = tuple(
        StepCheck(step.operator, count, tuple(judgements))
        for step, count, judgements in zip(steps, blocks, found, strict=True)
    )
    bound = bound_share(name, layer, element, activation, operands)
    return AlgorithmCheck(name, element, architecture, batch, tuple(orders), checks, tuple(whole), bound)


def check_step(
    compiled: CompiledKernel,
    operator: str,
    kernel: Mapping[str, Any],
    constants: Mapping[str, Array],
    *,
    batch: int = 2,
    seed: int = 0,
    blocks: int = BLOCKS,
    orders: Sequence[int] = ORDERS,
    cache: Path | None = None,
) -> KernelCheck:
    """Run the first ``blocks`` blocks of one step's PTX on random tensors, as a package's operator is judged.

    ``constants`` are ``w`` and ``b`` where the step has them, bf16 as numbers or as bits. What no block writes must
    stay as it was. ``SumConv`` has :func:`onnxopt.verification.conv_kernels.check_sum_conv`. Raises as
    :func:`check_algorithm`.
    """
    rng = np.random.default_rng(seed)
    element, sizes = kernel["element"], algorithm_sizes(operator, kernel)
    *names, made = [name for name in algorithm_parameters(operator, kernel) if name != "batch"]
    kept = {name: "fp32" if name in ("b", "products", "partial") else element for name in (*names, made)}
    given = {}
    for name in names:
        if name in constants:
            given[name] = _as_stored(kept[name], constants[name])
        else:
            given[name] = stored(kept[name], rng.standard_normal((batch, sizes[name]), dtype=np.float32))
    inputs = {name: loaded(kept[name], array) for name, array in given.items()}
    launch = algorithm_launch(operator, kernel, batch, compiled.report)
    launch = replace(launch, grid=min(launch.grid, blocks))
    judgements = []
    for order in orders:
        poison = stored(kept[made], np.full((batch, sizes[made]), np.nan, np.float32))
        output = _launched(compiled, launch, list(given.values()), batch, poison, order, cache)
        values = loaded(kept[made], output.array)
        written = output.writes.reshape(-1, output.array.itemsize)[:, 0] > 0
        judgement = judge_step(operator, kernel, inputs, kept[made], values, written)
        judgements.append(_once(judgement, output, allowed=(0, 1)))
    return KernelCheck(compiled.architecture, launch.grid, batch, tuple(orders), tuple(judgements))


@dataclass(frozen=True)
class _Run:
    """A step's output, and how many blocks made it."""

    output: Uninitialised
    blocks: int


def _run_step(
    step: AlgorithmStep,
    compiled: CompiledKernel,
    tensors: Mapping[str, Array],
    batch: int,
    order: int,
    cache: Path | None,
) -> _Run:
    launch = algorithm_launch(step.operator, step.kernel, batch, compiled.report)
    poison = np.full((batch, *step.output_shape), np.nan, np.float32)
    inputs = [tensors[name] for name in step.inputs]
    output = _launched(compiled, launch, inputs, batch, stored(_stored_type(step), poison), order, cache)
    return _Run(output, launch.grid)


def _launched(
    compiled: CompiledKernel,
    launch: Launch,
    inputs: Sequence[Array],
    batch: int,
    poison: Array,
    order: int,
    cache: Path | None,
) -> Uninitialised:
    output = Uninitialised(poison)
    build_cpu_kernel(compiled.ptx, compiled.source.entry, cache).run(
        grid=(launch.grid, 1, 1),
        block=(launch.block, 1, 1),
        shared_bytes=launch.shared_bytes,
        arguments=[*(np.ascontiguousarray(array) for array in inputs), np.int32(batch), output],
        order=order,
    )
    return output


def _judged(step: AlgorithmStep, tensors: Mapping[str, Array], types: Mapping[str, str], run: _Run) -> Judgement:
    """By the numeric rule; every element must also be written exactly once."""
    names = [name for name in algorithm_parameters(step.operator, step.kernel) if name != "batch"]
    inputs = {
        parameter: loaded(types[tensor], tensors[tensor]) if tensor in types else tensors[tensor]
        for parameter, tensor in zip(names, step.inputs, strict=False)
    }
    values = loaded(_stored_type(step), run.output.array)
    return _once(judge_step(step.operator, step.kernel, inputs, step.output_type, values), run.output, allowed=(1,))


def _once(judgement: Judgement, output: Uninitialised, allowed: tuple[int, ...]) -> Judgement:
    """A judgement that also fails where an element was not written as often as it should be."""
    wrong = np.flatnonzero(~np.isin(output.writes, allowed))
    if not len(wrong) or not judgement.passed:
        return judgement
    element = int(wrong[0]) // output.array.itemsize
    return replace(judgement, problem=f"element {element} was written {output.writes[wrong[0]]} times, expected once")


def _constants(
    name: str, geometry: LayerGeometry, element: Element, steps: Sequence[AlgorithmStep], weights: Array
) -> dict[str, Array]:
    """Packed weights as kernels read them, and tables."""
    arrays: dict[str, Array] = dict(packed_weights(name, geometry, element, steps, weights))
    return {**arrays, "w": _as_stored(element, arrays["w"])}


def _as_stored(element: str, values: Array) -> Array:
    """Numbers in any type, or the bits of bf16, as kernels read them."""
    if element == "bf16" and values.dtype == np.uint16:
        return values
    return stored(element, values.astype(np.float32))


def _stored_type(step: AlgorithmStep) -> str:
    return "fp32" if step.output_type == "float32" else step.output_type

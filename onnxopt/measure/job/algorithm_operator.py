"""A dense convolution by an algorithm in a job: its steps in sequence, with the tensors between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, cast

import numpy as np

from onnxopt.kernels.algorithm_launch import algorithm_jobs
from onnxopt.kernels.conv_launch import SUM_THREADS
from onnxopt.measure.job.content import Entry, Job
from onnxopt.measure.job.device import Device
from onnxopt.measure.job.operator import Array, Kernel, Loaded, Tables, launch_of, poisoned
from onnxopt.plan.algorithms.geometry import LayerGeometry
from onnxopt.plan.algorithms.packing import packed_weights
from onnxopt.plan.algorithms.steps import AlgorithmStep
from onnxopt.verification.algorithm_rule import LayerOperands, draw_layer, judge_layer
from onnxopt.verification.kernel_rule import Judgement, rounded_to, stored

_PRODUCTS_OF_A_SCORE = 64
_LEAST_ELEMENTS = 1024
_WEIGHTS_SEED = 5


def algorithm_kernel(
    name: str, geometry: LayerGeometry, element: str, steps: Sequence[AlgorithmStep]
) -> dict[str, Any]:
    """The ``kernel`` of an entry: a layer without activation and residual, and the steps that compute it."""
    fields = ("operator", "kernel", "inputs", "outputs", "output_type", "output_shape")
    return {
        "algorithm": name,
        "element": element,
        "layer": geometry.to_json(),
        "steps": [{field: _plain(getattr(step, field)) for field in fields} for step in steps],
    }


def algorithm_channels(geometry: LayerGeometry) -> dict[str, Array]:
    """The tables of an entry: what a sample chooses from are channels of y. Weights are drawn where they are used."""
    return {"jobs": np.arange(geometry.output_channels, dtype=np.int32)[:, None]}


class AlgorithmOperator:
    """The steps of one algorithm for one layer. Weights and bias are the same for every set of operands."""

    def __init__(self) -> None:
        self._fixed: LayerOperands | None = None
        self._packed: dict[str, Array] = {}

    def sample(self, kernel: Kernel, tables: Tables, work: int) -> Array:
        layer, channels = kernel["layer"], len(tables["jobs"])
        positions = prod(layer["output_size"])
        own = layer["input_channels"] // layer["groups"] * prod(layer["kernel"]) * positions
        wanted = max(work * _PRODUCTS_OF_A_SCORE // own, -(-_LEAST_ELEMENTS // positions))
        if layer["groups"] > 1 or wanted >= channels:
            return np.arange(channels)
        return np.unique(np.linspace(0, channels - 1, wanted).astype(int))

    def draw(self, kernel: Kernel, batch: int, seed: int) -> LayerOperands:
        layer, element = kernel["layer"], kernel["element"]
        if self._fixed is None:
            self._fixed = draw_layer(layer, element, False, 1, _WEIGHTS_SEED)
        shape = (batch, layer["input_channels"], prod(layer["input_size"]))
        x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return replace(self._fixed, x=rounded_to("fp32" if element == "tf32" else element, x))

    def load(self, job: Job, entry: Entry, device: Device, tables: Tables, operands: LayerOperands) -> Loaded:
        kernel, batch, element = entry.kernel, entry.batch, entry.kernel["element"]
        constants = {**self._constants(kernel, operands), "x": stored(element, operands.x), "b": operands.b}
        given: dict[str, Any] = {name: device.upload(array) for name, array in constants.items()}
        launches, made = [], []
        for step, code in zip(_steps(kernel), (entry.first, *entry.further), strict=True):
            kept = "fp32" if step.output_type == "float32" else step.output_type
            like = stored(kept, np.full((batch, *step.output_shape), np.nan, np.float32))
            made.append(poisoned(like, device, kept))
            arguments = (*(given[name] for name in step.inputs), np.int32(batch), made[-1].handle)
            launches.append(launch_of(job, code, device, _blocks(step, batch), arguments))
            given[step.outputs[0]] = made[-1].handle
        return Loaded(tuple(launches), (made[-1],), None)

    def only_written(self, kernel: Kernel, tables: Tables, found: Sequence[Array]) -> list[Array]:
        # Every launch writes all of y; that it does is judged outside of the sample too.
        return list(found)

    def judge(self, kernel: Kernel, tables: Tables, operands: LayerOperands, found: Sequence[Array]) -> list[Judgement]:
        layer, channels = kernel["layer"], np.ravel(tables["jobs"])
        y = found[0].reshape(len(found[0]), layer["output_channels"], -1)
        part = replace(operands, weights=operands.weights[channels], b=operands.b[channels])
        own = {**layer, "output_channels": len(channels)}
        judgement = judge_layer(kernel["algorithm"], own, kernel["element"], "none", part, y[:, channels])
        wrong = np.argwhere(~np.isfinite(y))
        if len(wrong) and judgement.passed:
            place = tuple(int(i) for i in wrong[0])
            judgement = replace(judgement, problem=f"element {place} is {y[place]}: it was not written, or overflowed")
        return [judgement]

    def judge_second(
        self, entry: Entry, tables: Tables, operands: LayerOperands, parts: Sequence[Array], y: Array
    ) -> Judgement:
        raise AssertionError("what an algorithm's last step makes is its output")

    def moved_bytes(self, kernel: Kernel) -> int:
        layer, size = kernel["layer"], 2 if kernel["element"] in ("fp16", "bf16") else 4
        weights = layer["output_channels"] * layer["input_channels"] // layer["groups"] * prod(layer["kernel"])
        made = sum(prod(step["output_shape"]) for step in kernel["steps"])
        return int(size * (weights + layer["input_channels"] * prod(layer["input_size"]) + made))

    def _constants(self, kernel: Kernel, operands: LayerOperands) -> dict[str, Array]:
        if not self._packed:
            name, element = kernel["algorithm"], kernel["element"]
            geometry = LayerGeometry(**{n: _tuple(value) for n, value in kernel["layer"].items()})
            packed = packed_weights(name, geometry, element, _steps(kernel), operands.weights)
            self._packed = {**packed, "w": stored(element, packed["w"].astype(np.float32))}
        return self._packed


def _steps(kernel: Kernel) -> tuple[AlgorithmStep, ...]:
    """The steps as they were when the entry was made, but for their workspace."""
    own = [{name: _tuple(value) for name, value in fields.items()} for fields in kernel["steps"]]
    return tuple(AlgorithmStep(**fields) for fields in own)


def _blocks(step: AlgorithmStep, batch: int) -> int:
    if step.operator == "SumConv":
        return -(-batch * prod(step.output_shape) // SUM_THREADS)
    return batch * algorithm_jobs(step.operator, step.kernel)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(cast(Mapping[str, Any], value))
    return list(value) if isinstance(value, tuple) else value

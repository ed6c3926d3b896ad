"""The constants of an algorithm's steps for one layer, and the operators that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxopt.plan.algorithms.geometry import LayerGeometry, layer_geometry
from onnxopt.plan.algorithms.packing import packed_weights
from onnxopt.plan.algorithms.steps import AlgorithmStep, algorithm_steps
from onnxopt.plan.tables.types import configuration_of, operator_name
from onnxopt.plan.tables.work import ConvWork
from onnxopt.target.variant import Element

_TABLES = ("w", "b", "sum_begin", "sum_rows")


@dataclass(frozen=True, eq=False)
class StepTables:
    """One step of a layer with its constants, in the order of the operator's inputs."""

    step: AlgorithmStep
    tables: Mapping[str, np.ndarray] = field(repr=False)

    def configuration(self) -> dict[str, Any]:
        """What the operator's name is the hash of; its ``kernel`` is all that the kernel's source depends on."""
        return configuration_of(self.step.operator, self.step.kernel, self.tables)

    def operator(self) -> str:
        """The operator's name."""
        return operator_name(self.configuration())


def work_geometry(work: ConvWork) -> LayerGeometry:
    """The geometry of a convolution without channel movement. Raises as :func:`layer_geometry`."""
    groups = work.channels // work.weights.shape[1]
    return layer_geometry(
        work.size, work.weights.shape, strides=work.strides, dilations=work.dilations, pads=work.pads, groups=groups
    )


def algorithm_tables(name: str, work: ConvWork, element: Element) -> tuple[StepTables, ...]:
    """The steps of an algorithm for a convolution with their constants. Raises as :func:`algorithm_steps`."""
    geometry = work_geometry(work)
    steps = algorithm_steps(name, geometry, element, activation=work.activation, residual=work.residual)
    bias = np.zeros(geometry.output_channels) if work.bias is None else work.bias
    constants = {**packed_weights(name, geometry, element, steps, work.weights), "b": bias.astype(np.float32)}
    return tuple(StepTables(s, {name: constants[name] for name in _TABLES if name in s.inputs}) for s in steps)

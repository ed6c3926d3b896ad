"""Convolutions in a job: one kernel, or two where partial rows are added up."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from onnxopt.kernels.conv_launch import SUM_THREADS, group_conv_parameters, sum_conv_parameters
from onnxopt.measure.job.content import Entry, Job
from onnxopt.measure.job.device import Device
from onnxopt.measure.job.operator import (
    Array,
    Kernel,
    Loaded,
    Output,
    Tables,
    launch_of,
    poisoned,
    second_kernel,
    where_written,
)
from onnxopt.verification.conv_rule import (
    ConvOperands,
    draw_conv_operands,
    judge_group_conv,
    judge_sum_conv,
    poisoned_output,
    weight_values,
)
from onnxopt.verification.conv_sample import sample_conv_jobs
from onnxopt.verification.kernel_rule import Judgement, stored

# A score of an attention is about as much work as the products of a head's width.
_PRODUCTS_OF_A_SCORE = 64


class ConvOperator:
    """GroupConv, with SumConv behind it where ``split``."""

    def sample(self, kernel: Kernel, tables: Tables, work: int) -> Array:
        return sample_conv_jobs(kernel, tables, work * _PRODUCTS_OF_A_SCORE)

    def draw(self, kernel: Kernel, batch: int, seed: int) -> ConvOperands:
        return draw_conv_operands(kernel, batch, seed)

    def load(self, job: Job, entry: Entry, device: Device, tables: Tables, operands: ConvOperands) -> Loaded:
        kernel, batch, element = entry.kernel, entry.batch, entry.kernel["element"]
        given: dict[str, Any] = {name: device.upload(table) for name, table in tables.items() if name != "w"}
        given["w"] = device.upload(stored(element, weight_values(kernel, tables["w"])))
        given["x"] = device.upload(stored(element, operands.data))
        if operands.residual is not None:
            given["residual"] = device.upload(stored(element, operands.residual))
        given["batch"] = np.int32(batch)
        first = poisoned(poisoned_output(kernel, batch), device, "fp32" if kernel["split"] else element)
        *names, name = group_conv_parameters(kernel)
        given[name] = first.handle
        groups = -(-batch // kernel["images"])
        arguments = tuple(given[each] for each in (*names, name))
        launches = [launch_of(job, entry.first, device, len(tables["jobs"]) * groups, arguments)]
        added: Output | None = None
        if entry.second is not None:
            own = second_kernel(entry)
            added = poisoned(poisoned_output(own, batch), device, element)
            arguments = tuple((given | {"y": added.handle})[each] for each in sum_conv_parameters(own))
            elements = batch * own["output_channels"] * prod(own["output_size"])
            launches.append(launch_of(job, entry.second, device, -(-elements // SUM_THREADS), arguments))
        return Loaded(tuple(launches), (first,), added)

    def only_written(self, kernel: Kernel, tables: Tables, found: Sequence[Array]) -> list[Array]:
        return [where_written(values, _written(kernel, tables, len(values)).reshape(values.shape)) for values in found]

    def judge(self, kernel: Kernel, tables: Tables, operands: ConvOperands, found: Sequence[Array]) -> list[Judgement]:
        return [judge_group_conv(kernel, tables, operands, found[0])]

    def judge_second(
        self, entry: Entry, tables: Tables, operands: ConvOperands, parts: Sequence[Array], y: Array
    ) -> Judgement:
        return judge_sum_conv(second_kernel(entry), tables, ConvOperands(parts[0], operands.residual), y)

    def moved_bytes(self, kernel: Kernel) -> int:
        size = 2 if kernel["element"] in ("fp16", "bf16") else 4
        elements = (kernel[f"{side}_channels"] * prod(kernel[f"{side}_size"]) for side in ("input", "output"))
        return size * int(sum(elements))


def _written(kernel: Kernel, tables: Tables, batch: int) -> Array:
    """Which elements of the output the jobs write, in the order of its layout."""
    positions, images = prod(kernel["output_size"]), kernel["images"]
    rows = kernel["slots"] if kernel["split"] else kernel["output_channels"]
    pixels = np.zeros((rows, images * positions), bool)
    for line in tables["jobs"].tolist():
        own = tables["outputs"][line[1] : line[1] + line[2]]
        channels = own[own >= 0]
        if line[9]:
            channels = np.concatenate([channels, tables["extras"][line[8] : line[8] + line[9], 1]])
        pixels[channels, line[6] : line[6] + line[7]] = True
    image = np.arange(batch) % images
    written = pixels.reshape(rows, images, positions).transpose(1, 0, 2)[image]
    return np.asarray(written if kernel["layout"] == "first" else written.transpose(0, 2, 1))

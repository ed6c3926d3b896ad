"""Run an entry's kernels on a device with random operands and judge the results by the numeric rule."""

from __future__ import annotations

import numpy as np

from onnxopt.measure.job.content import Entry, Job
from onnxopt.measure.job.device import Device
from onnxopt.measure.job.operator import Array, Output
from onnxopt.measure.job.operators import operator_of
from onnxopt.verification.kernel_rule import Judgement, loaded


def check_entry(job: Job, entry: Entry, device: Device, seed: int, work: int) -> list[Judgement]:
    """Judge every output of an entry.

    On a GPU the whole launch runs; of large ones the reference computes a telling sample of jobs, with about as much
    ``work`` as so many scores of an attention, and only what these write is judged.
    """
    operator, tables = operator_of(entry), job.tables(entry)
    emulated = device.architecture == "emulated"
    sample = operator.sample(entry.kernel, tables, work)
    part = {**tables, "jobs": np.ascontiguousarray(tables["jobs"][sample])}
    whole = len(sample) == len(tables["jobs"])
    operands = operator.draw(entry.kernel, entry.batch, seed)
    # A CPU computes the sample only; a GPU everything, so that every block is seen to end without a fault.
    load = operator.load(job, entry, device, part if emulated else tables, operands)
    device.run(load.launches if load.second is None else load.launches[:-1])
    found = [_content(device, output) for output in load.outputs]
    if not emulated and not whole:
        found = operator.only_written(entry.kernel, part, found)
    judgements = operator.judge(entry.kernel, part, operands, found)
    if load.second is not None and (not emulated or whole):
        # What was not of the sample is an input of the second kernel all the same.
        parts = [_content(device, output) for output in load.outputs]
        device.run(load.launches[-1:])
        judgements.append(operator.judge_second(entry, tables, operands, parts, _content(device, load.second)))
    return judgements


def _content(device: Device, output: Output) -> Array:
    return loaded(output.element, device.download(output.handle, output.like))

"""Convolutions as operators of our own: what is fused, how it is planned, and whether it is predicted to win."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np

from onnxopt.decide import PREDICTED_MARGIN, ConvSource, SiteReport
from onnxopt.discover.conv_fusion import ConvFusion, ConvFusions
from onnxopt.discover.conv_site import BoolArray, ConvSite
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner, described, folded_images
from onnxopt.lower.conv_plugin import ConvPluginWriter
from onnxopt.lower.convolution import site_weights
from onnxopt.measure.extract import extract_region
from onnxopt.model.graph import Graph, symbolic_batch, view
from onnxopt.plan.estimate import data_work, gpu_seconds
from onnxopt.plan.group_conv import SIZE_LIMIT
from onnxopt.plan.roofline import ELEMENT_BYTES
from onnxopt.plan.schedule import ConvSchedule
from onnxopt.plan.tables import ConvWork, NoTables, conv_tables
from onnxopt.plan.tables.fused import adds_up, fused_work, links_of, summed_before
from onnxopt.report.pictures import conv_pictures
from onnxopt.site_reports import SCHEDULES_TRIED, Planning, tensor_element
from onnxopt.target.variant import Element

_BEYOND = "beyond the largest number of fp16; choose bf16, tf32 or fp32 by --kernel-dtype"


@dataclass(frozen=True, eq=False)
class ConvChoice:
    """How a convolution would be computed by kernels: with what fused, by which schedule, in which time.

    ``links`` are its connections where they are not the site's own; ``images`` batch elements are computed together.
    """

    site: ConvSite
    fusion: ConvFusion
    work: ConvWork
    schedule: ConvSchedule
    links: BoolArray | None
    images: int
    microseconds: float


def conv_choices(
    planning: Planning, site: ConvSite, top: int = 1, fusion: ConvFusion | None = None
) -> list[ConvChoice]:
    """The best ways to compute a convolution by kernels, best first; ``fusion`` is what is fused if that is decided.

    Where outputs are added up behind the convolution, either their weights are added up before, or a second kernel
    adds. Raises InputError, with the reason, where there is no way.
    """
    graph = planning.judge.graph
    kernels = planning.kernels_for(site.output)
    assert kernels is not None
    if fusion is None:
        fusion = (planning.fusions or ConvFusions(graph)).fusion(site)
    if fusion is None:
        raise InputError("its inputs are parts of several tensors")
    work = _work(site, fusion, graph)
    _check_numbers(work, kernels.element)
    options = [option for option in _options(work) if kernels.element != "fp16" or _fits_fp16(option[0].weights)]
    if not options:
        raise InputError(f"its weights are {_BEYOND}")
    images = 1
    if not symbolic_batch(planning.judge.model):
        images = folded_images((graph.shape(site.output) or (1,))[0], prod(work.output_size))
    found = []
    for option, links in options:
        for schedule in kernels.convolution(site, graph, top, links=links, images=images, residual=work.residual):
            seconds = schedule.forecast.predicted_us + _sum_us(option, schedule, kernels, graph.batch)
            found.append(ConvChoice(site, fusion, option, schedule, links, images, seconds))
    return sorted(found, key=lambda choice: choice.microseconds)[:top]


def planned_for_kernel(report: SiteReport, choice: ConvChoice) -> SiteReport:
    """The report with what a kernel would do."""
    fields = described(choice.schedule)
    fields["predicted_us"] = round(choice.microseconds, 3)
    fields["images"] = choice.images
    fields["fused"] = [node.name for node in choice.fusion.nodes]
    return replace(report, planned=fields, draw=partial(conv_pictures, choice.site, choice.schedule, choice.links))


def conv_plugin_report(planning: Planning, report: SiteReport, choice: ConvChoice) -> SiteReport:
    """The decision for an operator of its own."""
    judge, fusion, schedule = planning.judge, choice.fusion, choice.schedule
    try:
        region = extract_region(judge.model, judge.graph, fusion.inputs, [fusion.target])
    except InputError as error:
        return report.kept(f"its surroundings cannot be cut out to be judged: {error}")
    stored = tensor_element(judge.graph, choice.site.output) or "fp32"
    gpu = judge.target.need_gpu_profile()
    before = gpu_seconds(data_work(view(region, batch=judge.graph.batch)), gpu, schedule.element, stored)
    gain = before * 1e6 / choice.microseconds
    report = replace(report, predicted_gain=gain)
    kernels = "two kernels" if adds_up(choice.work) else "one kernel"
    said = (
        f"{kernels} in {schedule.element} {'are' if adds_up(choice.work) else 'is'} predicted {gain:.2f} times as fast"
    )
    if schedule.forecast.measured:
        said += " by measured tile times"
    if gain < PREDICTED_MARGIN:
        return report.kept(f"{said}, under {PREDICTED_MARGIN}")
    return written_conv(planning, replace(report, decision="rewrite", reason=said), choice)


def further_conv_reports(planning: Planning, report: SiteReport) -> Iterator[SiteReport]:
    """A convolution in the plugin form by its next best schedules, best first, while they are predicted to win."""
    source = report.plugin
    assert isinstance(source, ConvSource)
    for choice in conv_choices(planning, source.site, SCHEDULES_TRIED, source.fusion)[1:]:
        decided = conv_plugin_report(planning, planned_for_kernel(report.kept(""), choice), choice)
        if decided.rewrite is None:
            return
        yield decided


def _work(site: ConvSite, fusion: ConvFusion, graph: Graph) -> ConvWork:
    names = [part.node.input[2] for part in site.parts if len(part.node.input) > 2 and part.node.input[2]]
    if any(graph.constant(name) is None for name in names):
        raise InputError("its bias is no constant")
    unpacked = site.out_channels * site.in_channels * prod(site.kernel)
    if unpacked > SIZE_LIMIT:
        raise InputError(f"its weights between all channels are {unpacked:,} numbers; allowed: {SIZE_LIMIT:,}")
    shape = graph.shape(site.input)
    assert shape is not None
    return fused_work(site, fusion, *site_weights(site, graph), shape[2:])


def _options(work: ConvWork) -> list[tuple[ConvWork, BoolArray | None]]:
    """The work, and the same with what is added up added up in advance, with its connections."""
    options: list[tuple[ConvWork, BoolArray | None]] = [(work, None)]
    if adds_up(work):
        summed = summed_before(work)
        links = links_of(summed)
        # Sums may cancel.
        options += [(summed, links)] if links.any() else []
    return options


def _check_numbers(work: ConvWork, element: Element) -> None:
    """Raise InputError for constants with which a kernel and the model could not be compared."""
    constants = (
        ("weights", work.weights),
        ("bias", work.bias),
        ("input scales", work.input_scales),
        ("input shifts", work.input_shifts),
    )
    for name, values in constants:
        bad = 0 if values is None else int(values.size - np.isfinite(values).sum())
        if bad:
            raise InputError(f"{bad:,} of the numbers of its {name} are NaN or infinite")
    # A bias is float32, but what it makes is stored.
    if element == "fp16" and work.bias is not None and not _fits_fp16(work.bias):
        raise InputError(f"its bias is {_BEYOND}")


def _fits_fp16(values: np.ndarray) -> bool:
    return bool(np.abs(values).max() <= np.finfo(np.float16).max)


def _sum_us(work: ConvWork, schedule: ConvSchedule, kernels: KernelPlanner, batch: int) -> float:
    """What a second kernel takes that adds up outputs; 0 where none is needed."""
    if not adds_up(work):
        return 0.0
    used = np.asarray(work.sums.any(axis=0))
    rows = sum(int(used[part.outputs].sum()) for part in schedule.parts)
    made = len(work.sums) * ELEMENT_BYTES[schedule.element] * (2 if work.residual else 1)
    moved = batch * prod(work.output_size) * (2 * 4 * rows + made)
    return float((kernels.gpu.launch_seconds + moved / kernels.gpu.memory_bytes_per_second) * 1e6)


def written_conv(planning: Planning, report: SiteReport, choice: ConvChoice) -> SiteReport:
    """The site with its operator; kept where no tables can say what it computes."""
    graph, fusion, schedule = planning.judge.graph, choice.fusion, choice.schedule
    try:
        tables = conv_tables(choice.work, schedule, images=choice.images)
    except NoTables as error:
        return report.kept(f"no table can hold what its kernel needs: {error}")
    writer = planning.conv_writer or ConvPluginWriter(graph)
    rewrite = writer.lower(report.id, fusion, choice.work, schedule, tables)
    source = ConvSource(choice.site, fusion, choice.work, tables, schedule.resident)
    return replace(report, rewrite=rewrite, plugin=source)

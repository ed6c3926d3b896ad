"""What was written into a package, read back and proved: the operators of our own in a model file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from onnxopt.decide import AlgorithmSource, BlockSource, ConvSource, PluginSource, SiteReport
from onnxopt.errors import InputError
from onnxopt.kernels.algorithm_source import algorithm_source
from onnxopt.kernels.block_source import conv_block_source
from onnxopt.kernels.conv_source import group_conv_source, sum_conv_source
from onnxopt.lower.algorithm_nodes import PluginAlgorithm, plugin_algorithms
from onnxopt.lower.plugin_blocks import PluginBlock, plugin_blocks
from onnxopt.lower.plugin_convolutions import PluginConvolution, plugin_convolutions
from onnxopt.lower.plugin_nodes import PluginSite, plugin_sites
from onnxopt.model.read import read_model
from onnxopt.plan.tables import AttentionTables, ConvTables
from onnxopt.validate import (
    PlanError,
    validate_attention_contents,
    validate_attention_launch,
    validate_conv_contents,
    validate_conv_launch,
)
from onnxopt.validate.algorithm_written import Step, validate_algorithm_contents, validate_algorithm_launch
from onnxopt.validate.block_contents import check_block_contents
from onnxopt.validate.block_launch import validate_block_launch

_Site = TypeVar("_Site")


def prove_written(path: Path, reports: Iterable[SiteReport]) -> int:
    """Prove that the operators in a model file compute exactly the sites that they were written from.

    Reads the file as anyone would, and gives the number of their sites. Raises :class:`PlanError` where a site is
    missing, where tables address what does not exist, or where they say anything but what their site needs.
    """
    model = read_model(path)
    attention = {site.site: site for site in plugin_sites(model)}
    convolutions = {site.site: site for site in plugin_convolutions(model)}
    algorithms = {site.site: site for site in plugin_algorithms(model)}
    blocks = {site.site: site for site in plugin_blocks(model)}
    for block in blocks.values():
        check_block_launch(block)
    for site in attention.values():
        _check_launch(site)
    for convolution in convolutions.values():
        check_conv_launch(convolution)
    for algorithm in algorithms.values():
        check_algorithm_launch(algorithm)
    for name, source in ((report.id, report.plugin) for report in reports):
        if source is None:
            continue
        if isinstance(source, AlgorithmSource):
            _check_algorithm(_found(algorithms, name, path), source)
        elif isinstance(source, BlockSource):
            _check_block(_found(blocks, name, path), source)
        elif isinstance(source, ConvSource):
            _check_convolution(_found(convolutions, name, path), source)
        else:
            _check_contents(_found(attention, name, path), source)
    return len(attention) + len(convolutions) + len(algorithms) + len(blocks)


def _found(sites: Mapping[str, _Site], name: str, path: Path) -> _Site:
    if name not in sites:
        raise PlanError(f"{path}: the operator of {name} is not in the file")
    return sites[name]


def _check_launch(site: PluginSite) -> None:
    merge = None if site.merge is None else (site.merge.kernel, site.merge.tables)
    validate_attention_launch(site.attention.kernel, site.attention.tables, merge)


def check_conv_launch(site: PluginConvolution) -> None:
    """Prove that a convolution's tables address only what exists; raises :class:`PlanError`."""
    try:
        group_conv_source(site.convolution.kernel, site.convolution.resident)
        if site.sum is not None:
            sum_conv_source(site.sum.kernel)
    except InputError as error:
        raise PlanError(f"{site.site}: {error}") from None
    second = None if site.sum is None else (site.sum.kernel, site.sum.tables)
    validate_conv_launch(site.convolution.kernel, site.convolution.tables, second)


def check_block_launch(site: PluginBlock) -> None:
    """Prove that a block's tables address only what exists; raises :class:`PlanError`."""
    try:
        conv_block_source(site.block.kernel, site.block.resident)
    except InputError as error:
        raise PlanError(f"{site.site}: {error}") from None
    validate_block_launch(site.block.kernel, site.block.tables)


def _check_block(site: PluginBlock, source: BlockSource) -> None:
    """As :func:`_check_contents`."""
    if site.block.kernel != source.tables.kernel.to_json():
        raise PlanError(f"{site.site}: the file has another kernel's configuration")
    try:
        check_block_contents(source.work, site.block.kernel, site.block.tables)
    except PlanError as error:
        raise PlanError(f"{site.site}: {error}") from None


def check_algorithm_launch(site: PluginAlgorithm) -> None:
    """Prove that the steps of an algorithm fit together, and their tables them; raises :class:`PlanError`."""
    steps = _steps(site)
    for operator, kernel, _ in steps:
        try:
            algorithm_source(operator, kernel)
        except InputError as error:
            raise PlanError(f"{site.site}: {error}") from None
    validate_algorithm_launch(steps)


def _steps(site: PluginAlgorithm) -> list[Step]:
    return [(step.configuration["operator"], step.kernel, step.tables) for step in site.steps]


def _check_algorithm(site: PluginAlgorithm, source: AlgorithmSource) -> None:
    """As :func:`_check_contents`."""
    if [step.kernel for step in site.steps] != [step.step.kernel for step in source.steps]:
        raise PlanError(f"{site.site}: the file has other steps")
    validate_algorithm_contents(source.work, _steps(site), site.site)


def _check_contents(site: PluginSite, source: PluginSource) -> None:
    """The tables of the file in place of those that were written, for the same kernel."""
    tables = source.tables
    if site.attention.kernel != tables.kernel.to_json():
        raise PlanError(f"{site.site}: the file has another kernel's configuration")
    validate_attention_contents(source.site, _as_written(tables, site), source.shapes)


def _as_written(tables: AttentionTables, site: PluginSite) -> AttentionTables:
    merge = tables.merge
    if merge is not None and site.merge is not None:
        merge = replace(merge, kernel=site.merge.kernel, merges=site.merge.tables["merges"])
    # Which tables there are is part of the configuration, which is the same.
    arrays: dict[str, Any] = dict(site.attention.tables)
    return replace(tables, merge=merge, **arrays)


def _check_convolution(site: PluginConvolution, source: ConvSource) -> None:
    """As :func:`_check_contents`."""
    tables = source.tables
    if site.convolution.kernel != tables.kernel.to_json() or (site.sum is None) != (tables.sum is None):
        raise PlanError(f"{site.site}: the file has another kernel's configuration")
    if site.sum is not None and tables.sum is not None and site.sum.kernel != dict(tables.sum.kernel):
        raise PlanError(f"{site.site}: the file has another configuration of the sum")
    validate_conv_contents(source.work, _conv_as_written(tables, site), site.site)


def _conv_as_written(tables: ConvTables, site: PluginConvolution) -> ConvTables:
    second = tables.sum
    if second is not None and site.sum is not None:
        summed: dict[str, Any] = dict(site.sum.tables)
        second = replace(second, **summed)
    arrays: dict[str, Any] = dict(site.convolution.tables)
    return replace(tables, sum=second, **arrays)

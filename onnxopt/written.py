"""What was written into a package, read back and proved: the operators of our own in a model file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxopt.decide import ConvSource, PluginSource, SiteReport
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


def prove_written(path: Path, reports: Iterable[SiteReport]) -> int:
    """Prove that the operators in a model file compute exactly the sites that they were written from.

    Reads the file as anyone would, and gives the number of their sites. Raises :class:`PlanError` where a site is
    missing, where tables address what does not exist, or where they say anything but what their site needs.
    """
    model = read_model(path)
    attention = {site.site: site for site in plugin_sites(model)}
    convolutions = {site.site: site for site in plugin_convolutions(model)}
    for site in attention.values():
        _check_launch(site)
    for convolution in convolutions.values():
        check_conv_launch(convolution)
    for name, source in ((report.id, report.plugin) for report in reports):
        if source is None:
            continue
        if name not in (convolutions if isinstance(source, ConvSource) else attention):
            raise PlanError(f"{path}: the operator of {name} is not in the file")
        if isinstance(source, ConvSource):
            _check_convolution(convolutions[name], source)
        else:
            _check_contents(attention[name], source)
    return len(attention) + len(convolutions)


def _check_launch(site: PluginSite) -> None:
    merge = None if site.merge is None else (site.merge.kernel, site.merge.tables)
    validate_attention_launch(site.attention.kernel, site.attention.tables, merge)


def check_conv_launch(site: PluginConvolution) -> None:
    """Prove that a convolution's tables address only what exists; raises :class:`PlanError`."""
    second = None if site.sum is None else (site.sum.kernel, site.sum.tables)
    validate_conv_launch(site.convolution.kernel, site.convolution.tables, second)


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

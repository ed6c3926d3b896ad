"""What was written into a package, read back and proved: the operators of our own in a model file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxopt.decide import PluginSource, SiteReport
from onnxopt.lower.plugin_nodes import PluginSite, plugin_sites
from onnxopt.model.read import read_model
from onnxopt.plan.tables import AttentionTables
from onnxopt.validate import PlanError, validate_attention_contents, validate_attention_launch


def prove_written(path: Path, reports: Iterable[SiteReport]) -> int:
    """Prove that the operators in a model file compute exactly the sites that they were written from.

    Reads the file as anyone would, and gives their number. Raises :class:`PlanError` where a site is missing, where
    tables address what does not exist, or where they say anything but what their site needs.
    """
    found = {site.site: site for site in plugin_sites(read_model(path))}
    sources = {report.id: report.plugin for report in reports if report.plugin is not None}
    for site in found.values():
        _check_launch(site)
    for name, source in sources.items():
        if name not in found:
            raise PlanError(f"{path}: the operator of {name} is not in the file")
        _check_contents(found[name], source)
    return len(found)


def _check_launch(site: PluginSite) -> None:
    merge = None if site.merge is None else (site.merge.kernel, site.merge.tables)
    validate_attention_launch(site.attention.kernel, site.attention.tables, merge)


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

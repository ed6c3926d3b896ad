"""Operators of our own are read back as they were written, and anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxopt.decide import PluginSource, SiteReport
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.errors import InputError
from onnxopt.lower.plugin_nodes import has_plugin_nodes, plugin_sites
from onnxopt.lower.rewrite import is_plugin_node
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import attention_tables
from onnxopt.sites import discover
from onnxopt.validate import PlanError
from onnxopt.written import prove_written
from samples import build
from tests.lower.plugin_models import in_plugin_form
from tests.plan.schedules import SMALL, TALL, scheduled


@pytest.fixture(scope="module")
def original() -> onnx.ModelProto:
    return build("regionvit_masked").model


@pytest.fixture
def model(original: onnx.ModelProto) -> onnx.ModelProto:
    return in_plugin_form(original, lambda site: scheduled(site, (TALL, SMALL), split_keys=19))


def test_what_is_read_is_what_was_written(original: onnx.ModelProto, model: onnx.ModelProto) -> None:
    assert has_plugin_nodes(model) and not has_plugin_nodes(original)
    found = discover(original)
    for plugin, site in zip(plugin_sites(model), found.attention, strict=True):
        tables = attention_tables(site, scheduled(site, (TALL, SMALL), split_keys=19))
        assert (plugin.site, plugin.attention.operator) == (site.id, tables.operator())
        assert plugin.attention.configuration == tables.configuration()
        assert list(plugin.attention.tables) == list(tables.arrays())
        assert all(np.array_equal(plugin.attention.tables[n], a) for n, a in tables.arrays().items())
        assert plugin.merge is not None and tables.merge is not None
        assert plugin.merge.configuration == tables.merge.configuration()
        assert plugin.merge.outputs == (site.output,)


def _change_table(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if is_plugin_node(n))
    jobs = next(t for t in model.graph.initializer if t.name == node.input[3])
    values = numpy_helper.to_array(jobs).copy()
    values[0, 3] += 1
    jobs.CopyFrom(numpy_helper.from_array(values, jobs.name))


def _drop_table(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if is_plugin_node(n))
    kept = [t for t in model.graph.initializer if t.name != node.input[3]]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _drop_bodies(model: onnx.ModelProto) -> None:
    del model.functions[:]


def _change_text(model: onnx.ModelProto) -> None:
    model.functions[0].doc_string = "not a configuration"


def _change_kernel(model: onnx.ModelProto) -> None:
    function = next(f for f in model.functions if f.name.startswith("SparseAttention"))
    function.doc_string = function.doc_string.replace('"width":', '"width":1')


def _drop_input(model: onnx.ModelProto) -> None:
    del next(n for n in model.graph.node if is_plugin_node(n)).input[-1]


def _drop_merge(model: onnx.ModelProto) -> None:
    kept = [n for n in model.graph.node if not n.op_type.startswith("MergeAttention")]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _drop_partials(model: onnx.ModelProto) -> None:
    kept = [n for n in model.graph.node if not n.op_type.startswith("SparseAttention")]
    del model.graph.node[:]
    model.graph.node.extend(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change_table, "its tables or its configuration are not those that it is named after"),
        (_change_kernel, "its tables or its configuration are not those"),
        (_drop_table, "its table 'jobs' is no constant of the model"),
        (_drop_bodies, "the model has no body of this operator"),
        (_change_text, "no configuration of an operator"),
        (_drop_input, "its inputs are not those of its body"),
        (_drop_merge, "a merge belongs to split keys"),
        (_drop_partials, "nothing makes its partial results"),
    ],
)
def test_a_changed_model_is_refused(
    model: onnx.ModelProto, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    change(model)
    with pytest.raises(InputError, match=f"node 'onnxopt/.*{message}"):
        plugin_sites(model)


@pytest.mark.parametrize("split_keys", [0, 19])
def test_a_written_file_is_proved_against_its_sites(original: onnx.ModelProto, split_keys: int, tmp_path: Path) -> None:
    def cut(site: AttentionSite) -> AttentionSchedule:
        return scheduled(site, (TALL, SMALL), split_keys=split_keys)

    found = discover(original)
    path = tmp_path / "model.onnx"
    onnx.save(in_plugin_form(original, cut), path)
    reports = []
    for site in found.attention:
        shapes = {name: found.graph.shape(name) or () for name in site.inputs}
        source = PluginSource(site, attention_tables(site, cut(site), shapes=shapes), shapes)
        reports.append(SiteReport(site.id, "attention", {}, "rewrite", "", plugin=source))
    assert prove_written(path, reports) == len(found.attention)
    first = reports[0]
    assert first.plugin is not None
    scaled = replace(first.plugin, site=replace(first.plugin.site, scale=first.plugin.site.scale * 2))
    with pytest.raises(PlanError, match="attention-0"):
        prove_written(path, [replace(first, plugin=scaled)])
    with pytest.raises(PlanError, match="the operator of attention-9 is not in the file"):
        prove_written(path, [replace(first, id="attention-9")])

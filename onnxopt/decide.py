"""Which sites are rewritten: predicted first, then confirmed by measuring where that is possible.

A site is replaced only if its own piece of the graph is faster, and the whole model afterwards too; whatever loses
stays as it was, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxopt.discover.attention_site import AttentionSite, EmptyRow, count
from onnxopt.discover.conv_fusion import ConvFusion
from onnxopt.discover.conv_site import ConvSite
from onnxopt.errors import InputError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.lower.rewrite import Rewrite, is_own_node, rewritten_part
from onnxopt.measure.environment import current_environment
from onnxopt.measure.extract import extract_region
from onnxopt.measure.fingerprint import record_key
from onnxopt.measure.records import Record, RecordStore
from onnxopt.measure.sessions import time_models, time_regions
from onnxopt.measure.timing import PairTiming, TimingLimits
from onnxopt.model.graph import Graph, view
from onnxopt.plan.algorithms.tables import StepTables
from onnxopt.plan.block import BlockTables, BlockWork
from onnxopt.plan.estimate import cpu_seconds, data_work, gpu_seconds
from onnxopt.plan.tables import AttentionTables, ConvTables, ConvWork
from onnxopt.report.picture import Picture
from onnxopt.target import Target
from onnxopt.target.variant import Element
from onnxopt.verification import draw_inputs

Progress = Callable[[str], None]

# A prediction must promise this much before anything is built on it alone.
PREDICTED_MARGIN = 1.1
# With a measurement to follow, a prediction only has to be in reach of a gain.
MEASURABLE_GAIN = 0.8
_WHOLE_MODEL_SECONDS = 8.0
# From here on float32 keeps fewer than four decimal places of a sum.
_LARGE_CONSTANT = -1000.0


# Makes the pictures of a site's plan.
Drawing = Callable[[], Sequence[Picture]]


@dataclass(frozen=True)
class PluginSource:
    """What a site in the plugin form was written from, to prove what is read back: ``shapes`` are the tensors'.

    ``resident`` is the number of blocks that the schedule counts on for each multiprocessor.
    """

    site: AttentionSite
    tables: AttentionTables
    shapes: Mapping[str, Sequence[int]]
    resident: int = 1


@dataclass(frozen=True)
class ConvSource:
    """What a convolution in the plugin form was written from: its work and its tables.

    ``resident`` is the number of blocks that the schedule counts on for each multiprocessor. ``site`` and ``fusion``
    are there to plan it again.
    """

    site: ConvSite
    fusion: ConvFusion
    work: ConvWork
    tables: ConvTables
    resident: int = 1


@dataclass(frozen=True)
class AlgorithmSource:
    """What a convolution as steps of an algorithm was written from: its work, and the steps with their constants.

    ``site`` and ``fusion`` are there to write it by another algorithm.
    """

    site: ConvSite
    fusion: ConvFusion
    work: ConvWork
    algorithm: str
    steps: tuple[StepTables, ...]


@dataclass(frozen=True)
class BlockSource:
    """What a block of convolutions was written from: its work and its tables; ``resident`` as in ConvSource."""

    work: BlockWork
    tables: BlockTables
    resident: int = 1


@dataclass(frozen=True)
class SiteKernel:
    """The compiled kernel of an operator of a site."""

    operator: str
    compiled: CompiledKernel


@dataclass(frozen=True)
class SiteReport:
    """What is known and decided about one site: its fields in ``onnxopt.inspect/1`` and `plan.json`, its pictures."""

    id: str
    kind: str
    found: dict[str, Any]
    decision: str
    reason: str
    predicted_gain: float | None = None
    measured_gain: float | None = None
    planned: dict[str, Any] = field(default_factory=dict)
    draw: Drawing | None = field(default=None, compare=False)
    rewrite: Rewrite | None = None
    plugin: PluginSource | ConvSource | AlgorithmSource | BlockSource | None = field(default=None, compare=False)
    kernels: tuple[SiteKernel, ...] = field(default=(), compare=False)

    def inspected(self) -> dict[str, Any]:
        """The entry of ``sites`` in ``onnxopt.inspect/1``."""
        gain = None if self.predicted_gain is None else round(self.predicted_gain, 3)
        result = {
            "id": self.id,
            "kind": self.kind,
            **self.found,
            "decision": self.decision,
            "reason": self.reason,
        }
        result["predicted_gain"] = gain
        if self.measured_gain is not None:
            result["measured_gain"] = round(self.measured_gain, 3)
        return result

    def kept(self, reason: str) -> SiteReport:
        """The same site, not rewritten."""
        return replace(self, decision="keep", reason=reason, rewrite=None, plugin=None, kernels=())

    def verdict(self) -> dict[str, Any]:
        """The decision alone, for documents about several forms."""
        return {name: self.inspected()[name] for name in ("decision", "reason", "predicted_gain")}


@dataclass(frozen=True)
class Judge:
    """How candidates are judged: for which target, with which records, and whether new measurements are made."""

    model: ModelProto
    graph: Graph
    target: Target
    records: RecordStore | None
    measure: bool
    progress: Progress

    def judge(
        self, report: SiteReport, inputs: Sequence[str], rewrite: Rewrite, element: Element = "fp32"
    ) -> SiteReport:
        """Decide for a site whose rewritten form is ``rewrite``; its tensors are of the type ``element``."""
        try:
            original = extract_region(self.model, self.graph, inputs, rewrite.replaces)
            part = rewritten_part(self.model, self.graph, rewrite)
            candidate = extract_region(part, self.graph, inputs, rewrite.replaces)
        except InputError as error:
            return report.kept(f"its surroundings cannot be cut out to be judged: {error}")
        gain = self._predicted(original, candidate, element)
        report = replace(report, predicted_gain=gain)
        if not self.target.is_cpu:
            if gain < PREDICTED_MARGIN:
                return report.kept(f"the portable form is predicted {gain:.2f} times as fast, under {PREDICTED_MARGIN}")
            return replace(report, decision="rewrite", reason=f"predicted {gain:.2f} times as fast", rewrite=rewrite)
        if gain < MEASURABLE_GAIN:
            return report.kept(f"predicted {gain:.2f} times as fast")
        timing = self._timing(report, original, candidate)
        if timing is None:
            if gain < PREDICTED_MARGIN:
                return report.kept(f"predicted {gain:.2f} times as fast, under {PREDICTED_MARGIN}; not measured")
            reason = f"predicted {gain:.2f} times as fast; not measured"
            return replace(report, decision="rewrite", reason=reason, rewrite=rewrite)
        report = replace(report, measured_gain=timing.ratio)
        if timing.decisive and timing.ratio > 1:
            return replace(
                report,
                decision="rewrite",
                reason=f"measured {timing.ratio:.2f} times as fast",
                rewrite=rewrite,
            )
        return report.kept(f"measured {timing.ratio:.2f} times as fast, which is no clear gain")

    def whole(self, candidate: ModelProto) -> PairTiming | None:
        """The timing of the whole model against the original, from the records or measured now; None if neither."""
        environment = current_environment()
        key = record_key(self.model, candidate, environment)
        known = self.records.find(key) if self.records else None
        if known is not None or not self.measure:
            return known.timing if known is not None else None
        self.progress("timing the whole model")
        feeds = draw_inputs(self.model, seed=0, batch=1)
        timing = time_models(self.model, candidate, feeds, limits=TimingLimits(seconds=_WHOLE_MODEL_SECONDS))
        if self.records is not None:
            self.records.add(Record(key, "model", timing, environment))
        return timing

    def _predicted(self, original: ModelProto, candidate: ModelProto, element: Element) -> float:
        before, after = (data_work(view(model, batch=self.graph.batch)) for model in (original, candidate))
        if self.target.cpu is not None:
            return cpu_seconds(before, self.target.cpu) / cpu_seconds(after, self.target.cpu)
        gpu = self.target.need_gpu_profile()
        return gpu_seconds(before, gpu, element, element) / gpu_seconds(after, gpu, element, element)

    def _timing(self, report: SiteReport, original: ModelProto, candidate: ModelProto) -> PairTiming | None:
        environment = current_environment()
        key = record_key(original, candidate, environment)
        known = self.records.find(key) if self.records else None
        if known is not None or not self.measure:
            return known.timing if known is not None else None
        self.progress(f"timing {report.id}")
        timing = time_regions(original, candidate)
        if self.records is not None:
            self.records.add(Record(key, report.kind, timing, environment))
        return timing


def found_attention(site: AttentionSite) -> dict[str, Any]:
    """The discovered fields of an attention in ``onnxopt.inspect/1``."""
    counted = count(site)
    return {
        "nodes": list(site.nodes),
        "op": site.op,
        "queries": counted.queries,
        "keys": counted.keys,
        "pairs": counted.pairs,
        "pairs_total": counted.pairs_total,
        "phantom_pairs": counted.phantom_pairs,
        "empty_rows": counted.empty_rows,
        "density": round(counted.density, 6),
        "heads": site.heads,
        "head_dim": site.head_dim,
        "distinct_masks": len(site.lists),
        "bias": site.bias_kind,
        "runtime_mask": bool(site.runtime),
        "group": site.group or site.id,
    }


def own_nodes(graph: Graph, names: Sequence[str]) -> bool:
    """Whether a site consists of nodes that an earlier run wrote."""
    wanted = set(names)
    return any(is_own_node(node) and (node.name in wanted or wanted & set(node.output)) for node in graph.nodes)


def every_pair(site: AttentionSite) -> bool:
    """Whether every query of every head needs every key."""
    keys = len(site.key_tokens)
    return all(int(lists.lengths.min()) >= keys for lists in site.lists)


def loses_digits(site: AttentionSite) -> bool:
    """Whether adding bias and mask in another order than the graph shows in the result.

    That is so where a row has no key left, its constant cancels in the softmax, and the constant is so large that
    little of the bias is left beside it in float32.
    """
    if site.empty_kind is not EmptyRow.UNMASKED:
        return False
    for head in range(site.heads):
        bias = site.bias_of(head)
        if bias is None:
            continue
        of_empty = np.repeat(site.head_empty[head], site.lists_of(head).lengths)
        constants = bias[of_empty]
        if np.any(constants < _LARGE_CONSTANT) and np.any(constants != constants[0]):
            return True
    return False

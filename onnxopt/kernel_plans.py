"""Plans for kernels of their own, each made once: what `inspect` predicts with and `plan.json` describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, cast

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.conv_site import BoolArray, ConvSite
from onnxopt.model.graph import Graph
from onnxopt.plan.attention import filled_rows
from onnxopt.plan.attention_cost import AttentionCost
from onnxopt.plan.attention_kernel import plan_attention_kernel, used_vectors
from onnxopt.plan.group_conv import plan_group_conv
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.plan_cache import PlanCache, content_key
from onnxopt.plan.roofline import same_gpu
from onnxopt.plan.schedule import AttentionSchedule, ConvSchedule, Objective
from onnxopt.target import GpuProfile
from onnxopt.target.tile_records import TileRecord
from onnxopt.target.tile_store import FILE_NAME, stored_records
from onnxopt.target.variant import Element
from onnxopt.validate import validate_attention_schedule, validate_conv_schedule

# What tiles of pixels are multiples of, but for the smallest ones.
_PIXEL_TILE = 64
# Tables grow with the pixels that are computed together.
_MOST_FOLDED = 1024


@dataclass(frozen=True)
class KernelPlanner:
    """Plans for one GPU: ``records`` are measured tile times, ``cache`` keeps what was planned before.

    ``element`` is the compute type of the kernels.
    """

    gpu: GpuProfile
    objective: Objective
    element: Element = "fp16"
    records: tuple[TileRecord, ...] = ()
    cache: PlanCache = field(default_factory=lambda: PlanCache(None))

    @classmethod
    def at(cls, gpu: GpuProfile, objective: Objective, folder: Path | None, element: Element = "fp16") -> KernelPlanner:
        """A planner with the records and plans of a cache folder; None where there is none."""
        records = stored_records(folder / FILE_NAME) if folder is not None else ()
        # Those of other GPUs say nothing here, and a plan is kept under the records that it was made with.
        own = tuple(record for record in records if same_gpu(gpu, record.gpu))
        return cls(gpu, objective, element, own, PlanCache(folder))

    def computing_in(self, element: Element) -> KernelPlanner:
        """The same planner for kernels of another compute type."""
        return replace(self, element=element)

    def attention(self, site: AttentionSite, top: int = 1) -> tuple[AttentionSchedule, ...]:
        """The best schedules of a site; raises InputError where it has no row to compute."""
        facts = ["attention", self.objective, self.element, top, *_attention_facts(site)]
        key = content_key("attention", self.gpu, self.records, facts)
        known = self.cache.get(key, "attention")
        if known is None:
            cost = AttentionCost.of(self.gpu, site.head_dim, site.v.width, self.element, self.records)
            known = plan_attention_kernel(site, cost, self.objective, self.element, top)
            self.cache.put(key, known)
        schedules = tuple(replace(s, site=site.id) for s in cast(tuple[AttentionSchedule, ...], known))
        for schedule in schedules:
            validate_attention_schedule(site, schedule)
        return schedules

    def convolution(
        self,
        site: ConvSite,
        graph: Graph,
        top: int = 1,
        *,
        links: BoolArray | None = None,
        images: int = 1,
        residual: bool = False,
    ) -> tuple[ConvSchedule, ...]:
        """The best schedules of a convolution; raises InputError where nothing is connected.

        ``links`` (outputs x inputs) are its connections where they are not the site's own. The positions of ``images``
        batch elements are computed together. With ``residual`` a tensor of the output's size is added.
        """
        links = site.links() if links is None else links
        batch, _, *positions = graph.shape(site.output) or (1, 1)
        taps, pixels, groups = prod(site.kernel), images * prod(positions), -(-batch // images)
        moved = _moved_bytes(site, links, graph, self.element, 2 if residual else 1)
        facts = [self.objective, self.element, top, links, taps, pixels, groups, moved]
        key = content_key("conv", self.gpu, self.records, facts)
        known = self.cache.get(key, "conv")
        if known is None:
            cost = GroupConvCost.of(self.gpu, taps, pixels, self.element, self.records, groups)
            known = plan_group_conv(
                site, links, cost, objective=self.objective, element=self.element, moved_bytes=moved, top=top
            )
            self.cache.put(key, known)
        schedules = cast(tuple[ConvSchedule, ...], known)
        for schedule in schedules:
            validate_conv_schedule(links, schedule, pixels=pixels)
        return schedules


def _attention_facts(site: AttentionSite) -> list[Any]:
    """Everything of a site that its schedule depends on, apart from its name."""
    lists = [array for own in site.lists for array in (own.row_list, own.offsets, own.keys)]
    vectors = [used_vectors(v) for v in (site.query_vectors, site.key_vectors, site.value_vectors)]
    weighed = [] if site.weights is None else ["weighed"]
    sizes = [site.heads, site.rows, site.head_dim, site.v.width, *vectors, *weighed]
    return [*sizes, site.head_lists, site.head_bias >= 0, filled_rows(site), site.query_tokens, site.key_tokens, *lists]


def folded_images(batch: int, positions: int) -> int:
    """How many of ``batch`` elements are best computed together, so that tiles of pixels are full.

    Groups are of equal size. Where one element fills its tiles, each is computed for itself.
    """
    options = [n for n in range(1, batch + 1) if n == 1 or (batch % n == 0 and n * positions <= _MOST_FOLDED)]
    return min(options, key=lambda n: (-(-n * positions // _PIXEL_TILE) * _PIXEL_TILE / (n * positions), n))


def _moved_bytes(site: ConvSite, links: BoolArray, graph: Graph, element: Element, outputs: int) -> float:
    """Bytes of the inputs that are used, the connected weights and the outputs, each once, the last so many times."""
    batch, _, *before = graph.shape(site.input) or (1, 1)
    _, _, *behind = graph.shape(site.output) or (1, 1)
    used, connections = int(links.any(axis=0).sum()), int(links.sum())
    elements = batch * (used * prod(before) + outputs * len(links) * prod(behind)) + connections * prod(site.kernel)
    return float((2 if element in ("fp16", "bf16") else 4) * elements)


def described(schedule: AttentionSchedule | ConvSchedule) -> dict[str, Any]:
    """A schedule's fields of an entry in `plan.json`."""
    forecast, proof = schedule.forecast, schedule.proof
    result: dict[str, Any] = {
        "dtype": schedule.element,
        "reorder": _orders(schedule),
        "variants": [f"{count} x {name}" for name, count in _variants(schedule)],
        "resident_blocks": schedule.resident,
        "blocks": len(schedule.jobs),
        "needed": schedule.needed,
        "computed": schedule.computed,
        "waste": round(schedule.waste, 4),
        "predicted_us": round(forecast.predicted_us, 3),
        "uncertainty": round(forecast.uncertainty, 3),
        "measured": forecast.measured,
        "bound_us": round(forecast.bound_us, 3),
        "gap": round(proof.gap, 5),
        "solver": {"name": proof.solver, "status": proof.status, "nodes": proof.nodes},
        "certificate": proof.certificate,
    }
    if proof.free_bound:
        result["least_computed"] = round(proof.free_bound)
    if isinstance(schedule, AttentionSchedule):
        result["split_keys"] = schedule.split_keys
    return result


def _orders(schedule: AttentionSchedule | ConvSchedule) -> list[str]:
    if isinstance(schedule, ConvSchedule):
        return [schedule.order]
    return sorted({part.order for part in schedule.parts})


def _variants(schedule: AttentionSchedule | ConvSchedule) -> Sequence[tuple[str, int]]:
    """Each shape with the number of strips or parts that it computes, the commonest first."""
    used: Counter[str] = Counter()
    if isinstance(schedule, AttentionSchedule):
        for part in schedule.parts:
            used.update(schedule.variants[number].describe() for number in part.variants)
    else:
        used.update(schedule.variants[part.variant].describe() for part in schedule.parts)
    return sorted(used.items(), key=lambda item: (-item[1], item[0]))

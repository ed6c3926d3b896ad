"""What is planned and decided for one site: its plans, its decision with a reason, and what to draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

from onnx import TensorProto

from onnxopt.decide import (
    PREDICTED_MARGIN,
    Drawing,
    Judge,
    PluginSource,
    SiteReport,
    every_pair,
    found_attention,
    loses_digits,
    own_nodes,
)
from onnxopt.discover.attention_site import AttentionSite
from onnxopt.discover.conv_fusion import ConvFusions
from onnxopt.discover.movement import walk_back
from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner, described
from onnxopt.lower.attention import lower_attention
from onnxopt.lower.conv_plugin import ConvPluginWriter
from onnxopt.lower.plugin import PluginWriter
from onnxopt.lower.region_body import NoBody
from onnxopt.measure.extract import extract_region
from onnxopt.model.graph import Graph, view
from onnxopt.plan.attention import AttentionPlan, filled_rows, plan_attention
from onnxopt.plan.block.planning import BlockPlans
from onnxopt.plan.estimate import data_work, gpu_seconds
from onnxopt.plan.rates import CpuRates, GpuRates
from onnxopt.plan.schedule import AttentionSchedule, Objective
from onnxopt.plan.tables import NoTables, attention_tables
from onnxopt.report.pictures import attention_pictures, portable_pictures
from onnxopt.target import CpuProfile, Target, load_target
from onnxopt.target.variant import Element
from onnxopt.validate import validate_attention_plan, validate_attention_tables

Form = Literal["plugin", "portable"]
ELEMENTS: tuple[Element, ...] = get_args(Element)
WRITTEN_BEFORE = "its nodes are named onnxopt/...: a schedule that an earlier run wrote"
_DENSE = "dense: every query needs every key"
_LOSES_DIGITS = "rows without keys carry a large constant and a bias, and float32 sums them in one order only"
# Schedules for a kernel, the best included, after which a site stays as it is.
SCHEDULES_TRIED = 4
# Without an epsilon of the model's own: what is there makes a softmax of no key 0.
_NO_EPSILON = 2.0**-126
# Below e to the minus this all numbers are 0; and the smallest number of fp16.
_FP16_POWERS, _FLOAT_POWERS, _LEAST_FP16 = 16, 87, 2.0**-24
_ELEMENTS: dict[int, Element] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}


@dataclass(frozen=True)
class Planning:
    """How the sites of one model are planned.

    ``kernels`` plans for kernels of our own where the target is a GPU, ``writer`` and ``conv_writer`` write them, and
    ``dtype`` is the type they compute in (None: that of a site's own tensors). ``fusions`` says what convolutions take
    with them, and remembers what they have, as ``blocks`` do what was planned.
    """

    judge: Judge
    objective: Objective
    kernels: KernelPlanner | None = None
    writer: PluginWriter | None = None
    fusions: ConvFusions | None = None
    conv_writer: ConvPluginWriter | None = None
    dtype: Element | None = None
    blocks: BlockPlans = field(default_factory=BlockPlans)

    def kernels_for(self, tensor: str) -> KernelPlanner | None:
        """The planner in the type that a site computes in; raises InputError for tensors of a type without kernels."""
        if self.kernels is None:
            return None
        own = tensor_element(self.judge.graph, tensor)
        if self.dtype is None and own is None:
            kind = TensorProto.DataType.Name(self.judge.graph.element_type(tensor)).lower()
            raise InputError(
                f"its tensors are {kind}; kernels compute in {', '.join(ELEMENTS)}: choose one by --kernel-dtype"
            )
        return self.kernels.computing_in(self.dtype or own or "fp32")


def tensor_element(graph: Graph, tensor: str) -> Element | None:
    """The compute type that a tensor's own type is; None where kernels have none of it."""
    return _ELEMENTS.get(graph.element_type(tensor))


def attention_reports(planning: Planning, site: AttentionSite, forms: Sequence[Form]) -> dict[Form, SiteReport]:
    """Plan one attention, and decide for each form."""
    judge = planning.judge
    report = SiteReport(site.id, "attention", found_attention(site), "keep", "")

    def all_kept(reason: str) -> dict[Form, SiteReport]:
        return {form: report.kept(reason) for form in forms}

    if own_nodes(judge.graph, site.nodes):
        return all_kept(WRITTEN_BEFORE)
    if not len(filled_rows(site)):
        return all_kept("no query has a key: all its results are zeros")
    schedule, refusal = None, ""
    try:
        kernels = planning.kernels_for(site.q.sources[0].tensor)
        if kernels is not None:
            schedule = kernels.attention(site)[0]
            report = _planned_for_kernel(report, site, schedule)
    except InputError as error:
        refusal = str(error)
    masked = _runtime_mask(judge.graph, site)
    if site.runtime and site.weights is None:
        return all_kept(f"{masked}; {site.unweighed}" if site.unweighed else masked)
    work = _Attention(planning, site, report)
    decided: dict[Form, SiteReport] = {}
    for form in forms:
        if form == "portable":
            decided[form] = report.kept(masked) if masked else work.portable()
        elif schedule is None:
            decided[form] = report.kept(f"it cannot be planned for a kernel: {refusal}")
        else:
            decided[form] = work.plugin(schedule)
    return decided


def _runtime_mask(graph: Graph, site: AttentionSite) -> str:
    """That a site's mask depends on the input; empty where it does not."""
    if not site.runtime:
        return ""
    _, inputs = walk_back(graph, site.runtime, graph.data_inputs)
    named = ", ".join(f"'{name}'" for name in inputs)
    return f"its mask depends on the model's input {named}, so its pattern is not fixed"


def vanishing_weights(site: AttentionSite, element: Element) -> str:
    """Why run-time weights of a site's keys may all vanish in a kernel where they do not in the model; empty if never.

    A kernel takes exponentials relative to the largest score, those of masked keys included. So does a written-out
    softmax that adds an epsilon, which bounds what is lost; a mask in front of a plain softmax takes the masked scores
    out before.
    """
    if site.weights is None:
        return ""
    above, below = site.weights.epsilons
    if max(above, below) <= _NO_EPSILON:
        most = _FP16_POWERS if element == "fp16" else _FLOAT_POWERS
        return (
            f"its keys are masked by an input in front of a softmax that adds no epsilon: in {element} its kernel's "
            f"weights would vanish where a masked score is above all others by more than {most}"
        )
    if element == "fp16" and below < _LEAST_FP16:
        return (
            f"its softmax adds {below:.2g} to the sum of its weights, less than the smallest number of fp16: all its "
            f"weights would vanish where a masked score is above all others by more than {_FP16_POWERS}; choose bf16, "
            "tf32 or fp32 by --kernel-dtype"
        )
    return ""


def further_reports(planning: Planning, report: SiteReport) -> Iterator[SiteReport]:
    """A site in the plugin form by its next best schedules instead, best first, while they are predicted to win."""
    assert isinstance(report.plugin, PluginSource)
    site = report.plugin.site
    kernels = planning.kernels_for(site.q.sources[0].tensor)
    assert kernels is not None
    for schedule in kernels.attention(site, SCHEDULES_TRIED)[1:]:
        planned = _planned_for_kernel(report.kept(""), site, schedule)
        decided = _Attention(planning, site, planned).plugin(schedule)
        if decided.rewrite is None:
            return
        yield decided


def input_shapes(site: AttentionSite, graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that a site reads, as far as they are known."""
    known = {name: graph.shape(name) for name in site.inputs}
    return {name: tuple(shape) for name, shape in known.items() if shape is not None}


def _planned_for_kernel(report: SiteReport, site: AttentionSite, schedule: AttentionSchedule) -> SiteReport:
    return replace(report, planned=described(schedule), draw=partial(attention_pictures, site, schedule))


@dataclass
class _Attention:
    """One attention that can be planned; its schedule in standard operators is made once, whoever asks for it."""

    planning: Planning
    site: AttentionSite
    report: SiteReport

    @cached_property
    def plan(self) -> AttentionPlan:
        plan = plan_attention(self.site, _rates(self.planning.judge.target), self.planning.objective)
        validate_attention_plan(self.site, plan)
        return plan

    def portable(self) -> SiteReport:
        """The decision for standard operators."""
        site, judge = self.site, self.planning.judge
        if every_pair(site):
            return self.report.kept(_DENSE)
        if loses_digits(site):
            return self.report.kept(_LOSES_DIGITS)
        plan = self.plan
        report = with_written(self.report, _planned_attention(plan), partial(portable_pictures, site, plan))
        if plan.computed >= site.heads * site.rows * len(site.key_tokens):
            return report.kept("its pattern leaves no schedule that is cheaper than computing every pair")
        rewrite = lower_attention(site, plan, judge.graph)
        validate_attention_tables(site, rewrite, judge.graph)
        return judge.judge(report, site.inputs, rewrite, tensor_element(judge.graph, site.output) or "fp32")

    def plugin(self, schedule: AttentionSchedule) -> SiteReport:
        """The decision for a kernel of its own."""
        site, report, judge = self.site, self.report, self.planning.judge
        if every_pair(site) and not schedule.forecast.measured:
            return report.kept(f"{_DENSE}; a kernel takes its place only where measured tile times say that it wins")
        if loses_digits(site):
            return report.kept(_LOSES_DIGITS)
        vanishing = vanishing_weights(site, schedule.element)
        if vanishing:
            return report.kept(vanishing)
        try:
            region = extract_region(judge.model, judge.graph, site.inputs, [site.output])
        except InputError as error:
            return report.kept(f"its surroundings cannot be cut out to be judged: {error}")
        stored = tensor_element(judge.graph, site.output) or "fp32"
        gpu = judge.target.need_gpu_profile()
        before = gpu_seconds(data_work(view(region, batch=judge.graph.batch)), gpu, schedule.element, stored)
        gain = before * 1e6 / schedule.forecast.predicted_us
        report = replace(report, predicted_gain=gain)
        said = f"one kernel in {schedule.element} is predicted {gain:.2f} times as fast"
        if schedule.forecast.measured:
            said += " by measured tile times"
        if gain < PREDICTED_MARGIN:
            return report.kept(f"{said}, under {PREDICTED_MARGIN}")
        return self._written(replace(report, decision="rewrite", reason=said), schedule)

    def _written(self, report: SiteReport, schedule: AttentionSchedule) -> SiteReport:
        """The site with its operator, proved; kept where no tables can say what it computes."""
        site, graph = self.site, self.planning.judge.graph
        shapes = input_shapes(site, graph)
        try:
            tables = attention_tables(site, schedule, shapes=shapes)
        except NoTables as error:
            return report.kept(f"no table can hold what its kernel needs: {str(error).removeprefix(f'{site.id}: ')}")
        writer = self.planning.writer or PluginWriter(graph)
        try:
            rewrite, body = writer.lower(site, schedule, tables, self.plan if site.weights is None else None)
        except NoBody as error:
            return report.kept(f"no body can say what its kernel computes: {error}")
        if body is not None and body.rewrite is not None:
            validate_attention_tables(body.site, body.rewrite, body.graph)
        return replace(report, rewrite=rewrite, plugin=PluginSource(site, tables, shapes, schedule.resident))


def with_written(report: SiteReport, planned: dict[str, Any], draw: Drawing) -> SiteReport:
    """The report with the schedule of the portable form; beside a kernel's plan it has a field of its own."""
    if report.planned:
        return replace(report, planned={**report.planned, "portable": planned})
    return replace(report, planned=planned, draw=draw)


def _rates(target: Target) -> CpuRates | GpuRates:
    return CpuRates.of(reference_cpu()) if target.gpu is None else GpuRates.of(target.gpu)


def reference_cpu() -> CpuProfile:
    """The CPU by whose rates schedules are ranked, for whatever target."""
    cpu = load_target("cpu").cpu
    assert cpu is not None
    return cpu


def _planned_attention(plan: AttentionPlan) -> dict[str, Any]:
    return {
        "reorder": sorted({part.order for part in plan.parts}),
        "variants": [
            {"heads": len(p.heads), "strips": len(b.strips), "rows": b.rows, "keys": b.keys}
            for p in plan.parts
            for b in p.buckets
        ],
        "needed": plan.needed,
        "computed": plan.computed,
        "waste": round(plan.waste, 4),
        "predicted_us": round(plan.cost_us, 3),
        "bound_us": round(plan.bound_us, 3),
        "gap": 0.0,
        "solver": {"name": "enumeration", "status": "optimal", "nodes": plan.candidates},
        "certificate": "every order and cut was compared; the buckets of each are a shortest path",
    }

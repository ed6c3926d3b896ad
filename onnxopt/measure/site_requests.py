"""The attention sites of a model as operators for a job: what is checked and timed on a GPU as the model uses it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.kernel_plans import KernelPlanner
from onnxopt.measure.job.build import Request, request_sources
from onnxopt.model.read import read_model
from onnxopt.plan.schedule import AttentionSchedule
from onnxopt.plan.tables import AttentionTables, NoTables, attention_tables
from onnxopt.site_kernels import KernelBuild
from onnxopt.site_reports import input_shapes, vanishing_weights
from onnxopt.sites import discover


def site_requests(
    models: Sequence[Path], planner: KernelPlanner, batch: int = 1
) -> tuple[list[Request], list[tuple[str, str]]]:
    """One request for each distinct operator of the models' attention sites, and the sites left out with the reason.

    Raises InputError for a model that cannot be read.
    """
    requests: dict[str, Request] = {}
    left_out = []
    for path in models:
        findings = discover(read_model(path))
        for site in findings.attention:
            name = f"{path.stem}/{site.id}"
            vanishing = vanishing_weights(site, planner.element)
            if vanishing:
                left_out.append((name, vanishing))
                continue
            try:
                schedule = planner.attention(site)[0]
                tables = attention_tables(site, schedule, shapes=input_shapes(site, findings.graph))
            except (InputError, NoTables) as reason:
                left_out.append((name, str(reason)))
                continue
            requests.setdefault(tables.operator(), site_request(name, schedule, tables, batch))
    return list(requests.values()), left_out


def site_request(name: str, schedule: AttentionSchedule, tables: AttentionTables, batch: int) -> Request:
    """The request of one planned site."""
    arrays = tables.arrays()
    if tables.merge is not None:
        arrays = {**arrays, **tables.merge.arrays()}
    return Request(
        id=name,
        kind="attention",
        purpose="site",
        kernel=tables.kernel.to_json(),
        tables=arrays,
        second_kernel=None if tables.merge is None else tables.merge.kernel,
        resident=schedule.resident,
        batch=batch,
        needed=schedule.needed,
        computed=schedule.computed,
        predicted_us=schedule.forecast.predicted_us,
        bound_us=schedule.forecast.bound_us,
    )


def usable_requests(requests: Sequence[Request], build: KernelBuild) -> tuple[list[Request], list[tuple[str, str]]]:
    """The requests whose kernels can be compiled and fit as planned, and those left out with the reason.

    What was compiled is in the cache afterwards. Raises MissingError without a compiler.
    """
    sources = {request.id: request_sources(request) for request in requests}
    build.compiled([source for own in sources.values() for source in own])
    kept, left_out = [], []
    for request in requests:
        reason = next((build.refused[source] for source in sources[request.id] if source in build.refused), None)
        if reason is None:
            kept.append(request)
        else:
            left_out.append((request.id, reason))
    return kept, left_out

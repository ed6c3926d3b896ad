"""Comparing two models on the same inputs by the numeric rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxopt.errors import InputError
from onnxopt.verification.compare import Array
from onnxopt.verification.cut import cut_unknown
from onnxopt.verification.inputs import draw_inputs
from onnxopt.verification.interface import check_interfaces, has_dynamic_batch, input_specs
from onnxopt.verification.outcome import DrawReport, SiteReport, VerifyReport
from onnxopt.verification.runs import Run, Setup, drop_unfaithful, judge, make_setup, run_all
from onnxopt.verification.sessions import tensor_names
from onnxopt.verification.ties import find_decisions, near_tie

MAX_REDRAWS = 8
DYNAMIC_BATCHES = (1, 3)
_SITES_AT_ONCE = 8

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Job:
    """Inputs to run: drawn for (batch, draw, attempt), or given."""

    batch: int | None
    draw: int
    attempt: int
    seed: int | None
    feed: Mapping[str, Array]


def verify_models(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    *,
    draws: int = 3,
    seed: int = 0,
    batches: Sequence[int] | None = None,
    inputs: Mapping[str, Array] | None = None,
    sites: Sequence[tuple[str, str]] = (),
    baseline: onnx.ModelProto | None = None,
    rounded: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
) -> VerifyReport:
    """Whether `candidate` computes what `original` does, in ONNX Runtime on the CPU.

    `draws` random inputs are taken for each size in `batches` (default 1, and 1 and 3 where the first
    dimension is symbolic), or `inputs` as they are, once. `sites` are pairs (site id, name of a tensor in
    both models): if the models disagree, the first of them that is off is reported. `baseline` is the
    original in reduced precision, where the candidate is in that; its error against the original sets the
    bounds. `rounded` says that both are float32 models that round on their own, and run as they are.

    A draw on which a decision (TopK, a comparison) falls differently on numbers that agree is drawn again,
    at most 8 times, then it fails.

    Raises VerificationError where inputs or outputs of the models differ or the candidate does not run,
    InputError where the original does not run or its inputs cannot be drawn, MissingError where an operator
    that ONNX Runtime lacks makes tensors of unknown shape.
    """
    if draws < 1:
        raise InputError(f"{draws} draws are not possible: give 1 or more")
    check_interfaces(original, candidate, any_float=baseline is not None)
    if baseline is not None:
        check_interfaces(original, baseline, any_float=True, names=("original", "baseline"))
        _, baseline, _ = cut_unknown(original, baseline)
    if inputs is not None:
        _check_given(original, inputs)
    original, candidate, cut = cut_unknown(original, candidate)
    tell = progress or _silent
    tell("choosing the reference")
    setup = make_setup(original, candidate, baseline, rounded=rounded, threads=threads)
    if cut:
        note = f"ONNX Runtime does not know {', '.join(cut)}: the models were compared up to and from there"
        setup = replace(setup, notes=(*setup.notes, note))
    jobs = _given(original, inputs) if inputs is not None else _drawn(original, draws, seed, batches)
    try:
        return _verify(setup, original, jobs, seed, sites, threads, tell)
    except InputError:
        first = [job for job in jobs if job.batch == 1]
        if batches is not None or len(first) in (0, len(jobs)):
            raise
        # Some exporters call a batch symbolic whose size they have baked into the graph.
        note = "the original does not run at every batch size, though it is symbolic: only batch 1 was compared"
        setup = replace(setup, notes=(*setup.notes, note))
        return _verify(setup, original, first, seed, sites, threads, tell)


def _check_given(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> None:
    expected = {spec.name: spec.describe() for spec in input_specs(model)}
    if expected.keys() != inputs.keys():
        listed = ", ".join(f"'{name}' {kind}" for name, kind in expected.items())
        raise InputError(f"inputs {sorted(inputs)} were given; the model takes exactly {listed}")


def _silent(message: str) -> None:
    del message


def _drawn(model: onnx.ModelProto, draws: int, seed: int, batches: Sequence[int] | None) -> list[_Job]:
    if not has_dynamic_batch(input_specs(model)):
        sizes: Sequence[int] = (1,)
    else:
        sizes = DYNAMIC_BATCHES if batches is None else batches
    return [_draw(model, seed, batch, draw, 0) for batch in sizes for draw in range(draws)]


def _draw(model: onnx.ModelProto, seed: int, batch: int, draw: int, attempt: int) -> _Job:
    own_seed = int(np.random.SeedSequence([seed, draw, attempt]).generate_state(1)[0])
    return _Job(batch, draw, attempt, own_seed, draw_inputs(model, seed=own_seed, batch=batch))


def _given(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[_Job]:
    feed = dict(inputs)
    specs = input_specs(model)
    if any(spec.name not in feed for spec in specs):
        # What a node that cannot run would have made is drawn, at the batch of the given arrays.
        dynamic = [spec.name for spec in specs if spec.name in feed and has_dynamic_batch([spec])]
        batch = feed[dynamic[0]].shape[0] if dynamic else 1
        feed = {**draw_inputs(model, seed=0, batch=batch), **feed}
    return [_Job(None, 0, 0, None, feed)]


def _verify(
    setup: Setup,
    model: onnx.ModelProto,
    jobs: list[_Job],
    seed: int,
    sites: Sequence[tuple[str, str]],
    threads: int,
    tell: Progress,
) -> VerifyReport:
    decided: list[DrawReport] = []
    redrawn: list[DrawReport] = []
    failed: _Job | None = None
    while jobs:
        tell(f"running both models on {len(jobs)} inputs")
        runs = run_all(setup, [job.feed for job in jobs], None, threads=threads)
        setup, runs = drop_unfaithful(setup, runs)
        again: list[_Job] = []
        for job, outputs in zip(jobs, judge(setup, runs), strict=True):
            report = DrawReport(job.batch, job.draw, job.seed, setup.kind, outputs)
            if not report.passed and failed is None:
                report = replace(report, tie=_tie(setup, job, threads))
            if report.tie is not None and job.batch is not None and job.attempt < MAX_REDRAWS:
                redrawn.append(report)
                again.append(_draw(model, seed, job.batch, job.draw, job.attempt + 1))
                continue
            decided.append(report)
            if failed is None and not report.passed:
                failed = job
        jobs = again
    watched, unwatched = _watchable(setup, sites)
    first_bad = None
    if failed is not None and watched:
        tell("looking for the first site that is off")
        first_bad = _first_bad_site(setup, failed, watched, threads)
    decided.sort(key=lambda report: (report.batch or 0, report.draw))
    return VerifyReport(
        passed=failed is None,
        reference=setup.kind,
        seed=seed,
        draws=tuple(decided),
        redrawn=tuple(redrawn),
        first_bad_site=first_bad,
        unwatched_sites=unwatched,
        notes=setup.notes + _notes(decided, redrawn, failed, watched, first_bad),
    )


def _tie(setup: Setup, job: _Job, threads: int) -> str | None:
    known = tensor_names(setup.reference) & tensor_names(setup.candidate)
    decisions = find_decisions(setup.reference, known)
    if not decisions:
        return None
    names = list(dict.fromkeys(name for d in decisions for name in (*d.inputs, *d.outputs)))
    run = _watch(setup, job, names, threads)
    return near_tie(decisions, run.reference, run.candidate, setup.tie_rule)


def _watch(setup: Setup, job: _Job, names: list[str], threads: int) -> Run:
    return run_all(setup.watching(names), [job.feed], names, threads=threads)[0]


def _watchable(setup: Setup, sites: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    known = tensor_names(setup.reference) & tensor_names(setup.candidate)
    watched = [(site, tensor) for site, tensor in sites if tensor in known]
    return watched, tuple(site for site, tensor in sites if tensor not in known)


def _first_bad_site(setup: Setup, job: _Job, sites: list[tuple[str, str]], threads: int) -> SiteReport | None:
    # Site tensors of a large model are large, so few are held at a time.
    for start in range(0, len(sites), _SITES_AT_ONCE):
        group = sites[start : start + _SITES_AT_ONCE]
        run = _watch(setup, job, list(dict.fromkeys(tensor for _, tensor in group)), threads)
        reports = {report.name: report for report in judge(setup, [run])[0]}
        for site, tensor in group:
            if not reports[tensor].passed:
                return SiteReport(site, reports[tensor])
    return None


def _notes(
    decided: list[DrawReport],
    redrawn: list[DrawReport],
    failed: _Job | None,
    watched: list[tuple[str, str]],
    first_bad: SiteReport | None,
) -> tuple[str, ...]:
    notes: list[str] = []
    if redrawn:
        places = ", ".join(sorted({report.tie for report in redrawn if report.tie}))
        notes.append(f"{len(redrawn)} inputs were drawn again: {places} decided differently on numbers that agree")
    if any(report.tie for report in decided):
        notes.append(f"no input without such a difference was found in {MAX_REDRAWS} further draws, or it was given")
    if failed is not None and watched and first_bad is None:
        notes.append("every watched site agrees, so the difference arises elsewhere")
    return tuple(notes)

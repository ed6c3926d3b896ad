"""What engines may choose among: next best schedules for the same tensors, proved, compiled, and one of them small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from onnxopt import tactic_candidates, tactics
from onnxopt.api import optimize
from onnxopt.decide import AlgorithmSource, BlockSource, ConvSource, PluginSource, SiteReport
from onnxopt.errors import InputError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.report import published_shared
from onnxopt.kernels.source import KernelSource
from onnxopt.plan.roofline import SMALL_SHARED_BYTES
from onnxopt.plan.tables.types import AttentionTables
from onnxopt.site_kernels import KernelBuild
from onnxopt.sites import Judged, discover, judge_network
from onnxopt.tactics import TACTICS, SiteTactics
from onnxopt.target import load_target
from onnxopt.validate import PlanError
from samples import build as sample
from tests.lower.test_block_plugin import network


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class Build(KernelBuild):
    """Kernels as they are compiled, of which some cannot be used; counts what it is asked for."""

    unusable: Sequence[str] = ()
    asked: int = 0

    def compiled(self, sources: Sequence[KernelSource]) -> dict[KernelSource, CompiledKernel]:
        self.asked += len(set(sources))
        bad = {source for source in sources if any(f"{pair}" in self.unusable for pair in source.defines)}
        return {source: kernel for source, kernel in super().compiled(sources).items() if source not in bad}


def judged(name: str, cache: Path, wanted: int = TACTICS, unusable: Sequence[str] = ()) -> tuple[Judged, Build]:
    model = network(None) if name == "blocks" else sample(name).model
    target = load_target("sm_90")
    build = Build(target.need_gpu_profile(), cache)
    build.unusable = unusable
    found = judge_network(
        model,
        discover(model),
        target,
        forms=("plugin",),
        records=cache / "records",
        measure=False,
        dtype="fp16",
        build=build,
        tactics=wanted,
    )
    return found, build


def written(found: Judged) -> list[SiteReport]:
    return [report for report in found.reports["plugin"] if report.rewrite is not None]


def source_of(report: SiteReport) -> PluginSource | ConvSource | BlockSource:
    assert report.plugin is not None and not isinstance(report.plugin, AlgorithmSource)
    return report.plugin


def operators(chosen: SiteTactics) -> list[str]:
    return [tactic.candidate.operator for tactic in chosen.tactics]


@pytest.mark.parametrize(
    "name",
    [
        "neighbourhood",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("condensenet_converted", "blocks")),
    ],
)
def test_sites_have_tactics_for_the_same_tensors(name: str, cache: Path) -> None:
    found, _ = judged(name, cache)
    reports = written(found)
    assert reports and {report.id for report in reports} >= set(found.tactics)
    assert max(len(chosen.tactics) for chosen in found.tactics.values()) > 1
    for report in reports:
        if report.id not in found.tactics:
            assert report.planned.keys() & {"computed_by", "algorithm"}
            continue
        chosen, own = found.tactics[report.id], source_of(report)
        assert operators(chosen)[0] == own.tables.operator()
        assert len(set(operators(chosen))) == len(chosen.tactics) <= TACTICS
        counts = [len(tactic.candidate.source.tables.arrays()) for tactic in chosen.tactics]
        for number, tactic in enumerate(chosen.tactics):
            assert tactic_candidates.second_operator(tactic.candidate.source) == tactic_candidates.second_operator(own)
            others = [tactic.compiled.source.define(f"OTHERS_{side}") for side in ("BEFORE", "AFTER")]
            before, after = sum(counts[:number]), sum(counts[number + 1 :])
            assert others == ([None, None] if len(counts) == 1 else [str(before), str(after)])
            assert tactic.shared_bytes == published_shared(tactic.compiled.ptx, tactic.compiled.source.entry)
            assert tactic.shared_bytes <= tactic_candidates.planned_shared(tactic.candidate.source)
        assert min(tactic.shared_bytes for tactic in chosen.tactics) <= SMALL_SHARED_BYTES
        assert not chosen.note and "tactics_note" not in report.planned
        noted = report.planned["tactics"]
        assert [entry["shared_bytes"] for entry in noted] == [t.compiled.report.shared for t in chosen.tactics]
        assert noted[0]["predicted_us"] == report.planned["predicted_us"]
        times = [entry["predicted_us"] for entry in noted[1:]]
        assert times == sorted(times)


def test_they_are_only_there_where_asked_for(cache: Path) -> None:
    found, _ = judged("neighbourhood", cache, wanted=0)
    assert found.tactics == {}
    assert written(found)
    assert all("tactics" not in report.planned for report in written(found))


@pytest.mark.parametrize("wanted", [1, 2])
def test_as_many_as_are_asked_for_and_a_small_one(cache: Path, wanted: int) -> None:
    found, _ = judged("neighbourhood", cache, wanted=wanted)
    for chosen in found.tactics.values():
        own = chosen.tactics[0].shared_bytes <= SMALL_SHARED_BYTES
        assert len(chosen.tactics) <= (wanted if own else max(wanted, 2))
        assert min(tactic.shared_bytes for tactic in chosen.tactics) <= SMALL_SHARED_BYTES


@pytest.mark.parametrize("count", [0, 9])
def test_their_number_has_bounds(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"--tactics is {count}; allowed: 1 to 8"):
        optimize(tmp_path / "model.onnx", target="sm_90", tactics=count)


def test_a_kernel_that_cannot_be_used_gives_way_to_the_next(cache: Path) -> None:
    plain = judged("neighbourhood", cache)[0].tactics
    (site, chosen), *_ = plain.items()
    assert len(chosen.tactics) > 1
    second = chosen.tactics[1].compiled.source
    text = next(
        f"{pair}"
        for pair in second.defines
        if pair not in chosen.tactics[0].compiled.source.defines and not pair[0].startswith("OTHERS")
    )
    found = judged("neighbourhood", cache, unusable=(text,))[0].tactics[site]
    assert operators(found)[0] == operators(chosen)[0]
    assert operators(chosen)[1] not in operators(found)
    assert all(text not in map(str, tactic.compiled.source.defines) for tactic in found.tactics)


def test_without_any_other_kernel_the_plain_one_serves(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "candidates", lambda *_: iter(()))
    found, build = judged("neighbourhood", cache)
    plain, before = judged("neighbourhood", cache, wanted=0)
    for report, wanted in zip(written(found), written(plain), strict=True):
        (tactic,) = found.tactics[report.id].tactics
        assert tactic.compiled == wanted.kernels[0].compiled
    assert build.asked == before.asked


def test_where_no_kernel_is_small_the_plan_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tactics, tactic_candidates):
        monkeypatch.setattr(module, "SMALL_SHARED_BYTES", 512)
    found, _ = judged("neighbourhood", cache)
    for report in written(found):
        least = min(tactic.shared_bytes for tactic in found.tactics[report.id].tactics)
        assert least > 512
        assert f"the smallest needs {least:,}" in found.tactics[report.id].note
        assert report.planned["tactics_note"] == found.tactics[report.id].note


def test_tables_of_tactics_are_proved(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = next(iter(judged("neighbourhood", cache)[0].tactics.values()))
    source = chosen.tactics[1].candidate.source
    assert isinstance(source, PluginSource) and isinstance(source.tables, AttentionTables)
    tactic_candidates.prove(chosen.site, source)
    keys = source.tables.keys.copy()
    keys[:2] = keys[:2][::-1]
    with pytest.raises(PlanError):
        tactic_candidates.prove(chosen.site, replace(source, tables=replace(source.tables, keys=keys)))

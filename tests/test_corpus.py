"""The main job on exported models: every result is verified, keeps its interface, and builds where it must."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from onnxopt.api import inspect, optimize
from onnxopt.model.graph import symbolic_batch

CorpusModel = Callable[[str], Path]

SOME = (
    "vil_tiny_224.dynamo.op18",
    "regionvit_tiny_224.dynamo.op18.dyn",
    "swin_tiny_224.legacy.op17",
    "nat_3layer.legacy.op17",
    "vit_mask_fused.dynamo.op18",
    "dyvit_s_policy.dynamo.op18",
    "shufflenet1_g3_megvii.dynamo.op18.dyn",
    "condensenet_c10_g4_train.legacy.op17",
    "cdnv2a_conv.legacy.op17",
)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the extra 'rtx' (tensorrt-rtx) is not installed"
)


def every_tag() -> list[str]:
    manifest = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "manifest.json"
    return sorted(json.loads(manifest.read_text())["models"]) if manifest.is_file() else []


def optimised(path: Path, folder: Path, target: str) -> None:
    """Without measuring, so that what is rewritten does not depend on how busy the machine is."""
    result = optimize(path, folder, target=target, measure=False, cache=folder.parent / "cache")
    assert result.verification is not None and result.verification.passed
    before, after = onnx.load(path), onnx.load(result.package / "model.portable.onnx")
    for side in ("input", "output"):
        assert [i.name for i in getattr(before.graph, side)] == [i.name for i in getattr(after.graph, side)]
    assert symbolic_batch(before) == symbolic_batch(after)
    names = {n.name for n in before.graph.node}
    # A rewritten site's nodes say so; what stands for a Col2Im has its name with a suffix.
    new = [n.name for n in after.graph.node if n.name not in names and not n.name.startswith("onnxopt/")]
    assert all(name.rsplit(".", 1)[0] in names for name in new)


@pytest.mark.corpus
@pytest.mark.parametrize("tag", SOME)
def test_a_sample_is_optimised_for_the_cpu(tag: str, corpus_model: CorpusModel, tmp_path: Path) -> None:
    optimised(corpus_model(tag), tmp_path / "package", "cpu")


@pytest.mark.corpus_all
@pytest.mark.parametrize("target", ["cpu", "sm_90"])
@pytest.mark.parametrize("tag", every_tag())
def test_every_model_is_optimised(tag: str, target: str, corpus_model: CorpusModel, tmp_path: Path) -> None:
    optimised(corpus_model(tag), tmp_path / "package", target)


@pytest.mark.corpus
def test_optimising_a_result_changes_nothing(corpus_model: CorpusModel, tmp_path: Path) -> None:
    first = optimize(corpus_model("regionvit_tiny_224.dynamo.op18"), tmp_path / "first", target="cpu", measure=False)
    assert first.rewritten
    model = first.package / "model.portable.onnx"
    again = optimize(model, tmp_path / "again", target="cpu", measure=False)
    assert not again.rewritten
    assert (again.package / "model.portable.onnx").read_bytes() == model.read_bytes()


@pytest.mark.corpus
@needs_rtx
def test_what_the_parser_refuses_as_exported_builds_after_optimisation(
    corpus_model: CorpusModel, tmp_path: Path
) -> None:
    result = optimize(
        corpus_model("regionvit_tiny_224.dynamo.op18"),
        tmp_path / "package",
        target="sm_89",
        engine="rtx",
        verify=False,
        cache=tmp_path,
    )
    assert result.engine is not None and result.engine.path.stat().st_size == result.engine.bytes


@pytest.mark.corpus
def test_a_gpu_gains_from_windows_that_a_cpu_keeps(corpus_model: CorpusModel) -> None:
    sites = inspect(corpus_model("swin_tiny_224.dynamo.op18"), target="sm_90").sites
    sparse = [s for s in sites if s.kind == "attention" and s.found["density"] < 1]
    assert len(sparse) == 10
    assert all(s.decision == "rewrite" and (s.predicted_gain or 0) > 1 for s in sparse)

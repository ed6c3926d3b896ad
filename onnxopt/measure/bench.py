"""A package beside the model that it was made from: the whole model, and each rewritten site alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto

from onnxopt.deploy.manifest import check_manifest, checked_file, file_sha256
from onnxopt.errors import InputError
from onnxopt.lower.rewrite import NODE_PREFIX
from onnxopt.measure.environment import Environment, current_environment
from onnxopt.measure.extract import extract_region
from onnxopt.measure.sessions import time_models, time_regions
from onnxopt.measure.timing import PairTiming, TimingLimits
from onnxopt.model.files import read_file
from onnxopt.model.graph import nested_names, view
from onnxopt.model.read import read_model
from onnxopt.package import PLAN, portable_model
from onnxopt.verification import draw_inputs
from onnxopt.verification.interface import check_interfaces

SCHEMA = "onnxopt.bench/1"

_MAX_PLAN_BYTES = 256 << 20
_WHOLE = TimingLimits(min_rounds=2, seconds=20.0, sample_seconds=0.05)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class SiteBench:
    """A rewritten site beside the original: nodes on each side, and the timing, or in ``note`` why there is none."""

    id: str
    nodes_before: int
    nodes_after: int
    timing: PairTiming | None
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """Timings of a package against a model, original over optimised, at batch 1 on this machine's CPU."""

    package: Path
    against: Path
    environment: Environment
    model: PairTiming
    sites: tuple[SiteBench, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The document ``onnxopt.bench/1``."""
        document = {"schema": SCHEMA, **asdict(self)}
        return document | {"package": str(self.package), "against": str(self.against), "sites": list(document["sites"])}


def bench_package(
    package: str | Path, against: str | Path | None = None, *, threads: int = 0, progress: Progress = lambda _: None
) -> Bench:
    """Time the portable model of a package against ``against``, by default the model that it was made from.

    That model is looked for beside the package. Another model with the same inputs and outputs is timed as a whole
    only, as its sites need not be those of the package. Raises InputError for a damaged package, and where there is
    no model to time against.
    """
    folder = Path(package)
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give a package that `onnxopt optimize` has written")
    manifest = check_manifest(folder)
    plan = _read_plan(checked_file(folder, PLAN))
    name = str(plan["model"].get("path", ""))
    place = Path(against) if against is not None else model_beside(folder, name, manifest.source.sha256)
    original, optimised = read_model(place), read_model(portable_model(folder, "timing on a CPU"))
    check_interfaces(original, optimised)
    progress("timing the whole model")
    feeds = draw_inputs(original, seed=0, batch=1)
    whole = time_models(original, optimised, feeds, threads=threads, limits=_WHOLE)
    environment = current_environment(threads)
    if file_sha256(place) != manifest.source.sha256:
        note = f"{place} is not the model that the package was made from; its sites were not timed"
        return Bench(folder, place, environment, whole, (), note)
    sites = bench_sites(original, optimised, _rewritten(plan), threads=threads, progress=progress)
    return Bench(folder, place, environment, whole, tuple(sites))


def bench_sites(
    original: ModelProto,
    optimised: ModelProto,
    sites: Sequence[str],
    *,
    threads: int = 0,
    progress: Progress = lambda _: None,
) -> list[SiteBench]:
    """Time each site alone, cut out of both models between the tensors that both have."""
    graph = view(original, batch=1)
    made = {name for node in original.graph.node for name in node.output if name}
    results = []
    for site in sites:
        nodes = [n for n in optimised.graph.node if n.name.startswith(f"{NODE_PREFIX}{site}/")]
        inputs, outputs = _boundary(nodes, optimised, made)
        if not outputs:
            results.append(SiteBench(site, 0, len(nodes), None, "the optimised model has no node of this site"))
            continue
        progress(f"timing {site}")
        try:
            before = extract_region(original, graph, inputs, outputs)
            after = extract_region(optimised, graph, inputs, outputs)
            timing = time_regions(before, after, threads=threads)
        except InputError as error:
            results.append(SiteBench(site, 0, len(nodes), None, str(error)))
            continue
        results.append(SiteBench(site, len(before.graph.node), len(after.graph.node), timing))
    return results


def _boundary(nodes: Sequence[NodeProto], model: ModelProto, known: set[str]) -> tuple[list[str], list[str]]:
    """The tensors that some nodes read from elsewhere, and those that they make and the original has too."""
    made = {name for node in nodes for name in node.output if name}
    constants = {tensor.name for tensor in model.graph.initializer}
    read = dict.fromkeys(name for node in nodes for name in nested_names(node))
    inputs = [name for name in read if name and name not in made and name not in constants]
    return inputs, [name for node in nodes for name in node.output if name in known]


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(read_file(path, _MAX_PLAN_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); optimize the model again") from None
    if not isinstance(plan, dict) or not isinstance(plan.get("sites"), list) or not isinstance(plan.get("model"), dict):
        raise InputError(f"{path} is no plan: it has no 'model' and 'sites'; optimize the model again")
    return plan


def _rewritten(plan: dict[str, Any]) -> list[str]:
    """The sites that the portable model has rewritten."""
    sites = [site for site in plan["sites"] if isinstance(site, dict) and "id" in site]
    return [str(site["id"]) for site in sites if _portable_verdict(site).get("decision") == "rewrite"]


def _portable_verdict(site: dict[str, Any]) -> dict[str, Any]:
    """The decision for the portable form; a plan about one form has it beside the site's other fields."""
    forms = site.get("forms")
    found = forms.get("portable") if isinstance(forms, dict) else None
    return found if isinstance(found, dict) else site


def model_beside(folder: Path, name: str, sha256: str) -> Path:
    """The original model, if it still lies beside the package under its old name; InputError where it does not."""
    place = Path(os.path.normpath(folder / ".." / Path(name).name))
    if not name or not place.is_file() or file_sha256(place) != sha256:
        raise InputError(
            f"{folder}: the model that it was made from ({name or 'unnamed'}) is not beside it; "
            "name it with --against MODEL"
        )
    return place

"""How good the planner's plans are, how well that is proved, and how long planning takes.

No GPU is needed: times are predicted by the cost model, for our plans and for the methods that they are compared with.
The exit code is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.planner_goals import (
    Goal,
    best_goals,
    bound_goals,
    cache_goals,
    fixed_shape_goals,
    gap_goals,
    layer_time_goals,
    model_time_goals,
    random_goals,
    structure_goals,
    waste_goals,
)
from benchmarks.planner_layers import (
    AttentionLayer,
    ConvLayer,
    Layer,
    corpus_layers,
    corpus_tags,
    made_conv_layer,
)
from benchmarks.planner_masks import hidden_blocks, longformer, neighbourhood, random_links
from benchmarks.planner_measure import Result, measured, seconds_from_cache
from benchmarks.planner_page import facts, page
from benchmarks.portable_cpu import CORPUS, ROOT
from onnxopt.errors import InputError
from onnxopt.model.files import atomic_write
from onnxopt.target import GpuProfile, load_target

SCHEMA = "onnxopt.planner_benchmark/1"
DOCUMENT = ROOT / "docs" / "planner.md"
OTHER_TARGETS = ("sm_80", "sm_89", "sm_90")
# Families of the corpus whose convolutions have exact structure.
STRUCTURED = ("shufflenet", "condensenet", "cdnv2a")
CONVERTED = ("shufflenet", "_conv.")
_MISSING = (
    "The corpus of exported models is not at {}: its layers are left out. Name its folder with `--corpus`, or put it "
    "there."
)
Progress = Callable[[str], None]


def masks(quick: bool) -> list[tuple[AttentionLayer, float]]:
    """The masks whose waste has a goal, with it."""
    sites = (
        [(longformer(16, 4), 1.2), (neighbourhood(12, 3), 1.5)]
        if quick
        else [(longformer(96, 7), 1.2), (neighbourhood(64, 13), 1.5)]
    )
    return [(AttentionLayer(site.id, site), most) for site, most in sites]


def large_layers(quick: bool) -> list[AttentionLayer]:
    """What planning is timed on besides the masks: 9,216 tokens that nearly all differ in their keys."""
    site = neighbourhood(16, 5) if quick else neighbourhood(96, 13)
    return [AttentionLayer(site.id, site)]


def hidden_layers(quick: bool) -> list[ConvLayer]:
    """Block-diagonal connectivity behind random permutations; blocks of whole granules, and of others."""
    channels, counts = (64, (2, 4)) if quick else (1024, (8, 16, 24, 64))
    return [
        made_conv_layer(f"hidden block-diagonal {channels}. {blocks} blocks", hidden_blocks(channels, blocks, blocks))
        for blocks in counts
    ]


def random_layers(quick: bool) -> list[ConvLayer]:
    """Connectivity without structure."""
    outputs, inputs, seeds = (16, 24, 2) if quick else (96, 160, 5)
    return [
        made_conv_layer(f"random {outputs}x{inputs} at 25 %, seed {seed}", random_links(outputs, inputs, 0.25, seed))
        for seed in range(seeds)
    ]


def run(
    layers: Sequence[Layer], gpu: GpuProfile, target: str, quick: bool, progress: Progress
) -> tuple[list[Goal], list[Result], list[Result]]:
    """Every goal, the results of ``layers`` (the corpus's), and those of made-up layers and of other targets."""

    def timed(layer: Layer, profile: GpuProfile = gpu, name: str = target, fixed_only: bool = False) -> Result:
        result = measured(layer, profile, name, fixed_only=fixed_only)
        progress(f"{name}: {layer.name}" + (f": {result.note}" if result.note else ""))
        return result

    named = masks(quick)
    on_masks = [timed(layer) for layer, _ in named]
    large = [timed(layer) for layer in large_layers(quick)]
    hidden = hidden_layers(quick)
    on_hidden = [timed(layer) for layer in hidden]
    on_random = [timed(layer) for layer in random_layers(quick)]
    results = [timed(layer) for layer in layers]

    attention = [layer for layer in layers if isinstance(layer, AttentionLayer)]
    fixed = [*on_masks, *large, *(result for result in results if result.kind == "attention")]
    for name in () if quick else OTHER_TARGETS:
        if name != target:
            profile = _gpu(name)
            fixed += [timed(layer, profile, name, True) for layer in [m for m, _ in named] + large_layers(quick)]
            fixed += [timed(layer, profile, name, True) for layer in attention]

    exact = [
        (layer, result)
        for layer, result in zip(layers, results, strict=True)
        if isinstance(layer, ConvLayer) and _is_structured(layer.name) and result.planned
    ]
    structured = [*exact, *zip(hidden, on_hidden, strict=True)]
    goals = [
        *waste_goals([(result, most) for result, (_, most) in zip(on_masks, named, strict=True)]),
        *fixed_shape_goals(fixed),
        *structure_goals([layer for layer, _ in structured], [result for _, result in structured]),
        *gap_goals(results),
        *random_goals(on_random),
        *bound_goals([*on_masks, *large, *on_hidden, *on_random, *(result for result in results if result.planned)]),
        *layer_time_goals([on_masks[0], *large]),
        *(model_time_goals(results) if results else []),
    ]
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        goals += cache_goals(seconds_from_cache([named[0][0], *large_layers(quick)], gpu, Path(folder)))
    goals += best_goals([*on_masks, *large, *results])
    return goals, results, [*on_masks, *large, *on_hidden, *on_random, *(r for r in fixed if r.target != target)]


def _is_structured(name: str) -> bool:
    return name.startswith(STRUCTURED) and any(word in name for word in CONVERTED)


def _gpu(name: str) -> GpuProfile:
    found = load_target(name).gpu
    if found is None:
        raise InputError(f"{name!r} is no GPU; the planner for kernels needs one, such as sm_90 or a GPU's name")
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--target", default="sm_90", help="an architecture or a GPU's name (default: sm_90)")
    parser.add_argument("--corpus", type=Path, help="the folder of exported models (default: ../shared/corpus)")
    parser.add_argument("--models", nargs="+", metavar="TAG", help="only these models of the corpus")
    parser.add_argument("--quick", action="store_true", help="small layers only, without the corpus: a smoke test")
    parser.add_argument("--json", type=Path, help="write the results as JSON")
    parser.add_argument("--write-doc", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    if options.corpus is not None and not (options.corpus / "manifest.json").is_file():
        parser.error(f"{options.corpus} is not a corpus: it has no manifest.json")
    return options


def found_layers(options: argparse.Namespace, notes: dict[int, str]) -> list[Layer]:
    """The layers of the corpus; a note where it is missing."""
    if options.quick:
        return []
    corpus: Path = options.corpus or CORPUS
    if not (corpus / "manifest.json").is_file():
        notes[6] = _MISSING.format(corpus)
        return []
    known = corpus_tags(corpus)
    unknown = sorted(set(options.models or ()) - set(known))
    if unknown:
        raise InputError(f"the corpus has no model {unknown[0]!r}; it has {len(known)}, such as {known[0]!r}")
    return corpus_layers(corpus.resolve(), options.models or known)


def _without_files(arguments: Sequence[str]) -> list[str]:
    """The arguments that figures depend on: where else they are written is nobody's business."""
    kept = list(arguments)
    if "--json" in kept:
        place = kept.index("--json")
        del kept[place : place + 2]
    return kept


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    gpu = _gpu(options.target)
    notes: dict[int, str] = {}
    layers = found_layers(options, notes)
    if layers:
        number = sum(isinstance(layer, AttentionLayer) for layer in layers)
        models = len({model for layer in layers for model in layer.models})
        notes[6] = (
            f"{len(layers)} different layers of {models} models: {number} attentions and {len(layers) - number} "
            "convolutions that are not dense. A layer has the name of the first model that has it."
        )
    goals, results, others = run(layers, gpu, options.target, options.quick, lambda text: print(text, file=sys.stderr))
    known = facts(_without_files(arguments))
    text = page(goals, results or others[:2], notes, known, f"{options.target} ({gpu.name})")
    print(text, end="")
    if options.json is not None:
        state = {"schema": SCHEMA, "facts": known, "goals": [asdict(goal) for goal in goals]}
        state |= {"layers": [asdict(result) for result in results], "others": [asdict(result) for result in others]}
        atomic_write(options.json, json.dumps(state, indent=1).encode())
    if options.write_doc:
        atomic_write(DOCUMENT, text.encode())
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(InputError.exit_code)

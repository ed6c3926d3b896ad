"""How much faster the portable form makes whole models in ONNX Runtime on this machine's CPU.

Every model is optimised for the CPU and then timed against its original, alternating in one process of its
own, so that one failure does not end the run. The exit code is 1 where a model got slower, a goal is missed,
a model failed, or a model against itself does not read 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.measure.environment import machine_name
from onnxopt.measure.timing import SELF_HIGH, SELF_LOW, PairTiming, TimingLimits
from onnxopt.model.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT.parent / "shared" / "corpus"
SCHEMA = "onnxopt.portable_cpu/1"
SLOWEST = 0.97
SLOW_RUN_SECONDS = 1.5
SLOW_RUN_PAIRS = 7

# Name pattern, least ratio; the first that fits counts. Rows of a random mask share no keys: no goal. At 1,024
# tokens the projections take a third of the whole sample, so there the goal is the attention's own.
GOALS = (
    ("*dense_masked_random*", SLOWEST),
    ("attention_dense_masked*", 3.0),
    ("dense_masked*_1024_*", SLOWEST),
    ("dense_masked*", 3.0),
    ("condensenet74_*_train*", 1.3),
    ("*", SLOWEST),
)


@dataclass(frozen=True)
class Case:
    """A model to time: a tag of the corpus, a sample with its builder's options, or a file.

    ``part`` "attention" times the model's first attention alone, cut out of both models.
    """

    name: str
    kind: str
    source: str
    options: dict[str, str] = field(default_factory=dict)
    part: str = ""


@dataclass(frozen=True)
class Result:
    """What came out for one model: 'timed', 'failed' or 'unchanged' (the graph is the original's)."""

    name: str
    status: str
    timing: PairTiming | None = None
    rewritten: int = 0
    kept: int = 0
    optimize_seconds: float = 0.0
    note: str = ""


SAMPLE_CASES = (
    *(
        Case(
            f"{part}{'_' if part else ''}dense_masked_{kind}_{tokens}_{round(density * 100)}pc",
            "sample",
            "dense_masked",
            {"kind": kind, "tokens": str(tokens), "density": str(density)},
            part,
        )
        for part in ("attention", "")
        for kind, tokens, density in (
            ("clustered", 1024, 0.1),
            ("banded", 1024, 0.1),
            ("longformer", 1024, 0.1),
            ("random", 1024, 0.1),
            ("clustered", 2048, 0.1),
            ("banded", 2048, 0.05),
            ("clustered", 4096, 0.1),
            ("banded", 4096, 0.02),
        )
    ),
    *(
        Case(f"sample_{name}", "sample", name)
        for name in (
            "swin",
            "longformer2d",
            "neighbourhood",
            "masked_vit",
            "condensenet_train",
            "shufflenet_v1",
        )
    ),
)


def goal(name: str) -> float:
    """The least ratio that a model must reach."""
    return next(least for pattern, least in GOALS if fnmatch.fnmatchcase(name, pattern))


def shortfall(result: Result) -> str:
    """Why a result fails the run; empty where it does not."""
    if result.status == "failed":
        return f"failed: {result.note}"
    ratio = result.timing.ratio if result.timing else 1.0
    least = goal(result.name)
    return f"{ratio:.2f} is below {least:.2f}" if ratio < least else ""


def is_itself(timing: PairTiming) -> bool:
    """Whether a model against itself reads what it must."""
    return SELF_LOW <= timing.ratio <= SELF_HIGH


def select(cases: Sequence[Case], wanted: Sequence[str]) -> list[Case]:
    """The cases that the arguments name: files as they are, everything else as a pattern of names."""
    if not wanted:
        return list(cases)
    chosen: list[Case] = []
    for word in wanted:
        path = Path(word)
        if path.is_file():
            chosen.append(Case(path.stem, "file", str(path.resolve())))
            continue
        found = [case for case in cases if fnmatch.fnmatchcase(case.name, word)]
        if not found:
            raise InputError(f"{word!r} is neither a file nor a pattern that fits one of {len(cases)} models")
        chosen.extend(found)
    return list({case.name: case for case in chosen}.values())


def all_cases(corpus: Path | None) -> list[Case]:
    """The models of the corpus, where there is one, and the samples."""
    if corpus is None:
        return list(SAMPLE_CASES)
    tags = json.loads((corpus / "manifest.json").read_text())["models"]
    return [*(Case(tag, "corpus", str(corpus)) for tag in sorted(tags)), *SAMPLE_CASES]


def make_model(case: Case, folder: Path) -> Path:
    """The model's file, made inside ``folder`` where it is not a file already."""
    if case.kind == "file":
        return Path(case.source)
    path = folder / f"{case.name}.onnx"
    if case.kind == "sample":
        options = [word for key, value in case.options.items() for word in (f"--{key}", value)]
        command = [sys.executable, "-m", "samples", case.source, str(path), *options]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return path
    import onnx

    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("corpus_materialize", Path(case.source) / "materialize.py")
    if spec is None or spec.loader is None:
        raise InputError(f"{case.source} has no materialize.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    onnx.save(module.materialize(case.name), path)
    return path


def measure_case(case: Case, pairs: int, seconds: float, threads: int, against_itself: bool) -> Result:
    """Optimise one model and time it; with ``against_itself``, only time the original against itself."""
    import onnx

    from onnxopt.verification.inputs import draw_inputs

    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as name:
        folder = Path(name)
        path = make_model(case, folder)
        feeds = draw_inputs(onnx.load(path), seed=0, batch=1)
        if against_itself:
            return Result(case.name, "timed", time_files(path, path, feeds, pairs, seconds, threads))

        from onnxopt.api import optimize

        begin = time.perf_counter()
        optimize(path, folder / "package", target="cpu")
        spent = time.perf_counter() - begin
        candidate = folder / "package" / "model.portable.onnx"
        plan = json.loads((folder / "package" / "plan.json").read_text())
        rewritten = sum(site["decision"] == "rewrite" for site in plan["sites"])
        result = Result(case.name, "unchanged", None, rewritten, len(plan["sites"]) - rewritten, spent)
        if onnx.load(path).graph == onnx.load(candidate).graph:
            return result
        if case.part == "attention":
            path, candidate, feeds = attention_alone(path, candidate, folder)
        timing = time_files(path, candidate, feeds, pairs, seconds, threads)
        return replace(result, status="timed", timing=timing)


def attention_alone(original: Path, candidate: Path, folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """The original's first attention, cut out of both models, and inputs for it."""
    import onnx

    from onnxopt.discover.attention import find_attention
    from onnxopt.measure.extract import extract_region
    from onnxopt.measure.sessions import draw_feeds
    from onnxopt.model.graph import view

    models = [onnx.load(original), onnx.load(candidate)]
    graph = view(models[0])
    site = find_attention(graph)[0][0]
    regions = [extract_region(model, graph, site.inputs, [site.output]) for model in models]
    paths = [folder / "original.attention.onnx", folder / "candidate.attention.onnx"]
    for region, path in zip(regions, paths, strict=True):
        onnx.save(region, path)
    return paths[0], paths[1], draw_feeds(regions[0])


def time_files(
    original: Path, candidate: Path, feeds: dict[str, Any], pairs: int, seconds: float, threads: int
) -> PairTiming:
    """Whole models, alternating: two rounds where the time allows, more where they differ."""
    from onnxopt.measure.sessions import open_session, prepare_run
    from onnxopt.measure.timing import time_pair

    runs = [prepare_run(open_session(path, threads=threads), feeds) for path in (original, candidate)]
    runs[0]()
    begin = time.perf_counter()
    runs[0]()
    slow = time.perf_counter() - begin > SLOW_RUN_SECONDS
    limits = TimingLimits(
        pairs=pairs,
        min_pairs=min(pairs, SLOW_RUN_PAIRS) if slow else pairs,
        min_rounds=2,
        seconds=seconds,
        sample_seconds=0.05,
    )
    return time_pair(runs[0], runs[1], limits)


def run_in_child(case: Case, arguments: argparse.Namespace, against_itself: bool = False) -> Result:
    """``measure_case`` in a process of its own, stopped after the time limit."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        answer = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(asdict(case))]
        command += [
            "--json",
            str(answer),
            "--pairs",
            str(arguments.pairs),
            "--seconds",
            str(arguments.seconds),
        ]
        command += ["--threads", str(arguments.threads), *(["--itself"] if against_itself else [])]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": folder}
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=arguments.model_timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Result(case.name, "failed", note=f"not done after {arguments.model_timeout:g} s")
        if done.returncode == 0 and answer.is_file():
            return result_from_json(json.loads(answer.read_text()))
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Result(case.name, "failed", note=(lines[-1] if lines else f"exit code {done.returncode}")[:300])


def result_from_json(entry: dict[str, Any]) -> Result:
    """The inverse of ``asdict``."""
    timing = PairTiming(**entry["timing"]) if entry["timing"] else None
    return Result(**{**entry, "timing": timing})


def row(result: Result) -> list[str]:
    """The result as cells of the table."""
    if result.timing is None:
        times = ["", "", "1.00" if result.status == "unchanged" else "", "", ""]
    else:
        t = result.timing
        times = [f"{t.original_us / 1e3:.2f}", f"{t.candidate_us / 1e3:.2f}", f"{t.ratio:.2f}"]
        times += [f"{t.low:.2f} to {t.high:.2f}", str(t.pairs)]
    verdict = shortfall(result).replace("|", "/") or ("unchanged" if result.status == "unchanged" else "ok")
    return [result.name, *times, str(result.rewritten), str(result.kept), f"{goal(result.name):.2f}", verdict]


HEADER = [
    "model",
    "original ms",
    "optimised ms",
    "ratio",
    "95 % interval",
    "pairs",
    "rewritten",
    "kept",
    "goal",
    "",
]


def markdown(results: Sequence[Result], itself: Result, facts: dict[str, str]) -> str:
    """The page: what was run where, and the table."""
    table = [HEADER, ["---", *["---:"] * (len(HEADER) - 2), "---"], *map(row, results)]
    failing = [result.name for result in results if shortfall(result)]
    timing = itself.timing
    reading = f"{timing.ratio:.3f} ({timing.low:.3f} to {timing.high:.3f})" if timing else f"failed: {itself.note}"
    lines = [
        "# The portable form on a CPU",
        "",
        "Original and optimised model run alternately in one process in ONNX Runtime, waiting threads "
        "asleep, batch 1. The ratio is the median over pairs of original time / optimised time, so above 1 "
        "is faster; the interval is that of the median. A sample of a pair is the fastest run within about "
        "50 ms. 'unchanged': no rewrite pays on this machine, and the optimised graph is the original one.",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        f"- a model against itself ({itself.name}): {reading}; it must read {SELF_LOW} to {SELF_HIGH}",
        f"- {len(results)} models, " + (f"missing their goal: {', '.join(failing)}" if failing else "all goals met"),
        "",
        *("| " + " | ".join(cells) + " |" for cells in table),
    ]
    return "\n".join(lines) + "\n"


def environment_facts(threads: int, arguments: Sequence[str]) -> dict[str, str]:
    """What the figures depend on."""
    import onnx
    import onnxruntime

    import onnxopt

    versions = {
        "onnxopt": onnxopt.__version__,
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "Python": platform.python_version(),
    }
    return {
        "command": f"`{shlex.join(['python', '-m', 'benchmarks.portable_cpu', *arguments])}`",
        "date": date.today().isoformat(),
        "machine": machine_name(),
        "threads": str(threads) if threads else "ONNX Runtime's default",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def load_finished(path: Path | None, facts: dict[str, str]) -> dict[str, Result]:
    """Results of an earlier run on the same machine with the same versions."""
    if path is None or not path.is_file():
        return {}
    state = json.loads(path.read_text())
    same = all(state["facts"].get(key) == facts[key] for key in ("machine", "threads", "versions"))
    if state.get("schema") != SCHEMA or not same:
        return {}
    results = [result_from_json(entry) for entry in state["results"]]
    return {result.name: result for result in results if result.status != "failed"}


def check_itself(case: Case, measure: Callable[[Case], Result]) -> Result:
    """The first case against itself; a moment of noise gets two more chances."""
    for _ in range(3):
        result = measure(case)
        if result.timing is not None and is_itself(result.timing):
            break
    return result


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.portable_cpu", description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME", help="files, or patterns of names (default: all)"
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        help="the folder of exported models (default: ../shared/corpus where it exists)",
    )
    parser.add_argument("--pairs", type=int, default=21, help="pairs per round (default: 21)")
    parser.add_argument("--seconds", type=float, default=25.0, help="time for the runs of one model (default: 25)")
    parser.add_argument(
        "--model-timeout",
        type=float,
        default=420.0,
        help="time for everything about one model (default: 420)",
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of ONNX Runtime (default: its own choice)")
    parser.add_argument("--out", type=Path, help="write the table as a Markdown page")
    parser.add_argument("--json", type=Path, help="write the results as JSON, after every model")
    parser.add_argument("--resume", action="store_true", help="take what the JSON file already holds")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--itself", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.pairs < 1 or options.seconds <= 0 or options.model_timeout <= 0 or options.threads < 0:
        parser.error("--pairs, --seconds and --model-timeout must be above 0, --threads at least 0")
    if options.resume and options.json is None:
        parser.error("--resume needs --json")
    if options.corpus is not None and not (options.corpus / "manifest.json").is_file():
        parser.error(f"{options.corpus} is not a corpus: it has no manifest.json")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if options.child is not None:
        case = Case(**json.loads(options.child))
        result = measure_case(case, options.pairs, options.seconds, options.threads, options.itself)
        options.json.write_text(json.dumps(asdict(result)))
        return 0
    corpus = options.corpus or (CORPUS if (CORPUS / "manifest.json").is_file() else None)
    cases = select(all_cases(corpus.resolve() if corpus else None), options.models)
    facts = environment_facts(options.threads, arguments)
    itself = check_itself(cases[0], lambda case: run_in_child(case, options, against_itself=True))
    print(f"against itself: {' | '.join(row(itself)[:6])}", flush=True)
    finished = load_finished(options.json, facts) if options.resume else {}
    results: list[Result] = []
    for case in cases:
        results.append(finished.get(case.name) or run_in_child(case, options))
        print(" | ".join(row(results[-1])), flush=True)
        if options.json is not None:
            state = {
                "schema": SCHEMA,
                "facts": facts,
                "itself": asdict(itself),
                "results": [*map(asdict, results)],
            }
            atomic_write(options.json, json.dumps(state, indent=1).encode())
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(options.out, markdown(results, itself, facts).encode())
    failing = [f"{result.name}: {why}" for result in results if (why := shortfall(result))]
    if itself.timing is None or not is_itself(itself.timing):
        failing.insert(0, "a model against itself does not read 1; the figures mean nothing, use a quieter machine")
    print("\n".join(failing) or f"{len(results)} models, all goals met")
    return 1 if failing else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(InputError.exit_code)

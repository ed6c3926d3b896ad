"""Runs every kernel of the convolution layers of given models on the CPU, against float64, and writes what came out.

    python -m benchmarks.emulated_convolutions MODEL... [--kernels sm_90:fp16[:EACH]]... [--minutes N]

What counts as a different layer and as a different kernel says ``benchmarks/convolution_layers.py``. Each kernel runs a
telling sample of its operator's jobs in three orders of lanes; a dense layer's algorithms run whole, on a smaller layer
with the same index arithmetic. With ``:EACH`` every so many-th kernel runs. Results are kept under --cache by the
kernel's PTX, its tables and the code that judges it, so that a run goes on where the one before it ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

import onnxopt
from benchmarks.convolution_layers import Layers, Refused, Trial
from benchmarks.convolution_page import Outcome, Row, Selection, left_out, page
from onnxopt.errors import InputError, OnnxOptError
from onnxopt.kernels.algorithm_source import algorithm_source
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.compiler import compile_kernel
from onnxopt.target.variant import Element
from onnxopt.verification.algorithm_kernels import check_algorithm
from onnxopt.verification.conv_kernels import check_group_conv, check_sum_conv
from onnxopt.verification.kernel_rule import Judgement
from onnxopt.verification.kernels import KernelCheck

PRODUCTS = 400_000
"""Multiply-adds of a kernel's sample of jobs, for each of two batch elements."""

_BATCH = 2
# Looking for what an earlier run kept takes a compilation: after so many in vain it is given up.
_MOST_MISSED = 10
_DEFAULT = ("sm_90:fp16", "sm_80:fp16")
_JUDGES = (
    "emulate",
    *(f"verification/{name}.py" for name in ("conv_kernels", "conv_rule", "conv_sample", "kernel_rule", "kernels")),
    *(f"verification/algorithm_{name}.py" for name in ("kernels", "rule")),
    *(f"validate/reference_{name}.py" for name in ("conv", "algorithms")),
)


@dataclass
class Runner:
    """Runs trials, each key once; ``folder`` keeps outcomes, kernels and programs. None begins after ``end``."""

    folder: Path | None
    end: float
    _known: dict[tuple[object, ...], Outcome] = field(default_factory=dict)
    _missed: int = 0

    def outcome(self, trial: Trial, element: Element) -> Outcome | None:
        """What running it shows; None where there is no time left."""
        key = (trial.architecture, element, *trial.key)
        if key not in self._known:
            shapes = f" [{trial.shapes}]" if trial.shapes else ""
            label = f"{trial.architecture} {element} {trial.name}{shapes} of {trial.layer}"
            found = self._found(trial, element, label)
            if found is None:
                return None
            self._known[key] = found
            state = "agrees" if found.passed else f"FAILED ({found.problem})"
            print(f"{label}: {state}, {found.share:.2f} of the bound, {found.seconds:.1f} s", flush=True)
        return self._known[key]

    def _found(self, trial: Trial, element: Element, label: str) -> Outcome | None:
        late = time.monotonic() > self.end
        try:
            if late and (self.folder is None or self._missed > _MOST_MISSED):
                return None
            kernels = self._compiled(trial)
            kept = self._place(trial, kernels)
            if kept is not None and kept.is_file():
                return Outcome(**{**json.loads(kept.read_text()), "label": label})
            if late:
                self._missed += 1
                return None
            outcome = self._run(trial, kernels, element, label)
        except OnnxOptError as error:
            return Outcome(label, False, 0.0, " ".join(str(error).split())[:300], 0.0)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(".part")
            part.write_text(json.dumps(asdict(outcome)))
            part.replace(kept)
        return outcome

    def _compiled(self, trial: Trial) -> list[CompiledKernel]:
        own = [] if trial.source is None else [trial.source]
        sources = own + [algorithm_source(step.operator, step.kernel) for step in trial.steps]
        return [compile_kernel(source, trial.architecture, self.folder) for source in sources]

    def _place(self, trial: Trial, kernels: Sequence[CompiledKernel]) -> Path | None:
        """The file of an outcome, named by everything that it depends on."""
        if self.folder is None:
            return None
        digest = hashlib.sha256(f"{_judge_digest()} {PRODUCTS} {_BATCH} {trial.geometry}".encode())
        for kernel in kernels:
            digest.update(f"{kernel.architecture} {kernel.report}".encode() + kernel.ptx.encode())
        if trial.tables is not None:
            own = trial.tables.sum if trial.name == "SumConv" and trial.tables.sum else trial.tables
            for name, table in own.arrays().items():
                digest.update(f"{name} {table.shape} {table.dtype}".encode() + np.ascontiguousarray(table).tobytes())
        return self.folder / "outcomes" / f"{digest.hexdigest()}.json"

    def _run(self, trial: Trial, kernels: Sequence[CompiledKernel], element: Element, label: str) -> Outcome:
        begin = time.perf_counter()
        if trial.tables is None:
            assert trial.geometry is not None
            end = trial.steps[-1].kernel
            algorithm = check_algorithm(
                trial.name,
                trial.geometry,
                element,
                trial.architecture,
                activation=end["activation"],
                residual=end["residual"],
                steps=trial.steps,
                batch=_BATCH,
                cache=self.folder,
            )
            passed, problem = algorithm.passed, algorithm.explain()
            judgements = [judgement for step in algorithm.steps for judgement in step.judgements]
            # What Winograd is judged by as a whole is its own bound; the steps are judged by the rule.
            judgements += [] if algorithm.bound is not None else algorithm.whole
        else:
            check = self._check(trial, kernels[0])
            passed, problem, judgements = check.passed, check.worst().explain(), list(check.judgements)
        seconds = round(time.perf_counter() - begin, 1)
        return Outcome(label, passed, max(map(_share, judgements)), "" if passed else problem, seconds)

    def _check(self, trial: Trial, kernel: CompiledKernel) -> KernelCheck:
        assert trial.tables is not None
        if trial.name == "SumConv":
            own = trial.tables.sum
            assert own is not None
            return check_sum_conv(kernel, own.kernel, own.arrays(), batch=_BATCH, cache=self.folder)
        document = trial.tables.kernel.to_json()
        return check_group_conv(
            kernel, document, trial.tables.arrays(), batch=_BATCH, products=PRODUCTS, cache=self.folder
        )


def rows(models: Sequence[Path], selections: Sequence[Selection], runner: Runner) -> Iterator[Row]:
    """Each model under each selection, the selections one after the other."""
    plans = runner.folder
    for selection in selections:
        layers, numbers = Layers(selection.target, selection.element, plans), dict[tuple[object, ...], int]()
        for path in models:
            row = Row(path.stem, selection)
            for layer in layers.of_model(path):
                row.layers += 1
                if isinstance(layer, Refused):
                    row.refused.append(f"{layer.name}: {layer.reason}")
                    continue
                try:
                    trials = list(layers.trials(layer))
                except InputError as reason:
                    row.refused.append(f"{layer.name}: {reason}")
                    continue
                for trial in trials:
                    if numbers.setdefault(trial.key, len(numbers)) % selection.each == 0:
                        _add(row, trial, runner.outcome(trial, selection.element))
            yield row


def _add(row: Row, trial: Trial, outcome: Outcome | None) -> None:
    if outcome is None:
        row.left_out.add(trial.key)
        return
    row.shapes |= set(trial.shapes.split(", ")) if trial.shapes else {trial.name}
    row.outcomes[outcome.label] = outcome


def _share(judgement: Judgement) -> float:
    if not judgement.max_bound:
        return 0.0 if not judgement.max_error else float("inf")
    return max(judgement.max_error / judgement.max_bound, judgement.rms_error / (judgement.rms_bound or 1.0))


@cache
def _judge_digest() -> str:
    """Of the code that runs kernels and judges them."""
    root = Path(onnxopt.__file__).parent
    digest = hashlib.sha256()
    for name in _JUDGES:
        place = root / name
        files = (
            [place] if place.is_file() else [path for path in place.rglob("*") if path.suffix in (".py", ".hpp", ".h")]
        )
        for path in sorted(files):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; 0 if every kernel agreed."""
    parser = argparse.ArgumentParser(prog="emulated_convolutions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="models whose convolutions are planned")
    parser.add_argument(
        "--kernels", action="append", help=f"TARGET:TYPE[:EACH]; may be given often; default {' '.join(_DEFAULT)}"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no kernel after this time")
    parser.add_argument("--cache", type=Path, help="folder for plans, kernels, programs and outcomes")
    parser.add_argument("--write-doc", type=Path, help="file for the page")
    options = parser.parse_args(arguments)
    try:
        selections = [Selection.read(text) for text in options.kernels or _DEFAULT]
    except InputError as error:
        parser.error(str(error))
    runner = Runner(options.cache, time.monotonic() + 60 * options.minutes)
    found = list(rows(options.models, selections, runner))
    if options.write_doc:
        options.write_doc.write_text(page(found))
    outcomes = {name: outcome for row in found for name, outcome in row.outcomes.items()}
    failed, left = sum(not o.passed for o in outcomes.values()), left_out(found)
    print(f"{len(outcomes) - failed} of {len(outcomes)} runs agree, {left} left out")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())

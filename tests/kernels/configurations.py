"""Attention kernels as plans ask for them: shapes, head sizes and tables, each for one architecture.

``configurations.json`` has a line for each. Those named after a model come from its plan; the others cover head sizes
and tables that no model at hand has. ``python -m tests.kernels.configurations`` measures the golden figures of
``ceilings.json`` again, after a change of kernels or compiler: look at the difference before it is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.kernels.compilation import CompiledKernel, architecture_for
from onnxopt.kernels.compiler import CompileError, compile_kernel
from onnxopt.kernels.source import KernelSource, attention_source
from onnxopt.plan.tables.addresses import TensorLayout
from onnxopt.plan.tables.types import AttentionKernel
from onnxopt.target.variant import AttentionVariant

CONFIGURATIONS = Path(__file__).with_name("configurations.json")
CEILINGS = Path(__file__).with_name("ceilings.json")
_SHAPE = re.compile(r"(mma|wgmma) (\d+)x(\d+) w(\d+) s(\d+)( swapped)?")
_FLAGS = ("own_values", "masks", "biases", "extras")


@dataclass(frozen=True)
class Configuration:
    """A kernel for a target; ``quick`` ones are checked by every run of the tests."""

    name: str
    target: str
    resident: int
    kernel: Mapping[str, Any]
    quick: bool

    @property
    def architecture(self) -> str:
        """What to compile for."""
        return architecture_for(self.target)

    def source(self) -> KernelSource:
        """The source and constants."""
        return attention_source(self.kernel, self.resident)

    def compile(self, cache: Path | None = None) -> CompiledKernel:
        """The compiled kernel."""
        return compile_kernel(self.source(), self.architecture, cache)


def read_configurations() -> list[Configuration]:
    """All configurations, in the order of the file."""
    return [_configuration(line) for line in json.loads(CONFIGURATIONS.read_text())]


def _configuration(line: Mapping[str, Any]) -> Configuration:
    kernel = AttentionKernel(
        element=line["element"],
        variants=tuple(parse_shape(shape) for shape in line["shapes"]),
        heads=line["heads"],
        width=line["width"],
        value_width=line["value_width"],
        **{name: TensorLayout(*line[name]) for name in "qkvy"},
        **{flag: flag in line["with"] for flag in _FLAGS},
        slots=line["slots"],
        columns=line["columns"],
    )
    return Configuration(line["name"], line["target"], line["resident"], kernel.to_json(), line["quick"])


def parse_shape(text: str) -> AttentionVariant:
    """The inverse of ``AttentionVariant.describe``."""
    found = _SHAPE.fullmatch(text)
    assert found is not None, text
    path, *sizes, swapped = found.groups()
    return AttentionVariant(path, *map(int, sizes), swapped=swapped is not None)


def read_ceilings(compiler: str, file: Path = CEILINGS) -> Mapping[str, Mapping[str, int]] | None:
    """Registers and bytes of shared memory by name, as a compiler made them; None for a compiler not measured yet."""
    known: Mapping[str, Mapping[str, Mapping[str, int]]] = json.loads(file.read_text())
    return known.get(compiler)


def write_ceilings(measured: Mapping[str, Mapping[str, Any]], file: Path = CEILINGS) -> None:
    """Put the figures of the compilers that were measured into the file; those of others stay."""
    known = json.loads(file.read_text()) if file.is_file() else {}
    lines = [
        f' "{compiler}": {{\n'
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(figures[name])}" for name in sorted(figures))
        + "\n }"
        for compiler, figures in sorted({**known, **measured}.items())
    ]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def measure(configurations: Sequence[Configuration], cache: Path | None) -> tuple[dict[str, dict[str, Any]], int]:
    """The golden figures of configurations by compiler and name, and how many could not be compiled."""
    result: dict[str, dict[str, Any]] = {}
    failed = 0
    for configuration in configurations:
        try:
            kernel = configuration.compile(cache)
        except CompileError as error:
            failed += 1
            print(f"{configuration.name}: {error}", file=sys.stderr)
            continue
        figures = {"registers": _rounded(kernel.report.registers), "shared": kernel.report.shared}
        result.setdefault(kernel.compiler, {})[configuration.name] = figures
        print(f"{configuration.name}: {figures}", flush=True)
    return result, failed


def _rounded(registers: int) -> int:
    """A GPU gives registers to threads in eights, so that fewer than that make no difference."""
    return -(-registers // 8) * 8


def main() -> int:
    """Write the golden figures of the installed compiler; those of others stay."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, help="a folder for compiled kernels, to go on after an interruption")
    measured, failed = measure(read_configurations(), parser.parse_args().cache)
    write_ceilings(measured)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

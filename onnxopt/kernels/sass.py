"""What can be said about a kernel's machine code without running it: instructions, and blocks that fit."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from typing import Any

from onnxopt.errors import OnnxOptError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.cubin import capability
from onnxopt.kernels.packages import tool
from onnxopt.kernels.report import ResourceReport
from onnxopt.plan.roofline import ELEMENT_BYTES, launch_blocks
from onnxopt.target.figures import GpuProfile
from onnxopt.target.variant import Resources

_SECONDS = 120
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_LOCAL = ("LDL", "STL")
_COPY_BYTES = 16


def instructions(cubin: bytes) -> Counter[str]:
    """How often each instruction stands in the machine code, with its modifiers: ``HMMA.16816.F32``.

    Raises MissingError where nvdisasm is not installed, OnnxOptError where it cannot read the CUBIN.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool("nvdisasm")), "-c", file.name]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, errors="replace")
    if result.returncode:
        raise OnnxOptError(f"nvdisasm cannot read a compiled kernel: {result.stderr.strip()[:400]}")
    return Counter(_INSTRUCTION.findall(result.stdout))


def mnemonics(found: Mapping[str, int]) -> Counter[str]:
    """Counts without modifiers: ``HMMA``."""
    result: Counter[str] = Counter()
    for instruction, count in found.items():
        result[instruction.split(".", 1)[0]] += count
    return result


def check_sass(compiled: CompiledKernel, kernel: Mapping[str, Any]) -> list[str]:
    """What the machine code of an attention kernel has but must not have, or lacks; empty where all is well.

    ``kernel`` is that part of the configuration. There is no access to local memory; products are the matrix
    instructions of the path (multiply-adds for fp32 on sm_75, which has none); from sm_80 on, keys and values whose
    vectors are whole 16-byte pieces are copied asynchronously, 16 bytes a time; 16-bit operands of ``mma`` are read
    by ldmatrix. Raises as :func:`instructions` does.
    """
    return check_instructions(compiled, _wanted(compiled.architecture, kernel))


def check_instructions(compiled: CompiledKernel, wanted: Mapping[str, str]) -> list[str]:
    """What the machine code of a kernel lacks of the mnemonics ``wanted``, which say why, or has of local memory.

    Asynchronous copies (``LDGSTS``) must be of 16 bytes. Raises as :func:`instructions` does.
    """
    found = instructions(compiled.cubin)
    short = mnemonics(found)
    problems = [f"{short[name]} x {name}: local memory is used" for name in _LOCAL if short[name]]
    problems += [f"no {name}: {why}" for name, why in wanted.items() if not short[name]]
    if "LDGSTS" in wanted and not any(name.startswith("LDGSTS") and ".128" in name for name in found):
        problems.append("no LDGSTS of 128 bits: copies are in smaller pieces")
    return [f"{compiled.architecture}: {problem}" for problem in problems]


def product_instructions(architecture: str, element: str, path: str) -> dict[str, str]:
    """The mnemonics by which a path of an architecture multiplies and reads its operands, with what they are for."""
    if path == "wgmma":
        return {"HGMMA": "wgmma does not reach the matrix unit"}
    if path == "lanes" or (element == "fp32" and capability(architecture) < 80):
        return {"FFMA": "products are not multiply-adds"}
    wanted = {"HMMA": "mma does not reach the matrix unit"}
    if element in ("fp16", "bf16"):
        wanted["LDSM"] = "operands are not read by ldmatrix"
    return wanted


def _wanted(architecture: str, kernel: Mapping[str, Any]) -> dict[str, str]:
    wanted = product_instructions(architecture, kernel["element"], kernel["variants"][0]["path"])
    if capability(architecture) >= 80 and _whole_pieces(kernel):
        wanted["LDGSTS"] = "keys and values are not copied asynchronously"
    return wanted


def _whole_pieces(kernel: Mapping[str, Any]) -> bool:
    """Whether keys or values are vectors of whole 16-byte pieces."""
    size = ELEMENT_BYTES[kernel["element"]]
    operands = ((kernel["k"], kernel["width"]), (kernel["v"], kernel["value_width"]))
    return any(layout[1] == 1 and width * size % _COPY_BYTES == 0 for layout, width in operands)


def blocks_per_multiprocessor(report: ResourceReport, gpu: GpuProfile) -> int:
    """Blocks of a compiled kernel that one multiprocessor holds; 0 where not even one fits."""
    return launch_blocks(gpu, [Resources(report.registers, report.shared, report.threads, estimated=False)])


def check_occupancy(compiled: CompiledKernel, gpu: GpuProfile) -> list[str]:
    """What keeps a multiprocessor from holding as many blocks as the plan counted on (``RESIDENT``); mostly empty."""
    report, assumed = compiled.report, int(compiled.source.define("RESIDENT") or 1)
    blocks = blocks_per_multiprocessor(report, gpu)
    if blocks >= assumed:
        return []
    return [
        f"{gpu.name}: {blocks} blocks fit a multiprocessor, the plan counts on {assumed} ({report.registers} registers "
        f"a thread, {report.threads} threads, {report.shared:,} bytes of shared memory)"
    ]

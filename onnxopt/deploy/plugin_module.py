"""Writes the Python module with which TensorRT takes the operators of a package as plugins.

The module stands alone: it is read by whoever deploys the package and needs nothing of this project. Its text is in
``plugins/tensorrt_module``; the operators of the package are filled in.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from string import Template

from onnxopt.deploy.engine_operators import EngineOperator
from onnxopt.deploy.module_text import KernelFiles, operator_section
from onnxopt.deploy.packaged_kernels import MOST_CODE_BYTES, cubin_name, ptx_name
from onnxopt.errors import InputError
from onnxopt.kernels.compilation import architecture_for
from onnxopt.kernels.cubin import capability
from onnxopt.model.files import atomic_write, read_file
from onnxopt.resources import resource_dir

PLUGIN_MODULE = "tensorrt_plugins.py"

_TEMPLATES = "tensorrt_module"
_LINE = 118

_MACHINE = """\
The kernels are planned and compiled for {target}, that is for GPUs of compute capability {major}.{minor}. Build the
engine on such a GPU. {elsewhere} Just in time, another GPU is refused by name.
"""
# What a build on another GPU meets.
_FORWARD = "A newer one can load their PTX too, but nothing was planned for it; an older one cannot."
_SPECIFIC = "Their PTX is for {code} alone: on any other GPU the driver refuses it when TensorRT builds."


def kernel_name(operator: EngineOperator, tactic: int) -> str:
    """The name of a tactic's files in ``kernels/`` up to their suffix; tactics are numbered from 0 on.

    It is the operator's own where there is one tactic, else with the tactic's number behind it.
    """
    return operator.name if len(operator.tactics) == 1 else f"{operator.name}.{tactic}"


def write_module(folder: str | Path, operators: Sequence[EngineOperator], architecture: str) -> Path:
    """Write ``tensorrt_plugins.py`` into a package, beside its folder of kernels, which have to be there already.

    ``architecture`` is the target's, such as ``sm_90``. The same operators and kernels give the same bytes. Raises
    InputError where a kernel's file cannot be read, the architecture is unknown, or an operator cannot be written.
    """
    place = Path(folder) / PLUGIN_MODULE
    atomic_write(place, module_text(folder, operators, architecture).encode())
    return place


def module_text(folder: str | Path, operators: Sequence[EngineOperator], architecture: str) -> str:
    """The text of the module; as :func:`write_module`."""
    code = architecture_for(architecture)
    head, section = (_template(file) for file in ("module.py.txt", "operator.py.txt"))
    names = [operator.name for operator in operators]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two operators are called {twice[:80]!r}; a module registers each name once")
    parts = [_head(head, architecture, code)]
    for operator in operators:
        kernels = [_kernel(Path(folder), kernel_name(operator, n), code) for n in range(len(operator.tactics))]
        parts.append(operator_section(section, operator, kernels, code))
    return "".join(parts)


def _head(template: Template, target: str, code: str) -> str:
    major, minor = divmod(capability(code), 10)
    elsewhere = _FORWARD if code == target else _SPECIFIC.format(code=code)
    machine = _MACHINE.format(target=target, major=major, minor=minor, elsewhere=elsewhere)
    return template.substitute(machine=textwrap.fill(machine, _LINE), code_architecture=code, major=major, minor=minor)


def _kernel(folder: Path, name: str, architecture: str) -> KernelFiles:
    files = (folder / file for file in (ptx_name(name), cubin_name(name, architecture)))
    ptx, cubin = (sha256(read_file(file, MOST_CODE_BYTES)).hexdigest() for file in files)
    return KernelFiles(name, ptx, cubin)


def _template(file: str) -> Template:
    return Template((resource_dir("plugins") / _TEMPLATES / file).read_text(encoding="utf-8"))

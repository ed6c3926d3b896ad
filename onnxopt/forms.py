"""Which forms of a model are written, in which type it is, and in which its kernels compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from onnxopt.deploy.rtx import check_buildable
from onnxopt.deploy.tensorrt_machine import check_machine
from onnxopt.errors import InputError
from onnxopt.lower.plugin_nodes import has_plugin_nodes
from onnxopt.model.convert import PRECISIONS, Precision, convert
from onnxopt.plan.roofline import check_element
from onnxopt.results import WrittenForm
from onnxopt.site_reports import Form
from onnxopt.target import Target
from onnxopt.target.variant import Element
from onnxopt.verification.precision import check_range

Dtype = Literal["fp16", "bf16", "fp32"]


def written_forms(form: WrittenForm | None, target: Target) -> tuple[Form, ...]:
    """The forms that an option asks for; by default ``portable`` for the CPU and both for a GPU."""
    if form is None:
        # Without a profile nothing is known that kernels could be planned by.
        form = "both" if target.gpu is not None else "portable"
    return ("plugin", "portable") if form == "both" else (form,)


@dataclass(frozen=True)
class Types:
    """The type that a model is converted to as a whole, if any, inputs and outputs too with ``convert_io``; and the
    type that kernels compute in, None for that of a site's own tensors.
    """

    precision: Precision | None
    convert_io: bool
    kernels: Element | None


def chosen_types(
    dtype: str | None, convert_io: bool, kernel_dtype: Element | None, forms: Sequence[Form], target: Target
) -> Types:
    """What the options for types mean; raises InputError for what is not possible, before any work."""
    if dtype not in (None, *PRECISIONS, "fp32"):
        other = f"; kernels compute in it with --kernel-dtype {dtype}" if dtype == "tf32" else ""
        raise InputError(f"a model cannot be converted to '{dtype}'; --dtype allows fp16, bf16 and fp32{other}")
    precision = next((p for p in PRECISIONS if p == dtype), None)
    if convert_io and precision is None:
        raise InputError("--convert-io is about a model that is converted; add --dtype fp16 or --dtype bf16")
    if precision == "bf16" and target.is_cpu:
        raise InputError(
            f"--dtype bf16: ONNX Runtime has no kernels for bf16 on a CPU, and {_without_gpu(target)}; take --dtype "
            "fp16, or name a GPU with --target, for example --target sm_90"
        )
    if precision is not None and target.gpu is not None:
        check_element(target.gpu, precision)
    if dtype == "fp32" and kernel_dtype is None and "plugin" in forms:
        kernel_dtype = "fp32"
    check_forms(forms, kernel_dtype, target)
    return Types(precision, convert_io, kernel_dtype)


def in_type(model: ModelProto, types: Types, progress: Callable[[str], None], ranges: bool = False) -> ModelProto:
    """The model in the type that was asked for: converted, or as it is.

    With ``ranges`` a converted model is run beside the original. Raises as :func:`convert` and :func:`check_range`.
    """
    if types.precision is None:
        return model
    progress(f"converting the model to {types.precision}")
    converted = convert(model, types.precision, convert_io=types.convert_io)
    if ranges:
        progress(f"looking for what leaves the range of {types.precision}")
        check_range(model, converted, types.precision)
    return converted


def check_forms(forms: Sequence[Form], kernel_dtype: Element | None, target: Target) -> None:
    """Raise InputError for what the target cannot do, before any work."""
    if target.is_cpu and "plugin" in forms:
        raise InputError(
            f"the plugin form needs kernels, and {_without_gpu(target)}; use --form portable, or name a GPU with "
            "--target, for example --target sm_90"
        )
    if kernel_dtype is None:
        return
    if "plugin" not in forms:
        raise InputError(
            f"--kernel-dtype {kernel_dtype} is the type that kernels compute in, and the portable form has none: it "
            "keeps the model's types; leave out --kernel-dtype, or use --form plugin with a GPU as --target"
        )
    check_element(target.need_gpu_profile(), kernel_dtype)


def check_engine(engine: str, forms: Sequence[Form], target: Target) -> None:
    """Raise InputError or MissingError where no engine could be built in the end, before any work."""
    if target.architecture is None:
        raise InputError(f"--engine {engine}: {_without_gpu(target)}; name one, for example --target sm_89")
    if engine == "tensorrt":
        check_machine(target.architecture)
        return
    if "portable" not in forms:
        raise InputError(
            f"--engine {engine} has no plugins and builds the portable form; use --form both or --form portable"
        )
    check_buildable(target.architecture)


def _without_gpu(target: Target) -> str:
    """That a target is no GPU; where it was looked for on this machine, what was found."""
    if target.note:
        return f"target 'auto' stands for the CPU on this machine ({target.note})"
    return f"target '{target.name}' is no GPU"


def forms_of_model(
    proto: ModelProto, asked: WrittenForm | None, forms: tuple[Form, ...], path: Path, for_engine: bool
) -> tuple[Form, ...]:
    """The forms that can be written of a model; one that has operators of our own has no portable form any more.

    Raises InputError where that one was asked for, or is needed for an engine.
    """
    if "portable" not in forms or not has_plugin_nodes(proto):
        return forms
    if asked is None and "plugin" in forms and not for_engine:
        return ("plugin",)
    raise InputError(
        f"{path}: an earlier run of onnxopt wrote operators of its own into this model, so it has no portable form; "
        "optimise the original model"
    )

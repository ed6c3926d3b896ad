"""Which forms of a model are written, and in which type its kernels compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from onnxopt.deploy.rtx import check_buildable
from onnxopt.errors import InputError
from onnxopt.lower.plugin_nodes import has_plugin_nodes
from onnxopt.plan.roofline import check_element
from onnxopt.results import WrittenForm
from onnxopt.site_reports import Form
from onnxopt.target import Target
from onnxopt.target.variant import Element


def written_forms(form: WrittenForm | None, target: Target) -> tuple[Form, ...]:
    """The forms that an option asks for; by default ``portable`` for the CPU and both for a GPU."""
    if form is None:
        # Without a profile nothing is known that kernels could be planned by.
        form = "both" if target.gpu is not None else "portable"
    return ("plugin", "portable") if form == "both" else (form,)


def check_forms(forms: Sequence[Form], dtype: Element | None, target: Target) -> None:
    """Raise InputError for what the target cannot do, before any work."""
    if target.is_cpu and "plugin" in forms:
        raise InputError(
            f"the plugin form needs kernels, and {_without_gpu(target)}; use --form portable, or name a GPU with "
            "--target, for example --target sm_90"
        )
    if dtype is None:
        return
    if "plugin" not in forms:
        raise InputError(
            f"--dtype {dtype} is the type that kernels compute in, and the portable form has none: it keeps the "
            "model's types; leave out --dtype, or use --form plugin with a GPU as --target"
        )
    check_element(target.need_gpu_profile(), dtype)


def check_engine(engine: str, forms: Sequence[Form], target: Target) -> None:
    """Raise InputError or MissingError where no engine could be built in the end, before any work."""
    if target.architecture is None:
        raise InputError(f"--engine {engine}: {_without_gpu(target)}; name one, for example --target sm_89")
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

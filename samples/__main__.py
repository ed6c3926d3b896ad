"""Writes samples to files: `python -m samples NAME OUT.onnx`, `python -m samples --list` or `--all DIR`."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from onnxopt.errors import InputError
from samples import SAMPLES, Sample, build

DYNAMIC = "dynamic"


def options_of(name: str) -> dict[str, object]:
    """The options of a sample's builder and their defaults."""
    builder: Callable[..., Sample] = SAMPLES[name]
    return {key: parameter.default for key, parameter in inspect.signature(builder).parameters.items()}


def choices_of(name: str, key: str) -> tuple[object, ...]:
    """The values that an option may take where they are a closed list, else nothing."""
    builder = SAMPLES[name]
    function = builder.func if isinstance(builder, partial) else builder
    hint = get_type_hints(function)[key]
    return get_args(hint) if get_origin(hint) is Literal else ()


def summary(sample: Sample) -> str:
    """What the ground truth says, one line a site."""
    lines = [f"{sample.name}: {len(sample.model.graph.node)} nodes"]
    lines += [
        f"  attention {truth.node}: {truth.heads} heads, {truth.queries} queries, {truth.keys} keys, "
        f"{truth.pairs} pairs ({truth.density:.1%})"
        for truth in sample.attention
    ]
    lines += [
        f"  conv {', '.join(conv.nodes)}: {conv.pattern}, {conv.in_channels} to {conv.out_channels} "
        f"channels, {conv.connections} connections ({conv.density:.1%})"
        for conv in sample.convolutions
    ]
    return "\n".join(lines)


def description(name: str) -> str:
    """The first sentence of a builder's docstring, with the options that make this sample of it."""
    builder = SAMPLES[name]
    fixed = ""
    if isinstance(builder, partial):
        fixed = " (" + ", ".join(f"{key}={value}" for key, value in builder.keywords.items()) + ")"
        builder = builder.func
    text = " ".join((builder.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".") + fixed


def write(sample: Sample, path: Path) -> None:
    """Writes the model to a temporary file beside `path` and moves it there."""
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(sample.to_bytes())
        # mkstemp makes private files; a model is as public as any other output.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _value(name: str, key: str, text: str, default: object) -> object:
    """An option's text as a value of its default's type."""
    flag, kind = f"--{key.replace('_', '-')} {text}", type(default)
    choices = choices_of(name, key)
    if choices and text not in choices:
        raise InputError(f"{flag}: expected one of {', '.join(map(str, choices))}")
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise InputError(f"{flag}: expected true or false")
        return text == "true"
    if key == "batch" and text == DYNAMIC:
        return None
    if isinstance(default, str):
        return text
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError as error:
        raise InputError(f"{flag}: expected {kind.__name__}, like {default}") from error
    smallest = 0 if key == "seed" else 1
    if isinstance(default, int) and value < smallest:
        raise InputError(f"{flag}: expected {smallest} or more, like {default}")
    return value


def parse_options(name: str, words: list[str]) -> dict[str, object]:
    """`--key value` pairs as builder options; raises InputError for an unknown key or a bad value."""
    defaults = options_of(name)
    allowed = " ".join("--" + key.replace("_", "-") for key in defaults)
    if len(words) % 2:
        raise InputError(f"{words[-1]}: options come as --key value; {name} takes {allowed}")
    options = {}
    for flag, text in zip(words[::2], words[1::2], strict=True):
        key = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or key not in defaults:
            raise InputError(f"{flag}: {name} has no such option; it takes {allowed}")
        options[key] = _value(name, key, text, defaults[key])
    return options


def build_checked(name: str, options: dict[str, object]) -> Sample:
    """The sample, with sizes that do not fit one another reported as InputError."""
    import onnx

    if name not in SAMPLES:
        raise InputError(f"{name}: no such sample; `python -m samples --list` shows all of them")
    try:
        return build(name, **options)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        defaults = ", ".join(f"{key}={value}" for key, value in options_of(name).items())
        raise InputError(f"{name} cannot be built: {error}; the defaults are {defaults}") from error


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m samples",
        description="Writes small models with known attention and convolution patterns.",
        epilog="Further --key value pairs are the builder's options, for example --size 16 --batch dynamic.",
    )
    parser.add_argument("name", nargs="?", help="which sample")
    parser.add_argument("out", nargs="?", type=Path, help="the ONNX file to write")
    parser.add_argument("--list", action="store_true", help="show the samples and what they stand for")
    parser.add_argument("--all", type=Path, metavar="DIR", help="write every sample to DIR/NAME.onnx")
    known, rest = parser.parse_known_args(arguments)
    if known.list:
        for name in SAMPLES:
            print(f"{name:22} {description(name)}")
    elif known.all is not None:
        known.all.mkdir(parents=True, exist_ok=True)
        for name in SAMPLES:
            sample = build(name)
            write(sample, known.all / f"{name}.onnx")
            print(summary(sample))
    elif known.name is None or known.out is None:
        parser.error("give NAME and OUT.onnx, or --list, or --all DIR")
    else:
        name = known.name
        options = parse_options(name, rest) if name in SAMPLES else {}
        sample = build_checked(name, options)
        write(sample, known.out)
        print(summary(sample))


def main() -> int:
    try:
        run(sys.argv[1:])
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return InputError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

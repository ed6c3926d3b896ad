"""Which source a kernel is compiled from, with which constants: all that a configuration decides.

A constant is an integer or one of a few fixed words. No text of a model ever reaches the compiler.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from onnxopt.errors import InputError
from onnxopt.kernels.fields import (
    HALVES,
    LARGEST,
    MOST_SIDE,
    MOST_STAGES,
    MOST_THREADS,
    check_granules,
    check_one_kernel,
    check_resident,
    check_threads,
    element_field,
    flag_field,
    integer_field,
    shape_documents,
    word_field,
)
from onnxopt.target.variant import AttentionVariant, Element, Path

ATTENTION_FILE = "attention/sparse_attention.cu"
ATTENTION_ENTRY = "sparse_attention"
MERGE_FILE = "attention/merge_attention.cu"
MERGE_ENTRY = "merge_attention"

LARGEST_WIDTH = 256
"""Channels of a head that the kernels take at most."""

MOST_OTHERS = 64
"""Tables of other kernels that may stand in front of a kernel's own, and as many behind them."""

_OTHERS = ("OTHERS_BEFORE", "OTHERS_AFTER")

_PATHS: tuple[Path, ...] = get_args(Path)

_FLAGS = ("own_values", "masks", "biases", "extras", "split", "weights")

_FILE = re.compile(r"(?:[a-z0-9_]+/)*[a-z0-9_]+\.cu")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"[A-Za-z0-9_(),]+")


@dataclass(frozen=True)
class KernelSource:
    """A kernel to compile: ``file`` below the folder of sources, its ``entry``, and the constants of ``-D`` in order.

    Raises InputError where one of them is anything but a plain name, or a value more than words, numbers and commas.
    """

    file: str
    entry: str
    defines: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        wrong = [] if _FILE.fullmatch(self.file) else [("file", self.file)]
        wrong += [] if _NAME.fullmatch(self.entry) else [("entry", self.entry)]
        for name, value in self.defines:
            wrong += [] if _NAME.fullmatch(name) else [("constant", name)]
            wrong += [] if _VALUE.fullmatch(value) else [(f"value of {name}", value)]
        if wrong:
            what, seen = wrong[0]
            raise InputError(
                f"a kernel's {what} is {seen[:80]!r}; allowed are letters, digits and underscores, in a file's name "
                "also / and .cu, in a value also commas and brackets"
            )

    def define(self, name: str) -> str | None:
        """The value of a constant, None where it is not given."""
        return dict(self.defines).get(name)

    def to_json(self) -> dict[str, Any]:
        """As in a cache entry and in a request to a worker; :meth:`from_json` reads it."""
        return {"file": self.file, "entry": self.entry, "defines": [list(pair) for pair in self.defines]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> KernelSource:
        """The inverse of :meth:`to_json`."""
        defines = tuple((str(name), str(value)) for name, value in document["defines"])
        return cls(str(document["file"]), str(document["entry"]), defines)


def attention_source(kernel: Mapping[str, Any], resident: int) -> KernelSource:
    """The source of an attention kernel from the ``kernel`` part of its operator's configuration.

    ``resident`` is the number of blocks that the plan counts on for each multiprocessor, 1 to 32. Raises InputError,
    naming the field, its value and what is allowed, for everything that the kernel is not written for.
    """
    what = "attention kernel"
    element = element_field(what, kernel)
    variants = _variants(kernel, element)
    flags = {name: flag_field(what, kernel, name) for name in _FLAGS}
    slots, columns = (integer_field(what, kernel, name, 0, LARGEST) for name in ("slots", "columns"))
    for flag, count, number in (("split", "slots", slots), ("weights", "columns", columns)):
        if flags[flag] != (number > 0):
            raise InputError(
                f"{what}: {flag!r} is {str(flags[flag]).lower()}, but {count!r} is {number}; allowed: both or neither"
            )
    for other in ("weights", "extras"):
        if flags["split"] and flags[other]:
            raise InputError(f"{what}: 'split' and {other!r} are both true; allowed: one of them")
    check_resident(what, resident)
    first = variants[0]
    defines = [
        ("ELEMENT", element),
        ("PATH_WGMMA", str(int(first.path == "wgmma"))),
        ("WARPS", str(first.warps)),
        ("RESIDENT", str(resident)),
        ("VARIANTS", "".join(f"VARIANT({v.rows},{v.keys},{v.stages},{int(v.swapped)})" for v in variants)),
        ("HEADS", str(integer_field(what, kernel, "heads", 1, LARGEST))),
        ("WIDTH", str(integer_field(what, kernel, "width", 1, LARGEST_WIDTH))),
        ("VALUE_WIDTH", str(integer_field(what, kernel, "value_width", 1, LARGEST_WIDTH))),
        *(pair for name in "qkvy" for pair in _layout(what, kernel, name)),
        *((name.upper(), str(int(flag))) for name, flag in flags.items()),
        ("SLOTS", str(slots)),
        ("COLUMNS", str(columns)),
    ]
    return KernelSource(ATTENTION_FILE, ATTENTION_ENTRY, tuple(defines))


def merge_source(kernel: Mapping[str, Any]) -> KernelSource:
    """The source of the kernel that merges split keys, from the ``kernel`` part of its operator's configuration.

    Raises InputError as :func:`attention_source` does.
    """
    what = "merge kernel"
    defines = (
        ("ELEMENT", element_field(what, kernel)),
        ("VALUE_WIDTH", str(integer_field(what, kernel, "value_width", 1, LARGEST_WIDTH))),
        ("SLOTS", str(integer_field(what, kernel, "slots", 1, LARGEST))),
        *_layout(what, kernel, "y"),
    )
    return KernelSource(MERGE_FILE, MERGE_ENTRY, defines)


def attention_variants(kernel: Mapping[str, Any]) -> tuple[AttentionVariant, ...]:
    """The shapes of an attention kernel, in the order of its configuration; InputError for an unsupported one."""
    return _variants(kernel, element_field("attention kernel", kernel))


def with_others(source: KernelSource, before: int, after: int) -> KernelSource:
    """A kernel that is called with tables of other kernels too, as one of several that an engine chooses among.

    ``before`` unused pointers stand between its operands and its own tables, ``after`` between these and the batch.
    With none it is the source that was given. Raises InputError for numbers that are not 0 to 64.
    """
    counts = dict(zip(_OTHERS, (before, after), strict=True))
    what = f"the source of {source.entry!r} among others"
    defines = [(name, str(integer_field(what, counts, name, 0, MOST_OTHERS))) for name in _OTHERS]
    own = [pair for pair in source.defines if pair[0] not in _OTHERS]
    wanted = tuple([*own, *defines] if before or after else own)
    return source if wanted == source.defines else replace(source, defines=wanted)


def others_of(source: KernelSource) -> tuple[int, int]:
    """How many tables of other kernels stand in front of a kernel's own, and behind them: as :func:`with_others`."""
    before, after = (int(source.define(name) or 0) for name in _OTHERS)
    return before, after


def _variants(kernel: Mapping[str, Any], element: Element) -> tuple[AttentionVariant, ...]:
    documents = shape_documents("attention kernel", kernel)
    variants = tuple(_variant(number, document, element) for number, document in enumerate(documents))
    check_one_kernel("attention kernel", variants)
    return variants


def _variant(number: int, document: Any, element: Element) -> AttentionVariant:
    what = f"attention kernel, shape {number}"
    if not isinstance(document, Mapping):
        raise InputError(f"{what}: {document!r:.80} is not an object with 'path', 'rows', 'keys', 'warps' and 'stages'")
    path = word_field(what, document, "path", _PATHS)
    swapped = flag_field(what, document, "swapped")
    for name, chosen in ((f"the path {path!r}", path == "wgmma"), ("'swapped'", swapped)):
        if chosen and element not in HALVES:
            raise InputError(f"{what}: {name} does not take {element}; allowed with it: {', '.join(HALVES)}")
    variant = AttentionVariant(
        cast(Path, path),
        integer_field(what, document, "rows", 1, MOST_SIDE),
        integer_field(what, document, "keys", 1, MOST_SIDE),
        integer_field(what, document, "warps", 1, MOST_THREADS // 32),
        integer_field(what, document, "stages", 1, MOST_STAGES),
        swapped,
    )
    check_granules(what, document, variant, {"rows": "row_granule", "keys": "key_granule"})
    check_threads(what, variant)
    side, shared = ("keys", variant.keys) if swapped else ("rows", variant.rows)
    whole = 16 * variant.warps
    if shared % whole:
        raise InputError(
            f"{what}: {side!r} is {shared}; allowed for {variant.describe()!r}: multiples of {whole}, which its "
            f"{variant.warps} warps share"
        )
    return variant


def _layout(what: str, kernel: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    layout = kernel.get(name)
    if not isinstance(layout, Sequence) or isinstance(layout, str) or len(layout) != 2:
        raise InputError(f"{what}: {name!r} is {layout!r:.80}; allowed: two numbers, its elements and its stride")
    sizes = dict(zip(("elements", "stride"), layout, strict=True))
    return [
        (f"{name}_{part}".upper(), str(integer_field(f"{what}, {name!r}", sizes, part, 1, LARGEST))) for part in sizes
    ]

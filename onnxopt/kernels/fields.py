"""Fields of a kernel's configuration, each read with the check that names it where it is not what it must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from onnxopt.errors import InputError
from onnxopt.target.variant import AttentionVariant, ConvVariant, Element

ELEMENTS: tuple[Element, ...] = get_args(Element)
HALVES: tuple[Element, ...] = ("fp16", "bf16")
"""The types that every instruction of the matrix units takes."""

LARGEST = 2**31 - 1
MOST_VARIANTS = 64
MOST_STAGES = 8
MOST_SIDE = 1024
MOST_THREADS = 1024
MOST_RESIDENT = 32


def element_field(what: str, kernel: Mapping[str, Any]) -> Element:
    """The compute type. ``what`` begins every message; raises InputError, as all of these functions do."""
    return cast(Element, word_field(what, kernel, "element", ELEMENTS))


def word_field(what: str, document: Mapping[str, Any], name: str, allowed: Sequence[str]) -> str:
    """One of a few words."""
    value = document.get(name)
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{what}: {name!r} is {value!r:.80}; allowed: {', '.join(allowed)}")
    return value


def flag_field(what: str, document: Mapping[str, Any], name: str) -> bool:
    """True or false."""
    value = document.get(name)
    if not isinstance(value, bool):
        raise InputError(f"{what}: {name!r} is {value!r:.80}; allowed: true or false")
    return value


def integer_field(what: str, document: Mapping[str, Any], name: str, least: int, most: int = LARGEST) -> int:
    """A whole number between two others, which are allowed too."""
    value = document.get(name)
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"{what}: {name!r} is {value!r:.80}; allowed: whole numbers from {least} to {most:,}")
    return value


def check_resident(what: str, resident: int) -> None:
    """The number of blocks that a plan counts on for each multiprocessor."""
    if not 1 <= resident <= MOST_RESIDENT:
        raise InputError(f"{what}: {resident} resident blocks; allowed: 1 to {MOST_RESIDENT}")


def shape_documents(what: str, kernel: Mapping[str, Any]) -> Sequence[Any]:
    """The shapes of a kernel, each still to be read."""
    documents = kernel.get("variants")
    if isinstance(documents, str) or not isinstance(documents, Sequence) or not 1 <= len(documents) <= MOST_VARIANTS:
        seen = f"{len(documents)} shapes" if isinstance(documents, list | tuple) else repr(documents)[:80]
        raise InputError(f"{what}: 'variants' are {seen}; allowed: 1 to {MOST_VARIANTS} shapes")
    return documents


def check_granules(
    what: str, document: Mapping[str, Any], variant: AttentionVariant | ConvVariant, sides: Mapping[str, str]
) -> None:
    """Sides are whole granules, and what a document says about granules is true; ``sides`` name the granule of each."""
    for side, field in sides.items():
        size, granule = getattr(variant, side), getattr(variant, field)
        if size % granule:
            raise InputError(f"{what}: {side!r} is {size}; allowed for {variant.describe()!r}: multiples of {granule}")
        if document.get(field, granule) != granule:
            raise InputError(f"{what}: {field!r} is {document[field]!r:.80}; {variant.describe()!r} has {granule}")


def check_threads(what: str, variant: AttentionVariant | ConvVariant) -> None:
    """A block of the shape can be launched, and wgmma has whole warpgroups."""
    if variant.path == "wgmma" and variant.warps % 4:
        raise InputError(f"{what}: 'warps' is {variant.warps}; allowed with wgmma: multiples of 4")
    if variant.threads > MOST_THREADS:
        raise InputError(f"{what}: {variant.threads} threads a block; allowed: up to {MOST_THREADS}")


def check_one_kernel(what: str, variants: Sequence[AttentionVariant] | Sequence[ConvVariant]) -> None:
    """Shapes of one kernel share path and warps."""
    first = variants[0]
    differing = next((v for v in variants if (v.path, v.warps) != (first.path, first.warps)), None)
    if differing is not None:
        raise InputError(
            f"{what}: {first.describe()!r} and {differing.describe()!r} cannot be one kernel; "
            "allowed: shapes of one path and one number of warps"
        )

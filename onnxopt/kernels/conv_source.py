"""Which source a convolution kernel is compiled from, with which constants: all that a configuration decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Literal, cast

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
from onnxopt.kernels.source import KernelSource
from onnxopt.target.variant import ConvVariant, Element

GROUP_CONV_FILE = "conv/group_conv.cu"
GROUP_CONV_ENTRY = "group_conv"
SUM_CONV_FILE = "conv/sum_conv.cu"
SUM_CONV_ENTRY = "sum_conv"

ACTIVATIONS = ("none", "relu", "hardswish", "silu")
"""What a kernel can apply to its inputs and outputs."""

_PATHS = ("mma", "wgmma", "lanes")
_LAYOUTS = ("first", "last")
_FLAGS = ("prologue", "residual", "extras", "split")
_AXES = 3
# The N side of one instruction of wgmma.
_MOST_WGMMA_OUTPUTS = 256


def group_conv_source(kernel: Mapping[str, Any], resident: int) -> KernelSource:
    """The source of a convolution kernel from the ``kernel`` part of its operator's configuration.

    With ``split`` the second operator adds the residual and activates, so this kernel has neither. ``resident`` is the
    number of blocks that the plan counts on for each multiprocessor, 1 to 32. Raises InputError, naming the field, its
    value and what is allowed, for everything that the kernel is not written for.
    """
    what = "convolution kernel"
    element = element_field(what, kernel)
    variants = _variants(kernel, element)
    geometry = _geometry(what, kernel)
    flags = {name: flag_field(what, kernel, name) for name in _FLAGS}
    slots = integer_field(what, kernel, "slots", 0)
    activation, before = (word_field(what, kernel, name, ACTIVATIONS) for name in ("activation", "input_activation"))
    if flags["split"] != (slots > 0):
        raise InputError(
            f"{what}: 'split' is {str(flags['split']).lower()}, but 'slots' is {slots}; allowed: both or neither"
        )
    if flags["split"] and flags["extras"]:
        raise InputError(f"{what}: 'split' and 'extras' are both true; allowed: one of them")
    if before != "none" and not flags["prologue"]:
        raise InputError(f"{what}: 'input_activation' is {before!r}, but 'prologue' is false; allowed without it: none")
    check_resident(what, resident)
    images = integer_field(what, kernel, "images", 1)
    _check_elements(what, {"slots": slots, "images": images}, geometry["output_size"])
    first, here = variants[0], not flags["split"]
    defines = (
        ("ELEMENT", element),
        ("PATH_LANES", str(int(first.path == "lanes"))),
        ("PATH_WGMMA", str(int(first.path == "wgmma"))),
        ("WARPS", str(first.warps)),
        ("RESIDENT", str(resident)),
        ("VARIANTS", "".join(f"VARIANT({v.outputs},{v.inputs},{v.pixels},{v.stages})" for v in variants)),
        ("LAYOUT_LAST", _layout_last(what, kernel)),
        *((f"{side}_CHANNELS".upper(), str(kernel[f"{side}_channels"])) for side in ("input", "output")),
        *((name.upper(), ",".join(map(str, axes))) for name, axes in geometry.items()),
        ("IMAGES", str(images)),
        ("ACTIVATION", activation if here else "none"),
        ("INPUT_ACTIVATION", before),
        ("PROLOGUE", str(int(flags["prologue"]))),
        ("RESIDUAL", str(int(flags["residual"] and here))),
        ("EXTRAS", str(int(flags["extras"]))),
        ("SPLIT", str(int(flags["split"]))),
        ("SLOTS", str(slots)),
    )
    return KernelSource(GROUP_CONV_FILE, GROUP_CONV_ENTRY, defines)


def sum_conv_source(kernel: Mapping[str, Any]) -> KernelSource:
    """The source of the kernel that adds up partial rows, from the ``kernel`` part of its operator's configuration.

    Raises InputError as :func:`group_conv_source` does.
    """
    what = "sum kernel"
    element = element_field(what, kernel)
    counts = {name: integer_field(what, kernel, name, 1) for name in ("output_channels", "slots")}
    size = _axes(what, kernel, "output_size", 1)
    _check_elements(what, counts, size)
    defines = (
        ("ELEMENT", element),
        ("LAYOUT_LAST", _layout_last(what, kernel)),
        ("OUTPUT_CHANNELS", str(counts["output_channels"])),
        ("POSITIONS", str(prod(size))),
        ("ACTIVATION", word_field(what, kernel, "activation", ACTIVATIONS)),
        ("RESIDUAL", str(int(flag_field(what, kernel, "residual")))),
        ("SLOTS", str(counts["slots"])),
    )
    return KernelSource(SUM_CONV_FILE, SUM_CONV_ENTRY, defines)


def conv_variants(kernel: Mapping[str, Any]) -> tuple[ConvVariant, ...]:
    """The shapes of a convolution kernel, in the order of its configuration; InputError for an unsupported one."""
    return _variants(kernel, element_field("convolution kernel", kernel))


def _variants(kernel: Mapping[str, Any], element: Element) -> tuple[ConvVariant, ...]:
    documents = shape_documents("convolution kernel", kernel)
    variants = tuple(_variant(number, document, element) for number, document in enumerate(documents))
    check_one_kernel("convolution kernel", variants)
    return variants


def _variant(number: int, document: Any, element: Element) -> ConvVariant:
    what = f"convolution kernel, shape {number}"
    if not isinstance(document, Mapping):
        names = "'path', 'outputs', 'inputs', 'pixels', 'warps' and 'stages'"
        raise InputError(f"{what}: {document!r:.80} is not an object with {names}")
    path = cast(Literal["mma", "wgmma", "lanes"], word_field(what, document, "path", _PATHS))
    if path == "wgmma" and element not in HALVES:
        raise InputError(f"{what}: the path {path!r} does not take {element}; allowed with it: {', '.join(HALVES)}")
    variant = ConvVariant(
        path,
        integer_field(what, document, "outputs", 1, _MOST_WGMMA_OUTPUTS if path == "wgmma" else MOST_SIDE),
        integer_field(what, document, "inputs", 1, MOST_SIDE),
        integer_field(what, document, "pixels", 1, 4 * MOST_SIDE),
        integer_field(what, document, "warps", 1, MOST_THREADS // 32),
        integer_field(what, document, "stages", 1, 1 if path == "lanes" else MOST_STAGES),
    )
    check_granules(what, document, variant, {"outputs": "output_granule", "inputs": "input_granule"})
    check_threads(what, variant)
    # A warp has at least one M side of a matrix instruction, or a pixel for each of its lanes.
    whole = (32 if path == "lanes" else 16) * variant.warps
    if variant.pixels % whole:
        raise InputError(
            f"{what}: 'pixels' is {variant.pixels}; allowed for {variant.describe()!r}: multiples of {whole}, which "
            f"its {variant.warps} warps share"
        )
    return variant


def _geometry(what: str, kernel: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The axes by the names of the configuration, in the order of the constants."""
    sizes = {
        "input_size": _axes(what, kernel, "input_size", 1),
        "output_size": _axes(what, kernel, "output_size", 0),
        **{name: _axes(what, kernel, name, 1) for name in ("kernel", "strides", "dilations")},
        "pads": _axes(what, kernel, "pads", 0),
    }
    for axis in range(_AXES):
        _check_axis(what, axis, {name: values[axis] for name, values in sizes.items()})
    _, height, width = sizes["input_size"]
    step = sum(s * n for s, n in zip(sizes["strides"], (height * width, width, 1), strict=True))
    if step > LARGEST:
        raise InputError(
            f"{what}: 'strides' {list(sizes['strides'])} move by {step:,} positions of the input "
            f"{' x '.join(map(str, sizes['input_size']))}; allowed: up to {LARGEST:,}"
        )
    if prod(sizes["kernel"]) > LARGEST:
        raise InputError(
            f"{what}: 'kernel' {list(sizes['kernel'])} has {prod(sizes['kernel']):,} taps; allowed: up to {LARGEST:,}"
        )
    for side in ("input", "output"):
        channels = integer_field(what, kernel, f"{side}_channels", 1)
        _check_elements(what, {f"{side}_channels": channels}, sizes[f"{side}_size"])
    return sizes


def _check_axis(what: str, axis: int, of: Mapping[str, int]) -> None:
    """An output position there is, and the places that it reads are numbers of 31 bits."""
    reach = of["dilations"] * (of["kernel"] - 1) + 1
    if of["output_size"] < 1:
        raise InputError(
            f"{what}: along axis {axis} the kernel reaches over {reach:,} positions ({of['kernel']} taps, dilation "
            f"{of['dilations']}), more than its padded input has ({of['input_size']:,} and {of['pads']:,} in front); "
            f"'output_size' is {of['output_size']}; allowed: 1 or more; use a smaller kernel or more padding"
        )
    last = (of["output_size"] - 1) * of["strides"] + reach - 1
    if last > LARGEST:
        raise InputError(
            f"{what}: along axis {axis} the last tap of the last position reads place {last:,} of the padded input; "
            f"allowed: up to {LARGEST:,}"
        )


def _axes(what: str, kernel: Mapping[str, Any], name: str, least: int) -> tuple[int, ...]:
    values = kernel.get(name)
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != _AXES:
        raise InputError(f"{what}: {name!r} is {values!r:.80}; allowed: {_AXES} numbers, one an axis")
    of_axis = {f"{name}[{axis}]": value for axis, value in enumerate(values)}
    return tuple(integer_field(what, of_axis, field, least) for field in of_axis)


def _check_elements(what: str, counts: Mapping[str, int], size: Sequence[int]) -> None:
    """What lies between the first and the last element is a number of 31 bits."""
    for name, count in counts.items():
        if count * prod(size) > LARGEST:
            raise InputError(
                f"{what}: {name!r} {count:,} times the positions {' x '.join(map(str, size))} are "
                f"{count * prod(size):,} elements; allowed: up to {LARGEST:,}"
            )


def _layout_last(what: str, kernel: Mapping[str, Any]) -> str:
    return str(int(word_field(what, kernel, "layout", _LAYOUTS) == "last"))

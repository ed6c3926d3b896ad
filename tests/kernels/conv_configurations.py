"""Convolution kernels as plans ask for them, each for one architecture.

``conv_configurations.json`` has a line for each. ``python -m tests.kernels.conv_configurations --plan`` plans the
layers below anew and writes it, after a change of the cost model; without ``--plan`` only the golden figures of
``conv_ceilings.json`` are measured again, after a change of kernels or compiler: look at the difference before it is
kept.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from onnxopt.discover.convolution import find_convolutions
from onnxopt.kernels.conv_source import conv_variants, group_conv_source
from onnxopt.kernels.source import KernelSource
from onnxopt.measure.tile_requests import catalogue, tile_requests
from onnxopt.model.graph import view
from onnxopt.plan.group_conv import plan_group_conv
from onnxopt.plan.group_conv_cost import GroupConvCost
from onnxopt.plan.tables import conv_tables
from onnxopt.plan.tables.conv_types import ConvKernel
from onnxopt.target import load_target
from onnxopt.target.variant import ConvVariant, Element
from samples import convolution_grouped
from tests.kernels.configurations import Configuration, measure, write_ceilings
from tests.kernels.conv_cases import ConvWish, made_work
from tests.plan.conv_schedules import links_of

CONFIGURATIONS = Path(__file__).with_name("conv_configurations.json")
CEILINGS = Path(__file__).with_name("conv_ceilings.json")
_SHAPE = re.compile(r"(mma|wgmma|lanes) (\d+)x(\d+)x(\d+) w(\d+) s(\d+)")

_THREE: dict[str, Any] = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}
_FIVE: dict[str, Any] = {"kernel": (5, 5), "strides": (2, 2), "pads": (2, 2, 2, 2)}
_STEM: dict[str, Any] = {"kernel": (7, 7), "strides": (2, 2), "pads": (3, 3, 3, 3)}

LAYERS = {
    "shuffled 1x1": ConvWish(240, 60, (14, 14), groups=3, mix="moved", activation="relu"),
    "depthwise 3x3": ConvWish(60, 60, (14, 14), **_THREE, groups=60),
    "1x1 with residual": ConvWish(120, 480, (7, 7), groups=3, residual=True, activation="relu"),
    "1x1 behind a prologue": ConvWish(304, 128, (14, 14), groups=8, scaled=True, input_activation="relu"),
    "3x3 behind a prologue": ConvWish(128, 32, (14, 14), **_THREE, groups=4, scaled=True, input_activation="relu"),
    "3x3 in 32 groups": ConvWish(128, 128, (56, 56), **_THREE, groups=32, activation="relu"),
    "dense 3x3": ConvWish(64, 64, (28, 28), **_THREE, activation="relu"),
    "depthwise 5x5, channels last": ConvWish(144, 144, (28, 28), **_FIVE, groups=144, activation="silu", layout="last"),
    "dense 1x1, channels last": ConvWish(160, 320, (14, 14), activation="hardswish", residual=True, layout="last"),
    "repeated outputs": ConvWish(64, 61, (14, 14), mix="repeated", activation="relu"),
    "added outputs": ConvWish(64, 64, (14, 14), groups=4, mix="added", residual=True),
    "strided stem": ConvWish(3, 32, (112, 112), **_STEM, activation="relu"),
    "folded images": ConvWish(256, 128, (7, 7), groups=4, images=4, batch=4),
    "3x3 of a batch": ConvWish(256, 256, (14, 14), **_THREE, images=32, batch=32),
    "1x1 of a batch": ConvWish(512, 512, (14, 14), images=32, batch=32, residual=True, layout="last"),
    "one axis": ConvWish(64, 64, (400,), (9,), pads=(4, 4), groups=4, activation="silu"),
    "three axes": ConvWish(32, 32, (8, 14, 14), (3, 3, 3), pads=(1,) * 6, groups=4),
}
"""Layers of image classifiers and what else tables can ask for, at their usual sizes."""

# Every layer for these, and for the last one every shape of the catalogue; for the other targets some layers.
_EVERY: tuple[tuple[str, Element], ...] = (("sm_80", "fp16"), ("sm_90", "fp16"))
_FEW = ("depthwise 3x3", "3x3 in 32 groups", "dense 1x1, channels last", "3x3 behind a prologue", "3x3 of a batch")
_OTHERS: tuple[tuple[str, Element], ...] = (
    *(("sm_75", "fp16"), ("sm_75", "fp32"), ("sm_80", "bf16"), ("sm_80", "tf32"), ("sm_80", "fp32")),
    *(("sm_86", "fp16"), ("sm_87", "fp16"), ("sm_89", "fp16"), ("sm_90", "bf16"), ("sm_90", "fp32")),
    *(("sm_100", "fp16"), ("sm_120", "fp16"), ("sm_120", "tf32")),
)
_QUICK = {
    ("sm_75", "fp16"): "dense 1x1, channels last",
    ("sm_80", "tf32"): "dense 1x1, channels last",
    ("sm_86", "fp16"): "depthwise 3x3",
    ("sm_87", "fp16"): "dense 1x1, channels last",
    ("sm_89", "fp16"): "3x3 in 32 groups",
    ("sm_90", "bf16"): "dense 1x1, channels last",
    ("sm_100", "fp16"): "3x3 behind a prologue",
    ("sm_120", "fp16"): "depthwise 3x3",
}


@dataclass(frozen=True)
class ConvConfiguration(Configuration):
    """A convolution kernel for a target; ``quick`` ones are checked by every run of the tests."""

    def source(self) -> KernelSource:
        """The source and constants."""
        return group_conv_source(self.kernel, self.resident)


def read_conv_configurations() -> list[ConvConfiguration]:
    """All configurations, in the order of the file."""
    return [_configuration(line) for line in json.loads(CONFIGURATIONS.read_text())]


def _configuration(line: Mapping[str, Any]) -> ConvConfiguration:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in line["kernel"].items()}
    fields["variants"] = tuple(parse_conv_shape(shape) for shape in fields["variants"])
    kernel = ConvKernel(**fields).to_json()
    return ConvConfiguration(line["name"], line["target"], line["resident"], kernel, line["quick"])


def parse_conv_shape(text: str) -> ConvVariant:
    """The inverse of ``ConvVariant.describe``."""
    found = _SHAPE.fullmatch(text)
    assert found is not None, text
    path, *sizes = found.groups()
    return ConvVariant(path, *map(int, sizes))


def planned_lines() -> Iterator[dict[str, Any]]:
    """What plans of the layers ask for, and what else they choose from, as lines of the file."""
    for target, element in _EVERY:
        yield from (_planned(target, element, layer) for layer in LAYERS)
    yield from _catalogued(*_EVERY[-1])
    for target, element in _OTHERS:
        yield from (_planned(target, element, layer) for layer in _FEW)


def _catalogued(target: str, element: Element) -> Iterator[dict[str, Any]]:
    """Every shape that `profile` measures, in the kernel that it is measured in."""
    gpu = load_target(target).need_gpu_profile()
    for request in tile_requests(gpu, catalogue(gpu, [element], ["conv"])):
        (variant,) = conv_variants(request.kernel)
        line = _line(f"{request.id} on {target}", target, request.resident, request.kernel)
        # Short and long parts have one kernel.
        if request.id.endswith(f"x{variant.inputs}"):
            yield line


def _planned(target: str, element: Element, layer: str) -> dict[str, Any]:
    wish = LAYERS[layer]
    work = made_work(wish)
    links, pixels = links_of(work), wish.images * prod(work.output_size)
    cost = GroupConvCost.of(load_target(target).need_gpu_profile(), prod(wish.kernel), pixels, element)
    # Plans read a site's connections and its node's name, for messages, only.
    site = find_convolutions(view(convolution_grouped.resnext().model, batch=1))[0][0]
    (schedule,) = plan_group_conv(site, links, cost, objective="time", element=element, moved_bytes=1e6)
    kernel = conv_tables(work, schedule, images=wish.images).kernel.to_json()
    quick = _QUICK.get((target, element)) == layer
    return _line(f"{layer} in {element} on {target}", target, schedule.resident, kernel, quick)


def _line(name: str, target: str, resident: int, kernel: Mapping[str, Any], quick: bool = False) -> dict[str, Any]:
    fields = {field: value for field, value in kernel.items() if field != "split"}
    fields["variants"] = [variant.describe() for variant in conv_variants(kernel)]
    return {"name": name, "target": target, "resident": resident, "quick": quick, "kernel": fields}


def main() -> int:
    """Write the golden figures of the installed compiler and, with ``--plan``, the configurations before."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--plan", action="store_true", help="plan the layers anew")
    parser.add_argument("--cache", type=Path, help="a folder for compiled kernels, to go on after an interruption")
    options = parser.parse_args()
    if options.plan:
        lines = ",\n".join(json.dumps(line) for line in planned_lines())
        CONFIGURATIONS.write_text(f"[\n{lines}\n]\n")
    measured, failed = measure(read_conv_configurations(), options.cache)
    write_ceilings(measured, CEILINGS)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

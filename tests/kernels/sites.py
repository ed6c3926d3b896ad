"""Sites made up for tests of kernels, each with one thing that a graph may ask for."""

from __future__ import annotations

from onnxopt.discover.attention_site import EmptyRow
from tests.plan.sites import Wish

_SIZES = {"heads": 2, "rows": 37, "keys": 83, "width": 32, "value_width": 32}

WISHES = {
    "plain": Wish(**_SIZES),  # type: ignore[arg-type]
    "biased": Wish(**_SIZES, bias=True),  # type: ignore[arg-type]
    "own patterns": Wish(**_SIZES, own_patterns=True),  # type: ignore[arg-type]
    "repeated keys": Wish(**_SIZES, most=3),  # type: ignore[arg-type]
    "phantoms": Wish(**_SIZES, phantoms=True),  # type: ignore[arg-type]
    "scattered": Wish(**_SIZES, scattered=True, packed=False),  # type: ignore[arg-type]
    "grouped heads": Wish(**_SIZES, grouped=True),  # type: ignore[arg-type]
    "repeated results": Wish(**_SIZES, repeats=True),  # type: ignore[arg-type]
    "rows without keys": Wish(**_SIZES, empty=EmptyRow.NAN),  # type: ignore[arg-type]
    "zeros": Wish(**_SIZES, zeros=True),  # type: ignore[arg-type]
    "channels first": Wish(**_SIZES, channels_first=True),  # type: ignore[arg-type]
    "odd widths": Wish(heads=2, rows=37, keys=83, width=20, value_width=12),
}

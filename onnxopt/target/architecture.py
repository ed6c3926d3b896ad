"""The architectures that a target can name, and the GPU that stands for each."""

from __future__ import annotations

from collections.abc import Mapping

ARCHITECTURES: Mapping[str, str] = {
    "sm_75": "T4",
    "sm_80": "A100",
    "sm_86": "A10",
    "sm_87": "Orin",
    "sm_89": "L4",
    "sm_90": "H200",
    "sm_100": "B200",
    "sm_120": "RTX 5090",
    "sm_121": "GB10",
}

# Types that the matrix units of an architecture do not take; from sm_80 on they take fp16, bf16 and tf32.
LACKING_TYPES: Mapping[str, tuple[str, ...]] = {"sm_75": ("bf16", "tf32")}


def plain_name(name: str) -> str:
    """A GPU's name for comparison: lower case, one space between words, without the maker's name."""
    words = name.lower().replace("_", " ").replace("-", " ").split()
    return " ".join(w for w in words if w not in ("nvidia", "geforce", "tesla"))

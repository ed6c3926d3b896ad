"""What a user may choose for a comparison by trtexec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.measure.trtexec import Timing

WAYS = ("launcher", "engine", "portable")
"""How the optimised model runs: with the launcher library, as the engine in the package, or in standard operators."""

_TIMING = ("duration", "warm_up", "iterations", "percentiles")


@dataclass(frozen=True)
class TrtexecOptions:
    """What a user may choose: program, way, launcher library, batches, times, and where files are kept.

    ``timeout`` is in seconds for each run. ``keep`` is a folder for engines, logs and JSON files; without it they are
    gone afterwards.
    """

    program: Path | None = None
    way: str | None = None
    launcher: Path | None = None
    batch: int = 1
    max_batch: int | None = None
    timing: Timing = field(default_factory=Timing)
    timing_cache: Path | None = None
    timeout: float = 3600.0
    keep: Path | None = None


def chosen_options(given: Mapping[str, Any]) -> TrtexecOptions:
    """The options with what a user gave by name; those of :class:`Timing` among them, percentiles as ``50,99``.

    Raises InputError for a value that is not allowed.
    """
    timing = {name: given[name] for name in _TIMING[:3] if name in given}
    if "percentiles" in given:
        try:
            timing["percentiles"] = tuple(float(part) for part in str(given["percentiles"]).split(","))
        except ValueError:
            raise InputError(f"the percentiles are '{given['percentiles']}'; allowed: numbers such as 50,99") from None
    if not given.get("timeout", 1) > 0:
        raise InputError(f"the timeout is {given['timeout']} s; allowed: more than 0")
    rest = {name: value for name, value in given.items() if name not in _TIMING}
    return TrtexecOptions(timing=Timing(**timing), **rest)

"""Where the cache lives unless the caller names another place."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

EMULATED = "emulated"
"""The folder of the cache for kernels that were compiled for the CPU."""

_FOLDER = "onnxopt"


def default_cache_dir(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The user's cache folder for this program; nothing is created.

    ``XDG_CACHE_HOME`` where it is an absolute path (the XDG base directory specification says to ignore
    others), else ``~/Library/Caches`` on macOS, ``LOCALAPPDATA`` on Windows and ``~/.cache`` elsewhere.
    """
    environment = os.environ if environment is None else environment
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / _FOLDER
    local = Path(environment.get("LOCALAPPDATA", ""))
    if platform == "win32" and local.is_absolute():
        return local / _FOLDER
    home = Path(environment["HOME"]) if environment.get("HOME") else Path.home()
    return home / ("Library/Caches" if platform == "darwin" else ".cache") / _FOLDER

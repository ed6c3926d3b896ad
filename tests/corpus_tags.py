"""The models of the corpus by name, for tests that take each of them."""

from __future__ import annotations

import json
from pathlib import Path


def every_tag() -> list[str]:
    """The tags of all models; none where the corpus is missing."""
    manifest = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "manifest.json"
    return sorted(json.loads(manifest.read_text())["models"]) if manifest.is_file() else []

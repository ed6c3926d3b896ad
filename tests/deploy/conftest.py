"""What the tests of the launcher library have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.launcher_cases import built_launcher


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built with what calls it in tests."""
    return built_launcher(tmp_path_factory.getbasetemp())

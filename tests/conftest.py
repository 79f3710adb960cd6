"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a folder of real images by name, or skips the test where it is absent."""
    base = Path(os.environ.get("TWOFOLD_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (base / name).is_dir():
            pytest.skip(f"the images of {name!r} are not here (set TWOFOLD_TEST_DATA to their folder)")
        return base / name

    return find


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed data goes to one folder per test session, never to the user's cache."""
    monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))

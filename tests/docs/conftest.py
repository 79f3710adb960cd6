"""What stands in for the images and runs of the pages, made once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from . import stand_ins


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every page's commands run in a copy of."""
    folder = tmp_path_factory.mktemp("documentation") / "prepared"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("twofold.learn.loop.PREVIEWS", 4)
        stand_ins.prepare(folder, contextlib.chdir)
    return folder

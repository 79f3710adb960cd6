"""What stands in for the images and runs of the pages, made once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from . import stand_ins


@pytest.fixture(autouse=True)
def _nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run says what it always does, with made-up sizes: what it counts is tested in learn/test_room.py, and that
    it does in cli/test_verbs.py, test_fewlabel.py and test_distill.py."""
    monkeypatch.setattr("twofold.learn.estimate._forward_flops", lambda *about: 10**6)
    monkeypatch.setattr("twofold.learn.estimate.measure_flops_per_second", lambda device: 1e9)
    monkeypatch.setattr("twofold.learn.needs.step_bytes", lambda *about, **how: 10**6)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every page's commands run in a copy of."""
    folder = tmp_path_factory.mktemp("documentation") / "prepared"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        stand_ins.prepare(folder, contextlib.chdir)
    return folder

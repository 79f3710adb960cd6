"""Of several processes that make the same mistake the first one tells it, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from twofold.cli import ranks
from twofold.cli.main import main

MISTAKE, TOLD = ["train", "digit"], "digit: no such preset; did you mean 'digits'?"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[TCPStore]:
    """As torchrun keeps one for two processes."""
    kept = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    around = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(kept.port)}
    for name, value in {**around, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    yield kept


def said_by(rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a process of this rank says of its mistake; every one of them ends alike."""
    monkeypatch.setenv("RANK", str(rank))
    assert main(MISTAKE) == 2
    return capsys.readouterr().err


def test_the_first_tells_and_others_leave_quietly(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said_by(0, monkeypatch, capsys) == f"twofold: error: {TOLD}\n"
    assert said_by(1, monkeypatch, capsys) == ""


def test_a_mistake_of_one_process_alone_is_told(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "PATIENCE", timedelta(seconds=0.3))
        assert said_by(1, monkeypatch, capsys) == f"twofold: error: process 1: {TOLD}\n"  # the first one makes none
    store.set(ranks.KEY, "another mistake")
    assert said_by(1, monkeypatch, capsys) == f"twofold: error: process 1: {TOLD}\n"


@pytest.mark.parametrize("variable", ["TORCHELASTIC_USE_AGENT_STORE", "MASTER_PORT"])
def test_without_a_store_everybody_tells(
    variable: str, store: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(variable)
    assert said_by(0, monkeypatch, capsys) == f"twofold: error: {TOLD}\n"
    assert said_by(1, monkeypatch, capsys) == f"twofold: error: process 1: {TOLD}\n"

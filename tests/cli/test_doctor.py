"""The doctor's facts, on whatever machine this is and on some it is not."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from twofold import machine
from twofold.cli import doctor
from twofold.cli.main import main


def test_it_says_what_is_here_and_ends_with_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("Ready")
    for name in ("twofold", "system", "processor", "cores", "memory", "torch", "cpu", "will be used", "disk for runs"):
        assert any(line.startswith(name) for line in lines), name
    assert any(torch.__version__ in line for line in lines)
    assert not any(line.startswith("hub") for line in lines)  # never asks the network unless told to


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ready"] and said["missing"] == [] and said["verdict"].startswith("Ready")
    assert {"twofold", "memory", "will be used"} <= said["found"].keys()


def test_what_fits_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same room holds fewer large images at a time than small ones, and none where there is hardly any."""
    rows = dict(doctor.what_fits(6 * 2**30))
    assert rows["images-32"].startswith("all of the 128 images") and "fits" in rows
    size = int(rows["images-64"].partition("micro_batch=")[2].split()[0])
    assert 1 <= size < 128
    monkeypatch.setattr(doctor, "FITS", ("images-64",))
    assert dict(doctor.what_fits(2**20))["images-64"].startswith("not even one image at a time")


def test_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor.importlib.util.find_spec

    def find(name: str) -> Any:
        return None if name in ("torch", "PIL", "tensorboard") else found(name)

    monkeypatch.setattr(doctor.importlib.util, "find_spec", find)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert text.endswith("Not ready: torch, pillow missing. Get it with: pip install torch pillow\n")
    assert "pip install 'twofold[tensorboard]'" in text


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "disk_free", lambda path: 1000)
    monkeypatch.setattr(doctor, "memory", lambda: (2**30, 2**29))
    assert main(["doctor"]) == 0
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("Ready, but: little memory")
    assert "little room for runs" in verdict


def test_a_containers_memory_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is free is the limit without what is used, but for the files in it that would make room."""
    everything, _ = machine.memory()
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    limit.write_text(f"{2**28}\n")
    monkeypatch.setattr(machine, "CGROUP_MEMORY", (str(limit),))
    monkeypatch.setattr(machine, "CGROUP_USED", (str(used),))
    assert machine.memory() == (2**28, 2**28)
    used.write_text(f"{2**27}\n")
    assert machine.memory() == (2**28, 2**27)
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**20}\nactive_file 7\n")
    assert machine.memory() == (2**28, 2**27 + 2**20)
    limit.write_text("max\n")
    assert machine.memory()[0] == everything


def test_the_processors_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nmodel name\t: X 9000\nflags\t\t: fpu avx512_bf16 amx_bf16\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert machine.processor() == ("X 9000", {"fpu", "avx512_bf16", "amx_bf16"})
    assert "avx512_bf16, amx_bf16" in dict(doctor.machine())["processor"]


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert doctor.disk_free(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (urllib.error.URLError("no route"), (False, "not reachable (no route)")),
        (TimeoutError("timed out"), (False, "not reachable (timed out)")),
        (urllib.error.HTTPError("u", 405, "no", None, None), (True, "reachable (it answers 405)")),  # type: ignore[arg-type]
    ],
)
def test_the_hub(monkeypatch: pytest.MonkeyPatch, answer: Exception, expected: tuple[bool, str]) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise answer

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    assert doctor.hub() == expected

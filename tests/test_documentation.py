"""The README's Python runs, and the presets that pages name exist; commands are run by tests/docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from twofold.cli.main import main
from twofold.settings.presets import DISTILL, preset_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["network.channels=8", "network.blocks=1", "train.n_images=128", "train.batch_size=64"]
    words += ["validation.samples=0", "train.preview_images=1000000", "train.log_images=64"]
    assert main(["train", "digits", *words, "--out", "runs/demo/digits", "--quiet"]) == 0
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_presets_in_the_readme_exist() -> None:
    listed = README.split("## Presets")[1].split("##")[0]
    names = set(re.findall(r"`([a-z0-9][a-z0-9-]*)`", listed))
    assert names == set(preset_names())


def test_presets_of_distillation_in_its_guide_exist() -> None:
    """Each is named, or one of a family `name-*`; commands name one after the teacher."""
    text, names = (ROOT / "docs" / "distill.md").read_text(), preset_names(DISTILL)
    listed = text.split("## Presets")[1].split("##")[0]
    given = re.findall(r"`([a-z0-9-]+\*?)`", text.replace(listed, "")) + re.findall(r"`([a-z0-9-]+\*?)`", listed)
    given = [name for name in given if name in names or re.match(r"(repfusion|kd|classify|segment|landmarks)-", name)]
    given += re.findall(r"twofold distill [^\n=`]*? ([a-z0-9]+-[a-z0-9-]+)\b", text)
    for name in given:
        assert name in names or (name.endswith("*") and any(known.startswith(name[:-1]) for known in names)), name
    families = tuple(name.rstrip("*") for name in given if name.endswith("*"))
    assert all(name in given or name.startswith((*families, "kd-cifar10-r18-")) for name in names)

"""Every command in the documentation runs: with stand-ins for a person's files and runs, and for two steps only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import stand_ins
from .not_run import reason_not_run
from .reading import ROOT, Command, commands, pages
from .running import Failed, run

SLOW = (  # their verbs run on other pages too
    *("docs/guides/joint-diffusion.md", "docs/guides/ddae.md", "docs/guides/dpt.md", "docs/migration/ddae.md"),
    *("docs/metrics.md", "docs/scale.md", "docs/distill.md", "docs/latents.md", "docs/tasks.md", "docs/data.md"),
    *("docs/joint.md", "docs/finetuning.md", "docs/guides/iddm.md", "README.zh.md"),
)
WITH_COMMANDS = [
    pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in pages() if commands(page)
]


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_of(page: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(stand_ins.copied(prepared, tmp_path / "here"))
    wrong = []
    for command in commands(page):
        if reason_not_run(command.text) is None:
            try:
                run(command)
            except Failed as failed:
                wrong.append(str(failed))
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", ["docs/quickstart.md", "docs/concepts/features.md", "docs/joint.md"])
def test_python_of(page: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of Python that need nothing but runs."""
    monkeypatch.chdir(stand_ins.copied(prepared, tmp_path / "here"))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(re.sub(r"runs/joint[\w-]*", "runs/joint", block), page, "exec"), {})


def test_commands_are_found(tmp_path: Path) -> None:
    """In fences of a shell, in other fences and indented; continued, piped and commented lines."""
    text = """
    twofold train digits \\
        train.lr=1e-3 "label=a;b"   # a comment

```bash
# nothing
VARIABLE=1 twofold sample RUN n=3 | head -3 && ls > file
```
```
tree/
twofold runs
```
twofold is a word here.
"""
    found = [command.text for command in commands("page.md", text)]
    assert found == [
        "twofold train digits train.lr=1e-3 label=a;b",
        "twofold sample RUN n=3",
        "head -3",
        "ls",
        "twofold runs",
    ]


def test_what_is_neither_run_nor_listed_fails() -> None:
    with pytest.raises(Failed, match="neither run nor in NOT_RUN"):
        run(Command("page.md", 1, ("rsync", "a", "b")))

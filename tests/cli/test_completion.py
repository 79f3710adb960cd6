"""What the Tab key offers: real shells run the scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from twofold.cli.completion import entries, script
from twofold.cli.main import VERBS, main
from twofold.settings.presets import preset_names

DRIVER = r"""
source "$1"
compopt() { :; }
while IFS= read -r line; do
  COMP_LINE="$line" COMP_POINT=${#line} COMPREPLY=()
  IFS=' =' read -ra COMP_WORDS <<< "$line"
  [[ "$line" == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  _twofold
  printf '%s\t' "${COMPREPLY[@]}"
  echo
done
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a script for each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(script(shell))
    (folder / "driver.sh").write_text(DRIVER)
    return folder


def offered(scripts: Path, *lines: str) -> list[list[str]]:
    """What bash offers at the end of each of these lines, in a folder with a run and a file."""
    where = scripts / "here"
    (where / "runs" / "a").mkdir(parents=True, exist_ok=True)
    (where / "ruler.yaml").touch()
    command = ["bash", "--norc", str(scripts / "driver.sh"), str(scripts / "bash")]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=where, check=True)
    assert done.stderr == ""
    return [[word for word in line.split("\t") if word] for line in done.stdout.splitlines()]


@pytest.mark.skipif(not shutil.which("bash") or not shutil.which("awk"), reason="no bash or awk here")
def test_bash(scripts: Path) -> None:
    asked = {
        "twofold ": list(VERBS),
        "twofold tr": ["train"],
        "twofold train images-": [name for name in preset_names() if name.startswith("images-")],
        "twofold train digits trai": ["train."],
        "twofold train digits train.pre": None,
        "twofold train digits train.precision=": ["auto", "fp32", "bf16", "fp16"],
        "twofold train digits train.precision=f": ["fp32", "fp16"],
        "twofold train digits data.flip=": ["true", "false"],
        "twofold train digits network.kind=di": ["dit"],
        "twofold train digits network=di": ["dit"],
        "twofold train digits --dr": ["--dry-run"],
        "twofold sample runs/": ["runs/a/"],
        "twofold sample ru": ["runs/", "ruler.yaml"],
        "twofold data pa": ["pack", "padding=", "pair_column="],
        "twofold sample sampler=": [],
        "twofold nosuchverb x": [],
        "twofold completion ": ["bash", "zsh", "fish"],
    }
    found = dict(zip(asked, offered(scripts, *asked), strict=True))
    assert "train.precision=" in found["twofold train digits train.pre"]
    assert all(word.startswith("train.pre") for word in found["twofold train digits train.pre"])
    for line, expected in asked.items():
        assert expected is None or sorted(found[line]) == sorted(expected), line


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_candidates_of_other_shells(scripts: Path, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    before = "compdef() { : }; " if shell == "zsh" else ""
    text = f"{before}source {scripts / shell}; _twofold_candidates train train.precision=f"
    done = subprocess.run([shell, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["train.precision=fp32", "train.precision=fp16"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_stands_in_quotes_needs_none(scripts: Path, shell: str) -> None:
    """The table is the same text in every shell's single quotes."""
    lines = list(entries())
    assert not [line for line in lines if re.search(r"['\\]", line)]
    text = (scripts / shell).read_text()
    assert all(f"'{line}'" in text for line in lines[::50])


def test_the_verb_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 0
    assert capsys.readouterr().out.startswith("# completion of `twofold` for fish")
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err

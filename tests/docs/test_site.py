"""The site builds without a warning, its generated page is current, and what it names exists."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import twofold
from twofold.cli.main import VERBS, build_parser, settings_model
from twofold.settings.shape import settings_of
from twofold.settings.train import TrainSettings

from .reading import ROOT, pages

DOCS = ROOT / "docs"
GROUPS = r"(train|network|noise|objective|validation|data|codec|lora)"


NAMING_SETTINGS = [  # the page on troubleshooting names what does not exist
    page for page in pages() if "troubleshooting" not in page and re.search(rf"`{GROUPS}\.", (ROOT / page).read_text())
]


def test_choose_a_preset_is_current() -> None:
    made = runpy.run_path(str(DOCS / "make_presets.py"))["page"]()
    assert (DOCS / "presets.md").read_text() == made, "presets have changed: run `python docs/make_presets.py`"


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.parent.name != "decisions"}
    assert not there - listed, "add it to `nav` in mkdocs.yml"
    assert listed - there <= {"benchmarks.md", "contributing.md"}


def test_the_reference_has_every_public_name() -> None:
    named = set(re.findall(r"^::: twofold\.(\w+)$", (DOCS / "api.md").read_text(), re.M))
    assert named == set(twofold.__all__) - {"__version__"}


def _anchors(path: Path) -> set[str]:
    """Names of the headings of a page, as the site and the repository's viewer make them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor[1:] in _anchors(path), f"{page}: {target}{anchor}"


def _known_settings() -> set[str]:
    """Paths of every setting of every verb, and of training with each kind of network, noise and objective."""
    import importlib

    found: set[str] = set()
    for module, _ in VERBS.values():
        model = settings_model(importlib.import_module(f"twofold.cli.{module}"))
        found |= {path for path, _ in settings_of(model)} if model is not None else set()
    return found | {path for path, _ in settings_of(TrainSettings)}


def _settings_named(text: str) -> Iterator[str]:
    """Paths such as train.lr within `code` of a text, without their values."""
    text = re.sub(r"^\|[^|]*\|(?=[^|\n]*\|$)", "|", text, flags=re.M)  # tables of two columns: there | here
    for span in re.findall(r"`([^`\n]+)`", text):
        yield from re.findall(rf"(?<![\w./-])({GROUPS}(?:\.[a-z_]+)+)(?=[=\s,;.]|$)", span)


@pytest.mark.parametrize("page", NAMING_SETTINGS)
def test_settings_that_pages_name_exist(page: str) -> None:
    known = _known_settings()
    named = {path for path, _ in _settings_named((ROOT / page).read_text())}
    named = {
        path
        for path in named
        if path.rpartition(".")[2] not in ("json", "csv", "safetensors", "png", "npz", "npy", "yaml", "py")
    }
    missing = {path for path in named if path not in known and not any(key.startswith(path + ".") for key in known)}
    assert not missing, f"{page}: no such settings: {', '.join(sorted(missing))}"


def test_verbs_have_a_parser() -> None:
    """Each verb is in the table of commands of the README."""
    import importlib

    table = (ROOT / "README.md").read_text().split("## Commands")[1].split("\n## ")[0]
    for name, (module, _) in VERBS.items():
        assert f"`twofold {name}" in table, name
        build_parser(name, importlib.import_module(f"twofold.cli.{module}"))


def test_the_site_loads_nothing_from_elsewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "http" not in settings and yaml.safe_load(settings)["theme"]["font"] is False


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = (tmp_path / "site/api.html").read_text()
    assert all(f'id="twofold.{name}"' in made or f".{name}" in made for name in twofold.__all__[1:])
    scripts = [
        text
        for path in (tmp_path / "site").rglob("*.html")
        for text in re.findall(r"<(?:script|link)[^>]*>", path.read_text())
    ]
    assert not [tag for tag in scripts if re.search(r'(src|href)="https?:', tag) and 'rel="canonical"' not in tag]

"""The page: valid and self-contained, escaped, honest about what is missing, and atomic."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twofold.measure.quality import MEANINGS
from twofold.report.page import Criterion, Neighbours, Report, Trajectory, draw, render, shown, write_report

EVIL = "<script>alert('1')</script> & \"quotes\""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every tag closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)


def full() -> Report:
    log: list[dict[str, Any]] = [{"kind": "train", "n_images": 100 * i, "loss": 1 / i} for i in range(1, 30)]
    log += [{"kind": "validation", "n_images": 1000, "loss": 0.5, "frechet": 3.0}]
    return Report(
        title=f"run {EVIL}",
        summary=f"summary {EVIL}",
        criteria=[
            Criterion("Distance", "0.16", "at most 0.20", True, "How far."),
            Criterion(EVIL, EVIL, EVIL, False, EVIL),
            Criterion("Unjudged", "7"),
        ],
        log=log,
        over_time=[(1000 * i, images(12, i)) for i in range(1, 20)],
        samples=images(80),
        sample_classes=[("cat", EVIL)[i % 2] for i in range(80)],
        real=torch.from_numpy(images(9, 5)),
        trajectory=Trajectory(np.stack([images(6, i) for i in range(20)]), list(np.linspace(80, 0.1, 20))),
        classes={"cat": {"samples": 0.25, "real": 0.5, "acceptance": 1.0}, EVIL: {"samples": 0.75, "real": 0.5}},
        neighbours=Neighbours(images(5), images(5, 1), [0.1, 0.2, 0.3, 0.4, 0.5]),
        metrics={
            "frechet/pixels": {"samples": 0.1234, "real": 0.1, "gaussian": 0.2, "interval": [0.12, 0.13]},
            "acceptance": {"samples": 0.912, "real": 0.94, "gaussian": 0.4, "interval": [0.9, 0.93]},
            "class_share_gap": {"samples": 2.125, "real": 1.0},
            "agreement": {"samples": 0.9},
            EVIL: {"samples": 3},
        },
        metrics_note=f"note {EVIL}",
        meanings={EVIL: f"meaning {EVIL}"},
        settings=f"data:\n  source: {EVIL}\n",
        command=f"twofold train digits {EVIL}",
        data={"name": EVIL, EVIL: 1797},
        machine={"cores": 2},
        versions={"torch": EVIL},
        notes=[f"end {EVIL}"],
    )


def written(content: Report, folder: Path) -> Page:
    return Page(write_report(folder, content).read_text("utf-8"))


def test_everything_is_in_one_file(tmp_path: Path) -> None:
    page = written(full(), tmp_path)
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}, tag
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), value
    assert "url(" not in page.text and "@import" not in page.text and "http" not in page.text
    for image in page.all("img"):
        raw = base64.b64decode((image["src"] or "").split(",")[1], validate=True)
        assert raw.startswith(b"\x89PNG")


def test_the_page_is_proper_html(tmp_path: Path) -> None:
    text = write_report(tmp_path, full()).read_text("utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}] and page.all("meta")[0] == {"charset": "utf-8"}
    assert "width=device-width" in (page.all("meta")[1]["content"] or "")
    assert len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in page.all("a")]
    assert links == [f"#{one}" for one in ids]
    assert all(s["aria-labelledby"] in ids for s in page.all("section"))
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert "prefers-color-scheme: dark" in text


def test_every_picture_says_what_it_shows(tmp_path: Path) -> None:
    page = written(full(), tmp_path)
    pictures = page.all("img")
    assert len(pictures) == 7 + 2  # sections, and a strip for each class
    for image in pictures:
        assert len(image["alt"] or "") > 10
        assert int(image["width"] or 0) > 0 and int(image["height"] or 0) > 0
    alts = " ".join(image["alt"] or "" for image in pictures)
    assert "training loss from 1 to 0.0345" in alts and "held-out loss from 0.5 to 0.5" in alts
    assert "Grid of 60 generated images" in alts and "Grid of 9 real images" in alts


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    text = write_report(tmp_path, full()).read_text("utf-8")
    assert "<script" not in text and "alert('1')" not in text
    seen = Page(text).text.count(EVIL)
    # title 2, summary, criterion 4, class, metric's meaning, note, settings, command, data 2, version, end
    assert seen == 2 + 1 + 4 + 1 + 1 + 1 + 1 + 1 + 2 + 1 + 1


def test_verdict_counts_and_says_states_in_words(tmp_path: Path) -> None:
    page = written(full(), tmp_path)
    assert "1 of 2 criteria are met." in page.text
    assert "✓ met" in page.text and "✗ missed" in page.text
    states = [attrs.get("class") for attrs in page.all("li") if "class" in attrs]
    assert states == ["passed", "missed", ""]
    good = dataclasses.replace(full(), criteria=[Criterion("a", "1", "2", True)] * 3)
    assert "All 3 criteria are met." in written(good, tmp_path).text
    unjudged = dataclasses.replace(full(), criteria=[Criterion("a", "1")])
    assert "criteria are met" not in written(unjudged, tmp_path).text


def test_metrics_are_written_for_people(tmp_path: Path) -> None:
    text = written(full(), tmp_path).text
    for words in ("0.123", "0.12 to 0.13", "91.2 %", "90.0 % to 93.0 %", "2.1 points", "Fréchet distance (pixels)"):
        assert words in text
    assert " ".join(MEANINGS["frechet"].split()) in text and MEANINGS["acceptance"] in text
    assert shown("precision/pixels", 1) == "100.0 %" and shown("nearest_median", 2.5) == "2.5"


ALL = [
    "Verdict",
    "Loss",
    "Samples over training time",
    "Generated beside real images",
    "From noise to image",
    "Per class",
    "Nearest training images",
    "All metrics",
    "Settings",
    "How to reproduce",
    "Data",
    "Machine and versions",
]
SECTIONS = {
    "criteria": "Verdict",
    "log": "Loss",
    "over_time": "Samples over training time",
    "trajectory": "From noise to image",
    "neighbours": "Nearest training images",
    "metrics": "All metrics",
    "settings": "Settings",
    "command": "How to reproduce",
    "data": "Data",
}


def headings(page: Page) -> list[str]:
    return [text for level, text in page.headings if level == 2]


def test_all_sections_in_order(tmp_path: Path) -> None:
    assert headings(written(full(), tmp_path)) == ALL


@pytest.mark.parametrize(("name", "heading"), SECTIONS.items())
def test_a_section_without_data_vanishes_alone(name: str, heading: str, tmp_path: Path) -> None:
    nothing: dict[str, Any] = {name: getattr(Report("defaults"), name)}
    page = written(dataclasses.replace(full(), **nothing), tmp_path)
    assert headings(page) == [one for one in ALL if one != heading]


def test_images_of_one_kind_only(tmp_path: Path) -> None:
    ours = dataclasses.replace(full(), real=None)
    real = dataclasses.replace(full(), samples=None, sample_classes=None, classes={})
    assert "Generated images" in headings(written(ours, tmp_path))
    assert "Real images" in headings(written(real, tmp_path))
    assert "Per class" not in headings(written(real, tmp_path))


def test_classes_without_a_classifier_show_their_images(tmp_path: Path) -> None:
    page = written(dataclasses.replace(full(), classes={}), tmp_path)
    assert "Per class" in headings(page) and "Share generated" not in page.text
    assert sum("of class cat" in (image["alt"] or "") for image in page.all("img")) == 1


def test_a_title_is_enough(tmp_path: Path) -> None:
    page = written(Report("empty"), tmp_path)
    assert headings(page) == [] and page.all("img") == [] and "empty" in page.text


def test_large_images_make_few_columns() -> None:
    large = np.zeros((40, 3, 256, 256), np.uint8)
    png = draw(Report("large", samples=large))["samples"]
    assert int.from_bytes(png[16:20], "big") == 3 * 256 + 2 * 4


def test_pictures_are_kept_as_files_too(tmp_path: Path) -> None:
    write_report(tmp_path, full())
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"{name}.png" for name in draw(full())}
    assert (tmp_path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_content_gives_the_same_bytes() -> None:
    assert render(full(), draw(full())) == render(full(), draw(full()))


def test_interrupted_writing_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(tmp_path, Report("old"))
    before = path.read_bytes()

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, Report("new"))
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "report.html"]


def test_mistakes_leave_the_old_page(tmp_path: Path) -> None:
    path = write_report(tmp_path, Report("old"))
    before = path.read_bytes()
    for wrong in (
        dataclasses.replace(full(), samples=np.zeros((2, 1, 8, 8))),
        dataclasses.replace(full(), sample_classes=["a"]),
        dataclasses.replace(full(), neighbours=Neighbours(images(2), images(1), [1.0, 2.0])),
    ):
        with pytest.raises(ValueError):
            write_report(tmp_path, wrong)
    assert path.read_bytes() == before

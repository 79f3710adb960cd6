"""Which masks and key points are learned from, and what is said of those that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from twofold.data import Item, Store, open_store
from twofold.data.annotated import annotated_note, annotated_rows
from twofold.data.describe import notes
from twofold.errors import UserError
from twofold.learn.batches import U_FLIP, Batches
from twofold.settings.data import DataSettings
from twofold.settings.faces import MIRRORED
from twofold.settings.resolve import parse_assignments, resolve

from .conftest import pixels
from .test_packing import packed

Put = Callable[..., Path]


def points_of(i: int) -> np.ndarray:
    return np.array([[i % 6, i % 4], [0, 0]], np.float32)


def given_items(n: int = 40, hidden: tuple[int, ...] = (), points: bool = True) -> list[Item]:
    """Images of 4x6 with two points each; those of the hidden ones are elsewhere."""
    found = []
    for i in range(n):
        where = points_of(i + 7 if i in hidden else i) if points else None
        mask = (pixels(i + 100 * (i in hidden), 4, 6) % 3) if not points else None
        found.append(Item(str(i), pixels(i, 4, 6), 0, None, None, None, mask, where))
    return found


@given(st.integers(0, 9), st.lists(st.one_of(st.integers(1, 28), st.floats(0.01, 0.99)), min_size=2, max_size=4))
def test_fewer_are_among_more(seed: int, wanted: list[float]) -> None:
    class Faces:
        masks, points, n_own = None, np.zeros((60, 1, 2), np.float32), 50
        codes = np.array(([0] * 3 + [1, 2]) * 12)

        def __init__(self, annotated: float | None) -> None:
            self.settings = DataSettings(source="x", annotated=annotated, labels_seed=seed)

    Faces.points[:2] = np.nan  # these have none, and the rows from 50 on are those of data.unlabelled
    train, rest = (np.flatnonzero(code) for code in (Faces.codes == 0, Faces.codes != 0))
    known = [row for row in train if 2 <= row < 50]
    assert annotated_rows(Faces(None), train).tolist() == known
    chosen = [(annotated_rows(Faces(k), train), k if isinstance(k, int) else max(1, round(28 * k))) for k in wanted]
    for rows, count in chosen:
        assert len(rows) == count and set(rows.tolist()) <= set(known) and (np.diff(rows) > 0).all()
    smaller, larger = sorted((rows for rows, _ in chosen[:2]), key=len)
    assert set(smaller.tolist()) <= set(larger.tolist())
    held_out = [row for row in rest if row < 50]
    assert annotated_rows(Faces(wanted[0]), rest).tolist() == held_out  # nothing is taken from validation and test
    together = annotated_rows(Faces(wanted[0]), np.arange(60)).tolist()
    assert together == sorted([*held_out, *chosen[0][0].tolist()])


def test_another_seed_chooses_others(tmp_path: Path) -> None:
    store = packed(given_items(), tmp_path / "x")
    again = {s: Store(store.folder, DataSettings(source="given", annotated=5, labels_seed=s)) for s in (0, 1)}
    assert set(again[0].annotated_rows().tolist()) != set(again[1].annotated_rows().tolist())


@pytest.mark.parametrize("kind", ["points", "mask"])
def test_what_is_hidden_changes_no_batch(tmp_path: Path, kind: str) -> None:
    """With other masks or points for the images that are not annotated, training sees the same, bit for bit."""
    values = {"annotated": 0.25, "validation_share": 0.0, "test_share": 0.0}
    facts = {"points": 2, "flip_pairs": [[0, 1]]} if kind == "points" else {}
    first = packed(given_items(points=kind == "points"), tmp_path / "x", facts, **values)
    chosen = first.annotated_rows().tolist()
    assert len(chosen) == 10
    hidden = tuple(i for i in range(40) if i not in chosen)
    second = packed(given_items(hidden=hidden, points=kind == "points"), tmp_path / "y", facts, **values)
    array = {"points": (first.points, second.points), "mask": (first.masks, second.masks)}[kind]
    assert array[0] is not None and not np.array_equal(*array)
    seen = []
    for store in (first, second):
        batches = Batches(store, store.indices("train"), 0, 4, False, True, belongings=[kind])
        assert batches.rows.tolist() == chosen
        seen.append(batches.make(0, 60))
    for name in ("images", "label", "uniforms", kind):
        assert torch.equal(getattr(seen[0], name), getattr(seen[1], name))
    everyone = Batches(first, first.indices("train"), 0, 4, False, True)  # who needs none, learns from all images
    assert len(everyone.rows) == 40


def test_classes_of_a_left_and_a_right_part_change_places_in_a_mirror(tmp_path: Path) -> None:
    items = [Item(str(i), pixels(i, 4, 6), 0, None, mask=pixels(50 + i, 4, 6) % 5) for i in range(8)]
    facts = {"mask_classes": list("abcde"), "mask_flip_pairs": [[1, 2], [3, 4]]}
    store = packed(items, tmp_path / "x", facts, validation_share=0.0, test_share=0.0)
    plain, mirrored = (Batches(store, np.arange(8), 0, 4, False, flip, belongings=["mask"]) for flip in (False, True))
    before, after = plain.make(0, 16), mirrored.make(0, 16)
    turned = before.uniforms[:, U_FLIP] < 0.5
    assert 3 < turned.sum() < 13 and before.mask is not None and after.mask is not None
    assert torch.equal(before.mask[~turned], after.mask[~turned])
    exchanged = torch.tensor([0, 2, 1, 4, 3], dtype=torch.uint8)[before.mask[turned].long()].flip(-1)
    assert torch.equal(after.mask[turned], exchanged)
    assert torch.equal(after.images[turned], before.images[turned].flip(-1))
    store.meta["facts"]["mask_flip_pairs"] = [[1, 5]]
    (store.folder / "meta.json").write_text(json.dumps(store.meta))
    with pytest.raises(UserError, match="^data.mask_flip_pairs: class 5 is not one of 5, or in two pairs; list pairs"):
        Store(store.folder, store.settings)


def test_what_is_said(tmp_path: Path) -> None:
    store = packed(given_items(), tmp_path / "x", validation_share=0.0, test_share=0.0, annotated=10)
    assert notes(store) == ["10 of 40 training images are annotated (data.annotated=10, data.labels_seed=0)"]
    assert annotated_note(store, store.annotated_rows()) == " (annotated, of 40)"
    assert annotated_note(store, store.indices("train")) == ""
    digits = open_store(DataSettings(source="digits", annotated=0.5))
    with pytest.raises(UserError, match="^data.annotated=0.5: no training image of digits has a mask or key points; "):
        digits.annotated_rows()
    with pytest.raises(UserError, match="^data=digits: no image to learn from has a mask or key points; "):
        open_store(DataSettings(source="digits")).annotated_rows()
    many = Store(store.folder, store.settings.model_copy(update={"annotated": 41}))
    with pytest.raises(UserError, match="^data.annotated=41: 40 training images have a mask or key points; ask for at"):
        many.annotated_rows()
    for value in (0, 1.5, 1.0, -3):
        with pytest.raises(ValidationError, match="neither a share between 0 and 1 nor a whole number of images"):
            DataSettings(source="x", annotated=value)


# -- points outside ----------------------------------------------------------------------------------------------------


def outside_items() -> list[Item]:
    items = given_items(4)
    items[1] = items[1]._replace(points=np.array([[5.4, 3.4], [5.6, 0]], np.float32))  # 4x6 pixels: to 5.5 and 3.5
    items[2] = items[2]._replace(points=np.array([[np.nan, np.nan], [-1, -2]], np.float32))
    return items


def test_points_outside_their_image(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        packed(outside_items(), tmp_path / "a")
    assert str(caught.value) == (
        "data=given: 1: cannot be read: its point 1 (5.6, 0) is outside its 4x6 pixels (height x width); "
        "data.points_outside=missing leaves such points out, keep keeps them; "
        "repair or remove it, or set data.on_bad_image=skip"
    )
    skipped = packed(outside_items(), tmp_path / "b", on_bad_image="skip")
    assert [skipped.id(i) for i in range(len(skipped))] == ["0", "3"]
    assert [bad["id"] for bad in skipped.meta["bad_images"]] == ["1", "2"]
    assert skipped.meta["bad_images"][1]["reason"].startswith("its point 1 (-1, -2) is outside")


@pytest.mark.parametrize("rule", ["missing", "keep"])
def test_points_outside_may_be_left_out_or_kept(tmp_path: Path, rule: str) -> None:
    for place, (facts, values) in {
        "set": ({}, {"points_outside": rule}),
        "fact": ({"points_outside": rule}, {}),
    }.items():
        store = packed(outside_items(), tmp_path / place, facts, **values)
        assert store.points is not None and len(store) == 4
        if rule == "keep":
            assert store.points[1].tolist() == [pytest.approx([5.4, 3.4]), pytest.approx([5.6, 0])]
            assert "points_outside" not in store.meta
            assert notes(store) == ["2 points of 2 images lie beyond the packed image, which data.fit or "
                                    "data.points_outside lets them"]  # fmt: skip
        else:
            np.testing.assert_allclose(store.points[1], [[5.4, 3.4], [np.nan, np.nan]])
            assert np.isnan(store.points[2]).all() and store.meta["points_outside"] == {"points": 2, "images": 2}
            assert notes(store) == [
                "2 points of 2 images are outside what they belong to, and count as not there (data.points_outside)"
            ]


def test_points_that_a_crop_cuts_off_are_told(tmp_path: Path) -> None:
    items = [Item(str(i), pixels(i, 4, 8), 0, None, points=np.array([[0, 1], [4, 1]], np.float32)) for i in range(3)]
    store = packed(items, tmp_path / "x", size=4)
    assert notes(store)[0].startswith("3 points of 3 images lie beyond the packed image")


# -- the pairs of known faces ------------------------------------------------------------------------------------------


def test_the_pairs_of_known_faces() -> None:
    for name, count, alone in (("ibug68", 68, {8, 27, 28, 29, 30, 33, 51, 57, 62, 66}),
                               ("wflw98", 98, {16, 51, 52, 53, 54, 57, 79, 85, 90, 94})):  # fmt: skip
        settings = DataSettings(source="x", flip_pairs=name)  # type: ignore[arg-type]
        assert settings.flip_pairs == MIRRORED[name]
        words = parse_assignments(["source=x", f"flip_pairs={name}"])
        assert resolve(DataSettings, [("words", words)])[0] == settings
        named = [point for pair in MIRRORED[name] for point in pair]
        assert len(named) == len(set(named)) and set(range(count)) - set(named) == alone
        assert DataSettings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValidationError, match="there are no flip pairs called 'wflw'; did you mean 'wflw98'"):
        DataSettings(source="x", flip_pairs="wflw")  # type: ignore[arg-type]


def test_the_pairs_mirror_real_faces(shared_data: Callable[[str], Path]) -> None:
    """In the mean face each point's partner is its mirror image; with any two pairs exchanged that is not so."""
    store = open_store(DataSettings(source=f"faces68:{shared_data('faces68')}", size=32, most=400))
    assert store.points is not None
    mean = np.nanmean(np.asarray(store.points), axis=0)
    middle = mean[[27, 28, 29, 30, 8]].mean(0)[0]
    partner = np.arange(68)
    for i, j in MIRRORED["ibug68"]:
        partner[[i, j]] = j, i
    mirrored = mean[partner] * [-1, 1] + [2 * middle, 0]
    distance = np.linalg.norm(mirrored - mean, axis=1)
    nearest = np.linalg.norm(mirrored[:, None] - mean[None], axis=2).argmin(1)
    assert distance.max() < 1.5 and (nearest == np.arange(68)).mean() > 0.9

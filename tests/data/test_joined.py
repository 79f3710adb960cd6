"""A labelled and an unlabelled source in one store: none of the second's labels is there, nothing held out leaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twofold.cli.main import main
from twofold.data import SPLITS, Store, describe, fingerprint, labels_csv, notes, open_source, open_store
from twofold.data import pack as packing
from twofold.data.split import BEHIND, NONE, assign
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, image_cells, pixels

Put = Callable[..., Path]
PutTable = Callable[..., Path]


def settings(**values: Any) -> DataSettings:
    return DataSettings(**{"source": "x", "unlabelled": "y", **values})


def store_of(**values: Any) -> Store:
    return open_store(settings(**values))


def error(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        store_of(**values)
    return str(caught.value)


@pytest.fixture
def two(put: Put) -> None:
    """x: 40 images of ant and bee. y: 30 others of bee and cat."""
    for i in range(20):
        put(f"x/ant/{i:02}.png", pixels(i, 4, 6)), put(f"x/bee/{i:02}.png", pixels(100 + i, 4, 6))
    for i in range(15):
        put(f"y/bee/{i:02}.png", pixels(200 + i, 4, 6)), put(f"y/cat/{i:02}.png", pixels(300 + i, 4, 6))


def files_of(store: Store) -> dict[str, bytes]:
    """All that a store holds."""
    return {path.name: path.read_bytes() for path in store.folder.iterdir() if not path.name.startswith("split-")}


# -- what is in the store --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two")
def test_the_second_source_joins_the_training_part_without_labels() -> None:
    store, alone = store_of(), open_store(DataSettings(source="x"))
    assert len(store) == 70 and store.n_own == 40 and alone.n_own == 40
    assert store.classes == ["ant", "bee"]
    np.testing.assert_array_equal(store.images[:40], alone.images)
    np.testing.assert_array_equal(store.all_labels[:40], alone.all_labels)
    assert (np.asarray(store.all_labels[40:]) == -1).all()
    np.testing.assert_array_equal(store.codes[:40], alone.codes)  # the same split, so figures can be compared
    assert (store.codes[40:] == SPLITS.index("train")).all()
    assert [store.id(i) for i in (0, 40, 69)] == ["ant/00.png", "unlabelled:bee/00.png", "unlabelled:cat/14.png"]
    np.testing.assert_array_equal(store.images[40], pixels(200, 4, 6)[None])
    assert store.content_hash != alone.content_hash and store.folder != alone.folder
    assert store.meta["joined"] == {"source": "y", "images": 30} and "joined" not in alone.meta
    assert store.meta["splits"] == {}


@pytest.mark.usefixtures("two")
def test_alone_nothing_has_changed() -> None:
    """Stores that were packed before there was a second source keep their names."""
    plain = DataSettings(source="x")
    assert fingerprint(plain) == fingerprint(plain.model_copy(update={"labels_per_class": 3}))
    assert fingerprint(plain) != fingerprint(settings())
    assert fingerprint(settings()) != fingerprint(settings(source="y", unlabelled="x"))


@pytest.mark.usefixtures("two")
def test_either_source_changes_the_store(put: Put) -> None:
    before = fingerprint(settings())
    put("y/bee/99.png", pixels(999, 4, 6))
    after = fingerprint(settings())
    put("x/bee/99.png", pixels(998, 4, 6))
    assert len({before, after, fingerprint(settings())}) == 3


@pytest.mark.usefixtures("two")
def test_any_slice_of_the_items_is_one_of_all() -> None:
    source = open_source(settings())
    every = [item.id for item in source.items()]
    assert len(every) == source.count() == 70
    for start, stop in [(0, 40), (0, 41), (39, 42), (40, None), (55, 60), (70, None), (12, 12), (40, 40)]:
        assert [item.id for item in source.items(start, stop)] == every[start:stop]


@pytest.mark.usefixtures("two")
def test_parts_and_forks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files_of(store_of())
    monkeypatch.setattr(packing, "PART", 7)
    monkeypatch.setattr(packing, "LEAST_PART", 7)
    monkeypatch.setattr(packing, "ALONE", 0)
    monkeypatch.setenv("TWOFOLD_CACHE", str(Path.cwd() / "other"))
    assert files_of(store_of()) == whole


def test_only_the_training_images_are_taken_where_there_are_splits(two: None, put: Put, put_table: PutTable) -> None:
    for split, n in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(n):
            put(f"z/{split}/dog/{i}.png", pixels(400 + i, 4, 6))
    assert [item.id for item in open_source(settings(unlabelled="z")).items(40)] == [
        f"unlabelled:train/dog/{i}.png" for i in range(3)
    ]
    for split, n in (("train", 3), ("test", 2)):
        cells = image_cells(*[pixels(500 + i, 4, 6) for i in range(n)])
        put_table(f"t/{split}.parquet", image=cells, label=list(range(n)))
    items = list(open_source(settings(unlabelled="t")).items(40))
    assert [item.id for item in items] == [f"unlabelled:train.parquet:{i}" for i in range(3)]
    source = open_source(settings(unlabelled="t", most=2))
    assert source.count() == 4
    assert [item.id for item in source.items(2)] == [f"unlabelled:train.parquet:{i}" for i in range(2)]
    os.remove("t/train.parquet")
    assert error(unlabelled="t").startswith("data.unlabelled=t: it has splits of its own, and none of them is for tr")


def test_tar_files_and_celeba(two: None, put: Put) -> None:
    import io
    import tarfile

    for split in ("train", "test"):
        with tarfile.open(Path("x").parent / f"{split}-0.tar", "w") as tar:
            for i in range(2):
                for name, content in {
                    f"{split}{i}.png": encoded(pixels(i, 4, 6)),
                    f"{split}{i}.cls": b"dog" if i else b"7",  # no classes go together like this
                    f"{split}{i}.mask.png": b"no mask",
                }.items():
                    tar.addfile(_member(name, content), io.BytesIO(content))
    Path("w").mkdir()
    for split in ("train", "test"):
        os.rename(f"{split}-0.tar", f"w/{split}-0.tar")
    items = list(open_source(settings(unlabelled="w")).items(40))
    assert [item.id for item in items] == ["unlabelled:train-0.tar:train0", "unlabelled:train-0.tar:train1"]
    assert all(item.label == -1 and item.mask is None for item in items)
    for i in range(4):
        put(f"c/img_align_celeba/{i}.jpg", encoded(pixels(i, 4, 6, 3), "JPEG"))
    put("c/list_attr_celeba.txt", ("4\nMale Young\n" + "".join(f"{i}.jpg 1 -1\n" for i in range(4))).encode())
    put("c/list_eval_partition.txt", b"0.jpg 0\n1.jpg 2\n2.jpg 0\n3.jpg 1\n")
    items = list(open_source(settings(unlabelled="celeba:c")).items(40))
    assert [item.id for item in items] == ["unlabelled:0.jpg", "unlabelled:2.jpg"]
    assert all(item.attributes is None for item in items)


def _member(name: str, content: bytes) -> Any:
    import tarfile

    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member


# -- no label leaks --------------------------------------------------------------------------------------------------


LABELS: list[dict[str, Any]] = [
    {"label": ["a", "b", "c", "a", "b", "c"], "smiling": [1, 0, 1, 0, 1, 0]},
    {"label": ["c", "a", "b", "b", "a", "c"], "smiling": [0, 1, 1, 1, 0, 0]},
    {"label": [5, -1, 3, 900, 1, 0], "smiling": [-1] * 6},
    {"labels": [0.5] * 6, "label": [None] * 6},  # no classes at all: the column is not looked at
    {},
]


def test_the_labels_of_the_second_source_leave_no_trace(
    two: None, put_table: PutTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for i, columns in enumerate(LABELS):
        monkeypatch.setenv("TWOFOLD_CACHE", str(Path.cwd() / f"cache{i}"))
        put_table("y.parquet", image=image_cells(*[pixels(600 + k, 4, 6) for k in range(6)]), **columns)
        found.append(files_of(store_of(unlabelled="y.parquet")))
    assert all(files == found[0] for files in found[1:])
    assert len(found[0]["labels.npy"]) > 8 * 46


@pytest.mark.usefixtures("two")
def test_the_names_of_its_folders_are_no_labels() -> None:
    """They are where the images are, so they stay in the ids; everything else is the same."""
    before = files_of(store_of())
    os.rename("y/cat", "y/dog"), os.rename("y/bee", "y/ant")
    after = files_of(store_of())
    assert {name for name in before if before[name] != after[name]} == {"id_bytes.npy"}


def test_beside_a_folder_nothing_is_read(put: Put) -> None:
    for i in range(4):
        put(f"x/images/{i}.png", pixels(i, 4, 4)), put(f"x/masks/{i}.png", pixels(i, 4, 4) % 2)
        put(f"x/points/{i}.csv", b"1,2\n3,3\n"), put(f"y/images/{i}.png", pixels(50 + i, 4, 4))
    put("x/metadata.csv", b"file_name,smiling\n" + b"".join(f"images/{i}.png,1\n".encode() for i in range(4)))
    put("y/masks/0.png", b"broken"), put("y/points/0.csv", b"broken"), put("y/metadata.csv", b"file_name,label\nq,1\n")
    store = store_of(attribute_columns=["smiling"])
    assert len(store) == 8 and store.attributes is not None and store.masks is not None and store.points is not None
    assert store.attributes.tolist() == [[1]] * 4 + [[-1]] * 4
    assert (store.masks[4:] == 255).all() and (store.masks[:4] < 2).all()
    assert np.isnan(store.points[4:]).all() and not np.isnan(store.points[:4]).any()
    assert store.labels.tolist() == [-1] * 8


@pytest.mark.usefixtures("two")
def test_few_labels_are_those_of_the_first(put: Put) -> None:
    store, alone = store_of(labels_per_class=3), open_store(DataSettings(source="x", labels_per_class=3))
    np.testing.assert_array_equal(store.labels[:40], alone.labels)
    assert (store.labels[40:] == -1).all()
    train = alone.indices("train")
    put("few.csv", labels_csv(alone, train[[1, -1]]).encode())
    listed = store_of(labels="few.csv")
    assert np.flatnonzero(listed.labels[listed.indices("train")] >= 0).size == 2
    put("few.csv", b"id,class\nunlabelled:bee/00.png,ant\n")  # as pseudo labels name them
    listed = store_of(labels="few.csv")
    assert listed.labels[40] == 0 and np.flatnonzero(listed.labels[listed.indices("train")] >= 0).size == 1
    put("few.csv", b"id,class\nunlabelled:bee/77.png,bee\n")
    with pytest.raises(UserError, match="the data has no image unlabelled:bee/77.png"):
        _ = store_of(labels="few.csv").labels
    put("few.txt", f"bee/{store.id(int(train[-1])).rpartition('/')[2]}".encode())  # the name is in both sources
    put("x/ant/bee_77.png", pixels(77, 4, 6)), put("y/bee/bee_77.png", pixels(78, 4, 6)), put("few.txt", b"bee_77.png")
    again = store_of(labels="few.txt", validation_share=0, test_share=0)
    assert [again.id(i) for i in np.flatnonzero(again.labels >= 0)] == ["ant/bee_77.png"]


# -- what is held out ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two")
def test_an_image_that_is_held_out_is_not_trained_on_as_one_of_the_second_source(put: Put) -> None:
    alone = open_store(DataSettings(source="x"))
    for split in SPLITS:
        row = int(alone.indices(split)[0])
        put(f"y/cat/same-{split}.png", alone.images[row, 0])
    store = store_of()
    assert {store.id(i).rpartition("-")[2]: SPLITS[store.codes[i]] for i in range(70, 73)} == {
        f"{split}.png": split for split in SPLITS
    }
    assert (store.all_labels[70:73] == -1).all()
    np.testing.assert_array_equal(store.codes[:40], alone.codes)
    assert describe(store)["joined"] == {"source": "y", "images": 33, "held_out": 2}
    assert notes(store) == [
        "2 images of data.unlabelled=y are the same as images for validation or test, or of their groups: "
        "they stay with these"
    ]
    assert describe(alone)["joined"] is None


def test_a_split_that_the_first_source_names_is_kept(put: Put) -> None:
    for i in range(6):
        put(f"x/train/ant/{i}.png", pixels(i, 4, 4)), put(f"x/test/ant/{i}.png", pixels(50 + i, 4, 4))
    put("y/0.png", pixels(50, 4, 4)), put("y/1.png", pixels(99, 4, 4))
    store = store_of(validation_share=0)
    assert store.codes.tolist() == [2] * 6 + [0] * 6 + [2, 0]
    assert store.meta["splits"] == {"train": 6, "test": 6}


def test_groups_are_those_of_both(put: Put) -> None:
    for person in range(10):
        for i in range(2):
            put(f"x/p{person}_{i}.png", pixels(10 * person + i, 4, 4))
            put(f"y/p{person + 5}_{i}.png", pixels(500 + 10 * person + i, 4, 4))
    group = r"re:(p\d+)_"
    store, alone = store_of(group=group), open_store(DataSettings(source="x", group=group))
    np.testing.assert_array_equal(store.codes[:20], alone.codes)
    held_out = {alone.id(i).split("_")[0] for i in range(20) if alone.codes[i]}
    trained = {store.id(int(i)).partition(":")[2].split("_")[0] for i in store.indices("train") if i >= 20}
    assert trained == {f"p{k}" for k in range(5, 15)} - held_out and held_out & {f"p{k}" for k in range(5, 10)}


def test_the_rule_of_the_split() -> None:
    own = np.array([NONE] * 8 + [BEHIND] * 4, np.int8)
    labels = np.array([0, 1] * 4 + [-1] * 4)
    component = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 8, 6])
    plain = DataSettings(source="x", validation_share=0.25, test_share=0.25)
    first = assign(own[:8], labels[:8], plain, component[:8])
    codes = assign(own, labels, plain, component)
    assert codes.tolist() == [*first.tolist(), 0, first[3], 0, first[6]]
    assert assign(own, labels, plain).tolist() == [*assign(own[:8], labels[:8], plain).tolist(), 0, 0, 0, 0]
    assert codes.dtype == np.int8


# -- how it looks, and mistakes --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two")
def test_the_command_line_shows_both(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    for action in ("pack", "describe", "split"):
        assert main(["data", action, "x", "unlabelled=y", "--out", "split.csv"]) == 0
        shown = capsys.readouterr().out
        if action != "split":
            assert "unlabelled 30 of them are those of y\n" in shown
        if action != "pack":
            row = next(line for line in shown.splitlines() if line.startswith("unlabelled  "))
            assert row.split() == ["unlabelled", "30", "0", "0"]
    lines = (here / "split.csv").read_text().splitlines()
    assert len(lines) == 71 and lines[-1] == "unlabelled:cat/14.png,train,-1,"


def test_mistakes(two: None, put: Put, put_table: PutTable) -> None:
    assert error(unlabelled="yy").startswith("data.unlabelled=yy: there is no such file or folder; did you mean")
    put("odd/a.png", pixels(1, 5, 5))
    assert "images differ in size: ant/00.png is 4x6 and unlabelled:a.png is 5x5" in error(unlabelled="odd")
    assert store_of(unlabelled="odd", size=4).shape == (1, 4, 4)  # size, fit and channels are for both
    put("bad/a.png", b"no image")
    told = error(unlabelled="bad")
    assert told.startswith("data=x data.unlabelled=bad: unlabelled:a.png: cannot be read"), told
    put_table("t.parquet", image=image_cells(pixels(1, 4, 6)), other=image_cells(pixels(1, 4, 6)))
    assert error(unlabelled="t.parquet", image_column="imge").startswith("data.image_column=imge:")
    with pytest.raises(ValueError, match="no second source"):
        DataSettings(source="x").of_unlabelled()


@pytest.mark.usefixtures("two")
def test_worker_processes_open_the_same() -> None:
    import pickle

    store = store_of(labels_per_class=2)
    again = pickle.loads(pickle.dumps(store))
    assert again.n_own == 40 and torch.equal(again.batch([0, 69]), store.batch([0, 69]))
    np.testing.assert_array_equal(again.labels, store.labels)


@pytest.mark.usefixtures("here")
def test_digits_and_real_clothes(shared_data: Callable[[str], Path]) -> None:
    """Two real sources of different sizes and forms in one run: labelled digits, unlabelled clothes."""
    clothes = f"fashion_mnist:{shared_data('fashion_mnist')}"
    store = open_store(DataSettings(source="digits", unlabelled=clothes, size=8, most=300))
    assert store.shape == (1, 8, 8) and store.n_own == 300 and len(store) == 600
    assert store.classes == list("0123456789") and (np.asarray(store.all_labels[300:]) == -1).all()
    assert "MIT" in store.meta["facts"]["licence"]

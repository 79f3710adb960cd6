"""Hub names: what is downloaded becomes items; what cannot be reached is said with a way out.

Nothing here asks the hub: the answers of its client are put in place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.data import decode, fingerprint, open_source, open_store
from twofold.data.hub import NAME, Hub
from twofold.errors import UserError
from twofold.settings.data import DataSettings

from .conftest import encoded, pixels

SETTINGS = DataSettings(source="org/name")


class Response:
    """What the client's errors want to see of an answer."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.request, self.status_code = None, 404


@pytest.fixture
def hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """hub(splits or error, reach=error): what loading gives, what the first question gives. Returns the calls made."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "prepared")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "fetched"))
    calls: list[Any] = []

    def put(loads: Any = None, reach: Exception | None = None) -> list[Any]:
        def info(self: object, name: str, **options: object) -> None:
            calls.append(("info", name, options["revision"]))
            if reach:
                raise reach

        def load(*args: object, **options: object) -> Any:
            calls.append(("load", *args, options["revision"]))
            if isinstance(loads, Exception):
                raise loads
            return loads

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return put


def splits(*names: str) -> Any:
    """A data set as `datasets` returns it: four images in each split."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    out = datasets.DatasetDict()
    for name in names:
        rows = {
            "img": [{"bytes": encoded(pixels(i, 4, 4, 3)), "path": None} for i in range(4)],
            "label": [0, 1, 1, -1],
        }
        out[name] = datasets.Dataset.from_dict(rows, features)
    return out


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None)),
        ("org/na.me-2:plain_text", ("org/na.me-2", "plain_text", None)),
        ("org/name@v1.0", ("org/name", None, "v1.0")),
        ("org/name:cfg@refs/pr/1", ("org/name", "cfg", "refs/pr/1")),
    ],
)
def test_names(text: str, parts: tuple[str | None, ...]) -> None:
    match = NAME.fullmatch(text)
    assert match and (match["name"], match["config"], match["revision"]) == parts


@pytest.mark.parametrize("text", ["name", "/org/name", "./org", "../name", "a/b/c", "org/", "C:\\x", "org/na me"])
def test_what_is_no_name(text: str) -> None:
    assert NAME.fullmatch(text) is None


def test_a_data_set_becomes_items(hub: Callable[..., list[Any]]) -> None:
    calls = hub(splits("train", "test"))
    source = open_source(DataSettings(source="org/name:cfg@v1"))
    assert calls == []  # its identity needs no network
    assert source.classes() == ["ant", "bee"] and source.count() == 8 and source.left_out() == []
    items = list(source.items())
    assert [(item.id, item.label, item.split) for item in items[3:6]] == [
        ("train:3", -1, "train"),
        ("test:0", 0, "test"),
        ("test:1", 1, "test"),
    ]
    np.testing.assert_array_equal(decode(items[2].encoded, SETTINGS), pixels(2, 4, 4, 3))
    assert calls == [("info", "org/name", "v1"), ("load", "org/name", "cfg", "v1")]


def test_what_is_packed_needs_no_network(hub: Callable[..., list[Any]]) -> None:
    hub(splits("train", "test"))
    store = open_store(SETTINGS)
    assert store.shape == (3, 4, 4) and len(store.indices("test")) == 4 and store.id(4) == "test:0"
    calls = hub(RuntimeError("must not be asked"), reach=RuntimeError("must not be asked"))
    calls.clear()
    assert open_store(SETTINGS).content_hash == store.content_hash
    assert calls == []


def test_other_splits_are_left_out_and_noted(hub: Callable[..., list[Any]]) -> None:
    hub(splits("train", "extra"))
    store = open_store(SETTINGS)
    assert len(store) == 4 and store.meta["left_out"] == ["extra"]


def test_a_single_split_of_any_name_is_all_there_is(hub: Callable[..., list[Any]]) -> None:
    hub(splits("full"))
    assert {item.split for item in open_source(SETTINGS).items()} == {None}


def test_fingerprint_names_config_and_revision() -> None:
    names = ("org/name", "org/name:a", "org/name@a", "org/other")
    assert len({fingerprint(DataSettings(source=name)) for name in names}) == 4


# -- what is said ---------------------------------------------------------------------------------------------------


def error(source: str = "org/name") -> str:
    with pytest.raises(UserError) as caught:
        open_source(DataSettings(source=source)).classes()
    return str(caught.value)


def test_no_internet(hub: Callable[..., list[Any]]) -> None:
    calls = hub(reach=ConnectionError("name resolution"))
    assert error() == (
        "data=org/name: there is no such folder here, and the hub, where it may be a data set, cannot be reached "
        "(ConnectionError); for hub data without internet, download its Parquet files elsewhere and give their folder"
    )
    assert calls == [("info", "org/name", None)]  # and no half a minute of retries


def test_no_internet_and_a_folder_of_nearly_that_name(hub: Callable[..., list[Any]], here: Path) -> None:
    hub(reach=ConnectionError())
    (here / "photos").mkdir()
    assert error("photso/cats").endswith("cannot be reached (ConnectionError); did you mean 'photos'?")


def test_no_internet_but_downloaded_before(hub: Callable[..., list[Any]], here: Path) -> None:
    hub(splits("train"), reach=ConnectionError())
    (here / "prepared/org___name").mkdir(parents=True)
    assert open_source(SETTINGS).count() == 4
    hub(ConnectionError("not all of it"), reach=ConnectionError())
    assert "cannot be reached (ConnectionError)" in error()


def test_what_the_hub_says(hub: Callable[..., list[Any]]) -> None:
    from huggingface_hub import errors

    hub(reach=errors.RepositoryNotFoundError("404", response=Response()))  # type: ignore[arg-type]
    assert error() == (
        "data=org/name: there is no such folder here and no such data set on the hub (or it is private); "
        "check the name; for a private one run: hf auth login"
    )
    hub(reach=errors.GatedRepoError("403", response=Response()))  # type: ignore[arg-type]
    assert error() == (
        "data=org/name: this hub data set asks for your consent; accept its terms on the hub, then run: hf auth login"
    )
    hub(reach=errors.RevisionNotFoundError("404", response=Response()))  # type: ignore[arg-type]
    assert error("org/name@v9").startswith("data=org/name@v9: the hub data set has no revision 'v9'")


def test_what_loading_says(hub: Callable[..., list[Any]]) -> None:
    hub(ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"))
    assert error() == (
        "data=org/name: Config name is missing. Please pick one among the available configs: ['a', 'b']; "
        "name one: data=org/name:CONFIG"
    )
    hub(RuntimeError("Dataset scripts are no longer supported, but found name.py"))
    assert error().startswith(
        "data=org/name: the datasets library cannot load it (RuntimeError: Dataset scripts are no longer supported"
    )


def test_no_usual_split(hub: Callable[..., list[Any]]) -> None:
    hub(splits("one", "two"))
    assert error() == (
        "data=org/name: none of its splits (one, two) is called train, validation or test; "
        "save the one you want as Parquet and give that file"
    )


def test_a_path_below_an_existing_folder_is_no_hub_name(here: Path) -> None:
    (here / "photos").mkdir()
    with pytest.raises(UserError, match="there is no such file or folder"):
        open_source(DataSettings(source="photos/cats"))
    assert isinstance(open_source(SETTINGS), Hub)


# -- streaming ------------------------------------------------------------------------------------------------------


@pytest.fixture
def streamed(here: Path, hub: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """streamed(folder): the hub's data set is what the `datasets` library makes of that folder, streamed or not."""
    import datasets

    load = datasets.load_dataset
    hub()

    def put(folder: str) -> None:
        def local(*args: object, streaming: bool, **options: object) -> Any:
            return load(folder, streaming=streaming, cache_dir=str(here / "hf"))

        monkeypatch.setattr(datasets, "load_dataset", local)

    return put


@pytest.fixture
def local_parquet(here: Path) -> Callable[[str], Path]:
    """Nine images for training and four for the test, as Parquet."""

    def write(name: str) -> Path:
        import datasets

        features = datasets.Features(
            {
                "img": datasets.Image(),
                "label": datasets.ClassLabel(names=["ant", "bee"]),
                "who": datasets.Value("string"),
            }
        )
        for split, n in {"train": 9, "test": 4}.items():
            rows = {
                "img": [{"bytes": encoded(pixels(i, 4, 4, 3)), "path": None} for i in range(n)],
                "label": [i % 2 for i in range(n)],
                "who": [f"p{i // 2}" for i in range(n)],
            }
            path = here / name / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, features).to_parquet(path, batch_size=4)
        return here / name

    return write


def test_streamed_rows_are_the_downloaded_ones(
    streamed: Callable[[str], None], local_parquet: Callable[[str], Path]
) -> None:
    streamed(str(local_parquet("local")))
    settings = DataSettings(source="org/name", group="who")
    whole, stream = (open_source(settings.model_copy(update={"streaming": value})) for value in (False, True))
    every = list(whole.items())
    assert list(stream.items()) == every and stream.count() == whole.count() == 13
    assert stream.classes() == whole.classes() == ["ant", "bee"]
    for start, stop in [(0, 3), (2, 11), (9, None), (12, 13), (13, None), (5, 5)]:
        assert list(stream.items(start, stop)) == every[start:stop]


def test_a_streamed_store_is_the_downloaded_one(
    streamed: Callable[[str], None], local_parquet: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    streamed(str(local_parquet("local")))
    settings = DataSettings(source="org/name", streaming=True)
    assert fingerprint(settings) == fingerprint(SETTINGS)
    store = open_store(settings)
    monkeypatch.setenv("TWOFOLD_CACHE", str(here / "another"))
    assert open_store(SETTINGS).content_hash == store.content_hash


def test_the_first_images_of_each_split(streamed: Callable[[str], None], local_parquet: Callable[[str], Path]) -> None:
    streamed(str(local_parquet("local")))
    for streaming in (False, True):
        source = open_source(DataSettings(source="org/name", most=5, streaming=streaming))
        assert source.count() == 9
        assert [item.id for item in source.items()] == [f"train:{i}" for i in range(5)] + [
            f"test:{i}" for i in range(4)
        ]
    assert fingerprint(DataSettings(source="org/name", most=5)) != fingerprint(SETTINGS)


def test_a_stream_that_is_shorter_than_announced(
    streamed: Callable[[str], None], local_parquet: Callable[[str], Path]
) -> None:
    import datasets

    streamed(str(local_parquet("local")))
    source = Hub(DataSettings(source="org/name", streaming=True))
    for dataset in source._splits.values():
        told = {name: datasets.SplitInfo(name, num_examples=10) for name in ("train", "test")}
        dataset.info.splits = datasets.splits.SplitDict(told)
    assert source.count() == 20
    with pytest.raises(UserError, match="data=org/name: train ended after 9 rows, and 10 were announced; set"):
        list(source.items())


def test_a_stream_that_breaks_off(
    streamed: Callable[[str], None], local_parquet: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    streamed(str(local_parquet("local")))
    source = open_source(DataSettings(source="org/name", streaming=True))
    source.count()

    def broken(self: object, batch_size: int) -> Any:
        raise OSError("connection reset\nby peer")
        yield

    monkeypatch.setattr(datasets.IterableDataset, "iter", broken)
    with pytest.raises(UserError) as caught:
        list(source.items())
    assert str(caught.value) == (
        "data=org/name: train: streaming stopped (OSError: connection reset by peer); run the command again"
    )


def test_streamed_images_that_are_files(streamed: Callable[[str], None], here: Path) -> None:
    for i, name in enumerate(("train/a/1", "train/b/2", "train/b/3", "test/a/4", "test/b/5")):
        path = here / f"files/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels(i, 4, 4, 3)))
    streamed(str(here / "files"))
    whole, stream = (open_source(DataSettings(source="org/name", streaming=value)) for value in (False, True))
    assert stream.count() == 5
    for one, other in zip(whole.items(), stream.items(), strict=True):
        assert one[:1] + one[2:] == other[:1] + other[2:] and isinstance(other.encoded, bytes)
        np.testing.assert_array_equal(decode(one.encoded, SETTINGS), decode(other.encoded, SETTINGS))

"""`twofold probe` and `twofold predict`, end to end on digits with an untrained denoiser, and their failure paths."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import twofold
from twofold.cli.main import main
from twofold.cli.tablefile import TableFile
from twofold.data import open_store, spread
from twofold.learn.inherit import probed_layer
from twofold.recognize.probe import ProbeClassifier
from twofold.run import Run, load, load_probe, newest_probe
from twofold.settings.data import DataSettings

from ..processes import torchrun
from .test_sample_evaluate import make_run

GRID = ["layers=[mid,out_1]", "sigmas=[0.1,0.4]", "max_train=300", "max_test=60", "draws=2", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module")
def probed(run: Path) -> Path:
    """The run with a probe in it."""
    assert main(["probe", str(run), *GRID, "labels_per_class=[1,3]", "contrastive=true", "zero_shot=4"]) == 0
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty digits, larger than the model takes, in one folder per class."""
    store = open_store(DataSettings(source="digits"))
    folder = tmp_path_factory.mktemp("photos")
    for row in store.indices("test")[:30]:
        place = folder / str(store.labels[row])
        place.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(store.images[row, 0])).resize((16, 16)).save(place / f"{row}.png")
    return folder


def result(run: Path) -> dict[str, Any]:
    newest = newest_probe(run)
    assert newest is not None
    return json.loads((newest / "result.json").read_text())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_result_is_complete(probed: Path) -> None:
    found = result(probed)
    assert len(found["cells"]) == 4 and {cell["places"][0][0] for cell in found["cells"]} == {"mid", "dec.0"}
    assert set(found["results"]) == {"one layer", "joined", "raw pixels"}
    one = found["results"]["one layer"]
    assert one["interval"][0] <= one["accuracy"] <= one["interval"][1] and len(one["draws"]) == 2
    assert one["images"] == 60 and found["images"] == {"train": 300, "validation": 60, "test": 60}
    top = max(found["cells"], key=lambda cell: (cell["validation"], -cell["loss"]))
    assert one["places"] == top["places"]
    assert (
        [row["k"] for row in found["labels_per_class"]] == [1, 3, 30]
        and found["labels_per_class"][2]["all"]
        and "raw" in found["labels_per_class"][0]
    )
    assert len(found["contrastive"]) == 4 and {"alignment", "uniformity"} <= found["contrastive"][0].keys()
    assert found["zero_shot"]["images"] == 4 and 0 <= found["zero_shot"]["agreement"] <= 1
    assert any("class-conditional" in warning for warning in found["warnings"])
    assert found["source"]["path"] == str(probed) and found["data"]["hash"] and found["versions"]["torch"]


def test_fine_tuning_starts_at_the_best_layer(probed: Path, tmp_path: Path) -> None:
    assert probed_layer(str(probed)) == result(probed)["results"]["one layer"]["places"][0][0]
    assert probed_layer(str(make_run(tmp_path / "bare"))) is None
    words = [f"init_from={probed}", "train.n_images=64", "train.batch_size=32", "--quiet"]
    assert main(["train", "finetune", *words, "--out", str(tmp_path / "f")]) == 0
    settings = Run.open(tmp_path / "f").settings()
    assert settings.network.layer == probed_layer(str(probed))  # type: ignore[union-attr]


def test_page_and_figures(probed: Path) -> None:
    newest = newest_probe(probed)
    assert newest is not None
    page = (newest / "report.html").read_text()
    for words in ("Recognition", "Raw pixels", "3 per class", "published finding"):
        assert words in page
    assert (newest / "figures" / "features.png").read_bytes().startswith(b"\x89PNG")
    assert (newest / "figures" / "labels.png").is_file()


def test_the_same_command_again_reads_what_is_there(
    probed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twofold.learn.probed.extract", None)  # nothing may be computed
    assert main(["probe", str(probed), *GRID, "labels_per_class=[1,3]", "contrastive=true", "zero_shot=4"]) == 0
    assert "one layer" in capsys.readouterr().out


def test_another_model_in_the_same_folder_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "p")]
    assert main(["probe", str(run), *GRID, "concat=[]", *out]) == 0
    other = make_run(tmp_path / "b", seed=1)
    assert main(["probe", str(other), *GRID, "concat=[]", *out]) == 2
    assert "another model" in said(capsys)
    assert main(["probe", str(run), *GRID, "concat=[]", "seed=1", *out]) == 2
    assert "other data or settings" in said(capsys)


@pytest.mark.parametrize(
    ("head", "pool"),
    [
        (["head.kind=ridge"], "mean"),
        (["head.kind=recipe", "head.epochs=2", "head.norm=batch"], "mean"),
        (["head.kind=knn", "head.k=5"], "grid2"),
        (["head.kind=attentive", "head.epochs=2"], "map"),
    ],
)
def test_every_head_is_saved_and_predicts_the_same(run: Path, tmp_path: Path, head: list[str], pool: str) -> None:
    out = tmp_path / "p"
    assert main(["probe", str(run), *GRID, "concat=[]", f"pool={pool}", *head, "--out", str(out)]) == 0
    found = json.loads((out / "result.json").read_text())["results"]["one layer"]
    classifier = load_probe(out)
    store = open_store(DataSettings(source="digits"))
    rows = store.indices("test")
    rows = rows[spread(len(rows), 60)]
    named = classifier.image_logits(store.batch(rows)).argmax(1).numpy()
    assert (named == store.labels[rows]).mean() == pytest.approx(found["averaged"], abs=1 / 60)
    assert isinstance(load(out), ProbeClassifier)


def test_over_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "a")
    assert main(["probe", str(run), *GRID, "at=all"]) == 2
    assert "keeps 0 numbered snapshots; train with train.snapshot_images" in said(capsys)
    for n in (100, 200, 300):
        other = make_run(tmp_path / str(n), seed=n)
        (run / "snapshots").mkdir(exist_ok=True)
        (other / "model.safetensors").rename(run / "snapshots" / f"{n:012d}.safetensors")
    assert main(["probe", str(run), *GRID, "at=all", "concat=[]", "contrastive=true"]) == 0
    found = result(run)
    assert [row["n_images"] for row in found["over_training"]] == [100, 200, 300]
    best = max(found["over_training"], key=lambda row: row["accuracy"])
    assert load_probe(newest_probe(run) or "").facts.at == best["at"]
    assert found["results"]["one layer"]["validation"] == pytest.approx(best["accuracy"])


def test_train_on_one_probe_on_another(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("dark", 30), ("bright", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.normal(level, 20, (12, 12, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    out = tmp_path / "p"
    words = ["layers=mid", "sigmas=[0.1]", "--quiet", "--out", str(out)]
    assert main(["probe", str(run), f"data={tmp_path / 'data'}", *words]) == 0
    found = json.loads((out / "result.json").read_text())
    assert found["classes"] == ["bright", "dark"] and found["results"]["one layer"]["accuracy"] == 1.0


def test_processes_share_the_features(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun over gloo: the same shelves and the same answers as one process."""
    for name in ("one", "two"):
        monkeypatch.setenv("TWOFOLD_CACHE", str(tmp_path / name / "cache"))
        words = ["probe", str(run), *GRID, "concat=[]", "--device", "cpu", "--out", str(tmp_path / name / "p")]
        if name == "two":
            torchrun("-m", "twofold", *words)
        else:
            assert main(words) == 0
    files = {
        name: {p.name: p.read_bytes() for p in (tmp_path / name / "cache" / "features").rglob("*.safetensors")}
        for name in ("one", "two")
    }
    assert files["one"] == files["two"] and files["one"]
    one_result, two_result = (json.loads((tmp_path / name / "p" / "result.json").read_text()) for name in files)
    assert one_result["cells"] == two_result["cells"] and one_result["results"] == two_result["results"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layers=[dec.77]"], "no such layer"),
        (["sigmas=[1e9]"], "the model knows"),
        (["pool=median"], "no such pooling"),
        (["head.kind=knn", "head.k=100000"], "labelled training images"),
        (["head.kind=attentive"], "use pool=map"),
        (["contrastive=true", "draws=1"], "two noise draws"),
        (["labels_per_class=[500]"], "smallest class"),
        (["head.l2=[0]"], "head.l2"),
        (["data=digits", "data.size=32"], "leave data.size out"),
        (["at=12345"], "no such snapshot"),
    ],
)
def test_mistakes_are_one_line(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    quick = ["layers=mid", "sigmas=[0.1]", "max_train=300", "concat=[]", "--quiet"]
    given = {word.split("=")[0] for word in words}
    assert main(["probe", str(run), *[w for w in quick if w.split("=")[0] not in given], *words]) == 2
    error = said(capsys)
    assert message in error and error.count("\n") == 1


def test_data_without_labels_or_with_one_class(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(20):
        for folder in (tmp_path / "flat", tmp_path / "single" / "only"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(folder / f"{i}.png")
    assert main(["probe", str(run), f"data={tmp_path / 'flat'}", "--quiet"]) == 2
    assert "has 0 classes, a probe needs labels" in said(capsys)
    assert main(["probe", str(run), f"data={tmp_path / 'single'}", "--quiet"]) == 2
    assert "has 1 classes" in said(capsys)


def test_classifier_cannot_be_probed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = make_run(tmp_path / "judge", "digits-classifier")
    assert main(["probe", str(judge), "--quiet"]) == 2
    assert "holds a classifier" in said(capsys)


# -- predict ------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict_with_the_newest_probe(probed: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(probed), str(photos), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "30 images" in out and "of the 30 labelled ones are named rightly" in out
    rows = rows_of(Path(out.split(":")[0]))
    assert len(rows) == 30
    for row in rows:
        shares = [float(row[f"p({k})"]) for k in range(10)]
        assert sum(shares) == pytest.approx(1, abs=1e-4) and max(shares) == pytest.approx(float(row["probability"]))
        assert row["given"] == row["id"].split("/")[0]
    assert "of the 30" in out and f"{100 * np.mean([r['label'] == r['given'] for r in rows]):.1f} %" in out


def test_an_image_alone_gets_the_answer_it_gets_in_company(probed: Path, photos: Path, tmp_path: Path) -> None:
    assert main(["predict", str(probed), str(photos), "--quiet", "--out", str(tmp_path / "all.csv")]) == 0
    row = rows_of(tmp_path / "all.csv")[7]
    assert main(["predict", str(probed), str(photos / row["id"]), "--quiet", "--out", str(tmp_path / "one.csv")]) == 0
    (one,) = rows_of(tmp_path / "one.csv")
    assert one["label"] == row["label"]
    assert float(one["probability"]) == pytest.approx(float(row["probability"]), abs=1e-5)


def test_predict_features_as_parquet(probed: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    words = ["embed=true", "layers=[mid]", "sigma=0.05", "--quiet", "--out", str(out)]
    assert main(["predict", str(probed), str(photos), *words]) == 0
    table = pyarrow.parquet.read_table(out)
    assert table.num_rows == 30 and table.column_names[:2] == ["id", "mid@0.05[0]"]
    features = twofold.DiffusionFeatures(probed, layers="mid", sigma=0.05, draws=5)
    pixels = [np.asarray(Image.open(photos / name).resize((8, 8))) for name in table["id"].to_pylist()[:3]]
    found = features.fit_transform(np.stack(pixels)[:, None])
    written = np.stack([table[name].to_numpy()[:3] for name in features.get_feature_names_out()], axis=1)
    np.testing.assert_allclose(written, found, atol=1e-5)


def test_predict_with_a_classifier_and_zero_shot(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = make_run(tmp_path / "judge", "digits-classifier")
    assert main(["predict", str(judge), str(photos), "--quiet", "--out", str(tmp_path / "a.csv")]) == 0
    assert len(rows_of(tmp_path / "a.csv")) == 30
    few = photos / "1"
    words = ["method=zero_shot", "--quiet", "--out", str(tmp_path / "z.csv")]
    assert main(["predict", str(run), str(few), *words]) == 0
    assert {row["label"] for row in rows_of(tmp_path / "z.csv")} <= {str(k) for k in range(10)}


def test_anomalies_are_scored_and_drawn(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    words = ["anomaly=true", "good=1", "draws=1", "--quiet", "--out", str(out)]
    assert main(["predict", str(run), str(photos), *words]) == 0
    assert "AUROC of the anomaly score: 0." in capsys.readouterr().out
    rows = rows_of(out)
    assert len({row["anomaly"] for row in rows}) > 20
    picture = Image.open(rows[0]["map"])
    assert picture.mode == "RGB" and picture.width > picture.height >= 200


def test_unreadable_images(probed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"nonsense")
    out = ["--out", str(tmp_path / "o.csv")]
    assert main(["predict", str(probed), str(folder), "--quiet", *out]) == 2
    assert "bad.png" in said(capsys) and not (tmp_path / "o.csv").exists()
    assert main(["predict", str(probed), str(folder), "--quiet", "on_bad_image=skip", *out]) == 0
    assert "1 images, 1 unreadable ones left out" in capsys.readouterr().out
    assert [row["id"] for row in rows_of(tmp_path / "o.csv")] == ["good.png"]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.txt"], "end it in .csv or .parquet"),
        (["probe=/nowhere"], "holds no probe"),
        (["good=cat", "anomaly=true"], "none of this name"),
        (["embed=true", "layers=[nose]"], "no such layer"),
        (["good=1"], "add anomaly=true"),
        (["layers=[mid]"], "add embed=true"),
    ],
)
def test_predict_mistakes(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["predict", str(run), str(photos), "--quiet", *words]) == 2
    assert message in said(capsys)


def test_images_that_are_not_there_are_named_as_they_were_typed(
    probed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(probed), "nowhere.png", "--quiet"]) == 2
    assert "IMAGES nowhere.png: there is no such file" in said(capsys)


def test_a_denoiser_without_a_probe_says_what_to_do(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = make_run(tmp_path / "bare")
    assert main(["predict", str(bare), str(photos), "--quiet"]) == 2
    error = said(capsys)
    assert "twofold probe" in error and "method=zero_shot" in error


def test_a_probe_whose_model_changed_is_refused(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "a")
    assert main(["probe", str(run), *GRID, "concat=[]"]) == 0
    probe = newest_probe(run)
    make_run(run, seed=5)
    assert main(["predict", str(probe), str(photos), "--quiet"]) == 2
    assert "another model" in said(capsys)
    assert main(["predict", str(run), str(photos), "--quiet"]) == 2
    assert "without a probe" in said(capsys)  # one of another model is not taken


def test_a_table_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TableFile(tmp_path / "t.csv") as table:
        table.write({"a": [1, 2]})
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_screening_fits_the_best_on_everything(run: Path, tmp_path: Path) -> None:
    words = ["sigmas=[0.05,0.1,0.4]", "max_test=60", "draws=2", "copies=1", "screen=200", "--quiet"]
    assert main(["probe", str(run), *words, "labels_per_class=[2]", "--out", str(tmp_path / "s")]) == 0
    screened = json.loads((tmp_path / "s" / "result.json").read_text())
    assert main(["probe", str(run), *words[:4], "screen=null", "--quiet", "--out", str(tmp_path / "a")]) == 0
    whole = json.loads((tmp_path / "a" / "result.json").read_text())
    assert [cell["places"] for cell in screened["cells"]] == [cell["places"] for cell in whole["cells"]]
    few, every = (np.mean([cell["validation"] for cell in found["cells"]]) for found in (screened, whole))
    assert few < every  # the map compares all places on the same few images
    chosen = screened["results"]["one layer"]
    same = next(cell for cell in whole["cells"] if cell["places"] == chosen["places"])
    assert chosen["validation"] == pytest.approx(same["validation"], abs=1e-6)  # fitted on all images in the end
    assert any("200" in warning for warning in screened["warnings"])
    assert not any("200" in warning for warning in whole["warnings"])


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits whose classes are called otherwise, in another order."""
    store = open_store(DataSettings(source="digits"))
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    folder = tmp_path_factory.mktemp("words")
    for row in range(300):
        place = folder / names[store.labels[row]]
        place.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(store.images[row, 0])).save(place / f"{row}.png")
    return folder


def test_zero_shot_is_compared_by_name(words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(
        tmp_path / "a", classes=["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "x"]
    )
    assert main(["probe", str(run), f"data={words}", *GRID[:2], "zero_shot=4", "--quiet"]) == 2
    assert "'x'" in said(capsys)  # before anything is computed
    bare = make_run(tmp_path / "b", classes=[])
    assert main(["probe", str(bare), *GRID, "zero_shot=4"]) == 2
    assert "unconditional" in said(capsys)


def test_a_probe_on_the_runs_own_data_comes_first(
    words: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "a")
    quick = ["layers=[mid]", "sigmas=[0.1]", "max_train=100", "max_test=30", "draws=1", "concat=[]", "--quiet"]
    assert main(["probe", str(run), *quick]) == 0
    assert main(["probe", str(run), f"data={words}", *quick]) == 0  # newer, but of other data
    capsys.readouterr()
    out = tmp_path / "o.csv"
    assert main(["predict", str(run), str(photos / "1"), "--out", str(out)]) == 0
    assert "fitted on digits" in said(capsys) and {row["label"] for row in rows_of(out)} <= {str(k) for k in range(10)}


def test_seen_test_images_are_told_however_the_folder_is_named(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "a", classes=[], source=str(words), size=[8, 8], channels=1)
    quick = ["layers=[mid]", "sigmas=[0.1]", "draws=1", "concat=[]", "data.split_seed=5", "--quiet"]
    monkeypatch.chdir(words.parent)
    assert main(["probe", str(run), f"data=./{words.name}", *quick, "--out", str(tmp_path / "p")]) == 0
    found = json.loads((tmp_path / "p" / "result.json").read_text())
    assert any("among those the denoiser was trained on" in warning for warning in found["warnings"])


def test_good_parts_must_be_known(run: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), str(words), "anomaly=true", "good=zero", "--quiet"]) == 2
    assert "normal=FOLDER" in said(capsys)


def test_features_at_the_level_that_was_asked_for(probed: Path, photos: Path, tmp_path: Path) -> None:
    for sigma in ("0.1", "0.5"):
        out = ["--out", str(tmp_path / f"{sigma}.csv"), "--quiet"]
        assert main(["predict", str(probed), str(photos / "1"), "embed=true", f"sigma={sigma}", *out]) == 0
    assert (tmp_path / "0.1.csv").read_bytes() != (tmp_path / "0.5.csv").read_bytes()


def test_a_classifier_of_noisy_images_is_asked_at_its_level(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train.n_images=64", "train.batch_size=32", "objective.sigma=0.3", "--quiet"]
    assert main(["train", "finetune", f"init_from={run}", *words, "--out", str(tmp_path / "f")]) == 0
    answers = {}
    for level in ("", "sigma=0.3", "sigma=0", "sigma=1"):
        out = tmp_path / f"at{level}.csv"
        assert main(["predict", str(tmp_path / "f"), str(photos / "1"), *filter(None, [level]), "--out", str(out)]) == 0
        answers[level] = out.read_text()
    assert answers[""] == answers["sigma=0.3"]  # by default the level it was trained at
    assert len(set(answers.values())) == 3
    capsys.readouterr()
    judge = make_run(tmp_path / "judge", "digits-classifier")
    assert main(["predict", str(judge), str(photos), "sigma=0.3", "--quiet"]) == 2
    assert "clean images" in said(capsys)
    assert main(["predict", str(tmp_path / "f"), str(photos), "sigma=1000", "--quiet"]) == 2
    assert "the classifier knows" in said(capsys)


def test_each_class_a_question_of_its_own(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    striped = np.tile([0, 255], (8, 4))
    for name, image in {"dark": np.zeros((8, 8)), "light": np.full((8, 8), 255), "striped": striped}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(40):
            pixels = (image + rng.normal(0, 20, (8, 8))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    words = ["objective.multi_label=true", f"data={tmp_path / 'data'}", "train.n_images=3200", "--quiet"]
    words += ["train.warmup_images=0", "train.ema_halflife_images=0", "train.validate_images=3200"]
    assert main(["train", "digits-classifier", *words, "--out", str(tmp_path / "m")]) == 0
    out = tmp_path / "o.csv"
    assert main(["predict", str(tmp_path / "m"), str(tmp_path / "data"), "--quiet", "--out", str(out)]) == 0
    rows = rows_of(out)
    sums = [sum(float(row[f"p({name})"]) for name in ("dark", "light", "striped")) for row in rows]
    assert max(abs(total - 1) for total in sums) > 0.01  # no softmax
    for row in rows:
        likely = [name for name in ("dark", "light", "striped") if float(row[f"p({name})"]) > 0.5]
        assert row["label"].split(";") == (likely or [""])
    assert np.mean([row["label"] == row["given"] for row in rows]) > 0.6
    assert main(["sample", str(run), f"guide={tmp_path / 'm'}", "guide_scale=1", "label=1", "--quiet"]) == 2
    assert "guide" in said(capsys)

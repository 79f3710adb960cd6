"""Folders of images: the same bits however they came about, and every way they can be spoilt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from tests.processes import Started

from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.generate import produce as produce_images
from twofold.generate import sample
from twofold.generate.chunks import GAP, TILE
from twofold.generate.manifest import compact, expand
from twofold.generate.produce import requested
from twofold.oracle import MixtureDenoiser
from twofold.settings.sample import OPTIONS, SampleSettings

UNets = Callable[..., NetworkDenoiser]
ASKED = SampleSettings(n=10, seed=3, micro_batch=4, steps=3, columns=3, sampler="ddim", eta=1.0)


def produce(denoiser: Any, out: Path, wanted: SampleSettings = ASKED, *arguments: Any, **more: Any) -> Any:
    return produce_images(denoiser, out, wanted, "abc123", *arguments, **more)


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


class Killed(BaseException):
    """What a test throws where a process would die."""


def killed_after(images: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= images:
            raise Killed

    return progress


def test_folder_holds_the_images_of_sample_in_every_form(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    done = produce(oracle, tmp_path / "a")
    assert (done.images, done.made, done.complete) == (10, 10, True)
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.name != ".lock") == [
        *("grid.png", "images", "images.npz", "manifest.json"),
    ]
    labels = [i % 3 for i in range(10)]
    images = sample(oracle, range(3, 13), labels, "ddim", steps=3, micro_batch=4, eta=1.0).numpy()
    with np.load(tmp_path / "a" / "images.npz") as archive:
        assert archive.files == ["arr_0", "arr_1", "classes"] and archive["classes"].tolist() == ["0", "1", "2"]
        assert archive["arr_0"].dtype == np.uint8
        assert np.array_equal(archive["arr_0"], images.transpose(0, 2, 3, 1))
        assert archive["arr_1"].dtype == np.int64
        assert archive["arr_1"].tolist() == labels
    for k, label in enumerate(labels):
        with Image.open(tmp_path / "a" / "images" / str(label) / f"{k + 3}.png") as png:
            assert png.mode == "L"
            assert np.array_equal(np.asarray(png), images[k, 0])
    with Image.open(tmp_path / "a" / "grid.png") as grid:
        pixels = np.asarray(grid)
    assert pixels.shape == (3 * (TILE + GAP) + GAP,) * 2  # 3 columns, at most 3 rows: 9 of the 10 images
    for k in range(9):
        top, left = (GAP + (TILE + GAP) * i for i in divmod(k, 3))
        tile = pixels[top : top + TILE, left : left + TILE]
        assert np.array_equal(tile, images[k, 0].repeat(TILE // 4, axis=0).repeat(TILE // 4, axis=1))
    assert (pixels[:GAP] == 255).all()


def test_manifest_says_how_to_make_them_again(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    produce(oracle, tmp_path)
    found = manifest(tmp_path)
    assert found["complete"] is True
    request = found["request"]
    assert expand(request["seeds"]).tolist() == list(range(3, 13))
    assert expand(request["labels"]).tolist() == [i % 3 for i in range(10)]
    assert len(json.dumps(request["labels"])) < 60
    expected = {"checkpoint": "abc123", "sampler": "ddim", "options": {"eta": 1.0}, "steps": 3, "grid": "log"}
    expected |= {"guidance": 1.0, "clip": False, "micro_batch": 4, "shape": [1, 4, 4], "precision": "full"}
    assert {key: request[key] for key in expected} == expected
    assert found["versions"]["torch"] == torch.__version__


def test_streamed_npz_is_byte_for_byte_what_numpy_writes(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    produce(oracle, tmp_path)
    with np.load(tmp_path / "images.npz") as archive:
        np.savez(tmp_path / "numpy.npz", archive["arr_0"], archive["arr_1"], classes=archive["classes"])
        again = {name: archive[name] for name in archive.files}
    with np.load(tmp_path / "numpy.npz") as other:
        assert all(np.array_equal(other[name], again[name]) for name in again)
    assert (tmp_path / "numpy.npz").stat().st_size == (tmp_path / "images.npz").stat().st_size


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_make_the_same_folder_as_one(unet: UNets, tmp_path: Path, world: int) -> None:
    denoiser = unet("edm")
    produce(denoiser, tmp_path / "one")
    results = [produce(denoiser, tmp_path / "many", ASKED, rank, world) for rank in reversed(range(world))]
    assert [result.complete for result in results] == [False] * (world - 1) + [True]
    assert sum(result.made for result in results) == 10
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    for rank in range(world):  # each of them finds it done
        assert produce(denoiser, tmp_path / "many", ASKED, rank, world).made == 0


WORKER = """
import sys, time
from twofold.generate import produce
from twofold.oracle import MixtureDenoiser
from twofold.settings.sample import SampleSettings

denoiser = MixtureDenoiser([[[[0.5]]], [[[-0.5]]]], [0.2, 0.3], [1.0, 1.0])
progress = (lambda done, total: time.sleep(600)) if sys.argv[3] == "hang" else None
settings = SampleSettings(n=40, micro_batch=4, steps=3)
print(produce(denoiser, sys.argv[1], settings, "abc123", int(sys.argv[2]), 2, progress).complete)
"""


def worker(out: Path, rank: int, mode: str = "run") -> Started:
    return Started("-c", WORKER, out, rank, mode)


def test_real_processes_one_of_them_killed(tmp_path: Path) -> None:
    denoiser = MixtureDenoiser(torch.tensor([0.5, -0.5]).view(2, 1, 1, 1), [0.2, 0.3], [1.0, 1.0])
    produce(denoiser, tmp_path / "one", SampleSettings(n=40, micro_batch=4, steps=3))
    out = tmp_path / "two"
    runs = [worker(out, 0), worker(out, 1, "hang")]
    first = out / "chunks" / "00000001.chunk"  # of process 1, which then hangs
    deadline = time.monotonic() + 120
    while not first.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    runs[1].kill()
    assert [run.communicate(timeout=120)[0] for run in runs] == ["False\n", ""]
    again = [worker(out, rank) for rank in range(2)]  # both at once
    assert "True\n" in [run.communicate(timeout=120)[0] for run in again]
    assert all(run.returncode == 0 for run in again)
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.parametrize("when", [1, 8])
def test_killed_and_called_again_only_makes_what_is_missing(unet: UNets, tmp_path: Path, when: int) -> None:
    denoiser = unet("vp")
    produce(denoiser, tmp_path / "whole")
    with pytest.raises(Killed):
        produce(denoiser, tmp_path / "cut", progress=killed_after(when))
    assert manifest(tmp_path / "cut")["complete"] is False
    done = produce(denoiser, tmp_path / "cut")
    assert done.made == 10 - (4 if when == 1 else 8)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    produce(oracle, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.name != ".lock"}
    oracle.denoise = None  # type: ignore[assignment, method-assign]
    seen: list[tuple[int, int]] = []
    done = produce(oracle, tmp_path, progress=lambda *counts: seen.append(counts))
    assert (done.made, done.complete, seen) == (0, True, [(10, 10)])
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("lost", ["images.npz", "grid.png", "images/1/4.png"])
def test_a_lost_output_is_made_again(oracle: MixtureDenoiser, tmp_path: Path, lost: str) -> None:
    produce(oracle, tmp_path)
    before = contents(tmp_path)
    (tmp_path / lost).unlink()
    assert produce(oracle, tmp_path).made == 10
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_damaged_chunks_are_found_and_made_again(oracle: MixtureDenoiser, tmp_path: Path, damage: str) -> None:
    produce(oracle, tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(Killed):
        produce(oracle, out, progress=killed_after(8))
    first, second = sorted((out / "chunks").glob("*.chunk"))
    raw = bytearray(first.read_bytes())
    match damage:
        case "flip":
            raw[-5] ^= 1
        case "cut":
            raw = raw[: len(raw) // 2]
        case "empty":
            raw = bytearray()
        case "swap":
            raw[:32] = second.read_bytes()[:32]
    first.write_bytes(raw)
    assert produce(oracle, out).made == 6  # the damaged chunk of 4 and the missing one of 2
    assert contents(out) == contents(tmp_path / "whole")


def test_a_chunk_damaged_after_its_maker_left_is_made_again(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    """Process 0 has checked its own; then the disk fails; process 1 puts everything together."""
    produce(oracle, tmp_path / "whole")
    out = tmp_path / "many"
    produce(oracle, out, ASKED, 0, 2)
    (out / "chunks" / "00000000.chunk").write_bytes(b"rubbish" * 20)
    assert produce(oracle, out, ASKED, 1, 2).complete
    assert contents(out) == contents(tmp_path / "whole")


def test_leftovers_of_a_kill_do_not_stay(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        produce(oracle, tmp_path, progress=killed_after(1))
    (tmp_path / "chunks" / ".00000001.chunk.999.tmp").write_bytes(b"half")
    produce(oracle, tmp_path)
    assert not (tmp_path / "chunks").exists()


def test_other_settings_in_the_same_folder_are_refused_with_the_differences(
    oracle: MixtureDenoiser, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        produce(oracle, tmp_path, progress=killed_after(1))
    other = ASKED.model_copy(update={"steps": 5, "guidance": 2.0, "n": 12})
    with pytest.raises(UserError, match=r"images: 10 -> 12; .*steps: 3 -> 5; .*guidance: 1\.0 -> 2\.0.*another folder"):
        produce(oracle, tmp_path, other)
    with pytest.raises(UserError, match='checkpoint: "abc123" -> "def"'):
        produce_images(oracle, tmp_path, ASKED, "def")
    assert produce(oracle, tmp_path).complete  # the folder was not harmed


def test_other_versions_are_announced(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        produce(oracle, tmp_path, progress=killed_after(1))
    found = manifest(tmp_path)
    found["versions"]["torch"] = "1.0"
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    with pytest.warns(UserWarning, match=r'begun with other versions: torch: "1\.0" -> '):
        produce(oracle, tmp_path)


def test_foreign_folders_are_not_touched(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"images: not made by this command \(no manifest.json\); give a new folder"):
        produce(oracle, tmp_path)
    assert (tmp_path / "images" / "cat.png").read_bytes() == b"mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        produce(oracle, tmp_path / "file")
    for text in ("{", "[]", "{}", "3"):
        broken = tmp_path / "broken"
        broken.mkdir(exist_ok=True)
        (broken / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest.json: is not a manifest of generated images"):
            produce(oracle, broken)


def test_mistakes_are_told_before_anything_is_written(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    for change, what in (
        ({"label": "dog"}, "label=dog: no such class; valid: 0, 1, 2, all, none"),
        ({"label": 7}, "label=7: no such class"),
        ({"sampler": "ddimm"}, "did you mean 'ddim'"),
        ({"sampler": "dpmpp2m"}, "eta=1.0: sampler dpmpp2m has no such option"),
        ({"label": None, "guidance": 3.0}, "no label to guide towards"),
    ):
        with pytest.raises(UserError, match=what):
            produce(oracle, tmp_path / "out", ASKED.model_copy(update=change))
    with pytest.raises(UserError, match="seed=4: asked for twice with the same label"):
        produce(oracle, tmp_path / "out", seeds=[4, 4], labels=[1, 1])
    two = MixtureDenoiser(torch.zeros(1, 2, 3, 3), [1.0], [1.0])
    with pytest.raises(UserError, match="png=true: a PNG cannot hold 2 channels; set png=false"):
        produce(two, tmp_path / "out")
    with pytest.raises(ValueError, match="rank 2 of 2"):
        produce(oracle, tmp_path / "out", ASKED, 2, 2)
    assert not (tmp_path / "out").exists()


def test_outputs_can_be_left_out(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    produce(oracle, tmp_path / "a", ASKED.model_copy(update={"png": False}))
    assert not (tmp_path / "a" / "images").exists()
    produce(oracle, tmp_path / "b", ASKED.model_copy(update={"npz": False}))
    assert not (tmp_path / "b" / "images.npz").exists()
    assert len(list((tmp_path / "b" / "images").rglob("*.png"))) == 10
    two = MixtureDenoiser(torch.zeros(1, 2, 3, 3), [1.0], [1.0])
    produce(two, tmp_path / "c", ASKED.model_copy(update={"png": False}))
    assert not (tmp_path / "c" / "grid.png").exists()  # no such image exists
    with np.load(tmp_path / "c" / "images.npz") as archive:
        assert archive["arr_0"].shape == (10, 3, 3, 2)
    for out, denoiser in {"a": oracle, "b": oracle, "c": two}.items():  # and each is known to be complete
        wanted = ASKED.model_copy(update={"png": out == "b", "npz": out != "b"})
        assert produce(denoiser, tmp_path / out, wanted).made == 0


def test_given_seeds_and_labels(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    seeds, labels = [9, 9, 2**40, 0], [2, 0, -1, 1]
    produce(oracle, tmp_path, seeds=seeds, labels=labels)
    files = sorted(str(p.relative_to(tmp_path / "images")) for p in (tmp_path / "images").rglob("*.png"))
    assert files == ["0/9.png", "1/0.png", "2/9.png", f"all/{2**40}.png"]
    with np.load(tmp_path / "images.npz") as archive:
        assert archive["arr_1"].tolist() == labels
        expected = sample(oracle, seeds, labels, "ddim", steps=3, micro_batch=4, eta=1.0)
        assert np.array_equal(archive["arr_0"], expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["cat", "dog", "blue jay"], ["cat", "dog", "blue_jay"]),
        (["../../etc", "a/b", "c"], ["etc", "a_b", "c"]),
        (["Cat", "cat", "dog"], ["0-Cat", "1-cat", "2-dog"]),  # one folder on many file systems
        (["all", "x", "y"], ["0-all", "1-x", "2-y"]),  # where images without a label are
        (["..", "é", "ж"], ["0-", "1-é", "2-ж"]),
    ],
)
def test_class_names_become_safe_folders(
    oracle: MixtureDenoiser, tmp_path: Path, names: list[str], folders: list[str]
) -> None:
    oracle.class_names = names  # type: ignore[assignment]
    out = tmp_path / "deep" / "out"
    produce(oracle, out, ASKED.model_copy(update={"n": 3}))
    assert sorted(p.name for p in (out / "images").iterdir()) == sorted(folders)
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert manifest(out)["request"]["classes"] == names


@pytest.mark.parametrize(
    ("label", "expected"),
    [("all", [0, 1, 2, 0]), ("none", [-1] * 4), (None, [-1] * 4), (2, [2] * 4), ("2", [2] * 4), ("dog", [1] * 4)],
)
def test_labels_of_the_settings(
    oracle: MixtureDenoiser, tmp_path: Path, label: int | str | None, expected: list[int]
) -> None:
    oracle.class_names = ["cat", "dog", "eel"]  # type: ignore[assignment]
    produce(oracle, tmp_path, SampleSettings(n=4, steps=2, label=label, png=False))
    assert expand(manifest(tmp_path)["request"]["labels"]).tolist() == expected


@pytest.mark.parametrize(
    ("names", "label", "expected"),
    [
        (["1", "2", "3"], 1, 0),  # as `label=1` arrives: a name that is a number wins
        (["1", "2", "3"], "3", 2),
        (["1", "2", "3"], 0, 0),  # no such name: an index
        (["10", "0", "2"], 2, 2),
        (["10", "0", "2"], 0, 1),
        (["007", "008", "009"], 1, 1),
        (["007", "008", "009"], "007", 0),
    ],
)
def test_class_names_win_over_indices(
    oracle: MixtureDenoiser, names: list[str], label: int | str, expected: int
) -> None:
    oracle.class_names = names  # type: ignore[assignment]
    _, labels = requested(SampleSettings(n=2, label=label), oracle)
    assert labels is not None and labels.tolist() == [expected] * 2


def test_an_unconditional_model_needs_no_label(unet: UNets, tmp_path: Path) -> None:
    produce(unet("edm", 0), tmp_path, SampleSettings(n=2, steps=2))
    assert sorted(p.name for p in (tmp_path / "images" / "all").iterdir()) == ["0.png", "1.png"]
    with pytest.raises(UserError, match="label=1: this model is unconditional"):
        produce(unet("edm", 0), tmp_path / "b", SampleSettings(n=2, steps=2, label=1))


def test_memory_does_not_grow_with_the_number_of_images(oracle: MixtureDenoiser, tmp_path: Path) -> None:
    """Peak of NumPy's allocations while putting together 40 chunks of 64 images of 1 x 32 x 32."""
    import tracemalloc

    from twofold.generate.chunks import read_chunk, write_chunk, write_npz

    path, images = tmp_path / "a.chunk", np.zeros((64, 1, 32, 32), np.uint8)
    write_chunk(path, images)

    def chunks(n: int) -> Any:
        for _ in range(n):
            yield read_chunk(path)

    peaks = []
    for n in (4, 160):
        tracemalloc.start()
        write_npz(tmp_path / "a.npz", chunks(n), (1, 32, 32), np.zeros(64 * n, np.int64))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 64 * 160 * 8 * 3 + 100_000  # labels are 8 bytes an image; images would be 10 MB


@given(st.lists(st.integers(-1, 3), max_size=40) | st.lists(st.integers(0, 2**62), max_size=10))
@settings(deadline=None)
def test_compact_lists_come_back(values: list[int]) -> None:
    assert expand(json.loads(json.dumps(compact(np.asarray(values, np.int64))))).tolist() == values


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(2, 40), st.integers(0, 5))
@settings(deadline=None)
def test_repeating_labels_are_short(cycle: list[int], times: int, more: int) -> None:
    values = np.resize(np.asarray(cycle), len(cycle) * times + more)
    short = compact(values)
    assert expand(short).tolist() == values.tolist()
    assert len(json.dumps(short)) < 70


def test_compact_forms() -> None:
    for values, form in (
        (range(5, 100), {"first": 5, "count": 95}),
        ([7], {"first": 7, "count": 1}),
        ([3] * 9, {"cycle": [3], "count": 9}),
        ([0] * 4 + [1] * 3 + [2], {"runs": [[0, 4], [1, 3], [2, 1]]}),
        ([5, 2, 9], {"list": [5, 2, 9]}),
    ):
        assert compact(np.asarray(values)) == form


# -- settings ----------------------------------------------------------------------------------------------------


def test_settings_have_help_and_refuse_nonsense() -> None:
    assert all(field.description for field in SampleSettings.model_fields.values())
    for wrong in (
        {"n": 0},
        {"seed": -1},
        {"steps": 0},
        {"eta": 1.5},
        {"guidance": -1},
        {"guidance_interval": (2.0, 1.0)},
        {"sigma_min": 3.0, "sigma_max": 2.0},
        {"grid": "linear"},
        {"n_images": 5},
    ):
        with pytest.raises(ValidationError):
            SampleSettings(**wrong)  # type: ignore[arg-type]
    assert SampleSettings(guidance_interval=(0.1, 2.0), sigma_max=2.0).guidance_interval == (0.1, 2.0)


def test_settings_know_every_option_of_every_sampler() -> None:
    from twofold.generate import SAMPLERS

    assert set(OPTIONS) == {option for sampler in SAMPLERS.values() for option in sampler.options}
    assert all(name in SampleSettings.model_fields["sampler"].description for name in SAMPLERS)  # type: ignore[operator]
    assert SampleSettings(sampler="heun", s_churn=3.0).sampler_options() == {"s_churn": 3.0}


def test_settings_are_read_from_assignments() -> None:
    from twofold.settings.resolve import parse_assignments, resolve

    words = ["n=8", "label=cat", "guidance_interval=[0.1, 2]", "eta=0.5", "sampler=ddim", "png=false"]
    found, _ = resolve(SampleSettings, [("command line", parse_assignments(words))])
    assert found == SampleSettings(n=8, label="cat", guidance_interval=(0.1, 2.0), eta=0.5, sampler="ddim", png=False)
    assert resolve(SampleSettings, [("command line", parse_assignments(["label=3"]))])[0].label == 3
    with pytest.raises(UserError, match="did you mean 'steps'"):
        resolve(SampleSettings, [("command line", parse_assignments(["step=3"]))])

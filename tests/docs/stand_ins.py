"""Stands in for what commands in the documentation speak of: small images, tables, labels and runs with random weights.

A page's commands run in a copy of the folder that `prepare` makes. To write about something new

  a word such as RUN      a line in `WORDS` (or in `ON_PAGE`, where it means something else on one page or command)
  a folder or file        a line in `build_data`
  a run of another kind   a line in `build_runs`
  a verb that takes long  a line in `SHORTER` (running.py)
  what cannot run here    a line in `NOT_RUN` (not_run.py), with the reason
"""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from twofold.cli.main import main
from twofold.data import open_store
from twofold.run import Run, build, save_model
from twofold.settings.data import DataSettings
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from ..cli.students import student_run
from ..learn.tasks import pairs, shapes
from ..test_presets import random_autoencoder

DIGITS = [str(k) for k in range(10)]
PLACE = r"(x+|…|\.\.\.)"  # the part of a run's name that nobody knows before
SETS = "cifar10|cifar100|svhn|mnist|fashion_mnist|celeba|tiny-imagenet"
CLASSES, PER_CLASS = ("cat", "dog", "good"), 16
ALIKE = {name: "photos" for name in ("cifar10", "cifar100", "svhn", "celeba", "tiny-imagenet", "defects")}
ALIKE |= {name: "other" for name in ("parts", "made", "old")}
ALIKE |= {name: "mnist" for name in ("fashion_mnist", "zalando-datasets/fashion_mnist")}

# (pattern of a placeholder, what stands in for it), the first that matches counts; never within a longer word
WORDS = [
    (rf"runs/images-(32|64)-{PLACE}", "runs/images-32"),
    (rf"runs/distill-{PLACE}/parts/taught-run-{PLACE}", "runs/student"),
    (rf"runs/distill-(classify-)?{PLACE}", "runs/taught"),
    (r"/shared(?=/)", "shared"),
    (r"runs/ae(128|256)", "stabilityai/sd-vae-ft-mse"),
    (rf"runs/sr(-[a-z0-9-]*{PLACE})?", "runs/sr"),
    (rf"runs/joint[a-z-]*(-{PLACE})?", "runs/joint"),
    (rf"runs/(demo/)?digits(-{PLACE})?(@100000)?", "runs/digits"),
    (r"(RUN2|JUDGE|CLASSIFIER)", "runs/judge"),
    (r"(GENERATOR|DENOISER|TEACHER)", "runs/digits"),
    (r"(RUN|MODEL)", "runs/joint"),
    (rf"({SETS}|imagenet):[\w./-]+", r"\1"),
    (r"(camvid|faces68):[\w./-]+", r"\1:\1"),
    (r"IMAGES", "new"),
    (r"IMAGE", "image.png"),
    (r"(SOURCE|MORE_LABELLED_IMAGES|DATA)", "digits"),
    (r"FOLDER", "photos"),
    (r"PARQUET", "table.parquet"),
    (r"FILE\.npz", "file.npz"),
    (r"encoder=inception", "encoder=pixels8"),  # its weights are a download
]
# (page or *, text in the command or "", {placeholder as it is written: what stands in for it})
ON_PAGE: list[tuple[str, str, dict[str, str]]] = [
    ("docs/data.md", "init_from=RUN", {"RUN": "runs/images-32"}),
    ("docs/data.md", "objective.multi_label=true", {"few.csv": "attributes.csv"}),
    ("docs/recognition.md", "guide=RUN2", {"RUN2": "runs/noisy"}),
    ("*", "Smiling;not Male", {"RUN": "runs/attributes"}),
    ("*", "label=train", {"RUN": "runs/attributes"}),
    ("*", "--out made/", {"GENERATOR": "runs/images-32"}),
    ("*", " guidance=", {"RUN": "runs/digits"}),
    ("*", "twofold import", {"SOURCE": "google/ddpm-cifar10-32", "org/name": "google/ddpm-cifar10-32"}),
    ("*", "twofold copies", {"RUN": "runs/digits"}),
    ("docs/sharing.md", "twofold sample", {"RUN": "runs/digits"}),
    ("*", "to=diffusers", {"RUN": "runs/plain"}),
    ("*", "twofold distill", {"RUN": "runs/images-32"}),
    ("docs/distill.md", "twofold export", {"RUN": "runs/student"}),
    ("docs/distill.md", "twofold predict", {"RUN": "runs/student"}),
    ("docs/metrics.md", "evaluate FOLDER", {"FOLDER": "made", "SOURCE": "photos"}),
    ("docs/metrics.md", "noise_levels", {"RUN": "runs/noisy"}),
    ("*", "ood=SOURCE", {"SOURCE": "other"}),
]


def stand_in(page: str, words: tuple[str, ...]) -> list[str]:
    """The words of a command with everything that is not there replaced."""
    text = " ".join(words)
    own = [(re.escape(name), value) for where, part, table in ON_PAGE if where in ("*", page) and part in text
           for name, value in table.items()]  # fmt: skip
    return [_replaced(word, [*own, *WORDS]) for word in words]


def _replaced(word: str, table: list[tuple[str, str]]) -> str:
    for pattern, value in table:
        found, count = re.subn(rf"(?<![\w/.-])(?:{pattern})(?![\w-])", value, word)
        if count:
            return found
    return word


def prepare(folder: Path, here: Any) -> None:
    """Everything in `folder`. here: changes into a folder and back, such as `contextlib.chdir`."""
    folder.mkdir(parents=True, exist_ok=True)
    with here(folder):
        build_data(folder)
        build_runs(folder)


def copied(prepared: Path, folder: Path) -> Path:
    """A folder of its own for a page: runs are copied, images linked to."""
    folder.mkdir()
    for path in prepared.iterdir():
        if path.name == "runs" or path.is_file():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
        else:
            (folder / path.name).symlink_to(path, target_is_directory=True)
    return folder


def build_data(here: Path) -> None:
    """Images, tables and label files, as small as they may be."""
    for name, side in (("photos", 32), ("other", 32), ("mnist", 8)):
        for k, of in enumerate(CLASSES):
            _images(here / name / of, PER_CLASS, side, name == "mnist", 1000 * k + len(name))
    (here / "zalando-datasets").mkdir()
    for name, of in ALIKE.items():
        (here / name).symlink_to(here / of, target_is_directory=True)
    for name in ("new", "scans", "photos-without-labels"):
        _images(here / name, 24, 8, True, len(name))
    for name, side in (("small", 8), ("large", 16)):
        _images(here / name, 4, side, False)
    _images(here / "single", 1, 8, True)
    (here / "single" / "0.png").rename(here / "image.png")
    _masks(here)
    shapes(here / "streets")
    _coloured(pairs(here / "faces"))
    _wordnet(here / "imagenet", here / "2imgs_class.txt")
    for name in ("labels.csv", "few.csv", "mine.csv"):
        (here / name).write_text("\n".join(["id,class", *(f"{key},{key.partition('/')[0]}" for key in _trained_on())]))
    sure = ["id,class,confidence", *(f"{key},{key.partition('/')[0]},0.9" for key in _trained_on())]
    (here / "pseudo.csv").write_text("\n".join(sure))
    few = ["name,smiling,glasses", *(f"{name}/{i}.png,{i % 2},1" for name in CLASSES for i in range(PER_CLASS))]
    (here / "attributes.csv").write_text("\n".join(few))
    for name, columns in (("table.parquet", ("smiling", "glasses")), ("people.parquet", ("Smiling", "Male"))):
        answers = {column: [(i >> k) % 2 for i in range(30)] for k, column in enumerate(columns)}
        _table(here / name, {"image": [_png(i, 16) for i in range(30)], **answers})
    _tasks(here)
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (20, 8, 8, 1), np.uint8)
    (here / "samples").mkdir()
    np.savez(here / "samples.npz", arr_0=images, arr_1=np.arange(20) % 2)
    for name in ("mine.npz", "samples/images.npz"):
        np.savez(here / name, images=images, labels=np.arange(20) % 2, classes=["cat", "dog"])
    assert main(["evaluate", "data=digits", "save_statistics=imagenet256.npz", "--quiet"]) == 0


def build_runs(here: Path) -> None:
    """Runs of every kind; those that are sampled, asked or begun with have random weights."""
    random_run(here / "runs/joint", "joint-digits-mini", DIGITS)
    random_run(here / "runs/judge", "digits-classifier", DIGITS)
    random_run(here / "runs/noisy", "noisy-unet-digits-mini", DIGITS, network={"head_channels": 4})
    yes_no = {"objective": {"multi_label": True}, "data": {"source": str(here / "people.parquet"), "size": [8, 8],
              "channels": 1, "attribute_columns": ["Smiling", "Male"]}}  # fmt: skip
    random_run(here / "runs/attributes", "joint-digits-mini", ["Smiling", "Male"], **yes_no)
    student_run(here / "runs/student", "classification", DIGITS, (1, 8, 8), data={"source": "digits"})
    random_run(here / "runs/plain", "digits", DIGITS, network={"norm_groups": 2})
    colour = {"source": str(here / "photos"), "size": [8, 8], "channels": 3}
    random_run(here / "runs/sr", "sr-digits-mini", list(CLASSES), (3, 8, 8), data=colour)
    _of_diffusers(here / "google/ddpm-cifar10-32")
    random_autoencoder(here / "stabilityai/sd-vae-ft-mse", 3, 8)
    student_run(here / "runs/taught", "classification", DIGITS, (3, 32, 32), data={"source": "photos"})
    for out, words in TRAINED.items():
        assert main(["train", *words, "--out", out, "--quiet"]) == 0, words


LOOP = ["train.n_images=16", "train.batch_size=8", "train.precision=fp32", "train.warmup_images=0"]
TINY = ["network.channels=8", "network.blocks=1", *LOOP, "validation.samples=0", "train.preview_n=4"]
TRAINED = {  # with states to go on from
    "runs/digits": ["digits", *TINY],
    "runs/images-32": ["images-32", "data=photos", *TINY],
    "runs/ae": ["autoencoder-mini", "data=digits", "network.norm_groups=4", *TINY],
}


def _of_diffusers(path: Path) -> None:
    """A small U-Net in diffusers' layout, at the place of a published one."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DModel(32, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(path)


def random_run(
    path: Path, preset: str, names: list[str], shape: tuple[int, int, int] = (1, 8, 8), **changes: Any
) -> None:
    """A run of a preset at the smallest width, with random weights."""
    own = {"data": {"source": "digits"}, "network": {"channels": 8}}
    settings, _ = resolve(TrainSettings, [*open_preset(preset).layers, ("own", own), ("test", changes)])
    run = Run.start(path, settings)
    torch.manual_seed(0)
    model = build(settings, shape, names)
    with torch.no_grad():  # layers that start at zero would say the same of everything
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(run.model_file, model.network.state_dict(), model, settings, 0)


def _png(seed: int, side: int, grey: bool = False) -> bytes:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 255, (side, side) if grey else (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _images(folder: Path, count: int, side: int, grey: bool, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(_png(seed + i, side, grey))


def _trained_on() -> list[str]:
    """Names of two images of each class of photos/ that are trained on whatever share is held out."""
    stores = [open_store(DataSettings(source="photos", size=(32, 32), validation_share=v)) for v in (0.0, 0.1, 0.2)]
    common = set.intersection(*({store.id(row) for row in store.indices("train")} for store in stores))
    return [key for name in CLASSES for key in sorted(key for key in common if key.startswith(name))[:2]]


def _masks(here: Path) -> None:
    """mask.png: white where to paint anew."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:6, 2:6] = 255
    Image.fromarray(pixels).save(here / "mask.png")
    (here / "masks").mkdir()
    for i in range(24):
        Image.fromarray(pixels).save(here / "masks" / f"{i}.png")


def _coloured(folder: Path) -> None:
    for path in folder.glob("images/*/*.png"):
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey, grey // 2, grey // 3], -1)).save(path)


def _wordnet(folder: Path, listed: Path) -> None:
    """A few images in ImageNet's layout, and a list of labelled ones as published."""
    lines = []
    for k, name in enumerate(("n01440764", "n01443537")):
        for part in ("train", "val"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(8):
                (folder / part / name / f"{name}_{i}.JPEG").write_bytes(_png(100 * k + i, 32))
        lines += [f"{name}_{i}.JPEG" for i in range(2)]
    listed.write_text("\n".join(lines))


def _table(path: Path, columns: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: [{"bytes": v, "path": None} for v in values] if isinstance(values[0], bytes) else values
             for name, values in columns.items()}  # fmt: skip
    pq.write_table(pa.table(kinds), path)


def _tasks(here: Path) -> None:
    """Tables with the columns of CamVid and of the 68-point faces."""
    masks = []
    for i in range(40):
        file = io.BytesIO()
        Image.fromarray(np.full((32, 32), i % 11, np.uint8)).save(file, "png")
        masks.append(file.getvalue())
    points = [list(np.random.default_rng(i).uniform(4, 28, 136)) for i in range(40)]
    for part in ("train", "validation", "test"):
        _table(here / f"camvid/{part}.parquet", {"image": [_png(i, 32) for i in range(40)], "mask": masks})
        faces = {"image": [_png(i, 32) for i in range(40)], "keypoints": points, "identity": list(range(40))}
        _table(here / f"faces68/{part}.parquet", faces)

"""A run's report from what is in its folder, and from an evaluation if there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import SPLITS, Store, spread
from ..denoiser import Denoiser
from ..generate import trajectory
from ..measure import nearest
from ..run import Run, newest_probe
from .noising import noising
from .page import Criterion, Neighbours, Report, Trajectory, write_report
from .verdict import verdict

MOST_TRAIN = 20_000  # training images searched for neighbours,
MOST_BYTES = 2**28  # of which no more than this, as uint8
HELD_OUT = 30  # real images are shown from the test part where it has at least so many
SHOWN = 16  # samples whose neighbours are shown
SAMPLES = 120  # samples the page chooses from
BITS = (
    "Bits that it takes to send a pixel and channel of a held-out image to somebody who has the model: 8 for raw "
    "pixels; less is better."
)
UPSCALED = "Held-out images, the same ones every time, that were shrunk and enlarged again by the model."
TIME_CAPTIONS = {  # of objectives whose previews are real images and what the model says of them
    "autoencoder": "Pairs of a held-out image and what comes back of it, after so many training images a row.",
    "segmentation": "Pairs of a held-out image under its true mask and under the one that was found, after so many "
    "training images a row. Void is not coloured.",
    "landmarks": "Pairs of a held-out image with its true points (green) and those found (red), after so many "
    "training images a row.",
}
REAL_CAPTIONS = {
    "test": "Real images of the same data, held out: the model has not seen them.",
    "train": "Real images of the same data: some that the model was trained on, because few or none are held out.",
}


def report_run(
    run: Run,
    store: Store,
    denoiser: Denoiser | None = None,
    images: Tensor | None = None,
    labels: list[int] | None = None,
    found: dict[str, Any] | None = None,
    frechet_target: float | None = None,
    command: str = "",
    names: Sequence[str] = (),
) -> Path:
    """Writes RUN/report.html and returns its path.

    images, labels: generated images uint8 (N, C, H, W) and the classes asked for; default: the newest preview. names:
    of these classes, where whoever guided the images knows them.
    found: an evaluation of them, with "answers", "ood" and "likelihood" where there are any. frechet_target: see
    `verdict`. command: what reproduces the page.
    """
    previews = load_previews(run)
    enlarges = getattr(run.settings().network, "low_factor", None)
    time_caption = UPSCALED if enlarges else TIME_CAPTIONS.get(run.settings().objective.kind, "")
    if images is None and previews and not time_caption:
        images = torch.from_numpy(previews[-1][1])
        labels = [i % denoiser.classes for i in range(len(images))] if denoiser and denoiser.classes else None
    found = found or {}
    result = run.result() or {}
    criteria: list[Criterion] = verdict(found, frechet_target) if "metrics" in found else []
    real, part = (None, "") if images is None else real_images(store)
    content = Report(
        title=f"{store.name}: run {run.path.name}",
        summary=summary(result, store),
        criteria=criteria,
        log=run.log(),
        over_time=previews,
        time_caption=time_caption,
        samples=None if images is None else images[:SAMPLES].numpy(),
        sample_classes=None if labels is None else asked_for(labels[:SAMPLES], store, denoiser, names),
        real=real,
        real_caption=REAL_CAPTIONS.get(part, ""),
        noising=None if denoiser is None else noising(denoiser, store),
        trajectory=None if denoiser is None or denoiser.low_factor else denoising(denoiser),
        classes=found.get("classes", {}),
        recognition=newest_finding(run),
        answers={**found.get("answers", {}), **({"ood": found["ood"]} if found.get("ood") else {})},
        neighbours=None if images is None else neighbours(images, store),
        metrics=found.get("metrics", {}) | bits(found.get("likelihood")),
        metrics_note=found.get("note", ""),
        meanings={name: BITS for name in bits(found.get("likelihood"))},
        notes=found.get("notes", ()),
        settings=run.settings_file.read_text(),
        command=command or result.get("command", ""),
        data={**result.get("data", {"name": store.name, "hash": store.content_hash}), "images": len(store)},
        machine={
            **result.get("environment", {}),
            **{name: result[name] for name in ("seconds", "images_per_second") if name in result},
        },
        versions=result.get("versions", {}),
    )
    return write_report(run.path, content)


def bits(likelihood: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The row of the metrics' table that a likelihood gives: it is one of real images."""
    if likelihood is None:
        return {}
    value = {"real": likelihood["bits_per_dimension"], "interval": [likelihood["low"], likelihood["high"]]}
    return {f"bits_per_dimension/{likelihood['method']}": value}


def newest_finding(run: Run) -> dict[str, Any] | None:
    """What the newest probe of the run found, None where there is none."""
    probe = newest_probe(run.path)  # on the run's own data, where there is one
    if probe is None or not (probe / "result.json").is_file():
        return None
    return json.loads((probe / "result.json").read_text())


def summary(result: dict[str, Any], store: Store) -> str:
    """What was trained on what, for how long, and what was left out."""
    if not result:
        return f"Training on {store.name} has not finished."
    if "imported" in result and not result["n_images"]:
        return f"A network of {result['parameters']:,} parameters, imported from {result['imported']['source']}."
    bad = len(result["data"].get("bad_images", ()))
    left_out = f" Left out because they cannot be read: {bad:,} (listed in result.json)." if bad else ""
    return (
        f"A network of {result['parameters']:,} parameters, trained on {result['n_images']:,} images drawn from the "
        f"{result['data']['train_images']:,} training images of {store.name} in {result['seconds'] / 60:.1f} minutes."
        f"{left_out}"
    )


def load_previews(run: Run) -> list[tuple[int, np.ndarray]]:
    """(images seen, preview images uint8 (N, C, H, W)), oldest first."""
    if not run.previews.is_dir():
        return []
    return [(int(path.stem), np.load(path, allow_pickle=False)) for path in sorted(run.previews.glob("[0-9]*.npy"))]


def asked_for(labels: list[int], store: Store, denoiser: Denoiser | None, names: Sequence[str] = ()) -> list[str]:
    """Names of the classes asked for: those given; the model's own; the data's where it has none; or numbers."""
    if list(names) == [str(k) for k in range(len(names))]:  # none, or numbers for want of names
        names = list(denoiser.class_names) if denoiser is not None else store.classes
        if denoiser is not None and len(names) != denoiser.classes:
            names = store.classes if len(store.classes) == denoiser.classes else []
    return ["none" if label < 0 else names[label] if label < len(names) else str(label) for label in labels]


def real_images(store: Store, count: int = 60) -> tuple[Tensor, str]:
    """Real images, spread over the classes, and the part they are from: "test" where it is large enough to show, else
    "train"."""
    held_out = int((store.codes == SPLITS.index("test")).sum()) >= HELD_OUT
    part = "test" if held_out else "train"
    rows = store.indices(part)
    order = np.random.default_rng(0).permutation(len(rows))
    rows = rows[order]
    if store.classes:  # one of each class in turn, as the samples are
        labels = np.asarray(store.labels[rows])
        place = np.empty(len(rows), np.int64)
        for label in np.unique(labels):
            mine = labels == label
            place[mine] = np.arange(mine.sum())
        rows = rows[np.lexsort((labels, place))]
    return store.batch(rows[:count]), part


def denoising(denoiser: Denoiser, images: int = 4) -> Trajectory:
    """The way of a few images from noise."""
    labels = [i % denoiser.classes for i in range(images)] if denoiser.classes else None
    steps = list(trajectory(denoiser, images, labels, micro_batch=images, steps=14))
    return Trajectory(np.stack([np.asarray(step.images) for step in steps]), [step.sigma for step in steps])


def neighbours(images: Tensor, store: Store) -> Neighbours:
    """The training image nearest to each of the first samples, in pixels in [-1, 1]."""
    rows = store.indices("train")
    most = min(MOST_TRAIN, max(1, MOST_BYTES // int(np.prod(store.shape))))
    train = store.batch(rows[spread(len(rows), most)])
    flat = lambda batch: batch.flatten(1).float() / 127.5 - 1  # noqa: E731
    distances, place = nearest(flat(images[:SHOWN]), flat(train), 1)
    return Neighbours(images[:SHOWN].numpy(), train[place[:, 0]].numpy(), distances[:, 0].tolist())

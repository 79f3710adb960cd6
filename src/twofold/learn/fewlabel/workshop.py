"""How the parts of an experiment are made: training runs, features, and what takes only moments."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...adapters.latent_codec import LatentCodec
from ...data import Store
from ...files import atomic_file
from ...recognize.classifier import NetworkClassifier
from ...run import Run, load, open_codec
from ...settings.fewlabel import EncoderFeatures, FewLabelSettings, OwnFeatures
from ...settings.train import TrainSettings
from ..crew import Crew
from ..experiment import moved
from ..features import Features, extract
from ..parts import Part, Parts
from ..training import train
from .embed import Embedder, OfDenoiser, OfEncoder, of_denoiser, of_encoder
from .subject import Subject

MODEL_FILE = "model.safetensors"  # of a run
IMAGES = "images.npz"  # pseudo images
TRAIN_FILE, TEST_FILE = "train.npy", "test.npy"  # logits of a classifier

Files = Callable[[Path], list[Path]]


class Workshop:
    """settings: complete. subject: the data. parts: where artefacts are. crew: who makes them."""

    def __init__(self, settings: FewLabelSettings, subject: Subject, crew: Crew, parts: Parts) -> None:
        self.settings, self.subject, self.crew, self.parts = settings, subject, crew, parts
        self._runs: dict[Path, Path] = {}  # of answers: the network that gave them

    def model_of(self, answers: Part) -> Path:
        """The folder of the classifier that gave these answers, as `twofold predict` takes it."""
        return self._runs.get(answers.path, answers.path)

    def trained(self, kind: str, settings: TrainSettings, facts: dict[str, Any], title: str) -> Part:
        """A training run, made by all processes. What its weights depend on is its settings, its images, and facts."""
        places: Any = {"data": True, "init_from": True, "codec": {"source"}}
        inputs = {
            "settings": settings.model_dump(mode="json", exclude=places),
            "flip": settings.data.flip,
            "images": self.subject.images_key,
            **facts,
        }
        if settings.codec is not None:
            inputs["codec"] = self.codec.key if self.codec is not None else ""

        def work(path: Path) -> None:
            self.crew.by_first(lambda: moved(Run(path), settings))
            with self.crew.watch.training(title, settings.train.n_images) as show:
                train(settings, path, str(self.crew.device), show)

        return self.parts.make(kind, inputs, lambda path: [path / MODEL_FILE], work)

    @cached_property
    def codec(self) -> LatentCodec | None:
        """The recipe's autoencoder. Raises `UserError` where there is none of that name, or it does not fit."""
        codec = self.settings.diffusion.codec
        return None if codec is None else open_codec(codec, self.subject.store.shape)

    @cached_property
    def given(self) -> OfDenoiser | OfEncoder | None:
        """What reads features where it need not be trained first. Raises `UserError` where it cannot be had."""
        features = self.settings.features
        if isinstance(features, EncoderFeatures):
            return of_encoder(features, self.crew.device, self.settings.micro_batch)
        return None if features.model is None else self.denoiser_features(features.model)

    def denoiser_features(self, source: str) -> OfDenoiser:
        """The features of the denoiser there, as the settings want them."""
        s = self.settings
        assert isinstance(s.features, OwnFeatures)
        return of_denoiser(source, s.features, self.crew.device, s.precision, s.micro_batch, s.seed)

    def small(
        self,
        kind: str,
        facts: dict[str, Any],
        work: Callable[[Path], None],
        title: str = "",
        files: Files | None = None,
    ) -> Part:
        """Made by the first process while the others wait. files: by default the answers of a classifier."""

        def by_first(path: Path) -> None:
            if title:
                self.crew.watch.say(title)
            self.crew.by_first(lambda: work(path))

        return self.parts.make(kind, facts, files or (lambda path: [path / TRAIN_FILE, path / TEST_FILE]), by_first)

    def read(
        self, kind: str, facts: dict[str, Any], embedder: Embedder, store: Store, rows: np.ndarray, title: str
    ) -> tuple[Part, Features]:
        """Features of these rows of a store, read by all processes, every image once."""

        def work(path: Path) -> None:
            with self.crew.watch.progress(title) as progress:
                extract(path, store.batch, rows, embedder.embed, progress, self.crew.rank, self.crew.world)
            self.crew.wait()
            if self.crew.first:  # where no folder is shared, the chunks of the others are missing here
                extract(path, store.batch, rows, embedder.embed, lambda done, total: None)

        facts = {"embedder": embedder.facts, **facts}
        part = self.parts.make(kind, facts, lambda path: Features(path, len(rows)).files(), work)
        return part, Features(part.path, len(rows))

    def network(self, kind: str, settings: TrainSettings, facts: dict[str, Any]) -> Part:
        """A classifier network that is trained on images, and what it says of all images of the experiment."""
        run = self.trained(
            f"{kind}-run", settings, {"labels": self.subject.labels_key, **facts}, "a classifier network"
        )

        def work(path: Path) -> None:
            model: Any = load(str(run.path), device=self.crew.device)
            write_answers(path, *(self._asked(model, rows) for rows in (self.subject.train, self.subject.test)))

        answers = self.small(kind, {"run": run.content, "images": self.subject.images_key}, work)
        self._runs[answers.path] = run.path
        return answers

    def _asked(self, model: NetworkClassifier, rows: np.ndarray) -> np.ndarray:
        """(n, K) logits of a network about images as they are, in the order of the experiment's classes."""
        found, batch = [np.zeros((0, len(self.subject.classes)), np.float32)], self.settings.micro_batch
        order = [list(model.class_names).index(name) for name in self.subject.classes]
        for start in range(0, len(rows), batch):
            images = self.subject.store.batch(rows[start : start + batch]).to(self.crew.device)
            with torch.no_grad():
                logits = model.logits(model.codec.encode(images), 0.0)  # type: ignore[union-attr]
            found.append(logits.float().cpu().numpy()[:, order])
        return np.concatenate(found)


def write_answers(path: Path, train_logits: np.ndarray, test_logits: np.ndarray) -> None:
    """What a classifier says of the training and the test images: (N, K) and (M, K), calibrated logits."""
    for name, logits in ((TRAIN_FILE, train_logits), (TEST_FILE, test_logits)):
        atomic_file(path / name, lambda temporary, logits=logits: _save(temporary, logits))  # type: ignore[misc]


def _save(path: Path, logits: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, logits.astype(np.float32))

"""The training runs of an experiment, as ordinary `TrainSettings`: any of them could be trained by `twofold train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import UserError
from ...settings.data import DataSettings
from ...settings.fewlabel import FewLabelSettings, ImageSettings, Network, OwnFeatures
from ...settings.presets import open_preset
from ...settings.resolve import resolve
from ...settings.sample import SampleSettings
from ...settings.train import TrainSettings

ROUND = 1000  # added to the seed in each round


def unlabelled(data: DataSettings) -> DataSettings:
    """The same images without anybody's labels, whatever a label draw says: one model serves all of them."""
    return data.model_copy(update={"labels": None, "labels_per_class": None, "labels_seed": 0, "balance": 0.0})


def labelled_by(data: DataSettings, file: Path) -> DataSettings:
    """The same images with the labels of a file."""
    return data.model_copy(update={"labels": str(file), "labels_per_class": None, "labels_seed": 0})


def unconditional(settings: FewLabelSettings) -> TrainSettings:
    """The denoiser whose features are read; it sees no label."""
    assert isinstance(settings.features, OwnFeatures)
    return _denoiser(settings, unlabelled(settings.data), 0, settings.features.n_images, None, settings.seed)


def conditional(settings: FewLabelSettings, labels: Path, start: str | None, turn: int) -> TrainSettings:
    """The denoiser that is told labels. start: the model whose weights it begins with, None: none."""
    generator, data = settings.generator, labelled_by(settings.data, labels)
    seed = settings.seed + ROUND * turn
    found = _denoiser(settings, data, None, generator.n_images, generator.lr, seed)
    if generator.level_mean is not None:
        levels = {"levels": "log_normal", "level_mean": generator.level_mean}
        found = found.model_copy(update={"objective": found.objective.model_copy(update=levels)})
    return found if start is None else found.model_copy(update={"init_from": start})


def classifier(
    settings: FewLabelSettings,
    learner: Network,
    labels: Path | None,
    generated: Path | None,
    turn: int,
    alone: bool = False,
) -> TrainSettings:
    """A classifier network on the images themselves. labels: a file of them; None: those of the experiment's data.
    generated: pseudo images that join the labelled ones; alone: they are all that it sees.
    """
    data = settings.data if labels is None else labelled_by(settings.data, labels)
    if alone:
        data = DataSettings(source=str(generated), channels=data.channels, validation_share=0.0, test_share=0.0)
    elif generated is not None:
        data = data.model_copy(update={"generated": str(generated)})
    opened = open_preset(learner.preset)
    layers: list[tuple[str, Any]] = [
        (name, {key: value for key, value in values.items() if key != "data"}) for name, values in opened.layers
    ]
    layers.append(("data of the experiment", {"data": data.model_dump(mode="json")}))
    found, _ = resolve(TrainSettings, layers)
    if found.objective.kind not in ("supervised", "freematch"):
        hint = "give one of a classifier, such as digits-classifier or freematch-cifar10"
        raise UserError(f"learner.preset={learner.preset}", "is no preset of a classifier", hint)
    update: dict[str, Any] = {"seed": settings.seed + ROUND * turn}
    if learner.n_images is not None:
        update["n_images"] = learner.n_images
    validation = found.validation.model_copy(update={"split": "train"})
    return found.model_copy(update={"train": found.train.model_copy(update=update), "validation": validation})


def pseudo_images(settings: ImageSettings, classes: int) -> SampleSettings:
    """How pseudo images are made: as many of each class, in turns."""
    return SampleSettings(
        n=settings.per_class * classes,
        seed=settings.seed,
        label="all",
        sampler=settings.sampler,
        steps=settings.steps,
        grid=settings.grid,
        to_zero=settings.to_zero,
        guidance=settings.guidance,
        micro_batch=settings.micro_batch,
        png=False,
    )


def _denoiser(
    settings: FewLabelSettings,
    data: DataSettings,
    classes: int | None,
    n_images: int | None,
    lr: float | None,
    seed: int,
) -> TrainSettings:
    recipe = settings.diffusion
    update: dict[str, Any] = {"seed": seed}
    update |= {"n_images": n_images} if n_images is not None else {}
    update |= {"lr": lr} if lr is not None else {}
    try:
        return TrainSettings(
            data=data,
            codec=recipe.codec,
            network=recipe.network.model_copy(update={"classes": classes}),
            noise=recipe.noise,
            objective=recipe.objective,
            train=recipe.train.model_copy(update=update),
            validation=recipe.validation,
        )
    except ValidationError as error:
        what, _, hint = str(error.errors()[0].get("ctx", {}).get("error", error.errors()[0]["msg"])).partition("; ")
        raise UserError("diffusion", what, hint) from None

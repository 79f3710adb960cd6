"""The verdict on a set of generated images: are they plausible, varied, new, and of the right classes?

No single number answers that. A Frechet distance sees two moments only: in pixel space, noise drawn from a Gaussian
fitted to the real images scores about as well as real images do, or better (1,000 images of CIFAR-10: 24.6 to their
31.9). So every metric stands beside what real images that the model never saw get, and what such a fitted Gaussian
gets, on equal numbers of images. Real images are the standard; the fitted Gaussian shows how far a metric is fooled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Classifier, Encoder
from ..errors import UserError
from .answers import acceptance, class_shares, share_interval
from .density import NEIGHBOURS as CROWD
from .density import density_coverage
from .encoders import check_images, embed, probabilities
from .frechet import Gaussian, frechet_distance, result_name
from .kernel import kernel_distance, kernel_distance_of_subsets
from .neighbours import manifold_radii, neighbour_report, precision_recall

CONFIDENCE = 0.9  # of the classifier, for an image to count as accepted
NEIGHBOURS = 3  # of precision and recall, as Kynkaanniemi et al. recommend

MEANINGS = {
    "frechet": "How far the images as a whole are from real ones in average and spread, as this encoder sees them "
    "(0 = no difference; compare with the values of real images and of the fitted Gaussian, not with other papers).",
    "FID": "The published distance: Inception-V3 with the reference weights. Lower is better; it falls with the number "
    "of images.",
    "sFID": "The same for where things are in the image.",
    "inception_score": "How sure Inception is of each image, and how many kinds it sees; 1 to 1,008, for photographs.",
    "precision": "Share of images that lie where training images lie: plausible rather than distorted.",
    "recall": "Share of training images that have generated images around them: variety rather than repetition.",
    "kid": "Kernel distance to the training images, mean over random subsets (0 = no difference, may fall below it; "
    "does not depend on the number of images).",
    "kid_all": "The kernel distance from all images at once.",
    "density": "How many training images a generated image is near to, relative to real ones: about 1 is right, above "
    "1 means crowding where images are common.",
    "coverage": "Share of training images with a generated image nearer than their fifth neighbour: variety.",
    "nearest_median": "Distance of a typical image to its nearest training image; far below the value of new real "
    "images would mean copying.",
    "nearest_5_percent": "The same for the one image in twenty that is nearest to a training image.",
    "nearer_than_real": "Share of images nearer to a training image than 19 of 20 new real images are: 5 % is what new "
    "real images give, much more would mean copying.",
    "farther_than_real": "Share of images farther from every training image than 99 of 100 new real images are: 1 % is "
    "what new real images give; of what looks like none of them, such as noise, it is all.",
    "acceptance": f"Share of images that an independently trained classifier recognizes with {CONFIDENCE:.0%} "
    "confidence or more.",
    "agreement": "Share of images in which the classifier sees the class that was asked for.",
    "class_share_gap": "The largest difference, in percentage points, between a class's share and its share of the "
    "training images: 0 means that all classes are generated as often as they occur.",
}


def meaning(metric: str) -> str:
    """The plain-words sentence of a metric that `quality` returns; "" for an unknown one."""
    return MEANINGS.get(metric.split("/")[0], "")


@dataclass(frozen=True)
class FeatureSets:
    """What an encoder sees: (N, D) float32 of samples, training and held-out images, and a fitted Gaussian's images."""

    samples: Tensor
    train: Tensor
    held_out: Tensor
    gaussian: Tensor


def quality(
    samples: Tensor,
    real_train: Tensor,
    real_held_out: Tensor,
    encoder: Encoder,
    classifier: Classifier | None = None,
    labels: Tensor | None = None,
    repeats: int = 5,
    seed: int = 0,
    further: Sequence[str] = (),
    features: FeatureSets | None = None,
) -> dict[str, Any]:
    """Everything there is to say about generated images without looking at them.

    samples, real_train, real_held_out: uint8 (N, C, H, W). labels: (N,) the class asked for in each sample, -1 = none.
    repeats: random splits of the training images for the Frechet distances. Deterministic in `seed`. further: of "kid"
    and "coverage" (with density). features: `see(...)` of the same images, seed and encoder, where they are known.

    Returns {"encoder", "images": {...counts}, "metrics": {name: {"samples", "real", "gaussian", "interval"}}} and, with
    a classifier, "classes": {class: {"samples", "real": shares, "acceptance", "agreement"}}. Per metric, `samples` is
    the value of the generated images, `real` that of held-out real images (for the Frechet distance: of another part
    of the training images), `gaussian` that of `fitted_gaussian`; `interval` belongs to `samples`: 95 % for shares,
    least and greatest of the repeats for Frechet distances, a standard deviation of the subsets to either side for the
    kernel distance. Values that make no sense are absent. `MEANINGS` explains them.

    Raises `UserError` for images of different shapes or fewer than five of a kind, before anything is computed.
    """
    _check(samples, real_train, real_held_out, classifier, labels)
    n = min(len(samples), len(real_train) // 2)
    sets = features or see(samples, real_train, real_held_out, encoder, seed)
    ours, train, held_out, plain = sets.samples, sets.train, sets.held_out, sets.gaussian
    metrics: dict[str, dict[str, Any]] = {}
    metrics[result_name(encoder.name)] = _frechet(ours, train, plain, n, repeats, seed)
    metrics |= _coverage(ours, train, held_out, plain, encoder.name, seed)
    metrics |= _further(sets, encoder.name, seed, further)
    metrics |= neighbour_report(ours, train, held_out)
    counts = {"samples": len(samples), "real_train": len(real_train), "real_held_out": len(real_held_out), "frechet": n}
    result: dict[str, Any] = {"encoder": encoder.name, "images": counts, "metrics": metrics}
    if classifier is not None:
        by_sets = (samples, real_train, real_held_out, plain_images(samples, real_train, real_held_out, seed))
        ours, train, held_out, plain = (probabilities(classifier, images) for images in by_sets)
        metrics |= _recognized(ours, train, held_out, plain, labels)
        result["classes"] = _classes(ours, train, [str(name) for name in classifier.class_names], labels)
    return result


def see(
    samples: Tensor,
    real_train: Tensor,
    real_held_out: Tensor,
    encoder: Encoder,
    seed: int = 0,
    by: Callable[[str, Tensor], Tensor] | None = None,
) -> FeatureSets:
    """The features that `quality` compares. by(name of the set, images): embeds in another way, from a cache or shared
    among processes. Raises `UserError` unless images are non-empty uint8 tensors (N, C, H, W) of one shape.
    """
    noise = plain_images(samples, real_train, real_held_out, seed)
    by = by or (lambda name, images: embed(encoder, images))
    named = {"samples": samples, "train": real_train, "held_out": real_held_out, "gaussian": noise}
    return FeatureSets(**{name: by(name, images) for name, images in named.items()})


def plain_images(samples: Tensor, real_train: Tensor, real_held_out: Tensor, seed: int = 0) -> Tensor:
    """As many images of `fitted_gaussian` as every comparison of `quality` needs."""
    n = min(len(samples), len(real_train) // 2)
    return fitted_gaussian(real_train, min(len(samples), max(n, len(real_held_out))), seed)


def fitted_gaussian(images: Tensor, n: int, seed: int = 0) -> Tensor:
    """n images of the plainest generator there is: a Gaussian with the mean and covariance of these images' pixels.

    uint8 (N, C, H, W) -> uint8 (n, C, H, W), rounded and clipped. Drawn as mean + sum_i z_i (image_i - mean) /
    sqrt(N - 1) with z standard normal, which has exactly that covariance without ever forming it.
    """
    check_images(images)
    pixels = images.flatten(1).float()
    mean = pixels.mean(0)
    z = np.random.default_rng([seed, 1]).standard_normal((n, len(pixels)), dtype=np.float32)
    drawn = torch.from_numpy(z) @ (pixels - mean).div_(max(1, len(pixels) - 1) ** 0.5)
    return (drawn + mean).round_().clamp_(0, 255).to(torch.uint8).view(n, *images.shape[1:])


def _check(
    samples: Tensor, train: Tensor, held_out: Tensor, classifier: Classifier | None, labels: Tensor | None
) -> None:
    for where, images in (("samples", samples), ("training images", train), ("held-out images", held_out)):
        check_images(images, where)
        if images.shape[1:] != train.shape[1:]:
            shapes = f"{tuple(images.shape[1:])}, the training images are {tuple(train.shape[1:])}"
            raise UserError(where, f"of shape {shapes}", "both must be (C, H, W) of the same data")
        if len(images) <= NEIGHBOURS + 1:
            raise UserError(where, f"only {len(images)} images", f"at least {NEIGHBOURS + 2}; hundreds mean something")
    if labels is not None and labels.shape != samples.shape[:1]:
        raise UserError("labels", f"of shape {tuple(labels.shape)}", f"one per sample: ({len(samples)},)")
    known = len(classifier.class_names) if classifier is not None else None
    if labels is not None and known is not None and int(labels.max()) >= known:
        raise UserError("labels", f"label {int(labels.max())}", f"the classifier knows {known} classes")


def _frechet(samples: Tensor, train: Tensor, noise: Tensor, n: int, repeats: int, seed: int) -> dict[str, Any]:
    """Each to the same part of the training images, n on the one side and the remaining ones on the other."""
    found: dict[str, list[float]] = {"samples": [], "real": [], "gaussian": []}
    random = np.random.default_rng([seed, 2])
    for _ in range(repeats):
        order = random.permutation(len(train))
        part, rest = train[order[:n]], Gaussian.of(train[order[n:]])
        for name, rows in (("samples", samples), ("real", part), ("gaussian", noise)):
            chosen = random.permutation(len(rows))[:n]
            found[name].append(frechet_distance(Gaussian.of(rows[chosen]), rest))
    result: dict[str, Any] = {name: float(np.median(values)) for name, values in found.items()}
    return result | {"interval": [min(found["samples"]), max(found["samples"])]}


def _coverage(
    samples: Tensor, train: Tensor, held_out: Tensor, noise: Tensor, name: str, seed: int
) -> dict[str, dict[str, Any]]:
    """Precision and recall against the training images, on as many samples as held-out images."""
    m = min(len(samples), len(held_out), len(noise))
    random = np.random.default_rng([seed, 3])
    precision: dict[str, Any] = {}
    recall: dict[str, Any] = {}
    radii = manifold_radii(train, NEIGHBOURS)
    for key, rows in (("samples", samples), ("real", held_out), ("gaussian", noise)):
        chosen = rows[random.permutation(len(rows))[:m]]
        precision[key], recall[key] = precision_recall(train, chosen, NEIGHBOURS, radii)
    precision["interval"] = list(share_interval(precision["samples"], m))
    return {f"precision/{name}": precision, f"recall/{name}": recall}


def _further(sets: FeatureSets, name: str, seed: int, further: Sequence[str]) -> dict[str, dict[str, Any]]:
    """KID, density and coverage, all against the training images and on equal numbers where that matters."""
    found: dict[str, dict[str, Any]] = {}
    rows = {"samples": sets.samples, "real": sets.held_out, "gaussian": sets.gaussian}
    if "kid" in further:
        values = {key: kernel_distance_of_subsets(part, sets.train, seed=seed) for key, part in rows.items()}
        found[f"kid/{name}"] = {key: value for key, (value, _) in values.items()}
        mean, deviation = values["samples"]
        found[f"kid/{name}"]["interval"] = [mean - deviation, mean + deviation]
        found[f"kid_all/{name}"] = {"samples": kernel_distance(sets.samples, sets.train)}
    if "coverage" in further and len(sets.train) > CROWD:
        random, m = np.random.default_rng([seed, 5]), min(map(len, rows.values()))
        radii = manifold_radii(sets.train, CROWD)
        both = {
            k: density_coverage(sets.train, r[random.permutation(len(r))[:m]], CROWD, radii) for k, r in rows.items()
        }
        found[f"density/{name}"] = {key: value[0] for key, value in both.items()}
        found[f"coverage/{name}"] = {key: value[1] for key, value in both.items()}
    return found


def _recognized(
    samples: Tensor, train: Tensor, held_out: Tensor, noise: Tensor, labels: Tensor | None
) -> dict[str, dict[str, Any]]:
    """From class probabilities (N, K) of each set."""
    accepted: dict[str, Any] = {}
    gap: dict[str, Any] = {}
    real = class_shares(train.argmax(1), train.shape[1])
    for key, rows in (("samples", samples), ("real", held_out), ("gaussian", noise)):
        accepted[key] = acceptance(rows, CONFIDENCE)
        gap[key] = 100 * float(np.abs(class_shares(rows.argmax(1), rows.shape[1]) - real).max())
    accepted["interval"] = list(share_interval(accepted["samples"], len(samples)))
    found = {"acceptance": accepted, "class_share_gap": gap}
    known = labels != -1 if labels is not None else torch.zeros(len(samples), dtype=torch.bool)
    if labels is not None and known.any():
        share = (samples.argmax(1) == labels)[known].double().mean().item()
        found["agreement"] = {"samples": share, "interval": list(share_interval(share, int(known.sum())))}
    return found


def _classes(samples: Tensor, train: Tensor, names: list[str], labels: Tensor | None) -> dict[str, dict[str, float]]:
    """Per class: its share as the classifier sees it, and how the samples that were asked for (or seen) fare."""
    seen, shares = samples.argmax(1), class_shares(train.argmax(1), len(names))
    table: dict[str, dict[str, float]] = {}
    for index, name in enumerate(names):
        row = {"samples": (seen == index).double().mean().item(), "real": float(shares[index])}
        asked = labels == index if labels is not None and bool((labels != -1).any()) else seen == index
        if asked.any():
            row["acceptance"] = acceptance(samples[asked], CONFIDENCE)
            if labels is not None and bool((labels == index).any()):
                row["agreement"] = (seen == index)[asked].double().mean().item()
        table[name] = row
    return table

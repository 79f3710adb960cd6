"""Generated images against real ones, or against the statistics of real ones in a file.

Processes of a torchrun all come here and share what is embedded; the first one gets the result, the others None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.evaluate import EvaluateSettings
from .show import Progress, say
from .yardstick import Yardstick, further

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Store
    from ..denoiser import Encoder
    from ..measure import Gaussian
    from ..measure.quality import FeatureSets
    from ..measure.statfile import StatisticsFile
    from .generated import Generated

MOST_KEPT = 50_000  # vectors of samples that are compared one by one; a Gaussian takes all of them
FULL_RANK = 2048  # fewer images than dimensions of pool_3 leave FID's covariance without full rank


def compare(
    given: Generated, yardstick: Yardstick, settings: EvaluateSettings, quiet: bool, file: StatisticsFile | None = None
) -> dict[str, Any] | None:
    """The verdict on generated images: `measure.quality` against the store, and the distance to all of `split`, or to
    the statistics of a file instead.
    """
    import torch

    from ..data import spread
    from ..measure import frechet_distance, processes
    from ..measure.quality import quality

    say("measuring ...", quiet)
    store, encoder = yardstick.store, yardstick.encoder
    target, spatial = targets(store, settings, encoder, quiet) if file is None else (file.gaussian, file.spatial)
    ours, whole = seen(encoder, given.images, quiet)
    kept = spread(len(given.images), MOST_KEPT)
    samples, train, held_out = given.images[kept], store.batch(yardstick.train), store.batch(yardstick.held_out)
    features = feature_sets(yardstick, (samples, train, held_out), ours, quiet)
    own = embed_spatial(encoder, given.images, settings, quiet)
    if not processes.is_first():
        return None
    known = torch.tensor(given.labels)[kept] if given.labels is not None else None
    asked = further(settings, encoder)
    found = quality(samples, train, held_out, encoder, yardstick.judge, known, further=asked, features=features)
    assert target is not None  # see `check_reference`
    distance = frechet_distance(whole, target)
    where = {"split": settings.split} if file is None else {"file": str(file.path)}
    found["frechet_to_split" if file is None else "frechet_to_reference"] = where | {
        "images": len(given.images),
        "value": distance,
    }
    found["metrics"] |= inception_rows(encoder, asked, distance, (own, spatial), ours)
    found["precision"] = given.precision
    found["held_out"] = {"split": yardstick.part, "images": len(held_out)}
    found["data"] = {"name": store.name, "hash": store.content_hash}
    return found | facts(given, encoder, about_split(store, settings, target.n) if file is None else file.identity)


def check_reference(file: StatisticsFile, settings: EvaluateSettings) -> None:
    """Raises `UserError` for what cannot be had from a statistics file."""
    where, asked, alone = f"reference={file.path}", settings.metrics or (), settings.data is None
    if file.gaussian is None and not alone:
        raise UserError(where, "holds images only", "leave data out to compare with them")
    if "sfid" in asked and file.spatial is None:
        raise UserError(where, "holds no mu_s and sigma_s, which sFID needs", "leave sfid out")
    if not alone:
        return
    if file.images is None and {"kid", "coverage"} & {*asked}:
        raise UserError(where, "holds no images, which KID and coverage need", "add data=SOURCE, or leave them out")
    for name in ("classifier", "save_statistics"):
        if getattr(settings, name) is not None:
            raise UserError(name, "there is no data with a statistics file alone", "add data=SOURCE")


def compare_to_file(
    given: Generated, file: StatisticsFile, encoder: Encoder, settings: EvaluateSettings, quiet: bool
) -> dict[str, Any] | None:
    """The distance to a statistics file, and what else its images allow where it holds them (as ADM's do)."""
    from ..measure import frechet_distance, processes, result_name

    say("measuring ...", quiet)
    ours, whole = seen(encoder, given.images, quiet)
    real, target = None, file.gaussian
    if file.images is not None:
        real, of_images = seen(encoder, file.images, quiet, "the real images")
        target = target or of_images
    assert target is not None  # a file holds the one or the other
    own = embed_spatial(encoder, given.images, settings, quiet) if file.spatial is not None else None
    if not processes.is_first():
        return None
    asked = further(settings, encoder)
    distance = frechet_distance(whole, target)
    metrics = {} if getattr(encoder, "published", False) else {result_name(encoder.name): {"samples": distance}}
    metrics |= inception_rows(encoder, asked, distance, (own, file.spatial), ours)
    metrics |= image_rows(encoder.name, asked, real, ours) if real is not None else {}
    found: dict[str, Any] = {"encoder": encoder.name, "images": {"samples": len(given.images)}, "metrics": metrics}
    return found | {"precision": given.precision} | facts(given, encoder, file.identity)


def feature_sets(yardstick: Yardstick, sets: tuple[Tensor, Tensor, Tensor], ours: Tensor, quiet: bool) -> FeatureSets:
    """What the encoder sees in all sets that `quality` compares; real images' vectors of a network are cached."""
    import torch

    from ..measure import embed
    from ..measure.quality import see
    from ..measure.statistics import features_of

    encoder, stored = yardstick.encoder, {"train": yardstick.train, "held_out": yardstick.held_out}

    def by(name: str, images: Tensor) -> Tensor:
        if name == "samples":
            return ours
        if name in stored and hasattr(encoder, "transform"):  # a network, whose passes are worth keeping
            with Progress("embedding real images", quiet) as progress:
                rows = features_of(yardstick.store, stored[name], encoder, progress=progress, share=True)
            return torch.from_numpy(rows)
        return embed(encoder, images, share=True)

    return see(*sets, encoder, by=by)


def targets(
    store: Store, settings: EvaluateSettings, encoder: Encoder, quiet: bool
) -> tuple[Gaussian, Gaussian | None]:
    """The Gaussian of the split, and that of sFID's features if they are asked for (empty but in the first process)."""
    from ..measure.statistics import reference

    with Progress("embedding the real images", quiet or not hasattr(encoder, "transform")) as progress:
        whole = reference(store, settings.split, encoder, progress=progress, share=True).gaussian
        if "sfid" not in further(settings, encoder):
            return whole, None
        spatial: Any = encoder.spatial()  # type: ignore[attr-defined]
        return whole, reference(store, settings.split, spatial, progress=progress, share=True).gaussian


def seen(encoder: Encoder, images: Tensor, quiet: bool, what: str = "the samples") -> tuple[Tensor, Gaussian]:
    """(features of at most `MOST_KEPT` of the images, the Gaussian of all of them, empty but in the first process)."""
    import torch

    from ..data import spread
    from ..measure import Gaussian, processes

    n, size = len(images), getattr(encoder, "batch", 512)
    kept, whole, done = [], Gaussian(), 0
    chosen = set(spread(n, MOST_KEPT).tolist())
    work = lambda part: encoder.embed(images[part]).float()  # noqa: E731
    with Progress(f"embedding {what}", quiet or not hasattr(encoder, "transform")) as progress:
        for features in processes.batches(n, size, work):
            if n > MOST_KEPT and processes.is_first():
                whole.update(features)
            kept.append(features[[i for i in range(len(features)) if done + i in chosen]])
            done += len(features)
            progress(done, n)
    rows = torch.cat(kept)
    # all at once where that is possible: of few vectors the Gaussian then knows more than its covariance
    return rows, Gaussian.of(rows) if n <= MOST_KEPT and processes.is_first() else whole


def embed_spatial(encoder: Encoder, images: Tensor, settings: EvaluateSettings, quiet: bool) -> Gaussian | None:
    """The Gaussian of the samples' sFID features, None where they are not asked for."""
    from ..measure import Gaussian, embed

    if "sfid" not in further(settings, encoder):
        return None
    say("measuring sFID ...", quiet)
    return Gaussian.of(embed(encoder.spatial(), images, share=True))  # type: ignore[attr-defined]


def inception_rows(
    encoder: Any,
    asked: tuple[str, ...],
    distance: float,
    spatial: tuple[Gaussian | None, Gaussian | None],
    ours: Tensor,
) -> dict[str, dict[str, Any]]:
    """FID, if this is what the distance is; sFID of (samples, reference) and the Inception score, if asked for."""
    from ..measure import frechet_distance, inception_score, result_name
    from ..measure.score import SPLITS

    rows: dict[str, dict[str, Any]] = {}
    published = getattr(encoder, "published", False)
    if published:
        rows["FID"] = {"samples": distance}
    own, theirs = spatial
    if own is not None and theirs is not None:
        rows["sFID" if published else result_name(f"{encoder.name}-spatial")] = {
            "samples": frechet_distance(own, theirs)
        }
    if "inception_score" in asked:
        mean, deviation = inception_score(encoder.probabilities(ours.cpu()), min(SPLITS, len(ours)))
        name = "inception_score" if published else f"inception_score/{encoder.name}"
        rows[name] = {"samples": mean, "interval": [mean - deviation, mean + deviation]}
    return rows


def image_rows(name: str, asked: tuple[str, ...], real: Tensor, ours: Tensor) -> dict[str, dict[str, Any]]:
    """What is measured image by image, against the real images of a reference file."""
    from ..measure import density_coverage, kernel_distance, kernel_distance_of_subsets, precision_recall
    from ..measure.density import NEIGHBOURS as CROWD
    from ..measure.quality import NEIGHBOURS

    values: dict[str, float] = {}
    if "kid" in asked:
        values |= {"kid": kernel_distance_of_subsets(ours, real)[0], "kid_all": kernel_distance(ours, real)}
    if len(real) > NEIGHBOURS:
        values |= zip(("precision", "recall"), precision_recall(real, ours, NEIGHBOURS), strict=True)  # type: ignore[operator]
    if "coverage" in asked and len(real) > CROWD:
        values |= zip(("density", "coverage"), density_coverage(real, ours), strict=True)  # type: ignore[operator]
    return {f"{metric}/{name}": {"samples": value} for metric, value in values.items()}


def about_split(store: Store, settings: EvaluateSettings, images: int) -> dict[str, Any]:
    """The identity of a part of a store, for results and statistics files."""
    return {
        "data": store.name,
        "data_hash": store.content_hash,
        "split": settings.split,
        "images": images,
        "data_settings": store.settings.model_dump(mode="json"),
    }


def facts(given: Generated, encoder: Encoder, reference: dict[str, Any]) -> dict[str, Any]:
    """What the numbers depend on: how the samples were made, the encoder, what they were compared with; and notes."""
    from ..measure.statfile import describe

    n, notes = len(given.images), []
    request = {"samples": {"images": n, **given.request}, "encoder": describe(encoder), "reference": reference}
    if hasattr(encoder, "published"):
        if n < FULL_RANK:
            notes.append(
                f"{n:,} samples are fewer than the {FULL_RANK:,} dimensions, so the distance is too large: "
                "use 10,000 to 50,000, and compare equal numbers only"
            )
        if not encoder.published:
            notes.append(f"{encoder.file} is not the published file: not FID")  # type: ignore[attr-defined]
    if n > MOST_KEPT:
        notes.append(f"neighbours and kernel distance: {MOST_KEPT:,} of {n:,} samples, one from each stretch")
    return {"request": request, "notes": notes, "note": in_words(request)}


def in_words(request: dict[str, Any]) -> str:
    """One line of the request."""
    made, reference = request["samples"], request["reference"]
    parts = [f"{made['images']:,} samples"]
    seeds = made.get("seeds", {})
    if "first" in seeds:
        parts.append(f"seeds {seeds['first']} to {seeds['first'] + seeds['count'] - 1}")
    if "sampler" in made:
        parts.append(f"{made['sampler']}, {made['steps']} steps, guidance {made['guidance']:g}")
        parts += guide_in_words(made)
        parts += [
            "clipped" if made.get("clip") else "not clipped",
            f"computed in {made.get('precision', 'unknown').replace('full', 'float32')}",
        ]
    encoder = request["encoder"]
    first = "" if encoder["transform"] == "none" else f", {encoder['transform']}"
    parts.append(f"encoder {encoder['encoder']} (version {encoder['encoder_version'][:16]}{first})")
    name = reference.get("data") or reference.get("file")
    count = f"{reference['images']:,} images" if "images" in reference else "an unknown number of images"
    digest = (reference.get("data_hash") or reference.get("sha256") or "")[:8]
    part = f" ({reference['split']})" if "split" in reference else ""
    return "; ".join([*parts, f"reference {name}{part}, {count}, {digest}"])


def guide_in_words(made: dict[str, Any]) -> list[str]:
    """Who guided samples, how much, and what it cost, as far as the request says."""
    words, guide = [], made.get("guide")
    if isinstance(guide, dict):
        who = guide.get("kind") or f"classifier {str(guide.get('classifier', ''))[:8]}".rstrip()
        where = " at {:g} < sigma <= {:g}".format(*guide["interval"]) if guide.get("interval") else ""
        words.append(f"guide {who}, scale {guide.get('scale', 1):g}{where}")
    if "relative_cost" in made:
        words.append(f"{made['relative_cost']:g} times the computation of unguided samples")
    return words


def save_statistics(store: Store, settings: EvaluateSettings, encoder: Encoder, quiet: bool) -> dict[str, Any] | None:
    """Writes the statistics of `split`, and returns what the file says of itself; None but in the first process."""
    from ..measure import processes
    from ..measure.statfile import describe, write_statistics

    assert settings.save_statistics is not None
    whole, spatial = targets(store, settings, encoder, quiet)
    if not processes.is_first():
        return None
    about = about_split(store, settings, whole.n) | describe(encoder)
    write_statistics(settings.save_statistics, whole, spatial, about)
    return about

"""The model card: a README.md that says what a model is, what it was made of, how good it is and what it is not for.

Its front matter is what hubs of models read (YAML between two lines of dashes): licence, tags, library, data, metrics.
Numbers are copied from the run's result and evaluations, with their intervals and how many images they are of; none is
made up here, and what is not known is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..denoiser import Denoiser, JointDenoiser
from ..settings.resolve import to_yaml
from ..settings.train import TrainSettings
from .card_use import Facts, usage

UNKNOWN = "unknown"
MEMORISATION = ("nearest_median", "nearest_5_percent", "nearer_than_real")
SHOWN_CLASSES = 30
LARGER = "super-resolution model"


def card(
    model: Any,
    facts: Facts,
    settings: TrainSettings | None,
    result: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]] = (),
    diffusers: Mapping[str, Any] | None = None,
    ours: bool = True,
) -> str:
    """The whole text. settings, result: without paths of this machine. evaluations: of these weights, newest first.

    diffusers: what `write_diffusers` returned, where that layout lies beside the card. ours: whether twofold's does.
    """
    parts = [
        front_matter(model, facts, result, evaluations, diffusers),
        f"# {facts.name}\n\n{what_it_is(model, result)}",
        "## How to use it\n\n" + usage(model, facts, diffusers, ours),
        "## Data\n\n" + data(model, facts, settings, result),
        "## Figures\n\n" + figures(result, evaluations),
        "## Copies of training images\n\n" + memorisation(model, evaluations),
        "## Limits\n\n" + limits(model),
        "## Licence\n\n" + licence(facts),
    ]
    if settings is not None:
        recipe = to_yaml(settings).strip()
        parts.append(
            f"## Recipe\n\nAll settings of the training, paths cut to their last name.\n\n```yaml\n{recipe}\n```"
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def front_matter(
    model: Any,
    facts: Facts,
    result: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    diffusers: Mapping[str, Any] | None,
) -> str:
    """The block that hubs read."""
    from huggingface_hub import EvalResult, ModelCardData

    makes, kind = isinstance(model, Denoiser), kind_of(model)
    tags = ["twofold", *(["diffusion"] if makes else []), *(["diffusers"] if diffusers else [])]
    task = "unconditional-image-generation" if makes else "image-classification"
    task = "image-to-image" if kind == LARGER else task
    name = str(data_facts(result).get("name", "images"))
    rows = [
        EvalResult(
            task_type=task,
            dataset_type=facts.dataset or name,
            dataset_name=name,
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in measured(result, evaluations).items()
    ]
    more: dict[str, Any] = {"pipeline_tag": task} if makes or kind in ("classifier", "joint model", LARGER) else {}
    found = ModelCardData(
        license=facts.licence or UNKNOWN,
        library_name="twofold",
        tags=tags,
        datasets=[facts.dataset] if facts.dataset else None,
        model_name=facts.name.rpartition("/")[2],
        eval_results=rows or None,
        **more,
    )
    return f"---\n{found.to_yaml().strip()}\n---"


def kind_of(model: Any) -> str:
    """A word for what the model is."""
    if getattr(model, "low_factor", 0):
        return LARGER
    if isinstance(model, JointDenoiser):
        return "joint model"
    if isinstance(model, Denoiser):
        return "diffusion model"
    words = {"masks": "segmenter", "points": "landmarker", "encode": "autoencoder", "logits": "classifier"}
    return next((word for name, word in words.items() if hasattr(model, name)), "backbone without a head")


def what_it_is(model: Any, result: Mapping[str, Any]) -> str:
    c, h, w = getattr(model, "image_shape", None) or shape_of_images(model)
    kind, count = kind_of(model), sum(p.numel() for p in model.parameters())
    size = f"{'grey' if c == 1 else 'RGB' if c == 3 else f'{c}-channel'} images of {h} x {w} pixels"
    does = {
        "joint model": f"It makes {size} and names what is in them, with one network.",
        LARGER: f"It makes images larger; it was trained on {size}.",
        "diffusion model": f"It makes {size} out of noise, and its features describe such images.",
    }.get(kind, f"It answers about {size}.")
    classes = getattr(model, "classes", 0)
    if isinstance(model, Denoiser) and classes:
        does += f" It can be asked for one of {classes} classes."
    seen = f" It was trained on {result['n_images']:,} images, counting repeats." if result.get("n_images") else ""
    return f"A {kind} of {count:,} parameters, in the format of twofold. {does}{seen}"


def shape_of_images(model: Any) -> tuple[int, int, int]:
    """(C, H, W) of images; of a latent model those its autoencoder decodes."""
    codec, shape = getattr(model, "codec", None), tuple(getattr(model, "shape", None) or (3, 0, 0))
    if getattr(codec, "latent", False) and getattr(codec, "size", None):
        return (codec.channels, *codec.size)  # type: ignore[union-attr]
    return shape


def data_facts(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return result.get("data") or {}


def data(model: Any, facts: Facts, settings: TrainSettings | None, result: Mapping[str, Any]) -> str:
    known, names = data_facts(result), list(getattr(model, "class_names", ()))
    rows = [f"- trained on: {known.get('name', UNKNOWN)}" + (f" ({facts.dataset})" if facts.dataset else "")]
    if "train_images" in known:
        rows.append(f"- training images: {known['train_images']:,}")
    if "hash" in known:
        rows.append(f"- hash of the data (shape, pixels, labels): `{known['hash']}`")
    if settings is not None:
        d = settings.data
        rows.append(
            f"- held out where the source names no parts itself: {d.validation_share:g} for validation, "
            f"{d.test_share:g} for the test, seed {d.split_seed}"
        )
    if names:
        shown = ", ".join(names[:SHOWN_CLASSES]) + (
            f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
        )
        rows.append(f"- classes: {shown}")
    rows.append("- the images themselves are not in this repository")
    return "\n".join(rows)


def measured(result: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{metric: value} for the front matter: the newest evaluation of each, else what validation found in training."""
    found = {f"validation {name}": float(value) for name, value in (result.get("metrics") or {}).items()}
    for one in reversed(evaluations):
        rows = {**one.get("metrics", {}), **(one.get("answers") or {}).get("metrics", {})}
        found |= {
            name: float(row["samples"]) for name, row in rows.items() if isinstance(row.get("samples"), int | float)
        }
    return found


def figures(result: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Tables of what was measured, and what these numbers are not."""
    text = []
    metrics = result.get("metrics") or {}
    if metrics:
        rows = "\n".join(f"| {name} | {float(value):.4g} |" for name, value in metrics.items())
        text.append(f"On the validation part, during training:\n\n| metric | value |\n| --- | --- |\n{rows}")
    for one in evaluations[:3]:
        found: dict[str, Any] = {**one.get("metrics", {}), **(one.get("answers") or {}).get("metrics", {})}
        lines = [
            f"| {name} | {_number(row.get('samples'))} | {_interval(row)} | {_number(row.get('real'))} |"
            for name, row in found.items()
        ]
        about = _about(one)
        text.append(
            about
            + "\n\n| metric | value | 95 % | real images in their place |\n| --- | --- | --- | --- |\n"
            + "\n".join(lines)
        )
    if not text:
        return "Nothing was measured. `twofold evaluate` does."
    return "\n\n".join([*text, NOT])


NOT = (
    "A Frechet distance is named after its encoder (`frechet/pixels` compares pixels). Only one on Inception-V3 with "
    "the reference weights is called FID; the others must not be compared with published FIDs. Numbers from different "
    "counts of images, samplers or reference parts are not comparable either."
)


def _about(one: Mapping[str, Any]) -> str:
    """How these numbers came about. Made of facts that name no place, not of the evaluation's own sentence."""
    images, held = one.get("images") or {}, one.get("held_out") or {}
    asked = (one.get("request") or {}).get("samples") or {}
    count = images.get("samples") or images.get("labelled") or held.get("images")
    words = [f"Measured on {count:,} images" if isinstance(count, int) else "Measured"]
    if asked.get("sampler"):
        words.append(f"{asked['sampler']}, {asked.get('steps')} steps, guidance {asked.get('guidance', 1):g}")
    if one.get("encoder"):
        words.append(f"encoder {one['encoder']}")
    if images.get("frechet"):
        words.append(f"Frechet distance of {images['frechet']:,} samples")
    return "; ".join(words) + ":"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _interval(row: Mapping[str, Any]) -> str:
    ends = row.get("interval")
    return f"{ends[0]:.4g} to {ends[1]:.4g}" if isinstance(ends, list | tuple) and len(ends) == 2 else ""


def memorisation(model: Any, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """What is known of generated images that are copies."""
    if not isinstance(model, Denoiser):
        return "It makes no images."
    for one in evaluations:
        rows = {name: one.get("metrics", {})[name] for name in MEMORISATION if name in one.get("metrics", {})}
        if rows:
            lines = [
                f"| {name} | {_number(row.get('samples'))} | {_number(row.get('real'))} |" for name, row in rows.items()
            ]
            head = "Distance of generated images to their nearest training image, and what new real images get instead:"
            tail = "`nearer_than_real` is the share nearer than 95 % of new real images are: of those it is 0.05."
            return f"{head}\n\n| | generated | real |\n| --- | --- | --- |\n" + "\n".join(lines) + f"\n\n{tail}"
    return (
        "Not measured. A generator can give back training images; `twofold copies` looks for them before images leave."
    )


def limits(model: Any) -> str:
    text = ["- It knows what its training images show, with their gaps and biases, and nothing else."]
    if isinstance(model, Denoiser):
        text.append("- Its images show nothing that exists: they are no evidence and no measurement.")
        text.append("- Asked for other sizes or classes than it was trained on, it may give anything.")
    if not isinstance(model, Denoiser) or isinstance(model, JointDenoiser):
        text.append(
            "- It names every image it is shown, also of things it has never seen; its probabilities are estimates."
        )
    return "\n".join(text)


def licence(facts: Facts) -> str:
    if facts.licence:
        said = "as whoever published it said. It covers the weights; the training images have their own."
        return f"`{facts.licence}`, {said}"
    return "Unknown: choose one (`licence=...`). Without a licence nobody else may use the model."

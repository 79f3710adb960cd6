"""How strange an image is to a model, by its answers or by its denoising: higher for what is unlike what it knows.

    max_probability   1 - max_k p_k                              (Hendrycks and Gimpel 2017)
    energy            -log sum_k exp(z_k)                        (Liu et al. 2020)
    entropy           -sum_k p_k log p_k
    denoising_error   in standard deviations of known images     (Graham et al. 2023; see `anomaly`)

p = softmax(z) of the logits z. Where each logit is a yes-or-no question of its own, the first is the mean over them of
1 - max(p, 1 - p), the entropy is the mean of theirs, and the energy is -sum_k log(1 + exp(z_k)) (Wang et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..denoiser import Denoiser
from .anomaly import AnomalyDetector

Progress = Callable[[int, int], None]  # (images done, in all)
BY_ANSWERS = ("max_probability", "energy", "entropy")
LOGARITHMIC = ("max_probability", "entropy")  # those above 0, and near it for most images
BY_DENOISING = "denoising_error"


def by_answers(logits: Tensor, multi_label: bool = False) -> dict[str, Tensor]:
    """{name: (N,) float64} of logits (N, K), for every name in `BY_ANSWERS`."""
    z = logits.double()
    if multi_label:
        p, log_p, log_q = z.sigmoid(), functional.logsigmoid(z), functional.logsigmoid(-z)
        return {
            "max_probability": (-z.abs()).sigmoid().mean(1),
            "energy": -functional.softplus(z).sum(1),
            "entropy": -(p * log_p + (1 - p) * log_q).mean(1),
        }
    log_p, total = z.log_softmax(1), z.logsumexp(1)
    others = z.scatter(1, z.argmax(1, keepdim=True), -torch.inf)
    rest = (others.logsumexp(1) - total).exp()  # 1 - p is lost in rounding where p is nearly 1
    return {"max_probability": rest, "energy": -total, "entropy": -(log_p.exp() * log_p).sum(1)}


def by_denoising(
    denoiser: Denoiser,
    known: Tensor,
    sets: tuple[Tensor, ...],
    micro_batch: int = 64,
    progress: Progress | None = None,
) -> tuple[Tensor, ...]:
    """(N,) float64 for every set of uint8 images (N, C, H, W): one draw of noise at each level of `anomaly.SIGMAS`.

    known: images (at least 2) that say how large errors usually are. Raises `UserError` for images of another shape.
    """
    detector = AnomalyDetector(denoiser, draws=1, smooth=0.0, micro_batch=micro_batch)
    total = len(known) + sum(map(len, sets))
    done = 0

    def counted(now: int, _: int) -> None:
        if progress:
            progress(done + now, total)

    detector.fit(known, counted)
    done, found = len(known), []
    for images in sets:
        found.append(torch.from_numpy(detector.scores(images, counted)).double())
        done += len(images)
    return tuple(found)

"""Models from elsewhere: whether they compute what they were trained to, before anything is learned from them."""

from __future__ import annotations

from typing import Any

from ..adapters.suspicion import FEWEST, refuse_suspicious
from ..data import Store, spread
from ..generate.sample import place
from ..run.load import is_ours
from .fastest import step_flops

CHECKED = 48  # images on which a model from elsewhere must denoise
EACH = 3e9  # FLOPs of a training step per image up to which its attention layers are also tried one by one


def check_foreign(source: str, denoiser: Any, store: Store) -> None:
    """Raises `UserError` for a model from elsewhere that loads but computes something else than it was trained to."""
    rows = store.indices("train")
    if is_ours(source) or len(rows) < FEWEST:
        return
    x0 = denoiser.codec.encode(store.batch(rows[spread(len(rows), CHECKED)]).to(place(denoiser)[0]))
    refuse_suspicious(source, denoiser, x0, each=step_flops(denoiser, denoiser.shape) < EACH)

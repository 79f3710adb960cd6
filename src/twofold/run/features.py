"""`DiffusionFeatures`: a trained diffusion model as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from ..denoiser import Denoiser
from ..errors import UserError
from ..recognize.reader import Reader, as_images
from .load import load_to_use

SIGMA = 0.05  # of features that nobody has chosen a noise level for


def reader_for(
    model: Denoiser,
    probe: Any = None,
    layers: Sequence[str] = (),
    sigma: float | None = None,
    draws: int = 5,
    micro_batch: int = 128,
) -> Reader:
    """Features of these layers at this noise level; by default those that a probe of the model chose (a
    `ProbeClassifier`), else those of the middle layer, where recognition usually is best.

    Raises `UserError` for layers and levels that the model does not have.
    """
    middle = [list(model.layers)[len(model.layers) // 2]]
    names = list(layers) or ([layer for layer, _ in probe.reader.places] if probe else middle)
    places = probe.reader.places if probe else [(name, SIGMA) for name in names]
    if layers or sigma is not None:
        level = sigma if sigma is not None else places[0][1]
        places = [(name, level) for name in dict.fromkeys(names)]
    return Reader(model, places, probe.facts.pool if probe else "mean", draws, micro_batch=micro_batch)


class DiffusionFeatures(TransformerMixin, BaseEstimator):
    """Images -> pooled features of a diffusion model; nothing is learned, so `fit` only checks.

        make_pipeline(DiffusionFeatures("runs/a", layers="dec.2", sigma=0.1), LogisticRegression())

    Parameters
    ----------
    model : a run folder, a .safetensors file, a diffusers folder, a hub name, or a loaded `Denoiser`
    layers : one layer or several, by name or published alias (`out_6`); their features are joined
    sigma : one noise level or several, in units of x0 (pixels in [-1, 1]); 0 is the clean image
    pool : "mean", "max", "grid2" (averages over 2 x 2 fields) or "map" (Xiang et al. 2023 use the mean)
    draws : noise draws that are averaged
    seed : of the noise, which otherwise depends on the image's pixels only: the same image has the same features
    micro_batch : images per forward pass
    device : "cpu", "cuda", ...

    `transform` takes uint8 images (N, C, H, W), (N, H, W, C), (N, H, W) for grey ones, or flat (N, C * H * W), and
    returns float32 (N, n_features_out_). In a grid search over the head alone give the pipeline a `memory`, so that
    the features are computed once.
    """

    def __init__(
        self,
        model: str | Path | Denoiser,
        layers: str | Sequence[str] = "mid",
        sigma: float | Sequence[float] = 0.05,
        pool: str = "mean",
        draws: int = 1,
        seed: int = 0,
        micro_batch: int = 128,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.layers = layers
        self.sigma = sigma
        self.pool = pool
        self.draws = draws
        self.seed = seed
        self.micro_batch = micro_batch
        self.device = device

    def fit(self, X: Any, y: Any = None) -> DiffusionFeatures:
        """Loads the model and checks the parameters and the images. Raises `UserError`."""
        model = self.model if isinstance(self.model, Denoiser) else load_to_use(self.model, device=self.device)
        if not isinstance(model, Denoiser):
            raise UserError(f"model={self.model}", "holds a classifier", "give a denoiser's run")
        layers = [self.layers] if isinstance(self.layers, str) else list(self.layers)
        levels = list(np.atleast_1d(np.asarray(self.sigma, float)))
        places = [(layer, float(sigma)) for sigma in levels for layer in layers]
        self.reader_ = Reader(model, places, self.pool, self.draws, self.seed, micro_batch=self.micro_batch)
        self.n_features_out_ = self.reader_.read(as_images(X, model)[:1]).shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features (N, n_features_out_) float32."""
        check_is_fitted(self)
        return self.reader_.read(as_images(X, self.reader_.denoiser)).numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """`<layer>@<sigma>[<channel>]`, in order."""
        check_is_fitted(self)
        return np.asarray(self.reader_.names(), dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        tags.input_tags.three_d_array = True
        return tags

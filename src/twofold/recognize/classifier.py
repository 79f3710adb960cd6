"""Networks that name what is in an image, clean or noisy: implementations of the `Classifier` contract.

logits(x, sigma) = F(c_in x, c_noise)        x = x0 + sigma * noise, coefficients of the noise family
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..codec import PixelCodec
from ..denoiser import Denoiser, JointDenoiser
from ..generate.sample import image_shape, place
from ..noise import Family, add, as_sigma, expand
from ..taps import Layer
from .views import image_noise


class NetworkClassifier(nn.Module):
    """network: x0 (B, C, H, W) in [-1, 1] -> logits (B, K). class_names: K of them. shape: (C, H, W) of x0.

    family: noise levels the network is told of, as network(c_in x, c_noise); None for one trained on clean images,
    which refuses sigma > 0. sigma_range: the family's, None without one.
    sigma: the level its answers are best at, which is what it was trained with; 0 for clean images and for all levels.
    multi_label: each logit is a yes-or-no question of its own (its sigmoid is a probability, their softmax is not).
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        shape: tuple[int, int, int],
        family: Family | None = None,
        sigma: float = 0.0,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.class_names = list(class_names)
        self.shape = shape
        self.family = family
        self.sigma_range: tuple[float, float] | None = family.sigma_range if family else None
        self.sigma = sigma
        self.multi_label = multi_label
        self.codec = PixelCodec()
        self.autocast: torch.dtype | None = None

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self.network.layers  # type: ignore[return-value]

    def forward(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, K) float32 or better; does not check the range of sigma, which may be 0."""
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            inputs = (x,) if self.family is None else self._inputs(self.family, x, as_sigma(sigma))
            logits: Tensor = self.network(*inputs)
        return logits.to(torch.promote_types(x.dtype, torch.float32))

    def logits(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, K) for x at sigma, () or (B,).

        Raises `UserError` for a sigma > 0 outside the family's range, `ValueError` for any where there is no family.
        """
        sigma = as_sigma(sigma)
        if self.family is not None:
            self.family.check(self._named(sigma))
        elif float(sigma.max()) > 0:
            raise ValueError("this classifier was trained on clean images; give it sigma = 0")
        return self(x, sigma)

    def image_logits(self, images: Tensor) -> Tensor:
        """(B, K) for uint8 images (B, C, H, W), at the level `sigma`, with noise that belongs to their pixels."""
        return _image_logits(self, images, self.sigma)

    def _named(self, sigma: Tensor) -> Tensor:
        """sigma as the network is told it: 0 becomes the smallest level there is."""
        assert self.sigma_range is not None
        return torch.where(sigma == 0, self.sigma_range[0], sigma)

    def _inputs(self, family: Family, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_in x, c_noise); a clean image is scaled as what it is and named by the smallest level."""
        c_in = family.coefficients(torch.where(sigma == 0, torch.finfo(torch.float64).tiny, sigma)).c_in
        c_noise = family.coefficients(self._named(sigma)).c_noise
        return expand(c_in, x) * x, c_noise.to(device=x.device, dtype=x.dtype, non_blocking=True).expand(len(x))


class JointClassifier(nn.Module):
    """The classifier that a joint denoiser is: what `NetworkClassifier` is to images, by the denoiser's own head.

    shape: (C, H, W) of images, which of a latent model is not that of x0. sigma: the level it is asked at, which may be
    set. layers: those that run for an answer, in order of execution.
    """

    def __init__(self, joint: JointDenoiser) -> None:
        super().__init__()
        self.joint = joint
        self.class_names = list(joint.class_names)
        self.shape = image_shape(joint)
        self.sigma_range: tuple[float, float] | None = joint.sigma_range
        self.sigma = float(joint.sigma)
        self.multi_label = joint.multi_label
        self.codec = joint.codec
        names = list(joint.layers)
        last = names.index("mid") + 1 if "mid" in names else len(names)
        self.layers: Mapping[str, Layer] = {name: joint.layers[name] for name in names[:last]}

    def logits(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """(B, K) for x at sigma, () or (B,). Raises `UserError` for a sigma > 0 outside the denoiser's range."""
        return self.joint.logits(x, sigma)

    def image_logits(self, images: Tensor) -> Tensor:
        """(B, K) for uint8 images (B, C, H, W), at the level `sigma`, with noise that belongs to their pixels."""
        return _image_logits(self, images, self.sigma)


def answering(model: nn.Module) -> nn.Module | None:
    """The classifier that a model is by itself: itself, or a joint denoiser's head; None for other denoisers."""
    if isinstance(model, JointDenoiser):
        return JointClassifier(model)
    return None if isinstance(model, Denoiser) else model


def _image_logits(classifier: NetworkClassifier | JointClassifier, images: Tensor, sigma: float) -> Tensor:
    x0 = classifier.codec.encode(images.to(place(classifier)[0]))
    if sigma == 0:
        return classifier.logits(x0, 0.0)
    noise = image_noise(images, tuple(x0.shape[1:])).to(x0.device)
    return classifier.logits(add(x0, noise, sigma), sigma)

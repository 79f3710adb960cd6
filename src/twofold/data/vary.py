"""Variations of what a classifier sees, so that it learns the class and not the picture.

The operations are those with which Joint Diffusion (Deja et al. 2023, its published code) trains its classifier, in
its order; the network is not told of them, unlike of those in `augment`. Published values, at strength 1:

| operation              | active with | parameters                                                                   |
| colour jitter (RGB)    | 1/4         | brightness, contrast, saturation in 0.9..1.1, hue in -0.1..0.1 of a turn     |
| random resized crop    | 1/4         | area 1/2..1 of the image, width / height in 3/4..4/3 of the image's          |
| rotation               | 1/4         | -30..30 degrees                                                              |
| horizontal flip        | 1/2         |                                                                              |
| contrast               | 1/4         | factor 0.6..1.8 on the distance from the image's mean grey                   |
| sharpness              | 1/4         | factor 0.4..2 on the distance from the blurred image                         |
| brightness             | 1/4         | factor 0.6..1.8                                                              |

Colours are changed in the picture y = (x0 + 1) / 2, and after each operation y is clamped to its own range [0, 1]: what
comes out is in [-1, 1] as what goes in. (Published, the [-1, 1] image itself was clamped to [0, 1], which blackens half
of it.) Crop and rotation are one bilinear interpolation; what comes in at the sides repeats the edge.

`mix` is MixUp (Zhang et al. 2018, equations 1 and 2), of images and targets alike: the target is the share of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

VARY_DRAWS = 19  # uniforms an image needs
MIX_DRAWS = 3  # and for mixing
CHANCE = 0.25  # with which an operation is active; a flip has 1/2
AREA, ASPECT, DEGREES = (0.5, 1.0), (3 / 4, 4 / 3), 30.0
BRIGHTNESS, CONTRAST, SHARPNESS = (0.6, 1.8), (0.6, 1.8), (0.4, 2.0)
JITTER = 0.1
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
# luma, and two axes of colour at right angles, as in the YIQ space of NTSC
YIQ = (LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def vary(x0: Tensor, u: Tensor | np.ndarray, strength: float = 1.0, flip: bool = True) -> Tensor:
    """Varies a batch as the table above says; each image by its own numbers only.

    x0: (B, C, H, W) float in [-1, 1], any device; the colour jitter is for C = 3. u: (B, VARY_DRAWS) float64 uniforms
    in [0, 1), on the CPU, so that nobody waits for the device. strength: 0 returns the images as they are, 1 is as
    published; ranges of factors are taken to its power, others multiplied by it. flip: whether a mirror image still
    shows its class, as it does not for digits and letters.
    Returns images in [-1, 1] of x0's shape, type and device; one for which nothing is active comes back bit for bit.
    """
    u = _uniforms(u, len(x0), VARY_DRAWS)
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength {strength} is not 0 or more")
    if strength == 0 or not len(x0):
        return x0
    mirrored, jittered, cropped, turned, contrast, sharp, bright = u[:, :7].unbind(1)
    amount = u[:, 7:]
    out = x0.clone()
    with torch.autocast(x0.device.type, enabled=False):
        if x0.shape[1] == 3:
            factors = _jitter_factors(amount[:, :4], strength)
            _change(out, jittered < CHANCE, _jitter, factors)
        maps = _maps(cropped < CHANCE, turned < CHANCE, amount[:, 4:9], strength, x0.shape[-2:])
        _change(out, (cropped < CHANCE) | (turned < CHANCE), _warp, maps)
        if flip:
            _change(out, mirrored < 0.5, lambda images, _: images.flip(-1), amount[:, :1])
        _change(out, contrast < CHANCE, _contrast, _between(amount[:, 9], CONTRAST, strength))
        _change(out, sharp < CHANCE, _sharpness, _between(amount[:, 10], SHARPNESS, strength))
        _change(out, bright < CHANCE, _brightness, _between(amount[:, 11], BRIGHTNESS, strength))
    return out


def mix(
    x0: Tensor, target: Tensor, u: Tensor | np.ndarray, alpha: float = 1.0, probability: float = 0.5
) -> tuple[Tensor, Tensor]:
    """MixUp: each image mixed with the next of the batch (the last with the first), and its target alike.

        x0'_i = share_i x0_i + (1 - share_i) x0_{i+1},   target'_i = share_i target_i + (1 - share_i) target_{i+1}

    x0: (B, C, H, W) float. target: (B, ...) float, rows of class probabilities or of attributes; all of them known.
    u: (B, MIX_DRAWS) float64 uniforms in [0, 1), on the CPU. probability: with which an image is mixed; else its share
    is 1, and it and its target come back bit for bit. alpha: share ~ Beta(alpha, alpha), alpha > 0; 1 is uniform, as
    Joint Diffusion has it, which mixes images but leaves labels as they are.
    Returns both, of the shapes, types and devices given.
    """
    u = _uniforms(u, len(x0), MIX_DRAWS)
    if len(target) != len(x0):
        raise ValueError(f"{len(target)} targets for {len(x0)} images")
    if not 0 < alpha < math.inf or not 0 <= probability <= 1:
        raise ValueError(f"alpha {alpha} is not above 0, or probability {probability} not in 0..1")
    share = torch.where(u[:, 0] < probability, symmetric_beta(u[:, 1], u[:, 2], alpha), 1.0)
    return _mixed(x0, share), _mixed(target, share)


def symmetric_beta(u: Tensor, v: Tensor, alpha: float) -> Tensor:
    """Beta(alpha, alpha) variates out of independent uniforms u and v in [0, 1), any shape, float64.

    B = 1/2 + T / (2 sqrt(2 alpha + T^2)) of Student's T with 2 alpha degrees of freedom, which is
    T = sqrt(2 alpha (u^(-1/alpha) - 1)) cos(2 pi v) (Bailey 1994, "Polar generation of random variates with the
    t-distribution"); both together are written so that nothing overflows for a small alpha.
    """
    power = (1 - u) ** (1 / alpha)  # 1 - u is uniform too, and never 0
    cosine = torch.cos(2 * math.pi * v)
    away = (1 - power).sqrt() * cosine
    return 0.5 + 0.5 * away / (power + away.square()).sqrt().clamp(min=torch.finfo(torch.float64).tiny)


def _uniforms(u: Tensor | np.ndarray, images: int, draws: int) -> Tensor:
    u = torch.as_tensor(u, dtype=torch.float64, device="cpu")
    if tuple(u.shape) != (images, draws):
        raise ValueError(f"u is {tuple(u.shape)}; {images} images need ({images}, {draws})")
    return u


def _mixed(values: Tensor, share: Tensor) -> Tensor:
    """values (B, ...); share (B,) float64."""
    share = share.to(values.device, values.dtype, non_blocking=True).view(-1, *[1] * (values.ndim - 1))
    return values * share + values.roll(-1, 0) * (1 - share)


def _change(out: Tensor, chosen: Tensor, operation: Callable[[Tensor, Tensor], Tensor], amounts: Tensor) -> None:
    """Applies an operation to the chosen images, in place. chosen: (B,) bool, amounts: (B, ...) float64, on the CPU."""
    rows = chosen.nonzero().squeeze(1)
    if not len(rows):
        return
    dtype = out.dtype if out.dtype == torch.float64 else torch.float32
    where = rows.to(out.device, non_blocking=True)
    amounts = amounts[rows].to(out.device, dtype, non_blocking=True)
    out.index_copy_(0, where, operation(out[where].to(dtype), amounts).clamp(-1, 1).to(out.dtype))


def _between(u: Tensor, ends: tuple[float, float], strength: float) -> Tensor:
    """Uniforms -> factors between both ends to the power of strength."""
    low, high = (end**strength for end in ends)
    return low + (high - low) * u


# -- colours: images (b, C, H, W) in [-1, 1], factor (b,) -> images; what lies beyond is clamped by `_change` ----------


def _scaled(images: Tensor, factor: Tensor, centre: Tensor | float) -> Tensor:
    """Every value's distance from a centre multiplied by the factor: 1 + (factor - 1) keeps what it does not change."""
    return images + (factor.view(-1, 1, 1, 1) - 1) * (images - centre)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _scaled(images, factor, -1.0)  # black


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _scaled(images, factor, _luma(images).mean(dim=(1, 2, 3), keepdim=True))


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """From a blurred image (1 1 1, 1 5 1, 1 1 1) / 13 to this one and beyond; the outermost pixels stay as they are."""
    height, width = images.shape[-2:]
    if min(height, width) < 3:
        return images
    kernel = torch.ones(1, 1, 3, 3, dtype=images.dtype, device=images.device)
    kernel[..., 1, 1] = 5
    blurred = images.clone()
    inner = F.conv2d(images.reshape(-1, 1, height, width), kernel / 13)
    blurred[..., 1:-1, 1:-1] = inner.view(*images.shape[:2], height - 2, width - 2)
    return _scaled(images, factor, blurred)


def _jitter_factors(u: Tensor, strength: float) -> Tensor:
    """(B, 4): factors of brightness, contrast and saturation, and an angle of hue in radians."""
    jitter = JITTER * strength * (2 * u - 1)
    return torch.cat([(1 + jitter[:, :3]).clamp(min=0), 2 * math.pi * jitter[:, 3:]], dim=1)


def _jitter(images: Tensor, factors: Tensor) -> Tensor:
    """RGB images; the angle turns colours about the axis of greys and keeps their luma."""
    brightness, contrast, saturation, angle = factors.unbind(1)
    images = _contrast(_brightness(images, brightness).clamp(-1, 1), contrast).clamp(-1, 1)
    to_yiq = torch.tensor(YIQ, dtype=torch.float64)
    from_yiq = torch.linalg.inv(to_yiq).to(images.device, images.dtype)
    luma, i, q = torch.einsum("yc,bchw->ybhw", to_yiq.to(images), images)
    across, along = (saturation * f(angle) for f in (torch.cos, torch.sin))
    across, along = across.view(-1, 1, 1), along.view(-1, 1, 1)
    turned = torch.stack([luma, across * i - along * q, along * i + across * q])
    return torch.einsum("cy,ybhw->bchw", from_yiq, turned)


def _luma(images: Tensor) -> Tensor:
    """(b, 1, H, W): how bright a pixel of an RGB image looks; of any other image, the mean of its channels."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


# -- geometry ---------------------------------------------------------------------------------------------------------


def _maps(cropped: Tensor, turned: Tensor, u: Tensor, strength: float, shape: tuple[int, int] | torch.Size) -> Tensor:
    """(B, 2, 3) float64: affine maps from the output's (x, y, 1) to the input's (x, y), sides of the image at -1, 1.

    cropped, turned: (B,) bool. u: (B, 5) uniforms of area, aspect, place across and down, and angle.
    """
    area = _between(u[:, 0], AREA, strength)
    aspect = torch.exp(strength * (math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * u[:, 1]))
    width = torch.where(cropped, (area * aspect).sqrt().clamp(max=1), 1.0)
    height = torch.where(cropped, (area / aspect).sqrt().clamp(max=1), 1.0)
    across, down = (2 * u[:, 2] - 1) * (1 - width), (2 * u[:, 3] - 1) * (1 - height)
    angle = torch.where(turned, math.radians(DEGREES * strength) * (2 * u[:, 4] - 1), 0.0)
    tall = shape[0] / shape[1]  # the angle is one of pixels, not of sides
    return torch.stack(
        [
            torch.stack([width * angle.cos(), -width * angle.sin() * tall, across], dim=1),
            torch.stack([height * angle.sin() / tall, height * angle.cos(), down], dim=1),
        ],
        dim=1,
    )


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    """images (b, C, H, W) seen through maps (b, 2, 3); bilinear, the edge repeated."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

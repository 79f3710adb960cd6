"""One random map per image, for the image and for what belongs to it: a mask, key points.

    colours -> turned, enlarged and moved -> cropped at random

A point p of an image of W x H pixels (0 is the middle of its first pixel) goes to

    q = s R(a) (p - c) + shift * (W, H) + c'

a counter-clockwise as seen (x right, y down), c = ((W - 1) / 2, (H - 1) / 2) the image's centre, and c' the centre of
what comes out: c itself; with a crop, that of the image enlarged to round(s W) x round(s H), less the crop's first
pixel, which is any whole one inside (or, where the enlarged image is smaller, any at which all of it is shown).

Images are read bilinearly and masks at the nearest pixel, both at the same places, points are exact. With a turn of
clip(N(0, 30 deg), -60, 60) for 6 images of 10 and an enlargement of clip(N(1, 1/4), 3/4, 5/4) this is the augmentation
of WFLW in RepFusion (Yang & Wang 2023), where the factor is on the box, so that what is enlarged here is shrunk there;
with an enlargement of U(1/2, 2) and a crop that of CelebAMask-HQ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..settings.warp import Distribution, WarpSettings
from .colour import COLOUR_DRAWS, distort
from .transform import VOID

TRIES = 10  # crops that are drawn at most for `cat_max_ratio`
GEOMETRY = 5  # uniforms: whether turned, angle, scale, shift across and down
WARP_DRAWS = GEOMETRY + 2 * TRIES + COLOUR_DRAWS  # uniforms an image needs


def warp(
    x0: Tensor, u: Tensor, settings: WarpSettings, mask: Tensor | None = None, points: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Images moved and recoloured at random, with what belongs to them; each by its own numbers only.

    x0: (B, C, H, W) float in [-1, 1], any device. u: (B, WARP_DRAWS) float64 uniforms in [0, 1), on the CPU. mask:
    uint8 (B, H, W), `VOID` = 255. points: (B, P, 2) float, x and y in pixels, NaN = not there. Both on x0's device.
    Returns them as they were given, of size `settings.crop` where that is set. Beyond an image's sides a mask is void;
    points that leave the frame are NaN. What is neither moved nor recoloured comes back bit for bit.
    Raises `ValueError` for u of another shape, or a `cat_max_ratio` without a mask.
    """
    if tuple(u.shape) != (len(x0), WARP_DRAWS):
        raise ValueError(f"u is {tuple(u.shape)}; {len(x0)} images need ({len(x0)}, {WARP_DRAWS})")
    u = u.to("cpu", torch.float64)
    x0 = distort(x0, u[:, -COLOUR_DRAWS:], settings.colour)
    if not settings.moves or not len(x0):
        return x0, mask, points
    forward, size = _maps(u, settings, x0.shape[-2:], mask)
    images = _seen(x0, forward, size, -1.0 if settings.pad == "black" else None)
    if mask is not None:
        mask = _seen(mask[:, None], forward, size, VOID)[:, 0]
    return images, mask, None if points is None else _moved(points, forward, size)


def drawn_turn(u: Tensor, active: Tensor, settings: WarpSettings) -> Tensor:
    """(B,) degrees, counter-clockwise. u: of the angle, active: of whether there is one; both (B,) uniforms."""
    if settings.turn_distribution == "normal":
        angle = settings.turn * _normal(u).clamp(-2, 2)
    else:
        angle = settings.turn * (2 * u - 1)
    return torch.where(active < settings.turn_probability, angle, 0.0)


def drawn_scale(u: Tensor, settings: WarpSettings) -> Tensor:
    """(B,) enlargements of (B,) uniforms."""
    low, high = settings.scale
    return _between(u, low, high, settings.scale_distribution)


def _between(u: Tensor, low: float, high: float, distribution: Distribution) -> Tensor:
    if distribution == "uniform":
        return low + (high - low) * u
    return ((low + high) / 2 + (high - low) / 2 * _normal(u)).clamp(low, high)


def _normal(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))


# -- the map: (B, 2, 3) float64 on the CPU, from (x, y, 1) of the image to the pixels that come out --------------------


def _maps(u: Tensor, settings: WarpSettings, shape: torch.Size, mask: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
    """The maps of all images, and the (height, width) of what comes out."""
    height, width = shape
    angle = torch.deg2rad(drawn_turn(u[:, 1], u[:, 0], settings))
    scale = drawn_scale(u[:, 2], settings)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    side = torch.tensor([width, height], dtype=torch.float64)
    shift = settings.shift * (2 * u[:, 3:5] - 1) * side
    centre = (side - 1) / 2
    if settings.crop is None:
        return _about(linear, centre, shift + centre), (height, width)
    enlarged = (scale[:, None] * side).round()
    size = settings.crop
    window = torch.tensor([size[1], size[0]], dtype=torch.float64)

    def cropped(rows: Tensor, attempt: int) -> Tensor:
        at = u[rows, GEOMETRY + 2 * attempt : GEOMETRY + 2 * attempt + 2]
        spare = enlarged[rows] - window
        first = spare.sign() * (at * (spare.abs() + 1)).floor()
        return _about(linear[rows], centre, shift[rows] + (enlarged[rows] - 1) / 2 - first)

    return _varied(cropped, len(u), settings.cat_max_ratio, mask, size), size


def _about(linear: Tensor, centre: Tensor, to: Tensor) -> Tensor:
    """The map that is `linear` about the centre, which goes to `to` (B, 2)."""
    return torch.cat([linear, (to - linear @ centre)[..., None]], dim=2)


def _varied(
    cropped: Callable[[Tensor, int], Tensor],
    images: int,
    most: float | None,
    mask: Tensor | None,
    size: tuple[int, int],
) -> Tensor:
    """The maps of crops of which no class fills more than `most`, so far as `TRIES` attempts find any."""
    rows = torch.arange(images)
    maps = cropped(rows, 0)
    if most is None:
        return maps
    if mask is None:
        raise ValueError("cat_max_ratio needs masks")
    for attempt in range(1, TRIES):
        seen = _seen(mask[rows.to(mask.device), None], maps[rows], size, VOID)
        rows = rows[(_largest_share(seen.flatten(1)) >= most).cpu()]
        if not len(rows):
            break
        maps[rows] = cropped(rows, attempt)
    return maps


def _largest_share(mask: Tensor) -> Tensor:
    """(B,) the largest class's share of what is not void; mask (B, N) uint8. 1 where all is void."""
    places = torch.arange(len(mask), device=mask.device)[:, None] * (VOID + 1) + mask
    counts = torch.bincount(places.flatten(), minlength=len(mask) * (VOID + 1)).view(len(mask), VOID + 1)[:, :VOID]
    total = counts.sum(1)
    return torch.where(total > 0, counts.amax(1) / total.clamp(min=1), 1.0)


# -- carried out -----------------------------------------------------------------------------------------------------


def _seen(values: Tensor, forward: Tensor, size: tuple[int, int], fill: float | None) -> Tensor:
    """values (B, D, H, W) through the maps: (B, D, *size). uint8 at the nearest pixel, else bilinearly.

    fill: what is beyond the sides; None: the edge. What only moves by whole pixels is taken from these, bit for bit.
    """
    linear, offset = forward[..., :2], forward[..., 2]
    whole = (linear == torch.eye(2, dtype=torch.float64)).all((1, 2)) & (offset == offset.round()).all(1)
    if whole.all() and size == tuple(values.shape[-2:]) and not offset.any():
        return values
    out = values.new_empty((len(values), values.shape[1], *size))
    rows = (~whole).nonzero().squeeze(1)
    if len(rows):
        where = rows.to(values.device, non_blocking=True)
        out.index_copy_(0, where, _read(values[where], forward[rows], size, fill))
    rows = whole.nonzero().squeeze(1)
    if len(rows):
        where = rows.to(values.device, non_blocking=True)
        out.index_copy_(0, where, _copied(values[where], offset[rows], size, fill))
    return out


def _copied(values: Tensor, offset: Tensor, size: tuple[int, int], fill: float | None) -> Tensor:
    """values (B, D, H, W), each with its first pixel at the whole (x, y) of `offset` (B, 2): (B, D, *size)."""
    height, width = values.shape[-2:]
    offset = offset.round().to(values.device, torch.int64, non_blocking=True)
    rows = torch.arange(size[0], device=values.device) - offset[:, 1:]  # (B, h)
    columns = torch.arange(size[1], device=values.device) - offset[:, :1]  # (B, w)
    places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
    places = places.flatten(1)[:, None].expand(-1, values.shape[1], -1)
    out = values.flatten(2).gather(2, places).unflatten(2, size)
    if fill is not None:
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
        out.masked_fill_(~inside, fill)
    return out


def _read(values: Tensor, forward: Tensor, size: tuple[int, int], fill: float | None) -> Tensor:
    """The same of what lies between pixels: grid_sample has 0 beyond the sides, so values are told from `fill`."""
    grid = _grid(forward, (values.shape[-2], values.shape[-1]), size, values)
    mode, base = ("nearest" if values.dtype == torch.uint8 else "bilinear"), fill or 0.0
    with torch.autocast(values.device.type, enabled=False):
        sides = "border" if fill is None else "zeros"
        out = F.grid_sample(values.to(grid.dtype) - base, grid, mode, sides, align_corners=False)
    return (out + base).to(values.dtype)


def _grid(forward: Tensor, shape: tuple[int, int], size: tuple[int, int], values: Tensor) -> Tensor:
    """(B, *size, 2): where each pixel that comes out is read, sides of the image at -1 and 1; on values' device."""
    dtype, device = torch.float64 if values.dtype == torch.float64 else torch.float32, values.device
    side = torch.tensor([shape[1], shape[0]], dtype=torch.float64)
    inverse = torch.linalg.inv(forward[..., :2]) * 2 / side[:, None]
    ahead = 1 / side - 1 - (inverse @ forward[..., 2:]).squeeze(2)
    y, x = (torch.arange(n, dtype=dtype, device=device) for n in size)
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    inverse, ahead = (part.to(device, dtype, non_blocking=True) for part in (inverse, ahead))
    return places @ inverse.mT[:, None] + ahead[:, None, None]


def _moved(points: Tensor, forward: Tensor, size: tuple[int, int]) -> Tensor:
    """points (B, P, 2) through the maps; NaN outside 0..size - 1 by more than half a pixel."""
    dtype = torch.float32 if points.device.type == "mps" else torch.float64
    to = forward.to(points.device, dtype, non_blocking=True)
    out = points.to(dtype) @ to[..., :2].mT + to[:, None, :, 2]
    side = torch.tensor([size[1], size[0]], dtype=dtype, device=points.device)
    inside = ((out >= -0.5) & (out < side - 0.5)).all(-1, keepdim=True)
    return torch.where(inside, out, math.nan).to(points.dtype)

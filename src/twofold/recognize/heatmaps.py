"""Key points as heat maps, and back (Tompson et al. 2014; Xiao et al. 2018, "SimpleBaseline").

A map of h x w cells shows an image of H x W pixels. A point is where it is seen, 0 being the middle of the first pixel
or cell, so that a mirror image has the mirrored map exactly:

    cell = (pixel + 1/2) w / W - 1/2

    bump(i, j) = exp(-((i - c_x)^2 + (j - c_y)^2) / (2 sigma^2))    where |i - c_x|, |j - c_y| <= 3 sigma, else 0

c is the point's cell rounded to whole numbers, as published ("MSRA"), or the cell itself ("unbiased", Zhang et al.
2020, "DARK"). A point is read off at the highest cell; moved by a quarter of a cell towards the higher neighbour on
either axis; or, of unbiased maps, by the maximum of the parabola through the logarithms round it (DARK's eq. 5).
Published code maps cells to pixels by the stride alone, which is off by (stride - 1) / 2 pixels, and shifts the
mirrored map by one column to make up for most of it; here neither is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

SUPPORT = 3  # standard deviations
SMALLEST = 1e-10  # under the logarithm
STEEPEST = 1.5  # cells that a parabola may move a point at most: beyond, it is not the peak that was fitted


def to_cells(points: Tensor, image: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Points (..., 2), x and y in pixels of images of (H, W), as cells of maps of (h, w)."""
    return (points + 0.5) * _ratio(points, image, cells) - 0.5


def to_pixels(points: Tensor, image: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """The inverse of `to_cells`."""
    return (points + 0.5) / _ratio(points, image, cells) - 0.5


def _ratio(points: Tensor, image: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    return torch.tensor([cells[1] / image[1], cells[0] / image[0]], dtype=points.dtype, device=points.device)


def encode(
    points: Tensor, image: tuple[int, int], cells: tuple[int, int], sigma: float, unbiased: bool = False
) -> tuple[Tensor, Tensor]:
    """(maps (B, P, h, w) float32 in [0, 1], weight (B, P) float32) of points (B, P, 2) in pixels of images of (H, W).

    sigma: in cells. weight: 0 for a point that is NaN or whose bump lies wholly outside the map, else 1; its map is 0.
    """
    centre = to_cells(points.float(), image, cells)
    if not unbiased:
        centre = (centre + 0.5).floor()  # not to the even number
    across, down = (_bump(centre[..., axis], size, sigma) for axis, size in ((0, cells[1]), (1, cells[0])))
    heat = down[..., :, None] * across[..., None, :]
    weight = (across.amax(-1) > 0) & (down.amax(-1) > 0)
    return heat, weight.float()


def _bump(centre: Tensor, size: int, sigma: float) -> Tensor:
    """(B, P, size): one axis of the bumps round centres (B, P); 0 for NaN."""
    off = torch.arange(size, dtype=torch.float32, device=centre.device) - centre[..., None]
    inside = off.abs() <= SUPPORT * sigma  # false for NaN
    off = torch.where(inside, off, 0.0)
    return torch.exp(-off.square() / (2 * sigma**2)) * inside


def decode(heat: Tensor, quarter_shift: bool = True, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """(cells (B, P, 2) float32 x and y, confidence (B, P): the highest value) of maps (B, P, h, w).

    unbiased: by DARK's parabola, in place of the quarter shift. Of equal cells the first counts. Written without
    branches on values, so that it can be traced and exported.
    """
    heat = heat.float()
    height, width = heat.shape[-2:]
    flat = heat.flatten(2)
    confidence, place = flat.max(-1)
    y, x = torch.div(place, width, rounding_mode="floor"), place % width
    cells = torch.stack([x, y], -1).float()
    if unbiased:
        return cells + _parabola(flat, x, y, width, height), confidence
    if quarter_shift:
        left, right = _at(flat, x - 1, y, width, height), _at(flat, x + 1, y, width, height)
        above, below = _at(flat, x, y - 1, width, height), _at(flat, x, y + 1, width, height)
        inside = torch.stack([(x > 0) & (x < width - 1), (y > 0) & (y < height - 1)], -1)
        cells = cells + 0.25 * torch.stack([right - left, below - above], -1).sign() * inside
    return cells, confidence


def _at(flat: Tensor, x: Tensor, y: Tensor, width: int, height: int) -> Tensor:
    """(B, P): the values at these cells of maps (B, P, h * w); beyond the border those at it."""
    place = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return flat.gather(-1, place[..., None])[..., 0]


def _parabola(flat: Tensor, x: Tensor, y: Tensor, width: int, height: int) -> Tensor:
    """(B, P, 2): from each highest cell to the maximum of the parabola through the logarithms round it.

    x - H^-1 g with gradient g and Hessian H by central differences; 0 where the cell is at the border or H is no peak.
    """
    log = flat.clamp(min=SMALLEST).log()

    def at(right: int, down: int) -> Tensor:
        return _at(log, x + right, y + down, width, height)

    here = at(0, 0)
    gx, gy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    xx, yy = at(1, 0) - 2 * here + at(-1, 0), at(0, 1) - 2 * here + at(0, -1)
    xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    determinant = xx * yy - xy.square()
    peak = (xx < 0) & (determinant > 1e-6) & (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    safe = torch.where(peak, determinant, 1.0)
    step = torch.stack([xy * gy - yy * gx, xy * gx - xx * gy], -1) / safe[..., None]
    return (step * peak[..., None]).clamp(-STEEPEST, STEEPEST)


def mirrored(heat: Tensor, partner: Tensor) -> Tensor:
    """The maps of a mirror image (B, P, h, w) as those of the image: mirrored back, each point with its partner's."""
    return heat.flip(-1)[:, partner]

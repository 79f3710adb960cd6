"""Weak and strong augmentation of images for consistency training: two views of one image that show the same class.

weak     mirrored with probability 1/2, then shifted by up to `shift` pixels each way; what comes in is a mirror image
strong   three of these operations, drawn with replacement, each of uniform magnitude; then a square is cut out

| operation         | magnitude     | what it does, per image, to levels 0..255                                        |
| autocontrast      |               | each channel stretched to 0..255                                                 |
| brightness        | f 0.05..0.95  | towards black                                                                    |
| color             | f 0.05..0.95  | towards its grey version (a grey image stays)                                    |
| contrast          | f 0.05..0.95  | towards its mean grey                                                            |
| equalize          |               | each channel's histogram flattened (fewer than about 256 pixels stay)            |
| identity          |               |                                                                                  |
| posterize         | 4..7 bits     | the other bits are dropped                                                       |
| rotate            | -30..30 deg   | about the middle, counter-clockwise; outside is black, as in the next ones       |
| sharpness         | f 0.05..0.95  | towards its blurred version                                                      |
| shear x, shear y  | -0.3..0.3     |                                                                                  |
| solarize          | 0..256        | levels from there on are inverted                                                |
| translate x and y | -0.3..0.3     | of the image's width or height                                                   |

Cubuk et al. 2020 (RandAugment) with the table of Sohn et al. 2020 (FixMatch), in FreeMatch's order: strong
first, then weak. Levels are whole numbers after each operation and pixels are moved, not interpolated, as by Pillow, to
which the operations are equal but for single levels and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WEAK_DRAWS = 3  # uniforms an image needs
OPERATIONS = 3  # that an image gets
STRONG_DRAWS = 2 * OPERATIONS + 3
FACTOR, BITS, DEGREES, SHEAR, LEVEL, MOVE = (0.05, 0.95), (4, 8), (-30, 30), (-0.3, 0.3), (0, 256), (-0.3, 0.3)
CUT = 0.5  # of the image's width, at most
LUMA = (19595, 38470, 7471)  # of red, green and blue, in 2^-16 (ITU-R BT.601, as Pillow rounds it)


def weak(images: Tensor, u: Tensor, shift: int, flip: bool = True) -> Tensor:
    """images (B, C, H, W) of any dtype, mirrored and shifted; of its dtype and device, each by its own numbers only.

    u: (B, WEAK_DRAWS) float64 uniforms in [0, 1), on the CPU. shift: below the image's height and width.
    """
    height, width = images.shape[-2:]
    if not 0 <= shift < min(height, width):
        raise ValueError(f"shift {shift} is not below the {height}x{width} pixels of an image")
    moved = (u[:, 1:3] * (2 * shift + 1)).long() - shift
    down, across = (torch.arange(n) + moved[:, i, None] for i, n in enumerate((height, width)))
    down, across = _mirrored(down, height), _mirrored(across, width)
    if flip:
        across = torch.where(u[:, :1] < 0.5, width - 1 - across, across)
    down, across = down.to(images.device, non_blocking=True), across.to(images.device, non_blocking=True)
    every = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[every, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def strong(images: Tensor, u: Tensor, fill: Sequence[float] | None = None) -> Tensor:
    """uint8 images (B, C, H, W) changed as the table above says; the same shape and device, uint8.

    u: (B, STRONG_DRAWS) float64 uniforms in [0, 1), on the CPU, so that nobody waits for the device. fill: level 0..255
    of each channel behind what is cut out; None: the mean of each image as it was given.
    """
    if tuple(u.shape) != (len(images), STRONG_DRAWS):
        raise ValueError(f"u is {tuple(u.shape)}; {len(images)} images need ({len(images)}, {STRONG_DRAWS})")
    if fill is not None and len(fill) != images.shape[1]:
        raise ValueError(f"fill has {len(fill)} levels, images {images.shape[1]} channels")
    levels = images.float()
    mean = levels.mean((2, 3)).round() if fill is None else levels.new_tensor(list(fill)).expand(len(images), -1)
    for k in range(OPERATIONS):
        levels = _one_each(levels, (u[:, k] * len(NAMES)).long(), u[:, OPERATIONS + k])
    return _cut(levels, u[:, 2 * OPERATIONS :], mean).to(torch.uint8)


def _mirrored(at: Tensor, n: int) -> Tensor:
    """Places beyond the ends of range(n) as those that a mirror on the outermost pixel shows."""
    at = at.abs()
    return (n - 1) - (n - 1 - at).abs()


def _one_each(levels: Tensor, which: Tensor, u: Tensor) -> Tensor:
    """Applies operation `which` (B,) of magnitude u (B,) to each image; those of one name together."""
    out = levels.clone()
    for name in NAMES:
        if name in MOVES:  # all of them are one affine map
            continue
        rows = (which == NAMES.index(name)).nonzero()[:, 0]
        if len(rows) and (operation := CHANGES[name]) is not None:
            _put(out, rows, operation, _between(u[rows], RANGES.get(name, (0, 1))))
    rows = torch.isin(which, torch.tensor([NAMES.index(name) for name in MOVES])).nonzero()[:, 0]
    if len(rows):
        maps = torch.stack([_map(NAMES[which[i]], float(u[i]), levels.shape[-2:]) for i in rows.tolist()])
        _put(out, rows, _moved, maps)
    return out


def _put(out: Tensor, rows: Tensor, operation: Callable[[Tensor, Tensor], Tensor], amounts: Tensor) -> None:
    """Changes these rows (n,) of `out` in place; amounts (n, ...) on the CPU."""
    where = rows.to(out.device, non_blocking=True)
    changed = operation(out[where], amounts.to(out.device, torch.float32, non_blocking=True))
    out.index_copy_(0, where, changed)


def _between(u: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * u


# -- levels: whole numbers 0..255 as float32 (n, C, H, W), amount (n,) -> the same ----------------------------------


def _blend(levels: Tensor, plain: Tensor, factor: Tensor) -> Tensor:
    """So much of the image, the rest of what is plainer; fractions of a level are dropped."""
    return (plain + factor.view(-1, 1, 1, 1) * (levels - plain)).floor()


def _grey(levels: Tensor) -> Tensor:
    """(n, 1, H, W): how bright a pixel of an RGB image is; of any other image, the mean of its channels."""
    if levels.shape[1] != 3:
        return levels.mean(1, keepdim=True).round()
    weights = torch.tensor(LUMA, device=levels.device).view(1, 3, 1, 1)
    return ((levels.int() * weights).sum(1, keepdim=True) + (1 << 15)).bitwise_right_shift(16).float()


def _brightness(levels: Tensor, factor: Tensor) -> Tensor:
    return _blend(levels, torch.zeros_like(levels), factor)


def _color(levels: Tensor, factor: Tensor) -> Tensor:
    return _blend(levels, _grey(levels), factor) if levels.shape[1] == 3 else levels


def _contrast(levels: Tensor, factor: Tensor) -> Tensor:
    mean = (_grey(levels).mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(levels, mean.expand_as(levels), factor)


def _sharpness(levels: Tensor, factor: Tensor) -> Tensor:
    """Blurred by (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay as they are."""
    height, width = levels.shape[-2:]
    if min(height, width) < 3:
        return levels
    kernel = torch.ones(1, 1, 3, 3, device=levels.device)
    kernel[..., 1, 1] = 5
    blurred = levels.clone()
    inner = F.conv2d(levels.reshape(-1, 1, height, width), kernel)  # whole numbers, so exact
    blurred[..., 1:-1, 1:-1] = (inner / 13 + 0.5).floor().view(*levels.shape[:2], height - 2, width - 2)
    return _blend(levels, blurred, factor)


def _autocontrast(levels: Tensor, _: Tensor) -> Tensor:
    low, high = levels.amin((2, 3), keepdim=True).double(), levels.amax((2, 3), keepdim=True).double()
    scale = 255 / (high - low).clamp(min=1)
    stretched = (levels * scale - low * scale).floor().clamp(0, 255).float()
    return torch.where(high > low, stretched, levels)


def _equalize(levels: Tensor, _: Tensor) -> Tensor:
    """Each level becomes the share of pixels below it; levels are counted in steps of 1/255 of all but the highest."""
    flat = levels.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    highest = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - highest) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, flat), flat).view(levels.shape).float()


def _posterize(levels: Tensor, bits: Tensor) -> Tensor:
    step = torch.pow(2.0, 8 - bits.floor()).view(-1, 1, 1, 1)
    return (levels / step).floor() * step


def _solarize(levels: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(levels < threshold.view(-1, 1, 1, 1), levels, 255 - levels)


# -- pixels moved ---------------------------------------------------------------------------------------------------


def _map(name: str, u: float, shape: tuple[int, int] | torch.Size) -> Tensor:
    """(2, 3) float64: from the output's (x, y, 1) to the input's (x, y), in pixels from the upper left corner."""
    height, width = shape
    low, high = RANGES[name]
    v = low + (high - low) * u
    if name == "rotate":
        a = math.radians(v)
        cos, sin = math.cos(a), math.sin(a)
        x, y = width / 2, height / 2
        rows = [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
    else:
        across = [1.0, v if name == "shear_x" else 0.0, v * width if name == "translate_x" else 0.0]
        rows = [across, [v if name == "shear_y" else 0.0, 1.0, v * height if name == "translate_y" else 0.0]]
    return torch.tensor(rows, dtype=torch.float64)


def _moved(levels: Tensor, maps: Tensor) -> Tensor:
    """Each pixel is the one that its middle is mapped into, or black. maps: (n, 2, 3)."""
    n, channels, height, width = levels.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    middles = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)]).flatten(1).to(levels)
    at = (maps @ middles).floor().long()  # (n, 2, H * W)
    size = torch.tensor([[width], [height]], device=levels.device)
    inside = ((at >= 0) & (at < size)).all(1, keepdim=True)
    place = at[:, 1:] * width + at[:, :1]
    found = levels.flatten(2).gather(2, (place * inside).expand(-1, channels, -1))
    return (found * inside).view(n, channels, height, width)


def _cut(levels: Tensor, u: Tensor, fill: Tensor) -> Tensor:
    """A square of up to `CUT` of the width somewhere, also over the edge. u (B, 3): side, x and y; fill (B, C)."""
    height, width = levels.shape[-2:]
    side, x, y = CUT * width * u[:, 0], width * u[:, 1], height * u[:, 2]
    parts = []
    for middle, n in ((y, height), (x, width)):
        first = (middle - side / 2).clamp(min=0).floor()
        last = torch.minimum(first + side, torch.tensor(float(n))).floor()
        at = torch.arange(n)
        parts.append((at >= first[:, None]) & (at <= last[:, None]))
    inside = (parts[0][:, None, :, None] & parts[1][:, None, None, :]).to(levels.device, non_blocking=True)
    return torch.where(inside, fill[:, :, None, None], levels)


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "identity": None,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
}
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
NAMES = (*CHANGES, *MOVES)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), FACTOR),
    **dict.fromkeys(("shear_x", "shear_y"), SHEAR),
    **dict.fromkeys(("translate_x", "translate_y"), MOVE),
    "posterize": BITS,
    "rotate": DEGREES,
    "solarize": LEVEL,
}

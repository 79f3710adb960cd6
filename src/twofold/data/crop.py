"""Random crops that keep an image's proportions, enlarged to its size again.

    side = sqrt(area), area evenly between two shares of the image; then any place at which all of it lies inside

What IDDM trains on (a crop of 0.8 to 1 of the area), but for one thing: it drew width / height from 3/4 to 4/3 as well,
so that its networks learned defects that were squeezed or stretched.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CROP_DRAWS = 3  # uniforms an image needs


def crop(images: Tensor, u: Tensor, area: tuple[float, float]) -> Tensor:
    """Crops of images uint8 (B, C, H, W), of the same shape; bilinear, rounded. One of the whole image changes nothing.

    u: (B, CROP_DRAWS) uniforms in [0, 1), on the CPU: area, place across, place down. area: least and largest share of
    the image, in (0, 1]. Raises `ValueError` for another one.
    """
    low, high = area
    if not 0 < low <= high <= 1:
        raise ValueError(f"area {area} is not a range of shares above 0 and up to 1")
    share, right, down = u.double().unbind(1)
    side = (low + (high - low) * share).sqrt()  # of the image's, both ways
    maps = torch.zeros(len(images), 2, 3, dtype=torch.float64)
    maps[:, 0, 0] = maps[:, 1, 1] = side
    # the middle of the crop, where grid_sample has the image's sides at -1 and 1
    maps[:, 0, 2], maps[:, 1, 2] = ((1 - side) * (2 * place - 1) for place in (right, down))
    grid = F.affine_grid(maps.float(), list(images.shape), align_corners=False).to(images.device)
    found = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.round_().clamp_(0, 255).to(torch.uint8)

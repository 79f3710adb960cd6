"""Random numbers that belong to an image, not to a batch, a device or a process.

Philox (Salmon et al. 2011) is counter-based: the numbers of (seed, index, draw) are found without drawing any
others. So image 7 gets the same noise in every batch size, order and number of processes, and a resumed run needs
no stored random state.

    training:  seed = the run's seed, index = position of the image in training, draw = 0
    sampling:  seed = the image's own seed, index = 0, draw = 0 for the start noise, then 1, 2, ... for solver steps;
               index = 1 for a label that is drawn, 2 for noise on a low image that is made larger
    recognition: seed = a hash of the image's pixels, index = the user's seed, draw = which view of it
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STREAMS = {"train": 1, "sample": 2, "evaluate": 3, "recognize": 4}


class ImageDraws:
    """`draws(index, draw)` is a NumPy generator placed at the numbers of one image.

    It is one object that is moved, not a new one each time (1 us instead of 8), so use it up before the next call.
    """

    def __init__(self, stream: str) -> None:
        self._bits = np.random.Philox(key=[0, STREAMS[stream]])
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state
        self._stream = STREAMS[stream]

    def __call__(self, seed: int, index: int = 0, draw: int = 0) -> np.random.Generator:
        state = self._state
        state["state"]["key"][:] = (seed, self._stream)
        state["state"]["counter"][:] = (0, draw, index, 0)  # the first word counts blocks of this draw
        state["buffer_pos"], state["has_uint32"] = 4, 0
        self._bits.state = state
        return self._generator


class SampleNoise:
    """Standard normal noise for a batch of image seeds: call it once for the start and once for every solver step.

    seeds: one per image, 0 <= seed < 2^63. shape: (C, H, W). Returns (B, C, H, W) float32 on `device`; drawn on the
    CPU, so that devices agree.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self.seeds, self.shape, self.device = list(seeds), tuple(shape), device
        self.draw = 0
        self._draws = ImageDraws("sample")

    def __call__(self) -> Tensor:
        out = np.empty((len(self.seeds), *self.shape), np.float32)
        for row, seed in zip(out, self.seeds, strict=True):
            self._draws(seed, draw=self.draw).standard_normal(out=row, dtype=np.float32)
        self.draw += 1
        return torch.from_numpy(out).to(self.device)

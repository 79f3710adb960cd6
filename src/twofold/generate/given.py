"""What solvers need that start from given images and not from noise alone: `inpaint` and `vary`.

As `sample` does, every forward pass has exactly micro_batch rows, the solver's state is float64 where the device has
it, and the noise of an image is that of its seed: so image i does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..draws import SampleNoise
from ..errors import UserError
from .guidance import clipped
from .sample import Plan, _decode, _network_dtype, guided_as_planned, image_shape, place
from .samplers import Denoise, Step


@dataclass(frozen=True)
class Given:
    """A batch of n images, padded to micro_batch rows with its last one.

    x0: (micro_batch, *plan.shape), encoded, in the dtype of the solver's state. draws: the noise of the seeds, which
    gives the next (micro_batch, *plan.shape) at every call. denoise: (x, sigma) -> x0_hat as planned, clipped.
    """

    n: int
    x0: Tensor
    draws: SampleNoise
    denoise: Denoise

    def noise(self) -> Tensor:
        """The next noise in the state's dtype."""
        return self.draws().to(self.x0)


def check_images(denoiser: Denoiser, plan: Plan, images: Tensor, seeds: int) -> Tensor:
    """The images, uint8 (N, C, H, W), one per seed. Raises `UserError` for others than the plan makes."""
    shape = image_shape(denoiser, plan.shape)
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != shape:
        is_ = " x ".join(map(str, images.shape[1:] if images.ndim == 4 else images.shape))
        needs = " x ".join(map(str, shape))
        raise UserError("images", f"{images.dtype} of {is_}", f"this model takes uint8 images of {needs}")
    if len(images) != seeds:
        raise UserError("seeds", f"{seeds} for {len(images)} images", "give every image its own seed")
    return images.cpu()


def check_batch(plan: Plan, seeds: Sequence[int]) -> None:
    """Raises `UserError` for more images than one batch holds, and for none."""
    if not 1 <= len(seeds) <= plan.micro_batch:
        what = f"a batch is 1 to {plan.micro_batch}"
        raise UserError(f"seeds: {len(seeds)} images", what, "ask for fewer at a time, or raise micro_batch")


def padded(rows: Tensor, to: int) -> Tensor:
    """`to` rows, of which those beyond the given ones repeat the last."""
    return torch.cat([rows, rows[-1:].expand(to - len(rows), *rows.shape[1:])])


def given(denoiser: Denoiser, plan: Plan, images: Tensor, seeds: Sequence[int], labels: Tensor | None) -> Given:
    """Images uint8 (N, C, H, W), encoded and padded, with their noise and the denoiser that the plan describes."""
    device, dtype = place(denoiser)
    state = torch.float32 if device.type == "mps" else torch.float64
    x0 = denoiser.codec.encode(padded(images, plan.micro_batch).to(device)).to(state)
    draws = SampleNoise([*seeds, *[seeds[-1]] * (plan.micro_batch - len(seeds))], plan.shape, device)
    labels = None if labels is None else padded(labels, plan.micro_batch).to(device)
    denoise = _network_dtype(guided_as_planned(denoiser, plan, labels), dtype)
    return Given(len(images), x0, draws, clipped(denoise) if plan.clip else denoise)


def options_of_part(plan: Plan, steps: int) -> dict[str, Any]:
    """The sampler's options for so many steps of the way: s_churn is spread over all steps of the whole way."""
    share = steps / (len(plan.sigmas) - 1)
    return {name: value * share if name == "s_churn" else value for name, value in plan.options.items()}


def with_images(
    denoiser: Denoiser, steps: Iterable[Step], n: int, last: int, previews: bool, finish: Callable[[Tensor], Tensor]
) -> Iterator[Step]:
    """Each step without the padding and, if there are to be previews or it is the last one, with `images`: x0_hat
    decoded, uint8 (n, C, H, W) on the CPU, after `finish`. last: the index of the last step."""
    for step in steps:
        shown = finish(_decode(denoiser, step.x0_hat)[:n]) if previews or step.index == last else None
        yield replace(step, x=step.x[:n], x0_hat=step.x0_hat[:n], images=shown)

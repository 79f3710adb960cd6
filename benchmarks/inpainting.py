"""Which way of inpainting comes nearest to the exact conditional distribution, at equal network evaluations?

    .venv/bin/python benchmarks/inpainting.py [--data digits] [--std 0.4] [--evaluations 60]

The model is exact: a mixture of Gaussians around 400 real images, so that what a perfect painter would make of a known
part is a mixture too, with known weights. Three masks: the right half, the middle, and all but a strip. For every way
it prints, on average over images and masks,

    weights    total variation between the weights of the components among the results and the exact ones (0 = right)
    energy     energy distance of the painted pixels to exact draws (0 = right)

Ways: x0_hat known, any solver, once; RePaint (Lugmayr et al. 2022: known pixels noised afresh, every step so often);
reconstruction guidance (Ho et al. 2022; a gradient counts as two evaluations more); and steps taken again at the
decisive levels only, which is what `twofold.inpaint` does.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from twofold.codec import PixelCodec
from twofold.data import open_store
from twofold.draws import SampleNoise
from twofold.generate import plan
from twofold.generate.inpaint import Again, decisive, inpainting, solver_steps
from twofold.generate.samplers import SAMPLERS, final
from twofold.oracle import MixtureDenoiser
from twofold.settings.data import DataSettings

COMPONENTS, IMAGES, RESULTS, EXACT = 400, 12, 32, 128


class Fast(MixtureDenoiser):
    """The same with a matrix product, for components of one spread."""

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: object = None) -> Tensor:
        flat, means, v0 = x.flatten(1), self.means.flatten(1).to(x), float(self.stds[0]) ** 2
        v = v0 + float(torch.as_tensor(sigma).flatten()[0]) ** 2
        score = flat @ means.T - 0.5 * means.square().sum(1)
        return ((1 - v0 / v) * (torch.softmax(score / v, 1) @ means) + v0 / v * flat).view_as(x)


def masks_of(height: int, width: int) -> list[Tensor]:
    right, middle, most = (torch.zeros((height, width), dtype=torch.bool) for _ in range(3))
    right[:, width // 2 :] = True
    middle[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    most[height // 4 :] = True
    return [right, middle, most]


def repainted(model: Fast, x0: Tensor, mask: Tensor, seeds: range, evaluations: int, times: int) -> Tensor:
    """RePaint as published: ancestral steps, the known part noised afresh at every level, each step so often."""
    noise = SampleNoise(seeds, model.shape)
    levels = plan(model, "ddpm", max(2, evaluations // times), grid="log").sigmas.tolist()
    x = levels[0] * noise().double()
    for s, t in pairwise(levels):
        for k in range(times):
            x0_hat = model.denoise(x, s)
            up = t * math.sqrt(1 - (t / s) ** 2)
            below = x0_hat + (t / s) ** 2 * (x - x0_hat) + up * noise().double()
            below = torch.where(mask, below, x0 + t * noise().double())
            if k == times - 1 or t == 0:
                break
            x = below + math.sqrt(s**2 - t**2) * noise().double()
        x = below
    return x


def reconstructed(model: Fast, x0: Tensor, mask: Tensor, seeds: range, evaluations: int, scale: float = 1.0) -> Tensor:
    """Reconstruction guidance: x0_hat moved down the gradient of its error in the known part, with ancestral steps."""
    noise, known = SampleNoise(seeds, model.shape), torch.where(mask, 0.0, x0)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        x0_hat, s2 = model.denoise(x, sigma), float(sigma) ** 2
        wrong = torch.where(mask, 0.0, x0_hat - x0).square().sum()
        gradient = torch.autograd.grad(wrong, x)[0]
        moved = x0_hat.detach() - scale * s2 * gradient / (2 * s2 / (1 + s2))
        return torch.where(mask, moved, x0)

    sigmas = plan(model, "euler_ancestral", evaluations // 3).sigmas
    x = known + float(sigmas[0]) * noise().double()
    return final(SAMPLERS["euler_ancestral"].function(denoise, x, sigmas, noise, eta=1.0))


def walked(model: Fast, images: Tensor, mask: Tensor, seeds: range, sampler: str, steps: int, again: Again) -> Tensor:
    made = plan(model, sampler, steps, micro_batch=len(seeds), clip=False)
    return final(inpainting(model, made, images, mask, seeds, again=again, previews=False))


def fitting(model: Fast, sampler: str, steps: int, evaluations: int, interval: tuple[float, float]) -> Again:
    """As many repaints as the evaluations allow."""
    made, times = plan(model, sampler, steps), 1
    while solver_steps(made, Again(times + 1, 1, interval)) <= evaluations:
        times += 1
    return Again(times, 1, interval)


def exactly(model: Fast, x0: Tensor, mask: Tensor) -> Tensor:
    """Draws of the conditional distribution itself: what the figures are where nothing is wrong."""
    generator, means, std = torch.Generator().manual_seed(9), model.means, float(model.stds[0])
    known = ~mask.expand(model.shape)
    far = torch.cdist(x0[:, known], means[:, known]).square()
    chosen = torch.multinomial(torch.softmax(-far / (2 * std**2), 1), 1, generator=generator)[:, 0]
    draws = means[chosen] + std * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return torch.where(mask, draws, x0)


def compare(model: Fast, truth: Tensor, paint: Callable[[Tensor, Tensor, Tensor, range], Tensor]) -> list[float]:
    """(weights, energy), averaged over masks and images. paint: (images uint8, x0, mask, seeds) -> x0."""
    generator, v = torch.Generator().manual_seed(7), float(model.stds[0]) ** 2
    means, found = model.means.flatten(1), []
    for mask in masks_of(*model.shape[1:]):
        images = model.codec.decode(truth).repeat_interleave(RESULTS, 0)
        x0 = model.codec.encode(images).double()
        out = paint(images, x0, mask, range(len(images))).flatten(1)
        flat, known = x0.flatten(1)[::RESULTS], ~mask.flatten().repeat(model.shape[0])
        exact = torch.softmax(-(torch.cdist(flat[:, known], means[:, known]) ** 2) / (2 * v), 1)
        seen = torch.softmax(-(torch.cdist(out, means) ** 2) / (2 * v), 1).unflatten(0, (-1, RESULTS)).mean(1)
        chosen = means[torch.multinomial(exact, EXACT, replacement=True, generator=generator)][:, :, ~known]
        draws = chosen + v**0.5 * torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
        ours = out[:, ~known].unflatten(0, (-1, RESULTS))
        own = torch.cdist(ours, ours).sum((1, 2)) / (RESULTS * (RESULTS - 1))
        theirs = torch.cdist(draws, draws).sum((1, 2)) / (EXACT * (EXACT - 1))
        energy = 2 * torch.cdist(ours, draws).mean((1, 2)) - own - theirs
        found.append((float((seen - exact).abs().sum(1).mean() / 2), float(energy.mean())))
    return [sum(column) / len(found) for column in zip(*found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--std", type=float, default=0.4)
    parser.add_argument("--evaluations", type=int, default=60)
    args = parser.parse_args()
    store = open_store(DataSettings(source=args.data))
    means = PixelCodec().encode(store.batch(range(COMPONENTS))).double()
    model = Fast(means, [args.std] * COMPONENTS, [1.0] * COMPONENTS, labels=False)
    truth = model.sample(IMAGES, torch.Generator().manual_seed(0)).clamp(-1, 1)
    n, middle = args.evaluations, decisive(model.shape)
    every = (0.0, 1e9)
    print(f"{args.data}, spread {args.std:g}, {n} evaluations, {COMPONENTS} components; decisive levels {middle}")

    def tell(name: str, paint: Callable[[Tensor, Tensor, Tensor, range], Tensor]) -> None:
        weights, energy = compare(model, truth, paint)
        print(f"{name:52} weights {weights:.3f}  energy {energy:.3f}", flush=True)

    tell("exact draws", lambda i, x, m, s: exactly(model, x, m))
    for sampler in ("dpmpp2m", "euler_ancestral"):
        tell(f"once, {sampler}", lambda i, x, m, s, a=sampler: walked(model, i, m, s, a, n, Again(1)))
    for times in (5, 10):
        if n // times >= 4:
            tell(f"RePaint, {times} times", lambda i, x, m, s, t=times: repainted(model, x, m, s, n, t))
    if n >= 30:
        tell("reconstruction guidance", lambda i, x, m, s: reconstructed(model, x, m, s, n))
    for sampler in ("dpmpp2m", "euler_ancestral"):
        for steps in (12, 20):
            for name, interval in (("all levels", every), ("decisive levels", middle)):
                again = fitting(model, sampler, steps, n, interval)
                if again.repaints > 1:
                    text = f"again, {name}, {sampler}, {steps} steps x {again.repaints}"
                    tell(text, lambda i, x, m, s, p=(sampler, steps, again): walked(model, i, m, s, *p))


if __name__ == "__main__":
    main()

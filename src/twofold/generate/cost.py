"""What guidance costs: the products of one evaluation as a plan makes it, by those of one unguided pass."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..denoiser import Denoiser
from .guidance import within
from .labels import of_guide
from .sample import Plan, evaluating, guided_as_planned, place
from .targets import only


def relative_cost(denoiser: Denoiser, plan: Plan) -> float:
    """FLOPs of a guided evaluation of one image, gradients included, as a multiple of an unguided one's.

    The mean over the plan's levels; 1.0 without guidance, about 2 for classifier-free guidance. The machine's time may
    differ: what is counted is products. 1.0 for a denoiser that has none.
    """
    device, dtype = place(denoiser)
    x = torch.zeros((1, *plan.shape), device=device, dtype=dtype)
    label = torch.zeros(1, dtype=torch.int64, device=device)
    if plan.guide is not None and plan.guide.multi_label and of_guide(denoiser, plan.guide):
        label = only(label, len(plan.guide.index))
    guided = guided_as_planned(denoiser, plan, label if denoiser.classes or plan.guide else None)
    levels = plan.sigmas[plan.sigmas > 0]
    guide_acts = within(plan.guide.interval if plan.guide else None, levels)
    acts = list(zip(within(plan.interval, levels).tolist(), guide_acts.tolist(), strict=True))
    found: dict[tuple[bool, bool], float] = {}
    with evaluating(denoiser, plan.guide.classifier if plan.guide else None), torch.no_grad():
        for kind, sigma in zip(acts, levels, strict=True):
            if kind not in found:
                with FlopCounterMode(display=False) as plain:
                    denoiser.denoise(x, sigma, None)
                with FlopCounterMode(display=False) as counter:
                    guided(x, sigma)
                total = plain.get_total_flops()
                found[kind] = counter.get_total_flops() / total if total else 1.0
    return sum(found[kind] for kind in acts) / len(acts)

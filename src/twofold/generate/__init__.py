"""Noise becomes images: samplers and guidance, `sample` for tensors, `produce` for folders of images."""

from .guidance import classifier_guided, clipped, guided
from .produce import produce
from .representations import own_guided, representation_guided
from .sample import Plan, draw, plan, sample, trajectory
from .samplers import SAMPLERS, Sampler, Step, final

__all__ = [
    "SAMPLERS",
    "Plan",
    "Sampler",
    "Step",
    "classifier_guided",
    "clipped",
    "draw",
    "final",
    "guided",
    "own_guided",
    "plan",
    "produce",
    "representation_guided",
    "sample",
    "trajectory",
]

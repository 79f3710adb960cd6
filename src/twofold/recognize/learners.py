"""Learners of few labels: features of all images and the labels of some -> an answer for every image, and a head.

    learned = Propagation()(x, y, classes)      x (N, D) of all images, y (N,) with -1 = unlabelled
    learned.probabilities                       (N, K), of these images
    learned.logits(new)                         (M, K), of others

What a learner can do without labels (a graph, principal components) it does once: `learner.on(x, classes)` is a
function of labels alone, which `calibrate` calls several times. None sees a label that is -1. `LEARNERS` names them.
"""

from __future__ import annotations

from .learned import Base, Learned, Learner
from .mixture import Mixture, Prototypes
from .propagate import Propagation
from .published import Logistic
from .self_training import SelfTraining

__all__ = ["LEARNERS", "Learned", "Learner", "Logistic", "Mixture", "Propagation", "Prototypes", "SelfTraining"]

LEARNERS: dict[str, type[Base]] = {
    "logistic": Logistic,
    "propagation": Propagation,
    "prototypes": Prototypes,
    "mixture": Mixture,
    "self_training": SelfTraining,
}

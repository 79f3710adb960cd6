"""Distillation: losses on features, the choice of noise levels, and losses with a trained classifier as teacher."""

from .choice import Choice, Selection
from .losses import Losses
from .selection import make_selection

__all__ = ["Choice", "Losses", "Selection", "make_selection"]

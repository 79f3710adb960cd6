"""What a run's labels are: the classes of its data, or the attributes, each a question of its own."""

from __future__ import annotations

from ..data import Store
from ..settings.train import TrainSettings


def asks_attributes(settings: TrainSettings, store: Store) -> bool:
    """Whether labels are attribute vectors (B, A): a multi-label classifier of data that has them."""
    asked = bool(getattr(settings.objective, "multi_label", False))
    return asked and store.attributes is not None


def class_names(settings: TrainSettings, store: Store) -> list[str]:
    """What the model's labels are called, in their order."""
    return list(store.attribute_names if asks_attributes(settings, store) else store.classes)

"""What a run's labels are: the classes of its data, or the attributes, each a question of its own; and what names the
outputs of a segmenter (the classes of the masks) and of a landmarker (the key points)."""

from __future__ import annotations

from ..data import Store
from ..settings.train import TrainSettings


def asks_attributes(settings: TrainSettings, store: Store) -> bool:
    """Whether labels are attribute vectors (B, A): a multi-label classifier of data that has them."""
    asked = bool(getattr(settings.objective, "multi_label", False))
    return asked and store.attributes is not None


def class_names(settings: TrainSettings, store: Store) -> list[str]:
    """What the model's labels, or the classes of its masks, or its key points are called, in their order."""
    if settings.objective.kind == "segmentation":
        return list(store.mask_classes)
    if settings.objective.kind == "landmarks":
        return list(store.point_names)
    return list(store.attribute_names if asks_attributes(settings, store) else store.classes)

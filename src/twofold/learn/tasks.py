"""What the data decides of a task: the classes of its masks and what they weigh, its key points and their mirror."""

from __future__ import annotations

from typing import Any

from ..data import Store
from ..errors import UserError
from ..measure.landmarks import check_normaliser, usual_normaliser
from ..measure.segmentation import VOID
from ..settings.tasks import Landmarks, Segmentation
from ..settings.train import ObjectiveSettings, TrainSettings
from .objectives.segmentation import class_weights

SOME = 256  # masks that are looked through to say which classes there are


def filled_in(settings: TrainSettings, store: Store) -> ObjectiveSettings:
    """The objective with what it leaves to the data; that of another task stays as it is.

    Raises `UserError` for data without masks or key points, and for masks whose classes have no names.
    """
    objective = settings.objective
    if isinstance(objective, Segmentation):
        return _segmentation(objective, store)
    if isinstance(objective, Landmarks):
        return _landmarks(objective, store)
    return objective


def _segmentation(objective: Segmentation, store: Store) -> Segmentation:
    if store.masks is None:
        hint = "give data.mask_column=COLUMN, or a folder masks/ beside images/"
        raise UserError(f"data.source={store.settings.source}", "its images have no masks", hint)
    classes = len(store.mask_classes)
    if classes < 2:
        seen = store.masks[: min(SOME, len(store))]
        most, named = seen[seen != VOID].max(initial=0), classes or "none"
        what = f"holds masks of classes 0 to {most}, of which {named} has a name"
        raise UserError(f"data.source={store.settings.source}", what, "list them: data.mask_classes=[sky,road,...]")
    if isinstance(objective.class_weights, str) and objective.class_weights != "none":
        weights = class_weights(objective.class_weights, store, store.annotated_rows("train"), classes)
        return objective.model_copy(update={"class_weights": weights})
    return objective


def _landmarks(objective: Landmarks, store: Store) -> Landmarks:
    if store.points is None:
        hint = "give data.points_column=COLUMN, or a folder points/ beside images/"
        raise UserError(f"data.source={store.settings.source}", "its images have no key points", hint)
    count = len(store.point_names)
    update: dict[str, Any] = {"normaliser": objective.normaliser or usual_normaliser(count)}
    check_normaliser(update["normaliser"], count, "objective.normaliser")
    if objective.flip_pairs is None and store.flip_pairs is not None:
        update["flip_pairs"] = [(int(i), int(j)) for i, j in store.flip_pairs]
    return objective.model_copy(update=update)

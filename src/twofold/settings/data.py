"""Settings of the data: where images come from and how they become one uint8 store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from .base import Settings
from .faces import pairs_named
from .size import Size

OF_LABELS = (  # settings about what an image shows, which `unlabelled` images do not tell
    *("label_column", "attribute_columns", "mask_column", "mask_classes", "mask_void", "mask_flip_pairs"),
    *("points_column", "flip_pairs", "points_outside", "pair_column"),
)


def one_choice(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a layer, where a label file ends what an earlier layer says of labels per class, and the reverse."""
    pair = ("labels", "labels_per_class")
    given = [name for name in pair if data.get(name) is not None]
    return {**dict.fromkeys(pair), **data} if len(given) == 1 else dict(data)


class DataSettings(Settings):
    """A source of images. A bare string is its `source`: `data=digits`, `data=photos/`."""

    source: str = Field(
        min_length=1,
        description="a folder of images, Parquet, Arrow or tar files, a file of these, an .npz file, a short name such "
        "as cifar10, a hub name (org/name[:config]), or digits",
    )
    unlabelled: str | None = Field(
        None, min_length=1, description="a second source: its training images join, without any label; default: none"
    )
    generated: str | None = Field(
        None,
        min_length=1,
        description="images of these classes that a model made, from `twofold sample`, a folder per class or "
        "an .npz file: they join the training part with their labels; default: none",
    )
    size: Size = Field(None, description="height x width in pixels: 32 or 32x48; default: as they are, if all agree")
    fit: Literal["crop", "stretch", "pad"] = Field("crop", description="how an image of another shape becomes size")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 RGB; default: 1 if every image is grey")
    background: Literal["white", "black"] = Field("white", description="behind transparent pixels and around pad")
    image_column: str | None = Field(None, description="column of the images (Parquet, hub); default: found by type")
    label_column: str | None = Field(None, description="column of the labels; default: label, if there is one")
    attribute_columns: list[str] | None = Field(None, description="columns of yes or no: 1, 0, -1 or empty: unknown")
    mask_column: str | None = Field(None, description="column of masks: images whose pixels are class indices")
    mask_classes: list[str] | None = Field(None, description="names of the classes in the masks, in order")
    mask_void: int | None = Field(None, ge=0, le=255, description="index in the masks that means void, beside 255")
    mask_flip_pairs: list[tuple[int, int]] | None = Field(
        None, description="classes of masks that a mirror image exchanges, such as left and right; default: none"
    )
    points_column: str | None = Field(None, description="column of key points: x0, y0, x1, y1, ... or [x, y] pairs")
    flip_pairs: list[tuple[int, int]] | None = Field(
        None, description="key points that a mirror image exchanges: pairs, or ibug68 or wflw98 for these faces"
    )
    points_outside: Literal["error", "missing", "keep"] | None = Field(
        None,
        description="key points outside their image: the image is a bad one (error, the default), they count as not "
        "there (missing), or stay where they are (keep)",
    )
    padding: float | None = Field(
        None, ge=1, le=10, description="of WFLW: side of what is cut out, in longer sides of the face's box (1.25)"
    )
    pair_column: str | None = Field(None, description="column of second images of the same field of view")
    group: str | None = Field(
        None, description="what tells whose image it is: a column, folder, or re:REGEX on the image's name"
    )
    most: int | None = Field(None, ge=1, description="only the first so many images of each split; default: all")
    streaming: bool = Field(False, description="pack hub data while it arrives, without downloading all of it first")
    on_bad_image: Literal["error", "skip"] = Field("error", description="an unreadable file ends packing or is skipped")
    validation_share: float = Field(0.1, ge=0, lt=1, description="share held out for validation if the source has none")
    test_share: float = Field(0.2, ge=0, lt=1, description="share held out for the test if the source has none")
    split_seed: int = Field(0, ge=0, lt=2**63, description="seed of that stratified split")
    labels: str | None = Field(
        None, description="label file, of classes or attributes: training images that it does not list are unlabelled"
    )
    labels_per_class: int | None = Field(
        None, ge=1, description="so many training images of each class keep their label; default: all"
    )
    labels_seed: int = Field(
        0, ge=0, lt=2**63, description="seed of that choice; with one seed, fewer labels are among more"
    )
    annotated: float | int | None = Field(
        None,
        description="training images whose mask or key points may be learned from: a share below 1, or how many, "
        "chosen by labels_seed; default: all",
    )
    balance: float = Field(
        0.0, ge=0, le=1, description="0 trains on images as often as they are, 1 on every class equally often"
    )
    flip: bool = Field(False, description="random horizontal flips in training")
    crop_area: tuple[float, float] = Field(
        (1.0, 1.0),
        exclude_if=lambda value: tuple(value) == (1.0, 1.0),  # older settings keep their hash
        description="random crops in training, of an area between these shares, enlarged again without distortion; "
        "IDDM: [0.8,1]",
    )
    _images_only: bool = PrivateAttr(default=False)

    @property
    def images_only(self) -> bool:
        """Whether these are the settings of the second source: of it only training images are wanted, and no labels."""
        return self._images_only

    def of_unlabelled(self) -> DataSettings:
        """The settings with which `unlabelled` is opened: what is said of pixels and groups, nothing said of labels."""
        if self.unlabelled is None:
            raise ValueError("there is no second source")
        second = self._other(self.unlabelled)
        second._images_only = True
        return second

    def of_generated(self, source: str) -> DataSettings:
        """The settings with which `generated`, at this place, is opened: what is said of pixels; all are wanted."""
        return self._other(source).model_copy(update={"group": None, "most": None, "streaming": False})

    def _other(self, source: str) -> DataSettings:
        unset = ("unlabelled", "generated", "labels", "labels_per_class", "annotated", "padding", *OF_LABELS)
        return self.model_copy(update={"source": source, **dict.fromkeys(unset)})

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("attribute_columns", "mask_classes", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        """One name is a list of one."""
        return [value] if isinstance(value, str) else value

    @field_validator("flip_pairs", mode="before")
    @classmethod
    def _known_faces(cls, value: Any) -> Any:
        return pairs_named(value)

    @field_validator("annotated")
    @classmethod
    def _share_or_count(cls, value: float | int | None) -> float | int | None:
        if value is not None and not (isinstance(value, int) and value >= 1) and not 0 < value < 1:
            raise ValueError(f"{value:g} is neither a share between 0 and 1 nor a whole number of images; null = all")
        return value

    @field_validator("group")
    @classmethod
    def _regex(cls, value: str | None) -> str | None:
        if value is None or not value.startswith("re:"):
            return value
        try:
            groups = re.compile(value[3:]).groups
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from error
        if groups != 1:
            raise ValueError(f"{value!r} has {groups} groups; put one pair of brackets round what names the group")
        return value

    @field_validator("crop_area")
    @classmethod
    def _shares(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"{list(value)} is not a range of shares of the area, such as [0.8,1]")
        return value

    @model_validator(mode="after")
    def _one_choice_of_labels(self) -> DataSettings:
        if self.labels is not None and self.labels_per_class is not None:
            raise ValueError("labels and labels_per_class both say which images are labelled; keep one of them")
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> DataSettings:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share:g} and test_share {self.test_share:g} leave nothing to train "
                "on; their sum must be below 1"
            )
        return self

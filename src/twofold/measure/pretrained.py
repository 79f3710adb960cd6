"""Any image model of `transformers` as an encoder: DINOv2 (Stein et al. 2023 argue for it), CLIP's image side, ...

An image becomes what the model's own image processor would make of it: resized, cropped, scaled and normalised by the
numbers in its preprocessor_config.json (of ConvNeXT's `crop_pct` too). What is read is the pooled output, or else the
first token, or else the mean of the map. Weights are read from safetensors only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError, first_line, some
from ..files import nearest_path
from ..hashing import model_hash
from .inception import exact

PREFIX = "transformers:"
SECONDS = 10  # to wait for the hub before saying that it cannot be reached
GIVE = "give ORG/NAME, or a folder with config.json and model.safetensors"
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers; others become bicubic


class TransformersEncoder:
    """A pretrained image model, by its hub name or local folder.

    name: the last part of it, `dinov2-base`. version: a hash of weights, options and transform. transform: in words.
    Raises `UserError` where there is no such model, or it is no image model.
    """

    batch = 32

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        self.name = Path(source.rstrip("/")).name
        self.device = torch.device(device)
        source = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
        with quiet():
            facts, model = self._load(source)
        self.model = model.to(self.device)
        self.size, self.crop = sizes(facts, self.model)
        self.mode = RESAMPLING.get(facts.get("resample", 3), "bicubic")
        usual = {"image_mean": 0.0, "image_std": 1.0}
        given = facts if facts.get("do_normalize", True) else {}
        self.mean, self.std = (torch.tensor(given.get(name) or [value] * 3) for name, value in usual.items())
        self.scale = float(facts.get("rescale_factor") or 1 / 255) if facts.get("do_rescale", True) else 1.0
        self.transform = self._in_words()
        self.version = f"{model_hash(self.model)[:16]}-{self.transform}"

    def _load(self, source: str) -> tuple[dict[str, Any], Any]:
        """How images are prepared, and the model."""
        here = is_here(source)
        return processor_facts(source, here), image_model(source, here)

    def _in_words(self) -> str:
        size = f"shorter side {self.size}" if isinstance(self.size, int) else f"{self.size[0]} x {self.size[1]}"
        crop = f", centre {self.crop[0]} x {self.crop[1]}" if self.crop else ""
        mean, std = (",".join(f"{v:.4g}" for v in values.tolist()) for values in (self.mean, self.std))
        scaled = "" if self.scale == 1 / 255 else f", times {self.scale:.4g}"
        return f"{self.mode} to {size}{crop}{scaled}, mean {mean}, std {std}"

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W) -> float32 (B, D). Raises `UserError` for another number of channels."""
        with exact():
            found = self.model(pixel_values=self.prepare(images).to(self.device))
        pooled = getattr(found, "pooler_output", None)
        if pooled is not None:
            return pooled.float().flatten(1)
        last = found.last_hidden_state
        return (last[:, 0] if last.ndim == 3 else last.flatten(2).mean(2)).float()

    def prepare(self, images: Tensor) -> Tensor:
        """What the image processor makes of them. Resized as uint8 on the CPU, where torch rounds as Pillow does."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images are uint8, these are {images.dtype}")
        if images.shape[1] not in (1, 3):
            raise UserError(PREFIX + self.name, f"images of {images.shape[1]} channels", "it reads grey and RGB ones")
        height, width = images.shape[-2:]
        size = self.size
        if isinstance(size, int):
            ratio = size / min(height, width)
            size = (max(size, int(height * ratio)), max(size, int(width * ratio)))
        x = images.cpu().expand(-1, 3, -1, -1).contiguous()
        if tuple(size) != (height, width):
            soft = {} if self.mode == "nearest" else {"antialias": True, "align_corners": False}
            x = functional.interpolate(x, size=tuple(size), mode=self.mode, **soft)
        if self.crop:
            top, left = ((x.shape[i] - c) // 2 for i, c in ((2, self.crop[0]), (3, self.crop[1])))
            x = x[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        return (x.float() * self.scale - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and lines of `transformers` and `huggingface_hub`; errors are told by whoever raises them."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    levels = logging.get_verbosity(), hub.logging.get_verbosity()
    with warnings.catch_warnings(action="ignore"):  # that a variable of the environment wants it otherwise
        logging.disable_progress_bar()
        hub.disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    hub.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub.logging.set_verbosity(levels[1])
        with warnings.catch_warnings(action="ignore"):
            if bars[0]:
                logging.enable_progress_bar()
            if bars[1]:
                hub.enable_progress_bars()


def is_here(source: str) -> bool:
    """Whether a model is a folder, or in the hub's cache, so that it is read without the hub.

    Otherwise one quick question to the hub: `transformers` itself would retry for a minute before it gives up. Raises
    `UserError` where it has no such model, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    where, path = f"encoder={PREFIX}{source}", Path(source).expanduser()
    if path.is_dir():
        return True
    like = nearest_path(path)
    if source.startswith((".", "/", "~")) or source.count("/") > 1:  # no name on the hub
        raise UserError(where, "there is no such folder", like or GIVE)
    if _cached(source, "model.safetensors"):
        return True
    try:
        huggingface_hub.HfApi().model_info(source, timeout=SECONDS)
    except errors.GatedRepoError as error:
        hint = "accept its terms on the hub, then run: hf auth login"
        raise UserError(where, "this hub model asks for your consent", hint) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        what = "there is no such folder here and no such model on the hub (or it is private)"
        raise UserError(where, what, like or GIVE) from error
    except Exception as error:  # no network, name resolution, proxy, offline mode, a hub that is down
        if _cached(source, "model.safetensors.index.json"):
            return True
        what = f"there is no such folder here, and the hub cannot be reached ({type(error).__name__})"
        hint = "without internet, download the model elsewhere and give its folder"
        raise UserError(where, what, like or hint) from error
    return False


def _cached(source: str, weights: str) -> bool:
    """Whether the hub's cache holds these weights and what is known of how images are prepared, be it nothing."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        found = [try_to_load_from_cache(source, name) for name in ("config.json", weights)]
        prepared = try_to_load_from_cache(source, "preprocessor_config.json")
    except errors.HFValidationError:
        return False
    return all(isinstance(file, str) for file in found) and prepared is not None


def processor_facts(source: str, here: bool = True) -> dict[str, Any]:
    """preprocessor_config.json, {} where the model has none. here: the hub is not asked."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return ImageProcessingMixin.get_image_processor_dict(source, local_files_only=here)[0]
    except (OSError, ValueError):
        return {}


def image_model(source: str, here: bool = True) -> Any:
    """The model, in evaluation mode without gradients; of one that reads text too, its image side.

    A pooling layer that its file has no weights for (a classifier's has none) is left out, since it would be random.
    Raises `UserError` where there is no such model, it needs code of its own, or weights are missing elsewhere.
    """
    from transformers import AutoModel

    try:
        model, found = AutoModel.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True, local_files_only=here
        )
    except Exception as error:  # no such folder, no network, no safetensors file, an unknown architecture
        raise UserError(f"encoder={PREFIX}{source}", f"cannot be loaded ({first_line(error)})", GIVE) from None
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise UserError(f"encoder={PREFIX}{source}", f"{type(model).__name__} reads no images", "give an image model")
    assert isinstance(model, nn.Module)
    missing = sorted(found["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        model.pooler = None  # type: ignore[assignment]
    elif missing:
        what = f"its file lacks weights ({len(missing)} missing: {some(missing)})"
        raise UserError(f"encoder={PREFIX}{source}", what, "give a whole model")
    return model.eval().requires_grad_(False)


def sizes(facts: dict[str, Any], model: nn.Module) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """(size to resize to: of the shorter side, or (H, W); size of the central crop or None)."""
    native = getattr(getattr(model, "config", None), "image_size", 224)
    native = (native, native) if isinstance(native, int) else tuple(native)
    size = facts.get("size", native)
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (size.get("height") or native[0], size.get("width") or native[1])
    if isinstance(size, int) and facts.get("crop_pct"):  # ConvNeXT's: cut out of more below 384, else warped
        return (int(size / facts["crop_pct"]), (size, size)) if size < 384 else ((size, size), None)
    crop = facts.get("crop_size") if facts.get("do_center_crop") else None
    if isinstance(crop, int):
        crop = (crop, crop)
    elif isinstance(crop, dict):
        crop = (crop["height"], crop["width"])
    if isinstance(size, int) and crop is None:
        size = (size, size)  # an older way of writing both sides
    return size, crop

"""Where a model of `transformers` comes from: an architecture's options, a folder, or the hub. Safetensors only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError, first_line, nearest, some
from ...settings.student import TransformersSettings

WHERE = "network.backbone.model"
SECONDS = 10  # to wait for the hub


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and lines of `transformers`; errors are told by whoever raises them."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def options(settings: TransformersSettings, channels: int) -> Any:
    """The model's config: of a folder or the hub, or an architecture's with the options given. channels: of images.

    Raises `UserError` where there is no such model, or it has no such options.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    name, own = settings.model, dict(settings.config or {})
    if name in CONFIG_MAPPING and not Path(name).is_dir():
        if settings.pretrained:
            hint = "give a folder or ORG/NAME on the hub"
            raise UserError(f"{WHERE}={name}", "is an architecture, which has no weights", hint)
        try:
            config = AutoConfig.for_model(name, **{"num_channels": channels, **own})
        except Exception as error:  # each architecture checks its options in its own way
            said = " ".join(str(error).split())[:200]
            raise UserError("network.backbone.config", f"is not one of {name} ({said})", "") from None
        known = type(config)().to_dict()
        for key in own:
            if key not in known:
                raise UserError(f"network.backbone.config.{key}", f"{name} has no such option", nearest(key, known))
        return config
    folder = place(name, "config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **own)
    except Exception as error:
        raise UserError(f"{WHERE}={name}", f"cannot be read ({first_line(error)})", "give an image model") from None
    config = getattr(config, "vision_config", config)  # of one that reads text too, its image side
    if not settings.pretrained:
        config.num_channels = channels
    return config


def place(name: str, file: str) -> str:
    """The folder of a model: itself, or in the hub's cache, downloaded if need be. Raises `UserError` without one."""
    where, path = f"{WHERE}={name}", Path(name).expanduser()
    if path.is_dir():
        if not (path / file).is_file():
            raise UserError(where, f"has no {file}", "give a folder with config.json and model.safetensors")
        return str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(where, "there is no such architecture and no such folder", _like(name))
    from huggingface_hub import HfApi, errors, hf_hub_download, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
        if not isinstance(found, str):
            HfApi().model_info(name, timeout=SECONDS)  # one question; a download would be tried for half a minute
            found = hf_hub_download(name, file)
        return str(Path(found).parent)
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError, errors.HFValidationError) as error:
        what = f"there is no such folder here, and no such model with a {file} on the hub ({type(error).__name__})"
        raise UserError(where, what, "give a model with config.json and model.safetensors") from None
    except Exception as error:  # no network, name resolution, proxy, offline mode, a hub that is down
        what = f"there is no such folder here, and the hub cannot be reached ({type(error).__name__})"
        raise UserError(where, what, "without internet, download it elsewhere and give its folder") from None


def _like(name: str) -> str:
    """The architecture with nearly this name, or else what may be given."""
    from transformers import CONFIG_MAPPING

    hint = nearest(name, CONFIG_MAPPING)
    return hint if hint.startswith("did") else "give an architecture, a folder, or ORG/NAME on the hub"


def network(settings: TransformersSettings, config: Any) -> tuple[Any, bool]:
    """(the model in training mode, whether it is one of transformers' backbones). All stages of one are given."""
    from transformers import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

    is_backbone = type(config) in MODEL_FOR_BACKBONE_MAPPING and bool(getattr(config, "stage_names", None))
    if is_backbone:
        config.out_indices = list(range(1, len(config.stage_names)))
    made = (MODEL_FOR_BACKBONE_MAPPING if is_backbone else MODEL_MAPPING).get(type(config), None)
    kind = made[0] if isinstance(made, tuple | list) else made
    if kind is None or kind.main_input_name != "pixel_values":
        raise UserError(f"{WHERE}={settings.model}", "reads no images", "give an image model")
    if settings.pretrained and torch.get_default_device().type != "meta":
        model = pretrained(settings.model, kind, config)
    else:
        try:
            model = kind(config)
        except Exception as error:  # each architecture checks its options in its own way
            what = f"cannot be built ({first_line(error)})"
            raise UserError(f"{WHERE}={settings.model}", what, "see network.backbone.config") from None
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # what it computes is not read
    return model.train(), is_backbone


def pretrained(name: str, kind: Any, config: Any) -> Any:
    """The model with its published weights. Raises `UserError` where some are missing."""
    folder = place(name, "model.safetensors")
    try:
        model, found = kind.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            local_files_only=True,
            dtype=torch.float32,
        )
    except Exception as error:  # a damaged file, weights of other shapes
        raise UserError(f"{WHERE}={name}", f"cannot be loaded ({first_line(error)})", "copy it anew") from None
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        what = f"its file lacks weights ({len(missing)} missing: {some(missing)})"
        raise UserError(f"{WHERE}={name}", what, "give a whole model")
    return model

"""The autoencoder that `codec=` names: a run, a folder or hub repository of diffusers', a published file."""

from __future__ import annotations

from pathlib import Path

from ..adapters.kl_layout import read_kl
from ..adapters.latent_codec import LatentCodec, read_autoencoder
from ..errors import UserError
from ..settings.codec import CodecSettings
from .codec import FOLDER, fitted, same_autoencoder, trained_with
from .folder import Run
from .load import elsewhere, is_ours
from .weights import load_model

PLACES = ("", FOLDER, "vae")  # in a folder of diffusers' autoencoder, a latent model's run, a pipeline
FILES = (".pth", ".pt", ".ckpt", ".safetensors")
HINT = "give the run of an autoencoder, a folder or hub name of diffusers' AutoencoderKL, or autoencoder_kl.pth"


def open_codec(settings: CodecSettings, shape: tuple[int, int, int]) -> LatentCodec:
    """The autoencoder that settings name, for images of shape (C, H, W), with its scale and shift, on the CPU.

    Raises `UserError` for what is not an autoencoder, and for images that it cannot encode.
    """
    found = read_codec(settings.source)
    scale = found.scale if settings.scale is None else settings.scale
    shift = found.shift if settings.shift is None else settings.shift
    return fitted(found, shape, scale, shift)


def run_codec(run: Run, settings: CodecSettings | None, shape: tuple[int, int, int]) -> LatentCodec | None:
    """The codec that a run is trained with: the one in its folder, once it was begun; None for one of pixels.

    Raises `UserError` where the settings name another one than it was begun with, or another one lies in its folder.
    """
    if settings is None:
        return None
    folder, there = run.path / FOLDER, Path(settings.source).exists()
    if not run.begun:
        return open_codec(settings, shape)
    what = f"is not the autoencoder that {run.path} was begun with"
    if folder.is_dir():
        kept = read_codec(str(folder))
        kept = fitted(kept, shape, kept.scale, kept.shift)
        if trained_with(run.model_file) not in (None, kept.key):
            raise UserError(str(folder), what, "put that one back, or give another --out")
        if there and not same_autoencoder(open_codec(settings, shape), kept):
            raise UserError(f"codec={settings.source}", what, "give another --out")
        return kept
    given = open_codec(settings, shape)
    if trained_with(run.model_file) not in (None, given.key):
        raise UserError(f"codec={settings.source}", what, f"put that one back as {folder}, or give another --out")
    return given


def read_codec(source: str) -> LatentCodec:
    """The codec with the scale it was saved with, at any size. Raises `UserError` for what is none."""
    path = Path(source)
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        for place in PLACES:
            if (path / place / "config.json").is_file():
                return LatentCodec(read_autoencoder(path / place))
        if is_ours(path):
            return _of_run(path)
        raise UserError(f"codec={source}", "holds no autoencoder", HINT)
    return read_codec(str(elsewhere(source)))


def _of_file(path: Path) -> LatentCodec:
    if not is_ours(path):
        if path.suffix not in FILES:
            raise UserError(f"codec={path}", "not a file of weights", HINT)
        return LatentCodec(read_kl(path))
    model = load_model(path)
    if not isinstance(model, LatentCodec):
        raise UserError(f"codec={path}", "is no autoencoder", HINT)
    return model


def _of_run(path: Path) -> LatentCodec:
    return _of_file(Run.open(path).snapshot_file())

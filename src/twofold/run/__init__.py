"""A run folder and what it holds: settings become objects; save, load, resume."""

from .autoencoders import open_codec, run_codec
from .codec import keep_codec, same_autoencoder
from .folder import Run
from .load import load, load_probe, load_to_use, newest_probe
from .states import State, check_room, newest_state, read_state, save_state
from .weights import Trained, build, load_model, save_model

__all__ = [
    "Run",
    "State",
    "Trained",
    "build",
    "check_room",
    "keep_codec",
    "load",
    "load_model",
    "load_probe",
    "load_to_use",
    "newest_probe",
    "newest_state",
    "open_codec",
    "read_state",
    "run_codec",
    "same_autoencoder",
    "save_model",
    "save_state",
]

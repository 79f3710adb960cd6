"""A run folder and what it holds: settings become objects; save, load, resume."""

from .folder import Run
from .load import load, load_probe, newest_probe
from .states import State, check_room, newest_state, read_state, save_state
from .weights import build, load_model, save_model

__all__ = [
    "Run",
    "State",
    "build",
    "check_room",
    "load",
    "load_model",
    "load_probe",
    "newest_probe",
    "newest_state",
    "read_state",
    "save_model",
    "save_state",
]

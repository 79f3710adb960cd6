"""Branching: a new run that begins at another run's training state (`resume_from=RUN@IMAGES`).

It goes on with that run's weights, averages, moments and position in the data. With equal settings it ends as that run
did, bit for bit; whatever else is set takes effect from there. The other run is only read.
"""

from __future__ import annotations

from dataclasses import replace

from ..data import Store
from ..errors import UserError
from ..run import Run, State, read_state
from ..settings.resolve import differences
from ..settings.train import TrainSettings
from .inherit import place_of

STRUCTURE = ("network", "noise", "lora")  # what weights and moments mean
SAME_DATA = ("data.validation_share", "data.test_share", "data.split_seed")  # else held-out images were trained on
MEANS = {
    "train.batch_size": "steps hold other images from here on",
    "train.seed": "order and noise are others from here on, and images may come twice",
    "train.optimizer": "its moments begin anew",
    "train.n_images": "a cosine schedule has another length",
    "train.ema_halflife_images": "the average goes on from that of the other run",
}
OWN = {"network.dropout", "network.unet.dropout", "noise.p_mean", "noise.p_std", "noise.training"}


def branch(settings: TrainSettings, store: Store) -> tuple[State, list[str]]:
    """The state that a run begins at, and a line for each setting that ends its likeness to the other run.

    Raises `UserError` where the state is not there, where network, noise or data are not those of the other run, and
    where the state is past the end of this one.
    """
    source = str(settings.resume_from)
    folder, at = place_of(source)
    run = Run.open(folder)
    state, theirs = read_state(run.path / "state", at), run.settings()
    changed = [path for path in differences(theirs, settings) if path not in ("init_from", "resume_from")]
    for path in changed:
        if (path.startswith(STRUCTURE) and path not in OWN) or path == "objective.kind":
            raise UserError(path, f"is not what {folder} was trained with", f"leave {path} out, or use init_from")
    other_data = state.facts["environment"]["data"] != store.training_hash
    if other_data or any(path in SAME_DATA for path in changed):
        hint = f"init_from={source} starts from its weights on other data"
        raise UserError(f"resume_from={source}", "was trained on other data, or another split of it", hint)
    if state.n_images >= settings.train.n_images:
        what = f"is at {state.n_images:,} images, this run ends at {settings.train.n_images:,}"
        raise UserError(f"resume_from={source}", what, "set train.n_images higher, or name an earlier state")
    notes = [f"branched off {folder} at {state.n_images:,} images"]
    notes += [f"{path} is not that of {folder}{_meaning(path)}" for path in changed]
    if _moments(theirs) != _moments(settings):
        state = replace(state, tensors={n: v for n, v in state.tensors.items() if not n.startswith("optimizer/")})
    return replace(state, facts=_facts(state, settings, changed)), notes


def _facts(state: State, settings: TrainSettings, changed: list[str]) -> dict[str, object]:
    """The counters go on, but for what the other run's folder holds (its best snapshots), or its batches decided."""
    environment = state.facts["environment"]
    if {"train.batch_size", "train.micro_batch"} & set(changed):
        environment = {**environment, "micro_batch": settings.train.micro_batch or settings.train.batch_size}
    return {**state.facts, "best": {}, "environment": environment}


def _moments(settings: TrainSettings) -> str:
    """The kind of moments that an optimiser keeps."""
    return settings.train.optimizer.removesuffix("w")


def _meaning(path: str) -> str:
    return f": {MEANS[path]}" if path in MEANS else ""

"""From settings to a finished run: pack the data, fill in what it decides, train, write the result."""

from __future__ import annotations

import atexit
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from .. import __version__
from ..adapters.latent_codec import LatentCodec
from ..data import Store, open_store
from ..errors import UserError
from ..run import Run, keep_codec, run_codec
from ..settings.every import has_epochs, in_images
from ..settings.train import Joint, TrainSettings
from .batches import labelled_rows, trained_rows
from .classes import asks_attributes, class_names
from .events import Event, Note
from .inherit import inherit
from .loop import Trainer
from .lora import parameters
from .tasks import filled_in

SETTLE = 0.3  # seconds
# objectives that no label is needed for
NOT_OF_LABELS = ("denoising", "autoencoder", "segmentation", "landmarks", "distill", "regression")

Show = Callable[[Event], None]


def train(
    settings: TrainSettings,
    out: str | Path,
    device: str | None = None,
    show: Show = lambda event: None,
    packing: Callable[[int, int | None], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains a run in the folder `out`, or continues it, and returns its result (also in result.json).

    settings: what to train; `network.classes=null` is filled in from the data. device: cpu, cuda, ...; default: the
    best. show: called with every event of the loop. packing: called with (done, total) while the data is packed.
    A finished run is not trained again. Raises `UserError` for what the user can mend; KeyboardInterrupt after
    Ctrl-C or SIGTERM, when the state has been saved: the same call continues there.
    """
    accelerator = make_accelerator(device)
    main = accelerator.is_main_process
    store = open_store(settings.data, packing if main else None)  # one packs, the others wait for its lock
    run = Run(Path(out))
    codec = run_codec(run, settings.codec, store.shape)
    settings = complete(settings, store, run, codec)
    if main:
        run.forget_unbegun(settings)
    accelerator.wait_for_everyone()
    if run.settings_file.is_file():
        Run.start(out, settings)  # raises where it has other settings
        finished = run.result()
        if finished is not None:
            show(Note(f"{run.path} is finished; nothing to do"))
            return finished
    trainer = Trainer(run, settings, store, accelerator, codec)  # what cannot be built is said before a folder is made
    if main:
        Run.start(out, settings, header=f"# {command}" if command else "")
        if codec is not None:
            keep_codec(codec, run.path)
    accelerator.wait_for_everyone()
    with run.lock() if main else nullcontext():
        with _signals(trainer):
            for event in trainer.events():
                show(event)
        result = describe(trainer, store, command)
        if main:
            run.write_result(result)
    accelerator.wait_for_everyone()
    return result


def make_accelerator(device: str | None) -> Accelerator:
    """Accelerate's view of this process. Raises where the launcher promised more processes than there are."""
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = check_device(device)
    if promised == 1:  # accelerate keeps one device per process; forget an earlier choice
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(chosen)
    # precision is the trainer's business: only F runs under autocast
    accelerator = Accelerator(cpu=chosen.type == "cpu", mixed_precision="no")
    if accelerator.distributed_type == "FSDP":
        raise UserError("accelerate", "its configuration asks for FSDP", "use plain data parallelism (DDP)")
    if accelerator.num_processes != promised:
        raise RuntimeError(f"{promised} processes were launched, but accelerate joined {accelerator.num_processes}")
    if promised > 1:  # better than nothing; who calls from Python should leave by himself, before the end
        atexit.register(leave_process_group)
    return accelerator


def check_device(name: str | None) -> torch.device:
    """The device of this name, or the best there is. Raises `UserError` for one that is not here."""
    if name is None:
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device(name)
        there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        count = there[device.type]
    except (RuntimeError, KeyError):
        raise UserError(f"--device {name}", "no such kind of device", "cpu, cuda, cuda:1 or mps") from None
    if not 0 <= (device.index or 0) < count:  # torch wraps large numbers round to negative ones
        what = f"there are {count} of this kind here" if count else f"no {device.type} device is usable here"
        raise UserError(f"--device {name}", what, "`twofold doctor` says what there is")
    return device


def leave_process_group() -> None:
    """Ends this process's part in a torchrun; nothing if it has none or has left already.

    To be called at the end of a program. Gloo's threads need a moment after that: with plain torch and two processes 5
    of 15 aborted when left to the interpreter's end, 1 of 12 when left at once before it, and none of 12 after a pause.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(SETTLE)


def complete(settings: TrainSettings, store: Store, run: Run, codec: LatentCodec | None = None) -> TrainSettings:
    """The settings with everything filled in that the data and `init_from` decide, and durations in images.

    run: the folder to train in; see `inherit`. codec: of a latent model.
    Raises `UserError` where data, source and network disagree.
    """
    if settings.objective.kind not in NOT_OF_LABELS:
        _check_labels(settings, store)
    settings = settings.model_copy(update={"objective": filled_in(settings, store)})
    if has_epochs(settings.train):
        loop = in_images(settings.train, len(trained_rows(settings, store)))
        settings = settings.model_copy(update={"train": loop})
    if settings.lora is not None and settings.init_from is None and settings.resume_from is None:
        what = "a low-rank update of which model is not said"
        raise UserError(f"lora.rank={settings.lora.rank}", what, "give init_from=RUN of a denoiser")
    settings = inherit(settings, store.shape if codec is None else codec.shape_of(store.shape), run)
    if isinstance(settings.objective, Joint):
        settings = settings.model_copy(update={"objective": _with_labelled(settings.objective, settings, store)})
    network, classes = settings.network, len(class_names(settings, store))
    if network.classes is None:
        several = settings.objective.kind == "joint" and settings.objective.multi_label
        network = network.model_copy(update={"classes": 0 if several else classes})
    elif 0 < network.classes < classes:
        raise UserError(
            f"network.classes={network.classes}", f"the data has {classes} classes", "use null to take it from the data"
        )
    return settings.model_copy(update={"network": network})


def _check_labels(settings: TrainSettings, store: Store) -> None:
    """Raises `UserError` for data that a classifier cannot be trained on, and for labels that it would not learn."""
    data, asked, listed = settings.data, asks_attributes(settings, store), store.lists_attributes
    if listed and not asked:
        hint = "set objective.multi_label=true, or give a file with the columns id and class"
        raise UserError(
            f"data.labels={data.labels}", "lists attributes, which a classifier of classes is not told", hint
        )
    if asked and not listed and (data.labels or data.labels_per_class):
        given = f"labels={data.labels}" if data.labels else f"labels_per_class={data.labels_per_class}"
        what = "is about classes, and objective.multi_label=true learns the attributes that these data have"
        raise UserError(f"data.{given}", what, "say whose are known in data.labels=FILE: name, and a column for each")
    classes, source = len(class_names(settings, store)), f"data.source={data.source}"
    if classes < 2:
        hint = "give a folder with one sub-folder per class"
        raise UserError(source, f"has {classes} classes, a classifier needs at least 2", hint)
    head = getattr(getattr(settings.network, "head", None), "classes", None)
    if head is not None and head != classes:
        what = f"the data has {classes} classes"
        raise UserError(f"network.head.classes={head}", what, "leave it out: it is taken from the data")


def _with_labelled(objective: Joint, settings: TrainSettings, store: Store) -> Joint:
    """How many labelled images come besides each batch, where that is left to the data."""
    rows, several = store.indices("train"), asks_attributes(settings, store)
    labelled, batch = len(labelled_rows(store, rows, several)), settings.train.batch_size
    if objective.labelled_batch is not None:
        return objective
    few = labelled < len(rows) / 2
    return objective.model_copy(
        update={"labelled_batch": batch // 4 if few and batch % 4 == 0 else batch if few else 0}
    )


@contextmanager
def _signals(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a save and an orderly end; a second Ctrl-C ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def describe(trainer: Trainer, store: Store, command: str) -> dict[str, Any]:
    """The result of a finished run: what came out, from what, how fast, with which versions."""
    rows = [row for row in trainer.run.log() if row["kind"] == "validation"]
    last = {k: v for k, v in rows[-1].items() if k not in ("kind", "n_images")} if rows else {}
    metrics = {**last, **{f"best_{name}": value for name, value in trainer.best.items()}}
    seconds, sizes = trainer.totals["seconds"], parameters(trainer.objective.network)
    return {
        "command": command,
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "data": {
            "name": store.name,
            "hash": store.content_hash,
            "train_images": len(store.indices("train")),
            "bad_images": store.meta["bad_images"],
        },
        "seed": trainer.loop.seed,
        "n_images": trainer.n_images,
        "nonfinite_steps": trainer.totals["nonfinite"],
        "parameters": sizes[0],
        "parameters_trained": sizes[1],
        "init_from": trainer.started,
        **({"learned": learned} if (learned := trainer.objective.learned()) else {}),
        "seconds": round(seconds, 1),
        "images_per_second": round(trainer.n_images / max(seconds, 1e-9), 1),
        "environment": trainer.environment.to_dict(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the kind of machine."""
    return {
        "twofold": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }

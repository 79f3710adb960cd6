"""The training loop, the only one: it trains whatever an objective holds, and yields what happens.

    position n -> batch (images, noise, noise level, ...) -> step (see `step`) -> log, validate, preview, save

A step is a function of (weights, position): randomness is keyed by (seed, position) and dropout by (seed, images
seen, rank), so a run that was killed continues from its newest state bit for bit (CPU, fp32, same threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..adapters.latent_codec import LatentCodec
from ..data import Store
from ..errors import UserError
from ..files import atomic_json
from ..run import Run, State, build, newest_state, run_codec
from ..settings.train import TrainSettings
from .announce import announce
from .batches import Batch, training_batches
from .branch import branch
from .checkpoint import Checkpoints
from .classes import class_names
from .environment import Environment, check_agreement, choose, remembered
from .events import Event, Logged, Note, Previewed, Saved, Stepped
from .fastest import DTYPES
from .latents import TOLD, keep
from .lora import adapt, targeted
from .objectives import Objective, objective
from .optimise import learning_rate
from .room import told_beforehand, would_fit
from .start import start_from
from .step import Stepper, weights_once
from .validation import BETTER, PICTURES, Validation, averaged

UNCONDITIONAL = 8  # images of a preview "of each class" where there are none


class Trainer:
    """Trains one run. Iterate over `events()`; it ends when `settings.train.n_images` have been seen.

    store: packed images, of which only the train part (and, held out, the validation part) is read. codec: of a latent
    model, for whoever has opened it already.
    Every process of a torchrun or accelerate launch makes its own Trainer; rank 0 writes.
    """

    def __init__(
        self,
        run: Run,
        settings: TrainSettings,
        store: Store,
        accelerator: Accelerator,
        codec: LatentCodec | None = None,
    ) -> None:
        self.run, self.settings, self.store, self.accelerator = run, settings, store, accelerator
        self.loop = settings.train
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        self.main = accelerator.is_main_process
        self.codec = codec or run_codec(run, settings.codec, store.shape)
        shape = store.shape if self.codec is None else self.codec.shape_of(store.shape)
        torch.manual_seed(self.loop.seed)
        _ = store.labels  # a label file that does not fit is told before a folder is made
        self.model = build(settings, shape, class_names(settings, store), self.codec)
        self.environment: Environment
        self._branch: tuple[State, list[str]] | None = None
        self._from: tuple[list[str], dict[str, Any] | None] | None = None
        if not any((run.path / "state").glob("[0-9]*")):  # what is wrong with either is said before a folder is made
            if settings.resume_from is not None:
                self._branch = branch(settings, store)
            else:
                self._from = start_from(self.model, settings)
        if settings.lora is not None:
            targeted(self.model.network, settings.lora.targets)  # likewise
        self.n_images = 0
        self.totals: dict[str, Any] = {
            "seconds": 0.0,
            "nonfinite": 0,  # steps skipped, in all and without a good one between
            "in_a_row": 0,
            "loss_sum": 0.0,  # since the last log line
            "loss_count": 0,
            "logged_images": 0,
            "logged_seconds": 0.0,
        }
        self.best: dict[str, float] = {}
        self.started: dict[str, Any] | None = None  # what came from `init_from`
        self.stop_requested = False  # set by a signal handler: save at the next step, then end

    def events(self) -> Iterator[Event]:
        """Runs the training. Raises `UserError` for what the user can mend, before the first step where possible."""
        threads = torch.get_num_threads()
        try:
            yield from self._prepare()
            yield from self._train()
        finally:
            torch.set_num_threads(threads)

    def _train(self) -> Iterator[Event]:
        batches = self.batches.stream(self.n_images, self.loop.batch_size, self.rank, self.world)
        clock = time.perf_counter()
        try:
            while self.n_images < self.loop.n_images:
                before = self.n_images
                notes = self._step(next(batches))
                self.totals["seconds"] += time.perf_counter() - clock
                clock = time.perf_counter()
                yield from map(Note, notes)
                yield Stepped(self.n_images, self.loop.n_images)
                done = self.n_images >= self.loop.n_images
                log = done or self._due(before, self.loop.log_images)
                if log:
                    yield from self._log()
                yield from self._look(before, done)
                stop = not done and self._stop_now(log)
                if done or stop or self._due(before, self.loop.save_images):
                    self._save()
                    yield Saved(self.n_images)
                if stop:
                    raise KeyboardInterrupt(f"saved at {self.n_images:,} images; the same command continues there")
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _due(self, before: int, every: int) -> bool:
        return self.n_images // every > before // every

    def _stop_now(self, logged: bool) -> bool:
        """Whether to save and end. Several processes agree on it, and only at log lines: asking costs a message."""
        if self.world == 1:
            return self.stop_requested
        return logged and any(gather_object([self.stop_requested]))

    # -- before the first step ------------------------------------------------------------------------------------

    def _prepare(self) -> Iterator[Event]:
        settings, loop, model = self.settings, self.loop, self.model.to(self.device)
        if loop.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective: Objective = objective(model, settings.objective, loop.seed).train()
        own, notes = newest_state(self.run.path / "state")
        state, told = (own, []) if own or not settings.resume_from else self._branch or branch(settings, self.store)
        self._branch = None
        yield from map(Note, [*notes, *told])
        check_agreement(self.run.path, state, self.world)
        yield from self._start(state)
        if self.main:
            self.run.sweep()
        yield from self._set_environment(state)
        if loop.compile:
            model.compile_network()  # type: ignore[union-attr, operator]
        wrapped: torch.nn.Module = self.objective
        if self.world > 1:  # before anything holds on to the weights' storage, which this may replace
            wrapped = self.accelerator.prepare_model(self.objective)
        size, form = self.environment.micro_batch, self.environment.precision
        half, where = form != "fp32", (self.device, self.world, self.codec)
        yield from map(Note, told_beforehand(settings, model, size, half, *where))
        self.stepper = Stepper(self.objective, wrapped, loop, self.accelerator, size, form, model.shape)
        self.stepper.would_fit = lambda: would_fit(settings, model, self.stepper.micro_batch, half, *where)
        self.average = self.stepper.average
        self.checkpoints = Checkpoints(self.run, settings, self.model, self.stepper, self.store)
        noise_shape = getattr(model, "noise_shape", model.shape)
        self.validation = Validation(settings, self.store, self.rank, self.world, self.device, noise_shape)
        yield from self._make_batches(noise_shape)
        self._loss_sum = torch.zeros((), device=self.device)
        yield from map(Note, announce(self))
        if state is not None:
            self._restore(state)
            yield Note(f"resumed at {self.n_images:,} images")
        if own is None and self.main:
            self.run.log_file.unlink(missing_ok=True)
        yield from map(Note, self._fit_together())

    def _make_batches(self, noise_shape: tuple[int, int, int]) -> Iterator[Event]:
        """What training and validation read; latents are made first, where they are kept."""
        yield from self._told(
            self.objective.prepare(self.store, self.settings.data.flip, self.device, self.rank, self.world)
        )
        kept = yield from keep(self.settings, self.store, self.codec, self.validation.rows, self.rank, self.world)
        needs = self.objective.uniforms, self.objective.needs_noise, self.objective.further
        belongings = self.objective.belongings
        self.batches = training_batches(self.settings, self.store, *needs, noise_shape, kept.train, belongings)
        self.validation.latents = kept.held_out

    def _told(self, lines: Iterator[str]) -> Iterator[Event]:
        """What takes long and tells how far it is, every few seconds."""
        told = time.monotonic() - TOLD
        for line in lines:
            if time.monotonic() - told >= TOLD:
                told = time.monotonic()
                yield Note(line)

    def _start(self, state: State | None) -> Iterator[Event]:
        """What a run begins with: the weights of another model, low-rank updates of them."""
        if state is not None:
            self.started = state.facts.get("started")
        else:
            notes, self.started = self._from or start_from(self.model, self.settings)
            yield from map(Note, notes)
        if self.settings.lora is not None:
            yield Note(adapt(self.objective.network, self.settings.lora, self.loop.seed))

    def _fit_together(self) -> list[str]:
        """Several processes try before their first step how much fits: none can go back in the middle of one."""
        if self.world == 1:
            return []
        share = self.loop.batch_size // self.world
        self._counted(self.n_images)
        begin = self.n_images + self.rank * share
        self.stepper.agree(self.batches.make(begin, begin + share))
        return self._smaller()

    def _smaller(self) -> list[str]:
        """What to tell the user where the micro-batch is not what it was; the environment takes note."""
        before, now = self.environment.micro_batch, self.stepper.micro_batch
        if before == now:
            return []
        self.environment = replace(self.environment, micro_batch=now)
        return [
            f"out of memory with {before} images at a time: now {now}; a step still has {self.loop.batch_size} images"
        ]

    def _set_environment(self, state: State | None) -> Iterator[Event]:
        """Chosen before the first step of a run and kept in its folder, so that a run killed early keeps it too."""
        file, data = self.run.path / "environment.json", self.store.training_hash
        stored = remembered(file, state)
        chosen = choose(self.model, self.model.shape, self.loop, self.device, self.world, data, stored)
        if self.world > 1:  # measurements differ between ranks; the first one's count
            chosen = gather_object([chosen])[0]
        self.environment, changed = chosen
        yield from map(Note, changed)
        if self.main and not file.is_file():
            atomic_json(file, self.environment.to_dict())
        torch.set_num_threads(self.environment.threads)
        self.model.autocast = DTYPES[self.environment.precision]

    def _restore(self, state: State) -> None:
        self.stepper.restore(state)
        self.n_images, self.totals, self.best = state.n_images, state.facts["totals"], state.facts["best"]
        if self.main:  # the stored sum is everybody's
            self._loss_sum += self.totals["loss_sum"]
            self.run.rewind_log(self.n_images)

    # -- one step -------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> list[str]:
        """One optimiser step on this rank's share of the global batch at position n_images; what to tell of it."""
        start = self.n_images
        counted = self._counted(start)
        try:
            taken = self.stepper(batch, start, counted)
        except UserError:
            if self.world > 1 and self.stepper.micro_batch < self.environment.micro_batch:  # for the next attempt
                self._smaller()
                atomic_json(self.run.path / "environment.json", self.environment.to_dict())
            raise
        self.n_images += self.loop.batch_size
        self._grad_norm = taken.norm
        if self._may_go_on(taken.finite):
            self._loss_sum += taken.loss
            self.totals["loss_count"] += counted
        return self._smaller()

    def _counted(self, start: int) -> int:
        """Images of the whole global batch that count in its mean: every rank can tell without asking. The objective is
        told of their labels, too.
        """
        if not (self.objective.classifies or self.objective.heeds_labels):
            self.objective.begin(start, torch.empty(0, dtype=torch.int64))
            return self.loop.batch_size
        label = self.batches.labels_at(start, start + self.loop.batch_size)
        self.objective.begin(start, label)
        return self.objective.counted(label)

    def _may_go_on(self, finite: bool) -> bool:
        """Whether the step was taken. Skipped ones are counted; many in a row end training."""
        if finite:
            self.totals["in_a_row"] = 0
            return True
        self.totals["nonfinite"] += 1
        self.totals["in_a_row"] += 1
        if self.totals["in_a_row"] >= self.loop.nonfinite_limit:
            raise UserError(
                "train",
                f"{self.loop.nonfinite_limit} steps in a row had non-finite gradients (after {self.n_images:,} images)",
                f"lower train.lr (now {self.loop.lr:g}), set train.clip_norm, or use train.precision=fp32",
            )
        return False

    # -- looking and saving ---------------------------------------------------------------------------------------

    def _log(self) -> Iterator[Event]:
        facts, norm = self.totals, float(self._grad_norm)
        row = {
            "kind": "train",
            "n_images": self.n_images,
            "loss": float(self._summed(self._loss_sum)) / max(facts["loss_count"], 1),
            "lr": learning_rate(self.loop, self.n_images - self.loop.batch_size),
            "grad_norm": norm if math.isfinite(norm) else None,
            "nonfinite": facts["nonfinite"],
            "seconds": round(facts["seconds"], 3),
            "images_per_second": round(
                (self.n_images - facts["logged_images"]) / max(facts["seconds"] - facts["logged_seconds"], 1e-9), 1
            ),
        }
        facts |= {"loss_count": 0, "logged_images": self.n_images, "logged_seconds": facts["seconds"]}
        self._loss_sum.zero_()
        yield from self._record(row)

    def _summed(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value.clone(), "sum") if self.world > 1 else value

    def _record(self, row: dict[str, Any]) -> Iterator[Event]:
        if self.main:
            self.run.append_log(row)
        yield Logged(row)

    def _look(self, before: int, done: bool) -> Iterator[Event]:
        """Validation and preview with the averaged weights, where one is due; permanent snapshots too."""
        validate = done or self._due(before, self.loop.validate_images)
        preview = self.objective.previews and (done or self._due(before, self.loop.preview_images))
        if validate or preview:
            network = self.objective.network
            with torch.no_grad(), averaged(network, self.average), weights_once(network):
                self.objective.eval()
                yield from self._measure(validate, preview)
                self.objective.train()
        if preview and self.loop.preview_raw and self.objective.denoiser is not None:
            yield from self._raw_preview()
        every = self.loop.snapshot_every
        if every and self._due(before, every) and self.n_images >= self.loop.snapshots_from:
            self._write_model(f"{self.n_images:012d}")
        for at in self.loop.snapshot_images:
            if before < at <= self.n_images:
                self._write_model(f"{at:012d}")

    def _measure(self, validate: bool, preview: bool) -> Iterator[Event]:
        images: Tensor | None = None
        labels: list[int] = []
        shown = self._shown()
        wanted = max(self.validation.samples_wanted if validate else 0, shown if preview else 0)
        if wanted and self.objective.denoiser is not None:
            images, labels = self.validation.samples(self.objective, wanted, self.stepper.micro_batch)
        if validate:
            yield from self._validate(images)
        if preview:
            if images is None:
                images, labels = self.validation.pictures(self.objective)
            else:
                images, labels = self.validation.everyones(images, labels)
            if self.main:
                self.checkpoints.preview(images[:shown], self.n_images)
            yield Previewed(self.n_images, images[:shown], labels[:shown])

    def _shown(self) -> int:
        """How many images a preview has."""
        n, denoiser = self.loop.preview_n, self.objective.denoiser
        if denoiser is None:  # it shows held-out images, see `Validation.pictures`
            return PICTURES
        return (denoiser.classes or UNCONDITIONAL) if n == "classes" else n

    def _raw_preview(self) -> Iterator[Event]:
        """The same images as in the preview, of the weights as they are: beside it one sees what averaging does."""
        assert self.objective.denoiser is not None
        with torch.no_grad(), weights_once(self.objective.network):
            self.objective.eval()
            images, labels = self.validation.samples(self.objective, self._shown(), self.stepper.micro_batch)
            self.objective.train()
        images, labels = self.validation.everyones(images, labels)
        yield Previewed(self.n_images, images, labels, averaged=False)

    def _validate(self, images: Tensor | None) -> Iterator[Event]:
        found = self.validation.measured(self.objective, self.stepper.micro_batch, images)
        for metric, sign in BETTER if self.settings.validation.keep_best else ():
            if metric in found and sign * found[metric] < sign * self.best.get(metric, sign * math.inf):
                self.best[metric] = found[metric]
                self._write_model(f"best-{metric}")
        yield from self._record({"kind": "validation", "n_images": self.n_images, **found})

    def _write_model(self, name: str) -> None:
        if self.main:
            self.checkpoints.snapshot(name, self.n_images)

    def _save(self) -> None:
        """The training state and the averaged weights, by rank 0; all ranks hold the same."""
        self.totals["loss_sum"] = float(self._summed(self._loss_sum))
        if self.main:
            facts = {
                "environment": self.environment.to_dict(),
                "totals": self.totals,
                "best": self.best,
                "scaler": self.stepper.scaler.state_dict(),
                "started": self.started,
            }
            self.checkpoints.save(self.n_images, facts)
            atomic_json(self.run.path / "environment.json", self.environment.to_dict())
        self.accelerator.wait_for_everyone()

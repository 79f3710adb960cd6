"""The training loop, the only one: it trains whatever an objective holds, and yields what happens.

    position n -> batch (images, noise, noise level, ...) -> objective -> backward -> clip -> optimiser -> EMA

A step is a function of (weights, position): randomness is keyed by (seed, position) and dropout by (seed, images
seen, rank), so a run that was killed continues from its newest state bit for bit (CPU, fp32, same threads).
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..data import Store
from ..errors import UserError
from ..files import atomic_bytes, atomic_json
from ..run import Run, State, build, newest_state, save_model, save_state
from ..settings.train import TrainSettings
from .batches import Batch, Batches
from .ema import Average, decay
from .environment import choose
from .events import Event, Logged, Note, Previewed, Saved, Stepped
from .fastest import DTYPES
from .inherit import start_from
from .objectives import Objective, objective
from .optimise import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors
from .validation import PREVIEWS, Validation, averaged


class Trainer:
    """Trains one run. Iterate over `events()`; it ends when `settings.train.n_images` have been seen.

    store: packed images, of which only the train part (and, held out, the validation part) is read.
    Every process of a torchrun or accelerate launch makes its own Trainer; rank 0 writes.
    """

    def __init__(self, run: Run, settings: TrainSettings, store: Store, accelerator: Accelerator) -> None:
        self.run, self.settings, self.store, self.accelerator = run, settings, store, accelerator
        self.loop = settings.train
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        self.main = accelerator.is_main_process
        torch.manual_seed(self.loop.seed)
        self.model = build(settings, store.shape, store.classes)
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
                self._step(next(batches))
                self.totals["seconds"] += time.perf_counter() - clock
                clock = time.perf_counter()
                yield Stepped(self.n_images)
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
        settings, loop = self.settings, self.loop
        model = self.model.to(self.device)
        if loop.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective: Objective = objective(model, settings.objective).train()
        state, damaged = newest_state(self.run.path / "state")
        yield from map(Note, damaged)
        self._agree(state)
        if state is None and settings.init_from is not None:
            yield from map(Note, start_from(model, settings))
        if self.main:
            self.run.sweep()
        yield from self._set_environment(state)
        if loop.compile:
            model.compile_network()  # type: ignore[union-attr, operator]
        self.wrapped: nn.Module = self.objective
        if self.world > 1:  # before anything holds on to the weights' storage, which this may replace
            self.wrapped = self.accelerator.prepare_model(self.objective)
        self.optimizer = make_optimizer(self.objective.network, loop, self.model.shape)
        self.average = Average(self.objective.network)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.environment.precision == "fp16")
        rows = self.store.indices("train")
        self.batches = Batches(
            self.store, rows, loop.seed, self.objective.uniforms, self.objective.needs_noise, settings.data.flip
        )
        self.validation = Validation(settings, self.store, self.rank, self.world, self.device)
        self._loss_sum = torch.zeros((), device=self.device)
        yield Note(self._describe())
        if state is not None:
            self._restore(state)
            yield Note(f"resumed at {self.n_images:,} images")
        elif self.main:
            self.run.log_file.unlink(missing_ok=True)

    def _describe(self) -> str:
        """What is trained on what, in one line."""
        parameters = sum(p.numel() for p in self.objective.network.parameters())
        parts = f"{len(self.batches.rows):,} training and {len(self.validation.rows):,} validation images"
        how = f"{self.environment.precision}, {self.environment.threads} CPU threads, {self.device}"
        return f"{self.store.name}: {parts}, {len(self.store.classes)} classes; {parameters:,} parameters; {how}"

    def _set_environment(self, state: State | None) -> Iterator[Event]:
        """Chosen before the first step of a run and kept in its folder, so that a run killed early keeps it too."""
        file = self.run.path / "environment.json"
        stored = state.facts["environment"] if state else json.loads(file.read_text()) if file.is_file() else None
        data = self.store.content_hash
        chosen = choose(self.model, self.model.shape, self.loop, self.device, self.world, data, stored)
        if self.world > 1:  # measurements differ between ranks; the first one's count
            chosen = gather_object([chosen])[0]
        self.environment, changed = chosen
        yield from map(Note, changed)
        if self.main and stored is None:
            atomic_json(file, self.environment.to_dict())
        torch.set_num_threads(self.environment.threads)
        self.model.autocast = DTYPES[self.environment.precision]

    def _agree(self, state: State | None) -> None:
        """All processes must continue from the same state, which on several nodes takes a shared folder."""
        mine = (state.n_images, state.facts["sha256"]) if state else None
        if self.world > 1 and any(other != mine for other in gather_object([mine])):
            raise UserError(str(self.run.path), "its processes see different states", "put --out on a shared folder")

    def _restore(self, state: State) -> None:
        part = lambda prefix: {  # noqa: E731
            name.removeprefix(prefix): value for name, value in state.tensors.items() if name.startswith(prefix)
        }
        self.objective.network.load_state_dict(part("weights/"))
        self.average.load(part("average/"))
        load_optimizer_tensors(self.optimizer, self.objective.network, part("optimizer/"))
        if self.scaler.is_enabled() and state.facts["scaler"]:
            self.scaler.load_state_dict(state.facts["scaler"])
        self.n_images, self.totals, self.best = state.n_images, state.facts["totals"], state.facts["best"]
        if self.main:  # the stored sum is everybody's
            self._loss_sum += self.totals["loss_sum"]
            self.run.rewind_log(self.n_images)

    # -- one step -------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> None:
        """One optimiser step on this rank's share of the global batch at position n_images."""
        loop, start = self.loop, self.n_images
        torch.manual_seed(_dropout_seed(loop.seed, start, self.rank))
        counted = self._counted(start)
        batch = batch.to(self.device)
        parts = list(batch.split(self.environment.micro_batch))
        step_loss = torch.zeros((), device=self.device)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last or self.world == 1 else self.wrapped.no_sync():  # type: ignore[operator]
                losses: Tensor = self.wrapped(part)
                # DDP averages over ranks, so each contributes its sum * world / (images that count anywhere)
                self.scaler.scale(losses.sum() * (self.world / max(counted, 1))).backward()
            step_loss += losses.detach().sum()
        rate = learning_rate(loop, start)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.scaler.unscale_(self.optimizer)
        limit = loop.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.objective.network.parameters(), limit, foreach=True)
        self.n_images += loop.batch_size
        if self._is_finite(norm):
            self._loss_sum += step_loss
            self.totals["loss_count"] += counted
            self.scaler.step(self.optimizer)
            self.average.update(decay(loop.batch_size, self.n_images, loop.ema_halflife_images, loop.ema_rampup))
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._grad_norm = norm

    def _counted(self, start: int) -> int:
        """Images of the whole global batch that count in its mean: every rank can tell without asking."""
        if not self.objective.classifies:
            return self.loop.batch_size
        rows = self.batches.rows_at(start, start + self.loop.batch_size)
        return self.objective.counted(torch.from_numpy(np.asarray(self.store.labels[rows])))

    def _is_finite(self, norm: Tensor) -> bool:
        """Whether to take the step. Skipped ones are counted; many in a row end training."""
        if bool(norm.isfinite()):
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
        facts = self.totals
        row = {
            "kind": "train",
            "n_images": self.n_images,
            "loss": float(self._summed(self._loss_sum)) / max(facts["loss_count"], 1),
            "lr": learning_rate(self.loop, self.n_images - self.loop.batch_size),
            "grad_norm": _finite(self._grad_norm),
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
        preview = self.objective.denoiser is not None and (done or self._due(before, self.loop.preview_images))
        if validate or preview:
            with torch.no_grad(), averaged(self.objective.network, self.average):
                self.objective.eval()
                yield from self._measure(validate, preview)
                self.objective.train()
        for at in self.loop.snapshot_images:
            if before < at <= self.n_images:
                self._write_model(f"{at:012d}")

    def _measure(self, validate: bool, preview: bool) -> Iterator[Event]:
        count = self.validation.samples_wanted if validate and self.objective.denoiser is not None else 0
        images: Tensor | None = None
        labels: list[int] = []
        if count or preview:
            images, labels = self.validation.samples(self.objective, max(count, PREVIEWS if preview else 0))
        if validate:
            mine = len(range(count)[self.rank :: self.world])  # a preview may have drawn more
            yield from self._validate(images[:mine] if images is not None and count else None)
        if preview and images is not None:
            if self.world > 1:
                every = gather_object(list(zip(range(self.rank, 10**9, self.world), images, labels, strict=False)))
                every.sort(key=lambda item: item[0])
                images, labels = torch.stack([image for _, image, _ in every]), [label for _, _, label in every]
            if self.main:
                self._write_preview(images[:PREVIEWS])
            yield Previewed(self.n_images, images[:PREVIEWS], labels[:PREVIEWS])

    def _validate(self, images: Tensor | None) -> Iterator[Event]:
        total = self.validation.loss(self.objective)
        if self.world > 1:
            total = sum(gather_object([total]), torch.zeros_like(total))
        row: dict[str, Any] = {"kind": "validation", "n_images": self.n_images, "loss": float(total[0] / total[1])}
        if self.objective.classifies:
            row["accuracy"] = float(total[2] / total[1])
        if images is not None:
            mine = self.validation.statistics(images)
            everyone = gather_object([mine]) if self.world > 1 else [mine]
            for other in everyone[1:]:
                everyone[0].merge(other)
            row["frechet"] = self.validation.frechet(everyone[0])
        for metric, sign in (("loss", 1), ("frechet", 1), ("accuracy", -1)):
            if metric in row and sign * row[metric] < sign * self.best.get(metric, sign * math.inf):
                self.best[metric] = row[metric]
                self._write_model(f"best-{metric}")
        yield from self._record(row)

    def _write_model(self, name: str) -> None:
        if self.main:
            self.run.snapshots.mkdir(exist_ok=True)
            path = self.run.snapshots / f"{name}.safetensors"
            save_model(path, self.average.tensors, self.model, self.settings, self.n_images)

    def _write_preview(self, images: Tensor) -> None:
        self.run.previews.mkdir(exist_ok=True)
        packed = io.BytesIO()
        np.save(packed, images.numpy())
        atomic_bytes(self.run.previews / f"{self.n_images:012d}.npy", packed.getvalue())

    def _save(self) -> None:
        """The training state and the averaged weights, by rank 0; all ranks hold the same."""
        self.totals["loss_sum"] = float(self._summed(self._loss_sum))
        if self.main:
            tensors = {f"weights/{n}": v for n, v in self.objective.network.state_dict().items()}
            tensors |= {f"average/{n}": self.average.tensors[n] for n in self.average.own}
            made = optimizer_tensors(self.optimizer, self.objective.network)
            tensors |= {f"optimizer/{n}": v for n, v in made.items()}
            facts = {
                "environment": self.environment.to_dict(),
                "totals": self.totals,
                "best": self.best,
                "scaler": self.scaler.state_dict(),
            }
            save_model(self.run.model_file, self.average.tensors, self.model, self.settings, self.n_images)
            save_state(self.run.path / "state", State(self.n_images, tensors, facts), self.loop.keep_states)
        self.accelerator.wait_for_everyone()


def _dropout_seed(seed: int, n_images: int, rank: int) -> int:
    """One 64-bit seed per (seed, images seen, rank), far from those of other steps."""
    return int(np.random.SeedSequence([seed, n_images, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None

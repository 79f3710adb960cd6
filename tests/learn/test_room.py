"""What a step takes is counted right, and a device that is too small is told with settings that fit it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from twofold.cli.main import main
from twofold.errors import UserError
from twofold.learn import room, train
from twofold.learn.estimate import estimate, needs_of
from twofold.learn.events import Note
from twofold.learn.footprint import evaluation_bytes, step_bytes
from twofold.learn.needs import Needs, forward
from twofold.networks import build
from twofold.settings.network import AutoencoderSettings, DiTSettings, UNetSettings, UViTSettings
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

from .common import TINY, tiny
from .test_memory import limit  # noqa: F401 (a fixture)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NETWORKS: dict[str, tuple[Any, tuple[int, int, int], int]] = {
    "unet": (UNetSettings(channels=16, multipliers=(1, 2), blocks=1, attention=(8,), dropout=0.1), (3, 16, 16), 8),
    "wide": (UNetSettings(channels=128, multipliers=(1, 1), blocks=1, attention=()), (3, 32, 32), 2),
    "anew": (UNetSettings(channels=16, multipliers=(1, 2), blocks=2, attention=(8,), checkpoint=True), (3, 16, 16), 8),
    "dit": (DiTSettings(width=64, depth=4, heads=4), (4, 16, 16), 4),
    "uvit": (UViTSettings(width=32, depth=4, heads=2, patch=1), (4, 24, 24), 4),
    "autoencoder": (AutoencoderSettings(channels=16, norm_groups=8), (3, 32, 32), 2),
}


def measured(run: Callable[[], object]) -> int:
    """Bytes that the CPU's allocator handed out at most, beyond those before."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[torch.Tensor, ...]]:
    """A network, the same on the meta device, and what it is given."""
    settings, shape, images = NETWORKS[name]
    real = build(settings, shape).train().to(memory_format=torch.channels_last)
    with torch.device("meta"):
        empty = build(settings, shape).train()
    return real, empty, (torch.randn(images, *shape), torch.rand(images))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_takes_what_is_counted(name: str, half: bool) -> None:
    real, empty, given = pair(name)

    def step() -> None:
        real.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = real(*given)
        out.float().square().mean().backward()

    step()
    real.zero_grad(set_to_none=True)
    there = measured(lambda: (step(), real.zero_grad(set_to_none=True)))
    counted = step_bytes(empty, lambda: empty(*(g.to("meta") for g in given)), half=half)
    assert 0.85 < counted / there < (1.25 if half else 1.1)


@pytest.mark.parametrize("name", ["unet", "uvit", "autoencoder"])
def test_an_evaluation_takes_what_is_counted(name: str) -> None:
    """The weights may be anywhere, and nothing of them is made."""
    real, _, given = pair(name)
    real.eval()
    with torch.inference_mode():
        there = measured(lambda: real(*given))
    assert 0.85 < evaluation_bytes(real, tuple(g.to("meta") for g in given)) / there < 1.15


def test_gradients_of_earlier_parts_are_counted_once() -> None:
    """A step in parts holds all gradients from the second one on; one in a piece makes them while maps are freed."""
    _, empty, given = pair("wide")
    call = lambda: empty(*(g.to("meta") for g in given))  # noqa: E731
    gradients = sum(4 * p.numel() for p in empty.parameters())
    once, again = step_bytes(empty, call), step_bytes(empty, call, again=True)
    assert again < once < again + gradients
    assert all(p.grad is None for p in empty.parameters())


@functools.cache
def needs() -> Needs:
    """Of a small U-Net, on a CPU in fp32; it keeps what it has counted."""
    network = {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [8]}
    return needs_of(of_network(network), (3, 16, 16), ["a", "b"], 1, CPU)


def of_network(network: dict[str, Any]) -> TrainSettings:
    """A run with 64 images to a step in fp32."""
    change = {"network": network, "train": {"batch_size": 64, "n_images": 64, "precision": "fp32"}}
    return resolve(TrainSettings, [("tiny", TINY), ("test", change)])[0]


def test_the_largest_part_is_the_largest() -> None:
    found = needs()
    sizes = [1, 2, 4, 8, 16, 32, 64]
    memory = [found.memory(n) for n in sizes]
    assert memory == sorted(memory) and memory[-1] > 4 * memory[0]
    for n, bytes_ in zip(sizes, memory, strict=True):
        assert found.largest(bytes_) == n
        assert found.largest(bytes_ - 1) == n // 2


def test_super_resolution_is_counted_on_its_squares() -> None:
    """As large images as are trained on, and then whole ones are looked at, without gradients."""
    network = {"kind": "unet", "channels": 16, "multipliers": [1], "blocks": 3, "attention": [], "low_factor": 2}
    settings = of_network({**network, "classes": 0})
    cut = settings.model_copy(update={"objective": settings.objective.model_copy(update={"crop": 16})})
    small, large = (needs_of(settings, (3, side, side), [], 1, CPU) for side in (16, 64))
    found = needs_of(cut, (3, 64, 64), [], 1, CPU)
    assert small.memory(8) < found.memory(8) < large.memory(8) / 2
    looked_at = step_bytes(large.network, forward(large.network, (3, 64, 64), 8), backward=False)
    gradients = 4 * found.trained
    assert found.memory(8) == found.fixed() - gradients + max(small._step(8) + gradients, looked_at)
    assert estimate(cut, (3, 64, 64), []).flops == estimate(settings, (3, 16, 16), []).flops


def test_what_fits_is_not_told() -> None:
    found = needs()
    assert room.advice(found, CUDA, 2**40) is None
    assert room.advice(found, CUDA, int(found.memory(64) * room.SPARE) + 1) is None


@pytest.mark.parametrize("share", [0.6, 0.2])
def test_what_is_told_fits(share: float) -> None:
    """The settings in the line are tried by a count of their own."""
    found = needs()
    free = int(found.fixed() + share * (found.memory(64) - found.fixed()))
    line = room.advice(found, CUDA, free)
    assert line is not None
    assert line.startswith("train.micro_batch=64 needs about ") and "and cuda has" in line
    size = int(line.rpartition("train.micro_batch=")[2].split()[0])
    assert size < 64 and found.memory(size) * room.SPARE <= free < found.memory(2 * size) * room.SPARE


def test_checkpointing_is_told_where_smaller_parts_do_not_do() -> None:
    found = needs()
    anew = found.changed(checkpoint=True)
    assert anew.memory(1) < found.memory(1)
    free = int((anew.memory(1) + found.changed(half=True).memory(1)) / 2 * room.SPARE)
    changes = [fit.changes for fit in room.fits(found, CUDA, free)]
    assert changes and all("network.checkpoint=true" in words for words in changes)
    assert all(fit.memory * room.SPARE <= free for fit in room.fits(found, CUDA, free))


def test_nothing_that_fits() -> None:
    line = room.advice(needs(), CUDA, 2**20)
    assert line is not None and "one image at a time needs" in line
    assert "lower data.size (8x8) or network.channels" in line


def test_large_images_are_pointed_to_latents() -> None:
    network = {"kind": "unet", "channels": 8, "multipliers": [1, 1], "blocks": 1, "attention": []}
    found = needs_of(of_network(network), (3, 64, 64), ["a"], 1, CPU)
    assert "latent-256" in str(room.advice(found, CUDA, 2**20))


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A device with so many bytes free, where everything is counted."""
    monkeypatch.setattr(room, "_surely_fits", lambda needs, free: False)
    return lambda free: monkeypatch.setattr(room, "free_bytes", lambda device: free)


def test_training_tells_it_before_the_first_step(little: Callable[[int], None], tmp_path: Path) -> None:
    notes: list[str] = []
    show = lambda event: notes.append(event.text) if isinstance(event, Note) else None  # noqa: E731
    little(2**21)
    train(tiny(n_images=32, validate_images=1000, preview_images=1000), tmp_path / "run", "cpu", show)
    assert len([note for note in notes if "MiB and cpu has" in note and "would fit" in note]) == 1
    notes.clear()
    little(2**40)
    train(tiny(n_images=32, validate_images=1000, preview_images=1000), tmp_path / "other", "cpu", show)
    assert not [note for note in notes if "needs about" in note]


def test_out_of_memory_says_what_would_fit(
    limit: dict[str, Any],  # noqa: F811
    little: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit["images"] = 0
    little(0)
    monkeypatch.setattr(room, "SPARE", 1.0)
    with pytest.raises(UserError, match=r"out of memory with one image at a time, at 0 images; .*(would fit|needs)"):
        train(tiny(), tmp_path / "run", "cpu")


def test_a_dry_run_tells_it(little: Callable[[int], None], capsys: pytest.CaptureFixture[str]) -> None:
    little(2**24)
    assert main(["train", "digits", "--dry-run", "--device", "cpu"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("too small"))
    assert "train.micro_batch=128 needs about" in line and "cpu has 16 MiB free" in line


def test_sampling_tells_how_many_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twofold.run import build as build_model

    model = build_model(tiny(), (1, 8, 8), ["a", "b"])
    need = room.sampling_bytes(model.network, (1, 8, 8), 64, half=False, cpu=True)
    assert room.sampling_advice(model, 64, CPU, free=2 * need) is None
    line = room.sampling_advice(model, 64, CPU, free=need // 2)
    assert line is not None and line.startswith("micro_batch=64 needs about")
    size = int(line.rpartition("micro_batch=")[2].split()[0])
    assert size in (16, 32)
    assert room.sampling_bytes(model.network, (1, 8, 8), size, half=False, cpu=True) * room.SPARE <= need // 2
    guided = room.sampling_advice(model, 64, CPU, guided=True, free=need // 2)
    assert guided is not None and int(guided.rpartition("micro_batch=")[2].split()[0]) == size // 2
    assert "not even one image" in str(room.sampling_advice(model, 64, CPU, free=1))


def test_a_network_that_cannot_be_counted_is_not_warned_of() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum())

    denoiser = type("D", (), {"network": Odd(), "shape": (3, 8, 8)})()
    assert room.sampling_advice(denoiser, 64, CPU, free=1) is None


def test_free_memory_of_this_machine() -> None:
    assert room.free_bytes(CPU) == pytest.approx(room.machine.memory()[1], rel=0.2)


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process holds and does not use is free too."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert room.free_bytes(CUDA) == 1200

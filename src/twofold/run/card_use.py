"""How a model is used, for its card: lines of Python with twofold, and with diffusers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..adapters.diffusers_schedulers import scheduler_of
from ..denoiser import Denoiser
from ..networks.dit import DiT

LOOP = """\
import torch
from diffusers import {imports}

part = {model}.from_pretrained({name}, subfolder="{folder}").eval()
scheduler = {scheduler}.from_pretrained({name}, subfolder="scheduler")
scheduler.set_timesteps({steps})
x = torch.randn(4, {shape}) * getattr(scheduler, "init_noise_sigma", 1.0)
{labels}with torch.no_grad():
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(part(given, {call}).sample{half}, t, x).prev_sample
{decode}images = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)  # (4, C, H, W)
"""


@dataclass(frozen=True)
class Facts:
    """What the user says of a model: its name, a licence (of the hub's list, such as mit), where its data can be had on
    a hub (org/name), None where nobody said."""

    name: str
    licence: str | None = None
    dataset: str | None = None


def usage(model: Any, facts: Facts, diffusers: Mapping[str, Any] | None, ours: bool) -> str:
    text = []
    if ours:
        text.append(f"```python\nimport twofold\n\n{_with_twofold(model, facts.name)}```")
    elif diffusers:
        text.append(f"twofold reads this folder: `twofold.load({facts.name!r})`.")
    if diffusers:
        snippet = pipeline_code(model, facts.name, diffusers)
        text.append(f"With diffusers, in the layout of its `{diffusers['pipeline']}`:\n\n```python\n{snippet}```")
        text += [f"- {note}" for note in diffusers["notes"]]
    return "\n\n".join(text)


def _with_twofold(model: Any, name: str) -> str:
    load = f"model = twofold.load({name!r})\n"
    if getattr(model, "low_factor", 0):
        return load + f"# twofold upscale {name} IMAGES makes images {model.low_factor} times as high and wide\n"
    if not isinstance(model, Denoiser):
        return load + "# twofold predict and twofold evaluate take the same name\n"
    named = model.classes and len(model.class_names) == model.classes
    label = f", label={model.class_names[0]!r}" if named else ""
    return load + f"images = twofold.sample(model, seeds=range(16){label})  # uint8 (16, C, H, W)\n"


def pipeline_code(model: Any, name: str, diffusers: Mapping[str, Any]) -> str:
    """Python that makes images with diffusers alone: its pipeline where that does it, else a loop around its parts."""
    kind, quoted = diffusers["pipeline"], repr(name)
    if not diffusers["samples"]:
        return loop_code(model, name)
    steps = {"DDPMPipeline": 1000, "ConsistencyModelPipeline": 50}.get(kind, 250)
    table = getattr(model.family.settings, "steps", steps)
    options = {
        "DDPMPipeline": f"batch_size=4, num_inference_steps={min(steps, table)}",
        "ConsistencyModelPipeline": f"batch_size=4, num_inference_steps={min(steps, table)}",
        "LDMPipeline": "batch_size=4, num_inference_steps=50",
        "DiTPipeline": "class_labels=[0, 1, 0, 1], guidance_scale=1.0, num_inference_steps=50",
    }[kind]
    if kind == "ConsistencyModelPipeline" and model.classes:
        options = options.replace("num_", "class_labels=[0, 1, 0, 1], num_")
    opened = f"from diffusers import {kind}\n\npipeline = {kind}.from_pretrained({quoted})\n"
    return f"{opened}images = pipeline({options}).images\n"


def loop_code(model: Any, name: str) -> str:
    """The loop that every scheduler and every network of diffusers can be run with."""
    is_dit, latent = isinstance(model.network, DiT), getattr(model.codec, "latent", False)
    network, folder = ("DiTTransformer2DModel", "transformer") if is_dit else ("UNet2DModel", "unet")
    scheduler, _ = scheduler_of(model)
    splits = model.learns_variance and (is_dit or scheduler != "DDPMScheduler")  # which knows what to do with it
    autoencoder = "vae" if is_dit else "vqvae"
    decode = (
        f"codec = AutoencoderKL.from_pretrained({name!r}, subfolder={autoencoder!r})\n"
        f"with torch.no_grad():\n"
        f"    x = codec.decode(x / codec.config.scaling_factor + (codec.config.shift_factor or 0)).sample\n"
    )
    return LOOP.format(
        imports=", ".join(sorted({network, scheduler, *(["AutoencoderKL"] if latent else [])})),
        model=network,
        name=repr(name),
        folder=folder,
        scheduler=scheduler,
        steps=min(50, getattr(model.family.settings, "steps", 50)),
        shape=", ".join(map(str, model.shape)),
        labels="labels = torch.tensor([0, 1, 0, 1])\n" if model.classes else "",
        call=("timestep=t.reshape(1).expand(4)" if is_dit else "t")
        + (", class_labels=labels" if model.classes else ""),
        half=".chunk(2, 1)[0]" if splits else "",
        decode=decode if latent else "",
    )

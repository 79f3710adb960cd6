"""Is sampling faster than diffusers, with the same network, weights, sampler and steps?

Ours: `twofold.sample`. Theirs: `UNet2DModel` and a scheduler in the loop of `DDIMPipeline`, or DPM-Solver++ with
`DPMSolverMultistepScheduler`. Weights are converted, so both make images of the same distribution; DDIM from the same
noise is also checked to give the same images.

    python benchmarks/sampling.py --setting fp32-channels_last --sampler ddim --steps 10
    python benchmarks/sampling.py --setting defaults
"""

from __future__ import annotations

import argparse

import torch
from common import alternate, ratio, report
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from twofold import sample
from twofold.adapters.diffusers_unet import to_diffusers
from twofold.denoiser import NetworkDenoiser
from twofold.draws import SampleNoise
from twofold.learn import fastest
from twofold.networks import build
from twofold.noise import family
from twofold.settings.presets import open_preset
from twofold.settings.resolve import resolve
from twofold.settings.train import TrainSettings

SETTINGS = {  # (bf16, channels_last) of ours and of theirs; "defaults": ours measures, theirs is as it comes
    "fp32": ((False, False), (False, False)),
    "fp32-channels_last": ((False, True), (False, True)),
    "bf16-channels_last": ((True, True), (True, True)),
    "defaults": (None, (False, False)),
}


def denoiser(channels: int) -> NetworkDenoiser:
    change = {"network": {"channels": channels}}
    settings, _ = resolve(TrainSettings, [*open_preset("ddpm-cifar10").layers, ("benchmark", change)])
    torch.manual_seed(0)
    network = build(settings.network, (3, 32, 32))
    return NetworkDenoiser(network, family(settings.noise), (3, 32, 32)).eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="fp32-channels_last")
    parser.add_argument("--sampler", choices=("ddim", "dpmpp2m"), default="ddim")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    how, theirs = SETTINGS[arguments.setting]
    ours = denoiser(arguments.channels)
    model = to_diffusers(ours).eval().requires_grad_(False)
    if how is None:
        how = (fastest.precision(ours, ours.shape, torch.device("cpu")) == "bf16", True)
    if how[1]:
        ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if theirs[1]:
        model.to(memory_format=torch.channels_last)
    kinds = {"ddim": DDIMScheduler, "dpmpp2m": DPMSolverMultistepScheduler}
    options = {"ddim": {"clip_sample": False}, "dpmpp2m": {"final_sigmas_type": "zero", "timestep_spacing": "leading"}}
    scheduler = kinds[arguments.sampler](num_train_timesteps=1000, beta_schedule="linear", **options[arguments.sampler])
    scheduler.set_timesteps(arguments.steps)

    def run_ours() -> torch.Tensor:
        ours.autocast = torch.bfloat16 if how[0] else None
        n, options = arguments.batch, {"grid": "ddim", "clip": False}
        return sample(ours, n, None, arguments.sampler, arguments.steps, micro_batch=n, **options)

    def run_theirs() -> torch.Tensor:
        x = SampleNoise(range(arguments.batch), (3, 32, 32))()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=theirs[0]):
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t).sample.float(), t, x).prev_sample
            return (x / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)

    difference = (run_ours().int() - run_theirs().int()).abs().float().mean()
    seconds = alternate({"twofold": run_ours, "diffusers": run_theirs}, arguments.rounds)
    report(
        "sampling",
        setting=arguments.setting,
        sampler=f"{arguments.sampler}-{arguments.steps}",
        ours={"bf16": how[0], "channels_last": how[1]},
        bf16_instructions=fastest.has_bf16(),
        **ratio(seconds, "twofold", "diffusers"),
        images_per_second={name: round(arguments.batch / min(times), 3) for name, times in seconds.items()},
        mean_difference_in_levels=round(float(difference), 3),
    )


if __name__ == "__main__":
    main()

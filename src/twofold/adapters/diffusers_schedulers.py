"""The scheduler that a noise family is to diffusers, and the family that a scheduler's configuration means.

| family | scheduler                       | what the network is fed                                              |
| VP     | DDPMScheduler                   | table times 0 .. steps-1; other times through a table (`table_times`)|
| EDM    | EDMEulerScheduler               | ln(sigma) / 4; its "epsilon" is F with c_out as here                 |
| flow   | FlowMatchEulerDiscreteScheduler | t * num_train_timesteps                                              |

Nothing here imports diffusers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UserError
from ..noise import EDM, VP, Flow, alpha_bar, family
from ..settings.noise import EDMNoise, FlowNoise, NoiseSettings, VPNoise
from .diffusers_config import BETAS, PREDICTION, betas_of, noise_of

EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def scheduler_of(denoiser: Denoiser) -> tuple[str, dict[str, Any]]:
    """Class name and options of the scheduler that goes with the denoiser.

    Raises `UserError` naming the setting that no scheduler of diffusers has.
    """
    match getattr(denoiser, "family", None):
        case VP(settings=s):
            return "DDPMScheduler", _ddpm(denoiser, s)
        case EDM(settings=s):
            options = {"sigma_min": s.sigma_min, "sigma_max": s.sigma_max, "sigma_data": s.sigma_data}
            return EDM_SCHEDULERS[0], options | {"prediction_type": "epsilon"}
        case Flow(settings=s):
            if s.time_scale != int(s.time_scale):
                what = "diffusers feeds t times a whole number"
                raise UserError(f"noise.time_scale={s.time_scale}", what, "it has no scheduler for this model")
            return FLOW_SCHEDULERS[0], {"num_train_timesteps": int(s.time_scale), "shift": 1.0}
    raise UserError(f"noise {type(denoiser).__name__}", "not a noise family that diffusers has", "export a denoiser")


def _ddpm(denoiser: Denoiser, noise: VPNoise) -> dict[str, Any]:
    if noise.table == "continuous":
        raise UserError("noise.table=continuous", "diffusers has no such schedule", "it needs a table of noise levels")
    if getattr(noise, "first", 0):
        what = "diffusers steps down to entry 0, which this model was not trained for"
        raise UserError(f"noise.first={noise.first}", what, "train with noise.first=0")
    learned = denoiser.learns_variance
    more = {"clip_sample": denoiser.clip, "variance_type": "learned_range" if learned else "fixed_small"}
    if noise.table in BETAS:
        with contextlib.suppress(UserError):  # a table so short that its betas are capped
            return betas_of(noise) | more
    abar = alpha_bar(noise)
    betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
    given = {"num_train_timesteps": noise.steps, "trained_betas": betas.tolist()}
    return given | {"prediction_type": PREDICTION[noise.predicts]} | more


def table_times(noise: NoiseSettings) -> Tensor | None:
    """What the network is fed at each entry of a table, (steps,) float32, where it is not the entry's number."""
    if not isinstance(noise, VPNoise) or (noise.time_offset, noise.time_scale) == (0.0, 1.0):
        return None
    known = family(noise)
    assert isinstance(known, VP)
    sigma = known.sigma(torch.arange(noise.steps, dtype=torch.float64))
    return known.coefficients(sigma).c_noise.float()


def noise_from(scheduler: Mapping[str, Any], told: Any = None) -> NoiseSettings:
    """The family that a scheduler's configuration means.

    told: complete settings of the same family, written beside it by `diffusers_write`, for what schedulers do not say
    (which levels a flow was trained for). Raises `UserError` for schedulers of other kinds, and where both disagree.
    """
    if told is None:
        return _noise_of(scheduler)
    try:
        full: NoiseSettings = TypeAdapter(NoiseSettings).validate_python(told)
    except ValidationError as error:
        what = f"not settings of noise ({error.errors()[0]['msg']})"
        raise UserError("model_index.json: _twofold.noise", what) from None
    if not _agrees(scheduler, full):
        what = "scheduler_config.json says something else"
        raise UserError("model_index.json: _twofold.noise", what, "copy the folder anew, or remove _twofold")
    return full


def _agrees(scheduler: Mapping[str, Any], noise: NoiseSettings) -> bool:
    """Whether a scheduler is of this family. Betas that are written one by one may be of any table."""
    betas = scheduler.get("trained_betas")
    if isinstance(betas, list) and isinstance(noise, VPNoise) and noise.table != "continuous":
        same = PREDICTION[noise.predicts] == scheduler.get("prediction_type", "epsilon")
        abar = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
        return same and len(abar) == noise.steps and np.allclose(abar, alpha_bar(noise), rtol=1e-5, atol=0)
    return _essence(_noise_of(scheduler)) == _essence(noise)


def _noise_of(scheduler: Mapping[str, Any]) -> NoiseSettings:
    name = scheduler.get("_class_name")
    if name in EDM_SCHEDULERS:
        if scheduler.get("prediction_type", "epsilon") != "epsilon":
            raise UserError(f"prediction_type={scheduler['prediction_type']}", "not EDM's", "valid: epsilon")
        values = {key: scheduler.get(key, getattr(EDMNoise(), key)) for key in ("sigma_data", "sigma_min", "sigma_max")}
        return EDMNoise(**values)
    if name in FLOW_SCHEDULERS:
        return FlowNoise(time_scale=float(scheduler.get("num_train_timesteps", 1000)))
    return noise_of(scheduler)


def _essence(noise: NoiseSettings) -> tuple[Any, ...]:
    """What a scheduler tells of a family."""
    match noise:
        case VPNoise():
            return "vp", noise.table, noise.steps, noise.predicts
        case EDMNoise():
            return "edm", noise.sigma_data, noise.sigma_min, noise.sigma_max
    return "flow", noise.time_scale

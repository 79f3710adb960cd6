"""The table of samplers: what each is called, and what there is to know about it without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import UserError, nearest
from . import ancestral, multistep, onestep, singlestep, slopes
from .step import Step
from .unipc import unipc


@dataclass(frozen=True)
class Option:
    """A sampler's option: its default, and what it may be (`valid` in words, `accepts` as a test)."""

    default: Any
    valid: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Sampler:
    """A sampler and what there is to know about it without running it.

    order: of convergence on the ODE with its default options (weak order for a stochastic sampler).
    deterministic: with its default options. evaluations: of the denoiser for N steps into sigma 0.
    grid, steps: used where none are given; "time" gives way to "log" for models that know no time.
    """

    function: Callable[..., Iterator[Step]]
    order: int
    deterministic: bool
    grid: str
    steps: int
    evaluations: Callable[[int], int] = lambda steps: steps
    options: Mapping[str, Option] = field(default_factory=dict)


def _number(low: float, high: float, valid: str, default: float) -> Option:
    return Option(default, valid, lambda v: isinstance(v, int | float) and low <= v <= high)


def _one_of(default: Any, *values: Any) -> Option:
    words = [str(value) for value in values]
    valid = ", ".join(words[:-1]) + " or " + words[-1]
    return Option(default, valid, lambda v: not isinstance(v, bool) and v in values)


def _eta(default: float) -> Option:
    return _number(0, 1, "0 (ODE) to 1 (ancestral)", default)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        ancestral.ddpm, 1, False, "time", 1000, options={"variance": _one_of("small", "small", "large", "learned")}
    ),
    "ddim": Sampler(ancestral.ddim, 1, True, "log", 50, options={"eta": _eta(0.0)}),
    "euler": Sampler(onestep.euler, 1, True, "log", 50),
    "euler_ancestral": Sampler(ancestral.euler_ancestral, 1, False, "log", 50, options={"eta": _eta(1.0)}),
    "heun": Sampler(
        onestep.heun, 2, True, "karras", 18, lambda steps: 2 * steps - 1,
        options={
            "s_churn": _number(0, math.inf, "0 (ODE) or more", 0.0),
            "s_min": _number(0, math.inf, "a sigma, 0 or more", 0.0),
            "s_max": _number(0, math.inf, "a sigma, 0 or more", math.inf),
            "s_noise": _number(0, 2, "0 to 2, near 1", 1.0),
        },
    ),
    "dpm1": Sampler(singlestep.dpm1, 1, True, "log", 50),
    "dpm2": Sampler(singlestep.dpm2, 2, True, "log", 30),
    "dpm3": Sampler(singlestep.dpm3, 3, True, "log", 20),
    "dpm_fast": Sampler(singlestep.dpm_fast, 3, True, "log", 20),
    "dpmpp2s": Sampler(singlestep.dpmpp2s, 2, True, "log", 30),
    "dpmpp3s": Sampler(singlestep.dpmpp3s, 3, True, "log", 20),
    "dpmpp_fast": Sampler(singlestep.dpmpp_fast, 3, True, "log", 20),
    "dpmpp2m": Sampler(multistep.dpmpp2m, 2, True, "log", 20),
    "dpmpp3m": Sampler(multistep.dpmpp3m, 2, True, "log", 20),
    "dpmpp2m_sde": Sampler(multistep.dpmpp2m_sde, 2, False, "log", 50, options={"eta": _eta(1.0)}),
    "unipc": Sampler(
        unipc, 3, True, "log", 20, options={"order": _one_of(2, 2, 3), "variant": _one_of("bh2", "bh1", "bh2")}
    ),
    "plms": Sampler(slopes.plms, 2, True, "log", 50, lambda steps: steps + (steps > 1)),
    "lms": Sampler(slopes.lms, 4, True, "log", 50, options={"order": _one_of(4, 1, 2, 3, 4)}),
}  # fmt: skip


def resolve(name: str, options: Mapping[str, Any]) -> tuple[Sampler, dict[str, Any]]:
    """The sampler of that name and all its options, defaults filled in.

    Raises `UserError` for a sampler that does not exist, an option it does not have and a value it cannot take.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler={name}", "no such sampler", nearest(name, SAMPLERS))
    sampler = SAMPLERS[name]
    for key, value in options.items():
        if key not in sampler.options:
            hint = nearest(key, sampler.options) or "it has no options"
            raise UserError(f"{key}={value}", f"sampler {name} has no such option", hint)
        if not sampler.options[key].accepts(value):
            raise UserError(f"{key}={value}", "out of range", f"valid: {sampler.options[key].valid}")
    return sampler, {key: options.get(key, option.default) for key, option in sampler.options.items()}

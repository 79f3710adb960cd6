"""Samplers: generators of the steps from noise to x0.

    for step in SAMPLERS["heun"].function(denoise, x, sigmas): ...

denoise: any callable (x, sigma) -> x0_hat; sigma is () float64 on the CPU.
x:       (B, C, H, W) float64 or float32, start_scale(sigmas[0]) * noise; the state stays in its dtype.
sigmas:  (N + 1,) float64, descending; the last is usually 0 and may be larger.
noise:   callable without arguments -> the next standard normal tensor, (B, C, H, W); only stochastic steps call it.

Each yields N + 1 steps. Step i < N holds the state at sigmas[i] and x0_hat = denoise(x, sigmas[i]); step N holds the
result: its x lies at sigmas[N], so it is x0 where that is 0, and nothing is evaluated for it. `final` drains them.

All are written in the frame x = x0 + sigma * noise, in which the probability-flow ODE is

    dx/dsigma = (x - denoise(x, sigma)) / sigma = eps                      (Karras et al. 2022, eq. 1 with eq. 3)

for every family: a VP or flow state is x times c_in(sigma). With s = sigmas[i], s' = sigmas[i + 1], lambda = -ln sigma
and h = ln(s / s'), its two exact solutions (Lu et al. 2022a, eq. 3.4; 2022b, prop. 4.1) are

    x' = x - integral of e^-lambda eps dlambda  = x + integral of eps dsigma             (noise prediction)
    x' = (s'/s) x + s' * integral of e^lambda x0_hat dlambda                             (data prediction)

from lambda to lambda + h. Solvers differ in what polynomial they put in place of eps or x0_hat. Where s' is 0, h is
infinite: those written in lambda then take a step of first order, which ends in x0_hat.
"""

from .ancestral import ddim, ddpm, euler_ancestral
from .multistep import dpmpp2m, dpmpp2m_sde, dpmpp3m
from .onestep import euler, heun
from .singlestep import dpm1, dpm2, dpm3, dpm_fast, dpmpp2s, dpmpp3s, dpmpp_fast, fast_orders
from .slopes import lms, plms
from .step import Denoise, Noise, Step, final
from .table import SAMPLERS, Option, Sampler, resolve
from .unipc import unipc

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Noise",
    "Option",
    "Sampler",
    "Step",
    "ddim",
    "ddpm",
    "dpm1",
    "dpm2",
    "dpm3",
    "dpm_fast",
    "dpmpp2m",
    "dpmpp2m_sde",
    "dpmpp2s",
    "dpmpp3m",
    "dpmpp3s",
    "dpmpp_fast",
    "euler",
    "euler_ancestral",
    "fast_orders",
    "final",
    "heun",
    "lms",
    "plms",
    "resolve",
    "unipc",
]

"""Denoising diffusion with implicit sampling (DDIM), deterministic, with classifier-free guidance.

Song, Meng and Ermon, ICLR 2021, eq. 12 with eta 0; schedule and guidance as AirLLM's released code.

==============  ==========================================================
``alpha_bar``   alpha_t of Song et al., the product of 1 - beta_s up to t
``x``           x_t, the noised rank vector
``noise``       epsilon_theta(x_t, t, condition)
``clean``       the predicted x_0, kept within -1 to 1
``guidance``    w: noise = unconditional + w (conditional - unconditional)
==============  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 2e-2

Noise = Callable[[torch.Tensor, int, bool], torch.Tensor]
"""Predicts the noise in x at a timestep, with the condition (True) or without it."""


@lru_cache(maxsize=1)
def alpha_bar() -> torch.Tensor:
    """Return the share of signal power left at each timestep of the scaled-linear schedule."""
    roots = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, dim=0)


def timesteps(steps: int) -> list[int]:
    """Return the timesteps that a sampler of so many steps visits: 999 down to 0, truncated."""
    return torch.linspace(TRAIN_TIMESTEPS - 1, 0, steps, dtype=torch.float64).long().tolist()


def add_noise(x: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return x after the forward process; ``timestep`` has one entry for each row of x."""
    share = alpha_bar()[timestep].to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    return share.sqrt() * x + (1 - share).sqrt() * noise


def ddim_step(
    x: torch.Tensor, noise: torch.Tensor, timestep: int, following: int | None
) -> torch.Tensor:
    """Return x one sampling step later.

    Parameters
    ----------
    x
        Sample at ``timestep``.
    noise
        Noise that is predicted in it.
    timestep, following
        Of x and of the result; None returns the clean sample.
    """
    now = float(alpha_bar()[timestep])
    clean: torch.Tensor = ((x - (1 - now) ** 0.5 * noise) / now**0.5).clamp(-1, 1)
    if following is None:
        return clean
    then = float(alpha_bar()[following])
    later: torch.Tensor = then**0.5 * clean + (1 - then) ** 0.5 * noise
    return later


def sample(start: torch.Tensor, predict: Noise, steps: int, guidance: float) -> torch.Tensor:
    """Return a clean sample.

    Parameters
    ----------
    start
        Standard normal noise of the sample's shape.
    predict
        The denoiser.
    steps
        Sampling steps.
    guidance
        Weight w of the condition, ``eps = eps_u + w (eps_c - eps_u)``; 1 leaves out eps_u.
    """
    x, visited = start, timesteps(steps)
    for timestep, following in zip(visited, [*visited[1:], None], strict=True):
        noise = predict(x, timestep, True)
        if guidance != 1.0:
            plain = predict(x, timestep, False)
            noise = plain + guidance * (noise - plain)
        x = ddim_step(x, noise, timestep, following)
    return x

"""The two networks: the actor makes a coarse latent of a state, the denoiser a plan of a latent."""

from __future__ import annotations

import math

import torch
from torch import nn

from strategies.airllm.features import PROJECTION_FEATURES, STATE_FEATURES

LATENT = 5
"""Entries of the latent: whether to send, how much, how far to train beyond it, and two slants."""

CHANNELS = 3
"""Entries of a plan for each projection: what to deliver, what to train, and whether to send."""

_TIME = 16


class Actor(nn.Module):
    """Mean of the latent, before its tanh, given a state."""

    def __init__(self, features: int = len(STATE_FEATURES), hidden: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(features, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
        )
        self.mean = nn.Linear(hidden, LATENT)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Return means, shape (clients, 5), of states, shape (clients, features)."""
        means: torch.Tensor = self.mean(self.body(state))
        return means


class Denoiser(nn.Module):
    """Noise in a plan, predicted projection by projection with the same weights.

    Each projection sees its own entries, its features, the latent, the time, and, in the second
    layer, the mean over all projections: so any number of projections in any order is served.
    """

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.own = nn.Linear(CHANNELS + len(PROJECTION_FEATURES), hidden)
        self.common = nn.Linear(LATENT + 1 + _TIME, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.middle = nn.Linear(hidden, hidden)
        self.context = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, CHANNELS)

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        projections: torch.Tensor,
        latent: torch.Tensor,
        known: torch.Tensor,
    ) -> torch.Tensor:
        """Return the predicted noise.

        Parameters
        ----------
        x
            Noisy plans, shape (clients, projections, 3).
        timestep
            One for each client.
        projections
            Features, shape (projections, 4), or (clients, projections, 4).
        latent
            Shape (clients, 5).
        known
            1 where the latent is given, 0 where it is left out, shape (clients,).
        """
        condition = torch.cat(
            [latent * known[:, None], known[:, None], _time_embedding(timestep)], dim=-1
        )
        own = torch.cat([x, projections.expand(len(x), -1, -1)], dim=-1)
        hidden = nn.functional.silu(self.own(own) + self.common(condition)[:, None])
        hidden = self.norm(hidden)
        pooled = self.context(hidden.mean(dim=1, keepdim=True))
        hidden = hidden + nn.functional.silu(self.middle(hidden) + pooled)
        noise: torch.Tensor = self.out(hidden)
        return noise


def _time_embedding(timestep: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of the timestep (Vaswani et al., 2017, section 3.5)."""
    half = _TIME // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
    angles = timestep[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

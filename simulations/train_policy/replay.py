"""What was done and what it was worth: the diffusion's training data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from simulations.train_policy.warm_start import noise_loss
from strategies.airllm import Denoiser

CAPACITY = 10_000
WARM_UP = 128
_BATCH = 64
_LR = 5e-5
_MAX_NORM = 1.0


@dataclass
class Replay:
    """Latents, plans and rewards of the last decisions of one model.

    Attributes
    ----------
    latents, plans, rewards
        Shapes (decisions, 5), (decisions, projections, 3) and (decisions,).
    features
        Of the projections; None before the first decision.
    """

    latents: torch.Tensor
    plans: torch.Tensor
    rewards: torch.Tensor
    features: torch.Tensor | None = None

    @classmethod
    def empty(cls) -> Replay:
        """Return a replay without decisions."""
        nothing = torch.zeros(0)
        return cls(nothing, nothing, nothing)

    def __len__(self) -> int:
        return len(self.rewards)

    def add(
        self,
        latents: torch.Tensor,
        plans: torch.Tensor,
        features: torch.Tensor,
        rewards: np.ndarray,
    ) -> None:
        """Add the decisions of a round; the oldest go when it is full."""
        new = (latents, plans, torch.from_numpy(rewards).float())
        if self.features is None:
            self.features = features
            self.latents, self.plans, self.rewards = new
            return
        old = (self.latents, self.plans, self.rewards)
        self.latents, self.plans, self.rewards = (
            torch.cat([a, b])[-CAPACITY:] for a, b in zip(old, new, strict=True)
        )


class Refiner:
    """Reward-weighted training of the denoiser on what was done.

    Each plan's denoising loss counts ``clamp(1 + 0.1 z, 0.1, 10)``, where z is its reward
    standardised within the batch (AirLLM, released code).

    Parameters
    ----------
    denoiser
        The network.
    seed
        Of the batches and the noise.
    """

    def __init__(self, denoiser: Denoiser, seed: int) -> None:
        self.denoiser = denoiser
        self.optimizer = torch.optim.Adam(denoiser.parameters(), _LR)
        self.generator = torch.Generator().manual_seed(seed)

    def refine(self, replay: Replay, updates: int) -> list[float]:
        """Take some optimiser steps, and return the losses; none before the warm-up is over."""
        if len(replay) < WARM_UP or replay.features is None:
            return []
        losses = []
        for _ in range(updates):
            rows = torch.randint(len(replay), (_BATCH,), generator=self.generator)
            rewards = replay.rewards[rows]
            standard = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
            weights = (1 + 0.1 * standard).clamp(0.1, 10)
            each = noise_loss(
                self.denoiser,
                replay.plans[rows],
                replay.features,
                replay.latents[rows],
                self.generator,
            )
            loss = (weights * each).mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), _MAX_NORM)
            self.optimizer.step()
            losses.append(loss.item())
        return losses

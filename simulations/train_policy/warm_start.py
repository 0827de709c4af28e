"""Supervised warm start: the actor copies the teacher, the denoiser makes drafts of latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedlora.config import Scenario
from fedlora.ranks import Projection, RankSpace
from simulations.train_policy.profile import Profile
from simulations.train_policy.setting import Setting
from simulations.train_policy.teacher import Demonstrations, Fading, demonstrate
from strategies.airllm import (
    LATENT,
    TRAIN_TIMESTEPS,
    Actor,
    Denoiser,
    add_noise,
    draft,
    drafted_parts,
    projection_features,
)

TRAIN_LATENT = -0.2
CONDITION_DROPOUT = 0.1

_PLAN_SPREAD = 0.1
_SLANT_SPREAD = 0.1
_BATCH = 256

Array = NDArray[np.float64]


def fading_of(scenario: Scenario, space: RankSpace, snr_db: float, *, rayleigh: bool) -> Fading:
    """Return the distribution of the ranks that a scenario's bandwidth and deadline carry."""
    channel = scenario.channel
    at_1 = channel.bandwidth_hz[0] * channel.deadline_s / space.bits(space.uniform(1))
    return Fading(snr_db, at_1, rayleigh)


def demonstrations(
    setting: Setting,
    profile: Profile,
    space: RankSpace,
    games: int,
    seed: int | Sequence[int],
    student: Actor | None = None,
) -> Demonstrations:
    """Return what the teacher does, or would do where the student has led.

    Parameters
    ----------
    setting, profile
        Channels, and the losses by round and rank.
    space
        Ranks to choose from.
    games
        How many to play; fading, SNRs, lengths and weights are drawn at random.
    seed
        Of the games.
    student
        Who plays; the teacher does if it is left out.
    """
    rng = np.random.default_rng(seed)
    low, high = min(setting.snrs_db), max(setting.snrs_db)
    usual = setting.scenario.train.rounds
    parts = []
    for game in range(games):
        fading = fading_of(
            setting.scenario, space, float(rng.uniform(low - 2, high + 2)), rayleigh=game % 2 == 0
        )
        # Half of the games are as long as the scenario's, the others teach the rest.
        rounds = usual if rng.random() < 0.5 else int(rng.integers(3, 30))
        shown, _ = demonstrate(
            profile,
            space,
            fading,
            rounds,
            setting.price,
            rng,
            clients=int(rng.integers(1, 9)),
            train_latent=TRAIN_LATENT,
            weights=setting.weights(rng),
            student=None if student is None else chooser(student),
        )
        parts.append(shown)
    return joined(parts)


def chooser(actor: Actor) -> Callable[[Array], Array]:
    """Return what gives the parts of the budgets that an actor spends in some states."""

    def choose(states: Array) -> Array:
        with torch.no_grad():
            latents = torch.tanh(actor(torch.from_numpy(states).float()))
        return drafted_parts(latents.numpy().astype(float))

    return choose


def joined(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Return all of them as one."""
    return Demonstrations(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("states", "latents", "values", "weights")
        )
    )


def clone(
    actor: Actor, demonstrated: Demonstrations, steps: int, seed: int, advance: Callable[[], None]
) -> list[float]:
    """Train the actor on the teacher's latents, and return the losses."""
    states = torch.from_numpy(demonstrated.states).float()
    latents = torch.from_numpy(demonstrated.latents).float()
    weights = torch.from_numpy(demonstrated.weights).float()

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        error = (torch.tanh(actor(states[rows])) - latents[rows]) ** 2
        return (weights[rows] * error).mean()

    return fit(actor, loss_of, len(states), steps, seed, advance)


def fit(
    module: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    count: int,
    steps: int,
    seed: int,
    advance: Callable[[], None],
) -> list[float]:
    """Minimise a loss over random batches of row numbers, and return the losses."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        loss = loss_of(torch.randint(count, (_BATCH,), generator=generator))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        advance()
    return losses


def teach_plans(
    denoiser: Denoiser, steps: int, seed: int, advance: Callable[[], None]
) -> list[float]:
    """Train the denoiser to make the drafts of random latents for random models."""
    rng = np.random.default_rng([seed, 3])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        features = torch.from_numpy(projection_features(random_space(rng))).float()
        latents = torch.rand((64, LATENT), generator=generator) * 2 - 1
        # The teacher has no slant; small ones are what reward may enlarge.
        latents[:, 3:] *= _SLANT_SPREAD + 0.9 * torch.rand((64, 1), generator=generator)
        plans = draft(latents, features)
        plans = plans + _PLAN_SPREAD * torch.randn(plans.shape, generator=generator)
        loss = noise_loss(denoiser, plans.clamp(-1, 1), features, latents, generator).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        advance()
    return losses


def noise_loss(
    denoiser: Denoiser,
    plans: torch.Tensor,
    features: torch.Tensor,
    latents: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return each plan's squared error of the predicted noise, with condition dropout.

    Ho, Jain and Abbeel, NeurIPS 2020, eq. 14; dropout for classifier-free guidance as AirLLM does.
    """
    count = len(plans)
    timesteps = torch.randint(TRAIN_TIMESTEPS, (count,), generator=generator)
    noise = torch.randn(plans.shape, generator=generator)
    known = (torch.rand(count, generator=generator) >= CONDITION_DROPOUT).float()
    predicted = denoiser(add_noise(plans, noise, timesteps), timesteps, features, latents, known)
    squared: torch.Tensor = (predicted - noise) ** 2
    return squared.reshape(count, -1).mean(dim=1)


def random_space(rng: np.random.Generator) -> RankSpace:
    """Return the projections of a random transformer, so that none is learnt by heart."""
    width = int(rng.choice([64, 128, 256, 384, 512, 768, 1024, 2048]))
    hidden = int(width * rng.choice([2, 8 / 3, 3, 4]))
    narrow = width // int(rng.choice([1, 2, 4]))
    shapes = [(width, width), (width, narrow), (width, narrow), (width, width)]
    shapes += [(width, hidden)] * int(rng.integers(1, 3)) + [(hidden, width)]
    if rng.random() < 0.3:
        shapes = shapes[:4]
    layers = int(rng.integers(1, 9))
    return RankSpace(
        tuple(
            Projection(f"p{i}", layer, d_in, d_out)
            for layer in range(layers)
            for i, (d_in, d_out) in enumerate(shapes)
        ),
        r_max=16,
    )

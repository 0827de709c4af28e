"""PPO over the policy's actor: made, and kept equal to the policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from stable_baselines3 import PPO
from torch import nn

from simulations.train_policy.environment import FederationEnv
from simulations.train_policy.teacher import Demonstrations
from simulations.train_policy.warm_start import fit
from strategies.airllm import Actor

LOG_STD = -1.2
"""Logarithm of the exploration around the teacher's latents, before their tanh."""

PLAIN_LOG_STD = -0.5
"""The same where there was no teacher (AirLLM, released code)."""


def new_learner(env: FederationEnv, rounds: int, seed: int, *, plain: bool) -> PPO:
    """Return PPO with random weights.

    Parameters
    ----------
    env
        What it learns from.
    rounds
        Rounds of an episode, which are one update.
    seed
        Of weights and exploration.
    plain
        Whether it trains without a teacher.
    """
    return PPO(
        "MlpPolicy",
        env,
        # Small steps get nowhere from random weights; large ones forget the teacher.
        learning_rate=1e-3 if plain else 1e-4,
        n_steps=rounds,
        batch_size=32,
        n_epochs=10 if plain else 4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        ent_coef=0.0,
        max_grad_norm=1.0,
        seed=seed,
        device="cpu",
        policy_kwargs={
            "net_arch": {"pi": [64, 64], "vf": [64, 64]},
            "activation_fn": nn.Tanh,
            "log_std_init": PLAIN_LOG_STD if plain else LOG_STD,
            "ortho_init": True,
        },
    )


def copy_to(ppo: PPO, actor: Actor) -> None:
    """Give the policy's actor the weights of PPO's."""
    for theirs, mine in _layers(ppo, actor):
        mine.load_state_dict(theirs.state_dict())


def copy_from(ppo: PPO, actor: Actor) -> None:
    """Give PPO's actor the weights of the policy's."""
    for theirs, mine in _layers(ppo, actor):
        theirs.load_state_dict(mine.state_dict())


def teach_critic(
    ppo: PPO, demonstrated: Demonstrations, steps: int, seed: int, advance: Callable[[], None]
) -> None:
    """Fit the critic to the teacher's values, or its first advantages would undo the warm start.

    Parameters
    ----------
    ppo
        Whose critic is fitted.
    demonstrated
        States and their values.
    steps
        Gradient steps.
    seed
        Of the order of the states.
    advance
        Called after every step.
    """
    states = torch.from_numpy(demonstrated.states).float()
    values = torch.from_numpy(demonstrated.values).float()
    critic = nn.Sequential(ppo.policy.mlp_extractor.value_net, ppo.policy.value_net)
    fit(
        critic,
        lambda rows: nn.functional.mse_loss(critic(states[rows])[:, 0], values[rows]),
        len(states),
        steps,
        seed,
        advance,
    )


def _layers(ppo: PPO, actor: Actor) -> list[tuple[nn.Module, nn.Module]]:
    """Return the layers of PPO's actor beside those of the policy."""
    theirs = ppo.policy.mlp_extractor.policy_net
    return [
        (theirs[0], actor.body[0]),
        (theirs[2], actor.body[2]),
        (ppo.policy.action_net, actor.mean),
    ]

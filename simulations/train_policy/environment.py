"""The environment of PPO: every client of an episode is one of its parallel environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from fedlora.config import Scenario
from simulations.studies.compare.reward import Losses
from simulations.train_policy.episode import Episode
from simulations.train_policy.replay import Replay
from strategies.airllm import LATENT, STATE_FEATURES, Policy, Weights

LIMIT = 3.0
"""Latents before their tanh stay within this."""


class FederationEnv(VecEnv):  # type: ignore[misc]  # what is not typed
    """Clients that share a policy and a server; an episode is a run, a step is a round.

    Actions are latents before their tanh. What was done is put into the replay of the diffusion.

    Parameters
    ----------
    clients
        Number of clients.
    scenario_of
        Returns the scenario of an episode by its number.
    reference_of
        Returns the reference losses of a seed.
    policy
        Its denoiser makes plans of latents; it may be trained between episodes.
    replay
        Takes latents, plans and rewards.
    price
        Nats that a whole deadline of air time costs.
    weights_of
        Returns what an episode's deliveries are worth beside that, by its number.
    first_episode
        Number of the first episode.
    """

    def __init__(
        self,
        clients: int,
        scenario_of: Callable[[int], Scenario],
        reference_of: Callable[[int], Losses],
        policy: Policy,
        replay: Replay,
        price: float,
        weights_of: Callable[[int], Weights],
        first_episode: int = 0,
    ) -> None:
        infinite = np.full(len(STATE_FEATURES), np.inf, dtype=np.float32)
        super().__init__(
            clients,
            gymnasium.spaces.Box(-infinite, infinite),
            gymnasium.spaces.Box(-LIMIT, LIMIT, (LATENT,)),
        )
        self.scenario_of, self.reference_of = scenario_of, reference_of
        self.policy, self.replay, self.price = policy, replay, price
        self.weights_of = weights_of
        self.episodes = first_episode
        self.returns: list[tuple[Scenario, float]] = []
        self._episode: Episode | None = None
        self._scenario: Scenario | None = None
        self._rewards: list[np.ndarray] = []
        self._actions = np.zeros((clients, LATENT), dtype=np.float32)

    def reset(self) -> np.ndarray:
        """Begin the next episode."""
        self.close()
        self._scenario = self.scenario_of(self.episodes)
        self._episode = Episode(
            self._scenario,
            self.policy,
            self.reference_of(self._scenario.seed),
            self.price,
            self.weights_of(self.episodes),
        )
        self.episodes += 1
        self._rewards = []
        return self._episode.sight.states.numpy()

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Carry a round out; after the last one the next episode begins."""
        assert self._episode is not None and self._scenario is not None
        latents = torch.tanh(torch.from_numpy(self._actions).float())
        features = self._episode.features
        turn = self._episode.step(latents)
        self._rewards.append(turn.rewards)
        self.replay.add(latents, turn.plans, features, turn.objectives)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done = np.full(self.num_envs, turn.done)
        if turn.done:
            self.returns.append((self._scenario, float(np.mean(self._rewards))))
            states = self.reset()
        else:
            states = self._episode.sight.states.numpy()
        return states, turn.objectives.astype(np.float32), done, infos

    def close(self) -> None:
        """Give the episode up, if there is one."""
        if self._episode is not None:
            self._episode.close()
            self._episode = None

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """See ``VecEnv``."""
        return [getattr(self, attr_name)] * len(self._places(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """See ``VecEnv``."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """See ``VecEnv``."""
        return [getattr(self, method_name)(*args, **kwargs)] * len(self._places(indices))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """See ``VecEnv``."""
        return [False] * len(self._places(indices))

    def _places(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))

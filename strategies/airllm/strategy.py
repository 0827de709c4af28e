"""The strategy ``airllm``: a trained policy, run without the libraries that trained it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
import torch

from fedlora.checks import number, truth, whole
from fedlora.ranks import (
    ClientOutcome,
    ClientReport,
    FedloraError,
    RankDecision,
    RankSpace,
    RankStrategy,
    RankVector,
)
from strategies.airllm.features import (
    MOST_BIT_PRICE,
    MOST_END_WEIGHT,
    Array,
    ChannelMemory,
    Held,
    Weights,
    budget_rank,
    client_state,
    coverage,
    has_arrived,
    projection_features,
)
from strategies.airllm.network import CHANNELS
from strategies.airllm.plan import delivered_ranks, draft, trained_ranks
from strategies.airllm.policy import SHIPPED, Policy, load_policy
from strategies.options import check_policy, check_seed

DEFAULT_WEIGHTS = Weights(0.3, 4.0)
"""What is wanted where nobody says it (docs/results.md tells how it was chosen)."""


@dataclass(frozen=True)
class Sight:
    """What a round looks like before it is decided.

    Attributes
    ----------
    clients
        In the order of the rows.
    states
        Features of each, shape (clients, features).
    start
        Noise that the diffusion starts from, shape (clients, projections, 3).
    memory
        Of the channels, this round's included.
    """

    clients: tuple[str, ...]
    states: torch.Tensor
    start: torch.Tensor
    memory: ChannelMemory


class AirLlm(RankStrategy):
    """AirLLM (arXiv 2507.11515) with state, actions and cost that hold for any model.

    For each client an actor turns the state of its channel, its text and the adapter that it has
    into a coarse latent; a diffusion refines the latent into a plan for every projection; the plan
    is moved to the nearest ranks that the budget pays for. The plan says how much is worth sending
    now (nothing, when the channel is bad and the client has a better adapter already) and how many
    components are trained, by all clients alike, beyond those that are sent.

    Parameters
    ----------
    seed
        Of the diffusion's start noise, which depends on the seed, the round and the client only.
    policy
        A file that ``fedlora train-policy`` wrote, or the policy itself; the shipped one if left
        out.
    rounds
        Planned number of rounds, if it is known: late rounds weigh more then.
    bit_price
        Nats of loss that as many bits are worth as the mean channel carries within the deadline,
        from 0 to 4: a higher one sends less.
    end_weight
        For how many rounds more the adapters are used that clients hold after the last one, from 0
        to 16: a higher one ends better.
    use_statistics
        False ignores what clients tell of their text.
    diffusion
        False makes plans by the formula that the diffusion was first taught, as a comparison.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        policy: str | Policy = "",
        rounds: int | None = None,
        bit_price: float | None = None,
        end_weight: float | None = None,
        use_statistics: bool = True,
        diffusion: bool = True,
    ) -> None:
        self.seed = check_seed(seed)
        self.rounds = None if rounds is None else whole("ranks.options.rounds", rounds, 1, 10**9)
        self.use_statistics = truth("ranks.options.use_statistics", use_statistics)
        self.diffusion = truth("ranks.options.diffusion", diffusion)
        if not isinstance(policy, Policy):
            policy = load_policy(check_policy(policy) or SHIPPED)
        self.policy = policy
        self.weights = self._weights(bit_price, end_weight)
        self._features: torch.Tensor | None = None
        self._space: RankSpace | None = None
        self.memory = ChannelMemory()
        self.held: dict[str, Held] = {}
        self.pending: dict[str, Held] = {}
        self.pending_memory = ChannelMemory()
        self.over_air = False

    def _weights(self, bit_price: float | None, end_weight: float | None) -> Weights:
        """Return what is wanted; refused where the policy cannot be told."""
        given = {"bit_price": bit_price, "end_weight": end_weight}
        told = {name: value for name, value in given.items() if value is not None}
        for name, value in told.items():
            most = MOST_BIT_PRICE if name == "bit_price" else MOST_END_WEIGHT
            told[name] = number(f"ranks.options.{name}", value, 0.0, most)
            if not self.policy.takes_weights:
                raise FedloraError(
                    f"ranks.options.{name} is {value!r}, and this policy was trained without "
                    "weights; leave it out, or train a policy with `fedlora train-policy`"
                )
        return replace(DEFAULT_WEIGHTS, **told)

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Decide for all clients at once."""
        if not clients:
            return {}
        sight = self.look(round, clients, space)
        latents = self.policy.latents(sight.states)
        return self.act(round, clients, space, sight, latents)

    def look(self, round: int, clients: Mapping[str, ClientReport], space: RankSpace) -> Sight:
        """Return the states of the clients and the start noise of their plans."""
        if not self.use_statistics:
            clients = {name: _without_statistics(report) for name, report in clients.items()}
        covered = [coverage(budget_rank(r, space), space.r_max) for r in clients.values()]
        memory = self.memory.add(np.array(covered))
        states = [
            client_state(report, space, memory, self._held(name), round, self.rounds, self.weights)
            for name, report in clients.items()
        ]
        shape = (len(space), CHANNELS)
        start = [
            np.random.default_rng([self.seed, round, crc32(name.encode())]).standard_normal(shape)
            for name in clients
        ]
        return Sight(tuple(clients), _tensor(states), _tensor(start), memory)

    def act(
        self,
        round: int,
        clients: Mapping[str, ClientReport],
        space: RankSpace,
        sight: Sight,
        latents: torch.Tensor,
    ) -> dict[str, RankDecision]:
        """Return the ranks that latents lead to, shape (clients, 5)."""
        features = self.projections(space)
        if self.diffusion:
            plans = self.policy.plans(latents, features, sight.start)
        else:
            plans = draft(latents, features)
        return self.carry_out(round, clients, space, sight, plans.numpy().astype(float))

    def carry_out(
        self,
        round: int,
        clients: Mapping[str, ClientReport],
        space: RankSpace,
        sight: Sight,
        plans: Array,
    ) -> dict[str, RankDecision]:
        """Return the ranks that plans lead to, shape (clients, projections, 3)."""
        units = np.array(space.unit_parameters, dtype=float)
        self.pending, self.pending_memory = {}, sight.memory
        self.over_air = any(report.budget_bits is not None for report in clients.values())
        deliveries, had = [], []
        for name, plan in zip(sight.clients, plans, strict=True):
            deliver = delivered_ranks(plan, space, clients[name].budget_bits)
            ranks = np.array(deliver, dtype=float)
            if sum(deliver):
                rank = float(ranks @ units / units.sum())
                self.pending[name] = Held(rank, round, tuple(deliver))
            elif len(self._held(name).ranks) == len(space):
                ranks = np.array(self._held(name).ranks, dtype=float)
            else:
                # Who has nothing counts with what an average channel would bring.
                ranks = np.full(len(space), (1 + space.r_max) ** sight.memory.mean - 1)
            deliveries.append(RankVector(deliver))
            had.append(ranks)
        # All clients train at the same ranks: a component that few of them train is worth little to
        # the one that gets it.
        largest = (1 + space.r_max) ** sight.memory.largest - 1
        train = trained_ranks(plans[:, :, 1].mean(axis=0), np.mean(had, axis=0), largest, space)
        return {
            name: RankDecision(train, deliver)
            for name, deliver in zip(sight.clients, deliveries, strict=True)
        }

    def observe(self, round: int, outcomes: Mapping[str, ClientOutcome]) -> None:
        """Remember the channels, and which adapters arrived."""
        self.memory = self.pending_memory
        for client, held in self.pending.items():
            if client in outcomes and has_arrived(outcomes[client].delivered, self.over_air):
                self.held[client] = held
        self.pending = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered of channels and adapters."""
        return {
            "memory": vars(self.memory).copy(),
            "pending_memory": vars(self.pending_memory).copy(),
            "held": {name: held.packed() for name, held in self.held.items()},
            "pending": {name: held.packed() for name, held in self.pending.items()},
            "over_air": self.over_air,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.memory = ChannelMemory(**state["memory"])
        self.pending_memory = ChannelMemory(**state["pending_memory"])
        self.held = {name: Held.of(packed) for name, packed in state["held"].items()}
        self.pending = {name: Held.of(packed) for name, packed in state["pending"].items()}
        self.over_air = state.get("over_air", False)

    def _held(self, client: str) -> Held:
        return self.held.get(client, Held())

    def projections(self, space: RankSpace) -> torch.Tensor:
        """Return the features of the projections, computed once."""
        if self._features is None or space != self._space:
            self._space, self._features = space, _tensor(projection_features(space))
        return self._features


def _tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _without_statistics(report: ClientReport) -> ClientReport:
    return ClientReport(report.channel, None, report.device, report.budget_bits)

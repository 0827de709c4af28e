"""An episode: a real run of split fine-tuning that waits for every round's latents."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from queue import Queue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.config import Scenario
from fedlora.ranks import ClientOutcome, ClientReport, RankDecision, RankSpace, RankStrategy
from simulations.in_process import Record, connect
from simulations.studies.compare.reward import Losses, client_rewards, losses_by_round
from simulations.train_policy.warm_start import fading_of
from strategies.airllm import Policy, Weights
from strategies.airllm.strategy import AirLlm, Sight

Array = NDArray[np.float64]


class _Stopped(BaseException):
    """Ends the run's thread when an episode is given up."""


class _Asker(RankStrategy):
    """Hands each round's question to another thread and waits for the answer."""

    def __init__(self) -> None:
        self.questions: Queue[Any] = Queue()
        self.answers: Queue[Mapping[str, RankDecision] | None] = Queue()

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> Mapping[str, RankDecision]:
        self.questions.put((round, clients, space))
        answer = self.answers.get()
        if answer is None:
            raise _Stopped
        return answer

    def observe(self, round: int, outcomes: Mapping[str, ClientOutcome]) -> None:
        self.questions.put(outcomes)


@dataclass(frozen=True)
class Turn:
    """What a round brought.

    Attributes
    ----------
    rewards
        Of each client, as comparisons count it.
    objectives
        Of each client, minus what its bits cost and with the end's weight: what is trained for.
    plans
        What the diffusion made, shape (clients, projections, 3).
    done
        Whether that was the last round.
    """

    rewards: Array
    objectives: Array
    plans: torch.Tensor
    done: bool


class Episode:
    """A run in which latents are chosen from outside.

    Parameters
    ----------
    scenario
        Of the episode.
    policy
        Its denoiser makes plans of latents.
    reference
        Losses of the scenario's seed without channel.
    price
        Nats that a whole deadline of air time costs.
    weights
        What bits and the adapters after the last round are worth beside that.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy,
        reference: Losses,
        price: float,
        weights: Weights,
    ) -> None:
        self._record = Record()
        self._server = connect(scenario, self._record, workers=1)
        self._asker = _Asker()
        # Unguarded: the guard would time the learner's updates, not a strategy.
        self._server.training.ranking.strategy = self._asker  # type: ignore[assignment]
        self._strategy = AirLlm(scenario.seed, policy=policy, rounds=scenario.train.rounds)
        self._strategy.weights = weights
        self._reference, self._price, self._weights = reference, price, weights
        self._deadline_s = scenario.channel.deadline_s
        self._rounds = scenario.train.rounds
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._round, self._reports, self.space = self._ask()
        channel = scenario.channel
        fading = fading_of(
            scenario, self.space, channel.snr_db[0], rayleigh=channel.model == "rayleigh"
        )
        self._price_of_rank = weights.bit_price / fading.carried(self.space.r_max)
        self.sight: Sight = self._strategy.look(self._round, self._reports, self.space)

    @property
    def features(self) -> torch.Tensor:
        """Features of the projections, shape (projections, 4)."""
        return self._strategy.projections(self.space)

    def step(self, latents: torch.Tensor) -> Turn:
        """Carry out a round with these latents, in [-1, 1], one row for each client."""
        plans = self._strategy.policy.plans(latents, self.features, self.sight.start)
        decisions = self._strategy.carry_out(
            self._round, self._reports, self.space, self.sight, plans.numpy().astype(float)
        )
        self._asker.answers.put(decisions)
        self._strategy.observe(self._round, self._ask())
        done = self._round == self._rounds
        clients = self.sight.clients
        if done:
            self._thread.join()
        else:
            self._round, self._reports, self.space = self._ask()
            self.sight = self._strategy.look(self._round, self._reports, self.space)
        finished = len(self._record.rounds) - 1 if done else self._round - 2
        losses = losses_by_round(self._record.rounds[finished : finished + 1])[0]
        rows = {client: self._server.air.row(finished + 1, client) for client in clients}
        seconds = {c: row.seconds["down"]["adapter"] for c, row in rows.items() if row}
        rewards = client_rewards(
            losses, self._reference[finished], seconds, self._deadline_s, self._price
        )
        values = np.array([rewards[client].value for client in clients])
        per_rank = self.space.bits(self.space.uniform(1))
        sent = np.array([self.space.bits(decisions[client].deliver) for client in clients])
        objectives = values - self._price_of_rank * sent / per_rank
        if done:
            objectives += self._weights.end_weight * np.array([rewards[c].gain for c in clients])
        return Turn(values, objectives, plans, done)

    def close(self) -> None:
        """Give the episode up, if it has not ended."""
        if self._thread.is_alive():
            self._asker.answers.put(None)
            self._thread.join()

    def _run(self) -> None:
        try:
            torch.set_num_threads(1)
            self._server.training.run()
        except _Stopped:
            pass
        except Exception as error:
            self._asker.questions.put(error)

    def _ask(self) -> Any:
        question = self._asker.questions.get()
        if isinstance(question, Exception):
            raise question
        return question

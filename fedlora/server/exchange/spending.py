"""What the clients' privacy has cost so far, as they tell the server."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from fedlora.checks import finite
from fedlora.config import Scenario
from fedlora.link import Frame
from fedlora.privacy.accounting import epsilon_of
from fedlora.privacy.mechanisms import mechanism_of
from fedlora.privacy.plan import exposure
from fedlora.privacy.statement import Sampling, privacy_statement
from fedlora.report import RoundRecord, Rounds
from fedlora.server.exchange.uploads import read_number
from fedlora.tasks import head_trains

_SIGMA_MIN = 1e-3  # less noise than this promises nothing
_SPENT_MAX = 1e18  # far beyond any promise, and far from where a statement would overflow


class Spending:
    """Each client's spending in this run, from the figures that accompany its uploads.

    Parameters
    ----------
    scenario
        The run's scenario.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._mechanism = mechanism_of(scenario.privacy)
        self._rho: dict[str, float] = {}
        self._sigma: dict[str, float] = {}
        self._sigma_now: dict[str, float] = {}
        self._planned: dict[str, tuple[float, float]] = {}  # rho, and epsilon of labels
        self._labels: dict[str, float] = {}
        self._rate = 0.0

    def note(self, client: str, reply: Frame) -> None:
        """Read the figures of an upload.

        Raises
        ------
        ProtocolError
            When they are missing or out of range.
        """
        rho, labels = read_number(reply, "rho", high=_SPENT_MAX), 0.0
        sigma = now = math.inf
        if self._mechanism is not None and self._mechanism.noises_gradients:
            sigma = read_number(reply, "sigma", low=_SIGMA_MIN)
            now = read_number(reply, "sigma_now", low=_SIGMA_MIN)
        if "label_epsilon" in reply.fields:
            labels = read_number(reply, "label_epsilon", high=_SPENT_MAX)
        self._rho[client], self._labels[client] = rho, labels
        if math.isfinite(sigma):
            self._sigma[client] = min(sigma, self._sigma.get(client, math.inf))
            self._sigma_now[client] = now

    def note_plan(self, client: str, hello: Frame) -> dict[str, float]:
        """Read what a client that joins will have spent at most when the run ends.

        Raises
        ------
        ProtocolError
            When it does not say.
        """
        rho = read_number(hello, "rho_planned", high=_SPENT_MAX)
        labels = read_number(hello, "label_epsilon", high=_SPENT_MAX)
        before = self._planned.get(client, (0.0, 0.0))
        self._planned[client] = max(rho, before[0]), max(labels, before[1])
        return {"rho": rho, "label_epsilon": labels}

    def note_rows(self, rows: Iterable[int]) -> None:
        """Take note of clients' training rows, for the largest sampling rate."""
        batch = self._scenario.train.batch_size
        self._rate = max([self._rate, *(min(1.0, batch / n) for n in rows if n)])

    def state_dict(self) -> dict[str, Any]:
        """Return each client's figures, for a checkpoint between rounds."""
        told = {"rho": self._rho, "sigma": self._sigma, "labels": self._labels}
        planned = {client: list(own) for client, own in self._planned.items()}
        return told | {"planned": planned, "rate": self._rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave, where no more is known to be spent already."""
        for client, rho in state["rho"].items():
            self._rho[client] = max(rho, self._rho.get(client, 0.0))
        for client, sigma in state["sigma"].items():
            self._sigma[client] = min(sigma, self._sigma.get(client, math.inf))
        for client, own in state.get("planned", {}).items():
            # before 0.2 it was rho alone
            rho, labels = own if isinstance(own, (list, tuple)) else (own, 0.0)
            self._planned.setdefault(client, (rho, labels))
        self._labels = dict(state["labels"]) | self._labels
        self._rate = max(self._rate, state.get("rate", 0.0))

    def sigma(self, client: str) -> float:
        """Return the noise of a client's latest upload, over the clipping norm.

        Its root mean square over the samples of the upload.
        """
        return self._sigma_now[client]

    def epsilon(self, client: str) -> float | None:
        """Return what a client has spent, replace-one; None without noise that is secret."""
        policy = self._scenario.privacy
        if not policy.enabled or policy.insecure_noise_seed is not None:
            return None
        labels = self._labels.get(client, 0.0)
        rho = self._rho.get(client, 0.0)
        return labels + epsilon_of(rho, policy.delta, tight=policy.tight)

    def round_fields(self) -> RoundRecord:
        """Return the figures of a round record."""
        if not self._rho:
            return RoundRecord()
        fields = RoundRecord(rho=max(self._rho.values()))
        if self._sigma:
            fields["sigma"] = min(self._sigma.values())
        if any(self._labels.values()):
            fields["label_epsilon"] = max(self._labels.values())
        return fields

    def statement(self, here: Container[str]) -> dict[str, Any] | None:
        """Return the summary's ``privacy`` block; None without privacy.

        Parameters
        ----------
        here
            Clients that are there at the end. With any other that has joined, before the run was
            resumed too, an upload may have gone that was charged and never came; for these what
            they planned counts.
        """
        scenario, sampling = self._scenario, None
        figures = self.round_fields()
        if "rho" in figures:
            gone = [own for client, own in self._planned.items() if client not in here]
            figures["rho"] = max([figures["rho"], *(rho for rho, _ in gone)])
            labels = max([figures.get("label_epsilon", 0.0), *(labels for _, labels in gone)])
            if labels:
                figures["label_epsilon"] = labels
        mechanism = self._mechanism
        if mechanism is not None and mechanism.gaussian and not mechanism.repeats:
            # fresh Gaussian noise at each step
            steps = scenario.train.total_steps * scenario.train.accumulate
            sampling = Sampling(self._rate, steps)
        return _statement(scenario, figures, sampling)


def statement_of_rounds(
    scenario: Scenario, rounds: Rounds, events: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return the ``privacy`` block of a run that ended before its last word.

    Uploads of a round that broke off are charged, and nobody told of them. So epsilon is then that
    of each client's whole plan, which no client goes beyond; see ``clients.release.base.planned``.

    Parameters
    ----------
    scenario
        The run's.
    rounds
        The rounds that were finished.
    events
        The run's, with the ``budget`` of each client that joined.
    """
    figures = RoundRecord()
    figures |= rounds[-1] if rounds else RoundRecord()
    if len(rounds) >= scenario.train.rounds:
        return _statement(scenario, figures, None)
    budgets = [event for event in events if event.get("event") == "budget"]
    for key in ("rho", "label_epsilon"):
        told = (finite(source.get(key)) for source in (figures, *budgets))
        figures[key] = max((value for value in told if value is not None), default=0.0)
    block = _statement(scenario, figures, None)
    if block is not None and budgets:
        block["unfinished"] = (
            "The run broke off, so this is what it would have come to at most; each client's "
            "ledger holds what it has spent."
        )
    elif block is not None:
        block["excludes"].append("Uploads of the round that broke off, which the ledgers hold.")
    return block


def _statement(
    scenario: Scenario, figures: RoundRecord, sampling: Sampling | None
) -> dict[str, Any] | None:
    rho, sigma = finite(figures.get("rho")), finite(figures.get("sigma"))
    mechanism = mechanism_of(scenario.privacy)
    if mechanism is None or rho is None or (sigma is None and mechanism.noises_gradients):
        return None
    trains = head_trains(scenario)
    told = exposure(scenario, trains_head=trains)
    labels = finite(figures.get("label_epsilon")) or 0.0
    classes = len(scenario.task.labels)
    return privacy_statement(
        scenario.privacy, rho, sigma, told, sampling, label_epsilon=labels, classes=classes
    )

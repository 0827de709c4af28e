"""Every epsilon that is told is within the target, and is what dp-accounting makes of the noise."""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np

from clients.owner import OwnerTerms
from clients.simulated_data import SimulatedData
from fedlora.batch_order import BatchStream
from fedlora.checks import EPSILON_MAX
from fedlora.config import ClientLimit, PrivacyPolicy
from fedlora.errors import FedloraError
from fedlora.privacy.accounting.rdp import ORDERS
from fedlora.privacy.ledger import Ledger
from simulations.fuzz.trial import Run, Trial

_TOLERANCE = 1e-6


def target(trial: Trial) -> str | None:
    """Hold every epsilon of rounds and summary to the scenario's."""
    policy = trial.scenario.privacy
    if policy.epsilon is None or policy.insecure_noise_seed is not None:
        return None
    for name, told in _told(trial).items():
        if told is None or told > policy.epsilon * (1 + 1e-9):
            return f"{name} is told epsilon {told}, which exceeds {policy.epsilon}"
    return ""


def _told(trial: Trial) -> dict[str, float | None]:
    block = trial.federation.server.training.summary_fields()["privacy"]
    told: dict[str, float | None] = {"the summary": block["epsilon"]}
    for own in trial.run.rounds:
        for client, figures in own["clients"].items():
            if "epsilon" in figures and figures["epsilon"] is not None:
                told[f"client {client} in round {own['round']}"] = figures["epsilon"]
    return told


def accounting(trial: Trial) -> str | None:
    """Hold epsilon to dp-accounting's, from the noise of each client and how often it uploaded."""
    scenario, policy = trial.scenario, trial.scenario.privacy
    mechanism = trial.mechanism
    if (
        not trial.noisy
        or importlib.util.find_spec("dp_accounting") is None
        or mechanism is None
        or not mechanism.noises_gradients
        or not _even(policy)
        or policy.uploads
        or scenario.evaluate.baseline
        or not trial.everybody
    ):
        return None
    bound = exact = 0.0
    for number, client in enumerate(trial.federation.clients):
        sigma = trial.federation.server.training.spending.sigma(client.name)
        times = 1 if mechanism.repeats else max(_uploads(trial, number))
        of_rdp, of_pld = _epsilons(sigma, times, policy.delta)
        bound, exact = max(bound, of_rdp), max(exact, of_pld)
    block = trial.federation.server.training.summary_fields()["privacy"]
    own = block["epsilon_exact"]
    if not exact - 1e-3 * max(1.0, exact) <= own <= exact * 1.01 + 1e-3:
        return f"the exact epsilon is told as {own:.6g}, by dp-accounting's PLD it is {exact:.6g}"
    if not policy.tight and abs(bound - block["epsilon"]) > _TOLERANCE * max(1.0, bound):
        return f"epsilon is told as {block['epsilon']:.6g}, dp-accounting's RDP is {bound:.6g}"
    return ""


@cache
def _epsilons(sigma: float, times: int, delta: float) -> tuple[float, float]:
    """Return what dp-accounting says of uploads: by RDP, and by its privacy loss distribution."""
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    event = GaussianDpEvent(sigma / 2)  # replace-one moves a clipped gradient by twice its norm
    rdp = RdpAccountant(orders=ORDERS).compose(event, times)
    pld = PLDAccountant().compose(event, times)
    return float(rdp.get_epsilon(delta)), float(pld.get_epsilon(delta))


def _even(policy: PrivacyPolicy) -> bool:
    """Tell whether every upload has the same noise, all of it the client's, and no other."""
    plain = (policy.spread, policy.uplink) == ("even", "coded")
    return plain and policy.activation_sigma is None


def _uploads(trial: Trial, number: int) -> list[int]:
    """Return how often each sample of a client was uploaded."""
    train = trial.scenario.train
    samples = trial.samples(trial.federation.clients[number])
    stream = BatchStream(samples, train.batch_size, trial.scenario.seed, number)
    seen = [0] * len(samples)
    for _ in range(train.total_steps * train.accumulate):
        for place in stream.indices():
            seen[place] += 1
    return seen


def ledgers(trial: Trial) -> str | None:
    """Hold a run that stopped, went on, and kept ledgers to what an unbroken one has cost.

    Each sample is charged for every upload exactly once, whoever died in between. Where the noise
    is secret clients take part as devices.
    """
    scenario = trial.run.scenario
    if not scenario.privacy.enabled or trial.scenario.evaluate.baseline or not trial.everybody:
        return None
    place, rounds = trial.place / "ledgers", scenario.train.rounds
    devices = trial.noisy and scenario.privacy.uplink == "coded"
    if rounds > 1:
        stop = 1 + scenario.seed % (rounds - 1)
        Run(scenario, place, ledgers=True, devices=devices).train(stop)
    again = Run(scenario, place, ledgers=True, devices=devices).train()
    own, other = (
        run.federation.server.training.spending.state_dict()["rho"] for run in (trial.run, again)
    )
    once = scenario.privacy.activation_sigma is not None and rounds > 1
    for client in trial.federation.clients:
        a, b = own[client.name], other[client.name]
        if abs(a - b) > 1e-9 * max(a, b) and not once:  # noised activations are drawn anew
            return f"client {client.name} is told rho {a:.9g}, in a broken run with ledgers {b:.9g}"
    return _booked(trial, again)


def _booked(trial: Trial, run: Run) -> str:
    """Hold what ledgers have of each record to its uploads and their noise."""
    policy = trial.scenario.privacy
    mechanism = trial.mechanism
    if not _even(policy) or mechanism is None or not mechanism.noises_gradients:
        return ""
    for number, client in enumerate(trial.federation.clients):
        seen = _uploads(trial, number)
        if mechanism.repeats:  # drawn once, and repeated
            seen = [min(1, times) for times in seen]
        sigma = run.federation.server.training.spending.sigma(client.name)
        expected = sorted(2 * times / sigma**2 for times in seen if times)
        with Ledger(run.ledger(number), client.name) as ledger:
            booked = sorted(rho for rho in ledger.spent().values() if rho)
        if len(booked) != len(expected) or not np.allclose(booked, expected, rtol=1e-6):
            return f"the ledger of client {number} is not what its uploads come to"
    return ""


def limits(trial: Trial) -> str | None:
    """Hold an owner's limit to what the run told: a little more is enough, less is refused."""
    scenario, policy = trial.scenario, trial.scenario.privacy
    if not trial.noisy or not trial.everybody or policy.uploads or scenario.evaluate.baseline:
        return None
    client = trial.federation.clients[0]
    told = trial.federation.server.training.spending.epsilon(client.name)
    if not told or not 1e-3 < told < EPSILON_MAX / 2:
        return None
    data = SimulatedData(trial.run.scenario, scenario.federation.clients)
    for part, enough in ((1.02, True), (0.9, False)):
        limit = ClientLimit(told * part, policy.delta, tight=policy.tight)
        terms = OwnerTerms(ledger=trial.place / f"limit-{enough}", limit=limit)
        try:
            data.build(trial.federation.parts, 0, terms=terms).release.close()
        except FedloraError as error:
            if enough:
                most = f"a limit of {limit.epsilon:.6g}"
                return f"a run of epsilon {told:.6g} is refused by {most}: {error}"
        else:
            if not enough:
                return f"a run of epsilon {told:.6g} is allowed by a limit of {limit.epsilon:.6g}"
    return ""

"""Try a mechanism on what a client, a server and an attacker bring, and say what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import torch

from fedlora.config import PrivacyPolicy, Scenario, Unit
from fedlora.errors import FedloraError, described
from fedlora.privacy.accounting import (
    ORDERS,
    Charge,
    planned_uploads,
    rate_high,
    rate_low,
    rdp_epsilon,
)
from fedlora.privacy.mechanisms.base import Gradients, Mechanism
from fedlora.privacy.mechanisms.labels import Labels, label_epsilon
from fedlora.privacy.mechanisms.logits import Logits
from fedlora.privacy.mechanisms.plugin import blaming, check_kind, shaped
from fedlora.privacy.mechanisms.trial import (
    CLASSES,
    SIGMA,
    WIDTH,
    Silence,
    Trial,
    moves,
    noise,
    proves,
    sources,
)

_CLIP, _DELTA = 0.05, 1e-5
_SIGMAS = (0.3, 1.0, SIGMA, 4.0, 30.0)
_LABELS = 20_000  # drawn of each
_TAIL = 1e-6
_ROOM = 1 + 1e-9  # for rounding


def check_mechanism(mechanism: object, *, event: Callable[[float], Any] | None = None) -> list[str]:
    """Try a mechanism: what one record moves, the noise that hides it, and what it charges.

    Parameters
    ----------
    mechanism
        The class, a ``Mechanism``, that ``privacy.release`` names.
    event
        What dp-accounting calls one upload at a noise over the clipping norm, under replace-one,
        such as ``lambda sigma: GaussianDpEvent(sigma / 2)``. Where it is left out, Gaussian noise
        is held to its closed form, and another ``charge`` to what attacks prove.

    Returns
    -------
    list of str
        One sentence for each finding of the first kind that there is: what happened, and what was
        expected. Empty if nothing speaks against the mechanism, which is no proof.

    Raises
    ------
    FedloraError
        When ``event`` is given and dp-accounting is not installed.
    """
    if not (isinstance(mechanism, type) and issubclass(mechanism, Mechanism)):
        return [f"{mechanism!r:.80} is no mechanism; give a class that inherits from Mechanism"]
    missing = sorted(getattr(mechanism, "__abstractmethods__", ()))
    if missing:
        return [f"{mechanism.__name__} lacks {', '.join(missing)}; write these methods"]
    try:
        check_kind(mechanism)
    except FedloraError as error:
        return [str(error)]
    accountant = _accountant() if event is not None else None
    units: tuple[Unit, ...] = ("sample", "token")
    for unit in units:
        try:
            made = mechanism(_policy(mechanism, unit))
        except (Exception, SystemExit) as error:
            return [
                f"it cannot be made with a policy alone ({described(error)}); expected one argument"
            ]
        for part in _parts(made, event, accountant):
            try:
                with blaming(made):
                    findings = list(dict.fromkeys(part()))
            except FedloraError as error:
                findings = [str(error)]
            if findings:  # what comes later often follows from it
                return findings
    return []


def _parts(made: Mechanism, event: Any, accountant: Any) -> list[Callable[[], Iterator[str]]]:
    if isinstance(made, Labels):
        return [lambda: _label_charge(made), lambda: _draws(made)]
    return [
        lambda: sources(Trial(made)),
        lambda: moves(Trial(made)),
        lambda: noise(Trial(made)),
        lambda: _charges(made, event, accountant),
        lambda: proves(Trial(made)),
        lambda: _budget(made),
        lambda: _server(Trial(made)),
    ]


def _policy(
    mechanism: type[Mechanism],
    unit: Unit = "sample",
    epsilon: float | None = None,
    uploads: int = 0,
) -> PrivacyPolicy:
    if epsilon is None and issubclass(mechanism, Labels):
        epsilon = 1.0
    return PrivacyPolicy(
        release=f"{mechanism.__module__}:{mechanism.__qualname__}",
        epsilon=epsilon,
        sigma=SIGMA if epsilon is None else None,
        clip_norm=_CLIP,
        delta=_DELTA,
        unit=unit,
        uploads=uploads,
    )


def _accountant() -> Any:
    try:
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise FedloraError(
            "dp-accounting is not installed, so no event can be accounted for; pip install "
            "dp-accounting, or leave event out"
        ) from error
    return RdpAccountant


def _charges(made: Mechanism, event: Any, accountant: Any) -> Iterator[str]:
    """Tell where an upload costs less than its noise, or more noise costs more."""
    last = math.inf
    for sigma in _SIGMAS:
        charge: object = made.charge(sigma)
        if not isinstance(charge, Charge) or not charge.rho:
            yield f"charge({sigma:g}) returns {charge!r:.80}; expected a Charge with rho"
            return
        if charge.rho > last:
            yield f"at sigma {sigma:g} an upload costs more than with less noise; expected less"
        last = charge.rho
        if charge.sigma > sigma * _ROOM:
            yield (
                f"charge({sigma:g}) says that its noise is {charge.sigma:g}, which an owner's "
                "privacy-min-sigma is held against; expected no more than it was given"
            )
            return
        told = f"at sigma {sigma:g} an upload is charged rho {charge.rho:.6g}"
        if made.gaussian and charge.rho * _ROOM < 2 / sigma**2:
            yield f"{told}; expected 2 / sigma^2 = {2 / sigma**2:.6g} for Gaussian noise"
        for uploads in (1, 10, 100) if event is not None else ():
            known = accountant(orders=ORDERS).compose(event(sigma), uploads)
            theirs = float(known.get_epsilon(_DELTA))
            ours = rdp_epsilon(uploads * charge.rho, _DELTA)
            if ours * _ROOM < theirs:
                yield (
                    f"{told}, so {uploads} come to epsilon {ours:.6g}; expected at least the "
                    f"{theirs:.6g} of dp-accounting"
                )
                return


def _budget(made: Mechanism) -> Iterator[str]:
    """Tell where a plan passes its target, or counts fewer uploads than are made."""
    kind, scenario, rows = type(made), Scenario(), 40
    for epsilon in (0.5, 2.0, 8.0):
        for uploads in (1, 7, 100):
            policy = _policy(kind, epsilon=epsilon, uploads=uploads)
            try:
                plan = kind(policy).plan(scenario, rows)
            except FedloraError:
                continue  # refused, which costs nothing
            told = f"at privacy.epsilon {epsilon:g} and {uploads} uploads the plan"
            if plan.uploads != uploads:
                yield f"{told} counts {plan.uploads}; expected as many as privacy.uploads says"
                return
            comes_to = rdp_epsilon(uploads * kind(policy).charge(plan.sigma).rho, _DELTA)
            if comes_to > epsilon * _ROOM:
                yield f"{told} comes to epsilon {comes_to:.4g}; expected no more than the target"
                return
    train = scenario.train
    needed = planned_uploads(train.total_steps * train.accumulate, train.batch_size, rows)
    planned = made.uploads(scenario, rows)
    if not isinstance(made, Logits) and planned < needed:
        yield (
            f"it plans {planned} uploads of a sample where the run makes {needed}; expected as "
            "many, or a class that inherits from Logits, whose messages are repeated"
        )


def _server(trial: Trial) -> Iterator[str]:
    """Tell where the server cannot read what the client sends."""
    made, weight, generator = trial.made, trial.weight, torch.Generator().manual_seed(1)
    z = torch.randn(64, WIDTH, generator=generator)
    label = torch.randint(CLASSES, (len(z),), generator=generator)
    residual = torch.softmax(z @ weight.T, -1) - torch.eye(CLASSES)[label]
    true = residual @ weight
    if isinstance(made, Logits):
        values = made.messages(CLASSES)[label]
    else:
        values = trial.values(1e-3 * _CLIP * true / true.norm(dim=1).max())
    sent = trial.send(list(values[:, None]), Silence(), 1e-3).flatten(1).float()
    known = [weight] if made.needs_head else [weight, None]
    for head in known:
        found: object = made.gradients(sent, z, head, 1e-3)
        if not isinstance(found, Gradients):
            yield f"gradients returns {found!r:.80}; expected Gradients"
            return
        shaped(made, "gradients (cut)", found.cut, z.shape)
        if head is not None:
            shaped(made, "gradients (head)", found.head, weight.shape)
        along = float(torch.cosine_similarity(found.cut.double(), true.double()).mean())
        if not along > 0:
            yield (
                f"the gradient that the server computes does not point along the client's (mean "
                f"cosine {along:.2g}); expected above 0, so mend cut or gradients"
            )
        drawn = made.probe(z, head, SIGMA, generator)
        if drawn is not None:
            shaped(made, "probe", drawn, z.shape)


def _label_charge(made: Labels) -> Iterator[str]:
    charge: object = made.charge()
    allowed = label_epsilon(made.policy)
    if not isinstance(charge, Charge) or not charge.epsilon:
        yield f"charge() returns {charge!r:.80}; expected a Charge with epsilon"
    elif charge.epsilon > allowed * _ROOM:
        yield f"it charges epsilon {charge.epsilon:g} of {allowed:g} that are left for labels"


def _draws(made: Labels) -> Iterator[str]:
    """Tell where a told label says more of the true one than its epsilon."""
    import secrets

    epsilon = made.charge().epsilon
    for classes in (2, CLASSES):
        fixed = {made.randomise(0, classes, epsilon, lambda n: n // 2) for _ in range(50)}
        if len(fixed) > 1:
            yield (
                "randomise draws from a generator of its own, whose seed others may know; expected "
                "all randomness from below"
            )
            return
        told = {}
        for label in range(-1, classes):
            draws = [
                made.randomise(label, classes, epsilon, secrets.randbelow) for _ in range(_LABELS)
            ]
            if not all(isinstance(d, int) and 0 <= d < classes for d in draws):
                yield f"label {label} of {classes} is told as none of them; expected a class"
                return
            told[label] = torch.tensor(draws).numpy()
        for one, other in permutations(told, 2):
            for as_what in range(classes):
                low = rate_low(told[one] == as_what, _TAIL)
                high = rate_high(told[other] == as_what, _TAIL)
                if low > math.exp(epsilon) * high:
                    yield (
                        f"label {one} is told as {as_what} at least {low:.2%} of the time and "
                        f"label {other} at most {high:.2%}; expected no more than e^epsilon apart "
                        f"at the epsilon {epsilon:g} that is charged"
                    )
                    return

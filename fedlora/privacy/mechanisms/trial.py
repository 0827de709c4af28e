"""What leaves of neighbouring records under a mechanism: moved too far, hidden too little."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch

from fedlora.privacy.accounting import mu_lower_bound
from fedlora.privacy.mechanisms.base import Mechanism
from fedlora.privacy.mechanisms.gaussian import rounding_step
from fedlora.privacy.mechanisms.logits import Logits
from fedlora.privacy.mechanisms.noise import NoiseSource, SystemNoise
from fedlora.privacy.mechanisms.plugin import asked

CLASSES, WIDTH, ROWS, SIGMA = 3, 6, 2, 1.3
DRAWS = 12_000  # samples of one upload; even
_CONFIDENCE = 1 - 1e-6
_FAR = 7.0  # standard deviations of a correlation that is none


class Silence(NoiseSource):
    """No noise: what is left of a release is what noise has to cover."""

    secret = False

    def standard_normal(self, shape: Sequence[int]) -> torch.Tensor:
        """See ``NoiseSource``."""
        return torch.zeros(*shape, dtype=torch.float64)


class Trial:
    """A mechanism, and records that an attacker would choose.

    Parameters
    ----------
    made
        Under a policy of ``SIGMA``, unless it randomises labels.

    Attributes
    ----------
    weight
        Of a public head, shape (classes, width).
    gradients
        Of the records, shape (rows, width); none where messages leave in their place.
    neighbours
        What is noised for each record, shape (rows, numbers).
    """

    def __init__(self, made: Mechanism) -> None:
        self.made = made
        self.weight = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
        self.clip_norm = made.policy.clip_norm
        self.gradients: list[torch.Tensor] = []
        if isinstance(made, Logits):
            messages = asked(made, "messages", (CLASSES, self.width), CLASSES)
            self.neighbours = [*messages[:, None].double(), torch.zeros(1, self.width).double()]
        else:
            self.gradients = _adversaries(self.weight)
            self.neighbours = [self.values(gradient) for gradient in self.gradients]

    @property
    def width(self) -> int:
        """Numbers of a row that are uploaded."""
        return self.made.width(CLASSES, WIDTH)

    def values(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return what is noised for a gradient of shape (rows, width)."""
        weight = self.weight if self.made.needs_head else None
        shape = (len(gradient), self.width)
        return asked(self.made, "values", shape, gradient, weight, finite=False)

    def send(
        self, batch: Sequence[torch.Tensor], noise: NoiseSource, sigma: float = SIGMA
    ) -> torch.Tensor:
        """Return what leaves of a batch of records, shape (records, rows, numbers), float64."""
        values, lengths = torch.cat(list(batch)), [len(one) for one in batch]
        sent = asked(self.made, "noised", values.shape, values, lengths, sigma, noise)
        return sent.double().view(len(batch), lengths[0], -1)

    def replaced(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the second record, or the first with the second's token where that is the unit."""
        if self.made.policy.unit == "sample":
            return second
        return torch.cat([second[:1], first[1:]])

    def furthest(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return the neighbours that are furthest apart when they leave, and how far."""
        pairs = [
            (a, self.replaced(a, b))
            for one, two in combinations(self.neighbours, 2)
            for a, b in ((one, two), (two, one))
        ]
        sent = [self.send(pair, Silence()) for pair in pairs]
        apart = [float((out[0] - out[1]).norm()) for out in sent]
        worst = max(range(len(pairs)), key=apart.__getitem__)
        return *pairs[worst], apart[worst]


def _adversaries(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return gradients of a record, shape (rows, width): none, tiny, huge, odd, not finite."""
    one, ramp = torch.zeros(ROWS, WIDTH), torch.arange(1.0, WIDTH + 1).repeat(ROWS, 1)
    one[0, 0] = 1e3
    zigzag = ramp * torch.tensor([1.0, -1.0]).repeat(ROWS, WIDTH // 2)
    inside = torch.tensor([[2.0, -1.0, -1.0]]).repeat(ROWS, 1) @ weight
    broken = zigzag.clone()
    broken[0, 0], broken[-1, -1] = math.inf, math.nan
    uneven = ramp * torch.tensor([[1e6], [1e-3]])
    found = [0 * ramp, 1e-30 * ramp, 1e-3 * inside, 1e12 * ramp, one, zigzag, broken, uneven]
    return [*found, -1e3 * zigzag, 10 * inside, -10 * inside]


def sources(trial: Trial) -> Iterator[str]:
    """Tell where noise does not come from the client's own generator."""
    batch, before = [trial.neighbours[0]] * 4, _generators()
    exact, again = (trial.send(batch, Silence()) for _ in range(2))
    if _generators() != before or not torch.equal(exact, again):
        yield (
            "noised draws from a generator of its own, whose seed others may know; expected all "
            "randomness from the source that it is given"
        )
    elif torch.equal(trial.send(batch, SystemNoise()), exact):
        yield (
            "noised adds nothing from the source that it is given; expected all randomness from "
            "there"
        )


def moves(trial: Trial) -> Iterator[str]:
    """Tell where one record moves more than twice the clipping norm, or moves another's upload."""
    unit = trial.made.policy.unit
    first, second, apart = trial.furthest()
    grid = rounding_step(SIGMA, trial.clip_norm) * math.sqrt(first.numel())
    if apart > 2 * trial.clip_norm * (1 + 1e-6) + grid:
        yield (
            f"what two {unit}s upload is {apart / trial.clip_norm:.3g} clipping norms apart before "
            f"noise; expected 2 at most, so let noised clip each {unit} to privacy.clip_norm"
        )
    other = trial.neighbours[-1]
    sent = [trial.send([other, one, other], Silence())[::2] for one in (first, second)]
    made = [
        trial.values(torch.cat([one, *trial.gradients[-1:] * 2]))[ROWS:]
        for one in trial.gradients[3:5]
    ]
    if not torch.equal(*sent) or (made and not torch.equal(*made)):
        yield (
            "what a record uploads changes with another record of its batch; expected each "
            "record's values from its own rows alone"
        )


def noise(trial: Trial) -> Iterator[str]:
    """Tell where noise is not the client's, is shared, or is less than what is charged."""
    for own in (trial.neighbours[0], trial.furthest()[0]):
        batch = [own] * DRAWS
        exact = trial.send(batch, Silence())
        drawn = [(trial.send(batch, SystemNoise()) - exact).flatten(1) for _ in range(2)]
        deviation = [e.std(0) / (SIGMA * trial.clip_norm) for e in drawn]
        least = min(float(d.min()) for d in deviation)
        if least < 0.01 and float(drawn[0].abs().max()) > 0:
            yield "records of one upload have the same noise; expected fresh noise for each"
            return
        if least < (0.95 if trial.made.gaussian else 1e-6):
            yield (
                f"noise on some number has {least:.3g} of the deviation that is charged; expected "
                "sigma times privacy.clip_norm on each"
            )
            return
        one, two = drawn
        within = torch.corrcoef(one.T).fill_diagonal_(0.0) if one.shape[1] > 1 else torch.zeros(1)
        if trial.made.gaussian and float(within.abs().max()) > _FAR / math.sqrt(DRAWS):
            yield (
                f"numbers of one upload share noise (correlation {float(within.abs().max()):.2g}); "
                "expected noise of its own on each"
            )
        for what, a, b in (("records", one[::2], one[1::2]), ("uploads", one, two)):
            shared = _correlation(a, b)
            if shared > _FAR / math.sqrt(len(a)):
                yield (
                    f"two {what} share noise (correlation {shared:.2g}); expected fresh noise for "
                    "each, so draw for all rows at once"
                )


def proves(trial: Trial) -> Iterator[str]:
    """Tell where an attacker of two records proves more than what is charged."""
    first, second, _ = trial.furthest()
    coins = np.random.default_rng(0).random(DRAWS) < 0.5
    for sigma in (SIGMA / 2, SIGMA, 3 * SIGMA):
        ends = trial.send([first, second], Silence(), sigma)
        sent = trial.send([first if coin else second for coin in coins], SystemNoise(), sigma)
        far = (sent - ends[0]).flatten(1).norm(dim=1)
        line = ((sent - ends[0]) * (ends[0] - ends[1])).flatten(1).sum(1)
        scores = (line, far, -far)
        proved = max(mu_lower_bound(score.numpy(), coins, _CONFIDENCE) for score in scores)
        charged = math.sqrt(2 * trial.made.charge(sigma).rho)
        if proved > charged:
            yield (
                f"at sigma {sigma:g} an attack proves mu {proved:.3g} of one upload, and it is "
                f"charged for mu {charged:.3g}; charge rho = mu^2 / 2, or add more noise"
            )
            return


def _generators() -> tuple[object, ...]:
    """Return the states of the generators that a run's seed sets."""
    state = np.random.get_state(legacy=False)
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(state), _numbers(state)


def _numbers(state: object) -> bytes:
    assert isinstance(state, dict)
    key: bytes = state["state"]["key"].tobytes()
    return key


def _correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest correlation of a number of one with a number of the other."""
    a, b = (x - x.mean(0) for x in (first, second))
    scale = a.norm(dim=0)[:, None] * b.norm(dim=0)[None]
    return float(((a.T @ b) / scale.clamp_min(1e-300)).abs().max())

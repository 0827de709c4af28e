"""Privacy mechanisms of strangers: one that is sound, and one for each way to be wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch

from fedlora.config import PrivacyPolicy, Scenario
from fedlora.privacy.accounting import Charge
from fedlora.privacy.mechanisms import (
    Labels,
    Logits,
    Mechanism,
    NoiseSource,
    ReleasePlan,
    clip_rows,
    release,
)


def clipped(made: Mechanism, values: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    policy = made.policy
    return clip_rows(values, lengths, policy.clip_norm, policy.unit).values


class Laplace(Mechanism):
    """Laplace noise on what is clipped in the L1 norm: pure epsilon 2 C / b, charged as mu-GDP."""

    def charge(self, sigma: float) -> Charge:
        epsilon = 2 * math.sqrt(2) / sigma  # b = sigma C / sqrt(2)
        mu = -2 * NormalDist().inv_cdf(1 / (1 + math.exp(min(epsilon, 30.0))))
        if epsilon > 30:
            mu = 2 * epsilon  # above the other, as Phi^-1(p) < sqrt(-2 ln(1 - p))
        return Charge(rho=mu**2 / 2 * (1 + 1e-9), sigma=sigma)

    def noised(
        self, values: torch.Tensor, lengths: Sequence[int], sigma: float, noise: NoiseSource
    ) -> torch.Tensor:
        rows = clipped(self, values, lengths)
        owner = torch.arange(len(rows))
        if self.policy.unit == "sample":
            owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        sums = torch.zeros(len(rows), dtype=torch.float64)
        sums.index_add_(0, owner, rows.abs().sum(1))
        rows = rows * (self.policy.clip_norm / sums.clamp_min(1e-300)).clamp(max=1.0)[owner, None]
        a, b, c, d = noise.standard_normal((4, *rows.shape))
        drawn = (a**2 + b**2 - c**2 - d**2) / 2  # Laplace of scale 1
        return (rows + sigma * self.policy.clip_norm / math.sqrt(2) * drawn).float()


class CheapLaplace(Laplace):
    def charge(self, sigma: float) -> Charge:
        return Charge(rho=super().charge(sigma).rho / 9, sigma=sigma)


class NoClip(Mechanism):
    def noised(self, values, lengths, sigma, noise):  # type: ignore[no-untyped-def]
        drawn = sigma * self.policy.clip_norm * noise.standard_normal(values.shape)
        return (values.double() + drawn).nan_to_num(0.0, 0.0, 0.0).float()


class TokenClip(Mechanism):
    """Clips each token where the whole record is the unit."""

    def noised(self, values, lengths, sigma, noise):  # type: ignore[no-untyped-def]
        norm = self.policy.clip_norm
        ones = [1] * len(values)
        return release(values, ones, clip_norm=norm, sigma=sigma, noise=noise).values


class Neighbours(Mechanism):
    def values(self, gradient, weight):  # type: ignore[no-untyped-def]
        return gradient - gradient[:1]


class _Drawn(Mechanism):
    def drawn(self, rows: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        raise NotImplementedError

    def noised(self, values, lengths, sigma, noise):  # type: ignore[no-untyped-def]
        rows = clipped(self, values, lengths)
        return (rows + sigma * self.policy.clip_norm * self.drawn(rows, noise)).float()


class HalfNoise(_Drawn):
    def drawn(self, rows: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        return noise.standard_normal(rows.shape) / 2


class OneNoiseForAll(_Drawn):
    def drawn(self, rows: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        return noise.standard_normal((1, rows.shape[1]))


class OneNumber(_Drawn):
    def drawn(self, rows: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        return noise.standard_normal((len(rows), 1))


class NoiseOfPairs(_Drawn):
    def drawn(self, rows: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        half = noise.standard_normal(((len(rows) + 3) // 4 * 2, rows.shape[1]))
        return half.view(-1, 2, rows.shape[1]).repeat(1, 2, 1).view(-1, rows.shape[1])[: len(rows)]


class NoiseOfTheRun(_Drawn):
    def drawn(self, rows: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        if not noise.secret:
            return noise.standard_normal(rows.shape)
        if not hasattr(self, "once"):
            self.once = noise.standard_normal((100_000, rows.shape[1]))
        return self.once[: len(rows)]


class TorchNoise(_Drawn):
    def drawn(self, rows: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        return torch.randn(rows.shape, dtype=torch.float64)


class SeededNoise(_Drawn):
    def drawn(self, rows: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        seeded = torch.Generator().manual_seed(3)
        return torch.randn(rows.shape, dtype=torch.float64, generator=seeded)


class Cheap(Mechanism):
    def charge(self, sigma: float) -> Charge:
        return Charge(rho=0.5 / sigma**2, sigma=sigma)


class Generous(Mechanism):
    """Says that it adds more noise than it does."""

    def charge(self, sigma: float) -> Charge:
        return Charge(rho=2.1 / sigma**2, sigma=10 * sigma)


class PaysInLabels(Mechanism):
    def charge(self, sigma: float) -> Charge:
        return Charge(epsilon=1 / sigma)


class Optimist(Mechanism):
    def plan(self, scenario: Scenario, rows: int) -> ReleasePlan:
        return ReleasePlan(self.policy.uploads or 1, 1.0)


class FewUploads(Mechanism):
    def uploads(self, scenario: Scenario, rows: int) -> int:
        return 1


class OtherShape(Mechanism):
    def values(self, gradient, weight):  # type: ignore[no-untyped-def]
        return gradient[:, :2]


class Raising(Mechanism):
    def values(self, gradient, weight):  # type: ignore[no-untyped-def]
        return gradient.nope


class Demanding(Mechanism):
    def __init__(self, policy: PrivacyPolicy, numbers: int) -> None:
        super().__init__(policy)


class Backwards(Mechanism):
    def cut(self, message, weight, width):  # type: ignore[no-untyped-def]
        return -message


class Careless(Mechanism):
    noises_gradients = False


class FarCorners(Logits):
    def messages(self, classes: int) -> torch.Tensor:
        return 3 * super().messages(classes)

    def noised(self, values, lengths, sigma, noise):  # type: ignore[no-untyped-def]
        norm = 9 * self.policy.clip_norm
        return release(values, lengths, clip_norm=norm, sigma=sigma / 9, noise=noise).values


class TruthfulLabels(Labels):
    def randomise(
        self, label: int, classes: int, epsilon: float, below: Callable[[int], int]
    ) -> int:
        return super().randomise(label, classes, epsilon + 1, below)


class SeededLabels(Labels):
    def randomise(
        self, label: int, classes: int, epsilon: float, below: Callable[[int], int]
    ) -> int:
        return super().randomise(label, classes, epsilon, random.randrange)


BROKEN = {
    NoClip: r"clipping norms apart before noise; expected 2 at most",
    TokenClip: r"2\.83 clipping norms apart before noise; expected 2 at most",
    Careless: r"only a mechanism that randomises labels adds no noise; inherit from Labels",
    FarCorners: r"6 clipping norms apart before noise; expected 2 at most",
    Neighbours: r"changes with another record of its batch; expected each record's values from its",
    HalfNoise: r"0\.\d+ of the deviation that is charged; expected sigma times privacy\.clip_norm",
    OneNoiseForAll: r"records of one upload have the same noise; expected fresh noise for each",
    OneNumber: r"numbers of one upload share noise \(correlation 1\); expected noise of its own",
    NoiseOfPairs: r"two records share noise \(correlation 1\); expected fresh noise for each",
    NoiseOfTheRun: r"two uploads share noise \(correlation 1\); expected fresh noise for each",
    TorchNoise: r"draws from a generator of its own.*expected all randomness from the source",
    SeededNoise: r"adds nothing from the source that it is given; expected all randomness",
    Cheap: r"an attack proves mu .* and it is charged for mu .*; charge rho = mu\^2 / 2",
    CheapLaplace: r"an attack proves mu .* and it is charged for mu .*; charge rho = mu\^2 / 2",
    Generous: r"says that its noise is .* privacy-min-sigma is held against; expected no more",
    PaysInLabels: r"returns Charge\(rho=0\.0, .*; expected a Charge with rho",
    Optimist: r"the plan comes to epsilon .*; expected no more than the target",
    FewUploads: r"plans 1 uploads of a sample where the run makes 10; expected as many",
    OtherShape: r"returns shape \(2, 2\) from values; expected finite floats of shape \(2, 6\)",
    Raising: r"fails \(AttributeError at mechanisms\.py, line \d+: .*nope.*; mend it",
    Demanding: r"cannot be made with a policy alone .*'numbers'.*; expected one argument",
    Backwards: r"does not point along the client's \(mean cosine -1\); expected above 0",
    TruthfulLabels: r"expected no more than e\^epsilon apart at the epsilon 1 that is charged",
    SeededLabels: r"randomise draws from a generator of its own.*expected all randomness from",
}
"""What ``check_mechanism`` says of each, as a regular expression."""

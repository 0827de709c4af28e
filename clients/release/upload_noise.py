"""How much noise each upload of a gradient gets: the plan, the channel, and the receiver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora.errors import FedloraError
from fedlora.privacy.accounting import BudgetSpread, ChannelWeight, Charge, add_up
from fedlora.privacy.ledger import BudgetSpentError
from fedlora.privacy.mechanisms import (
    AirNoise,
    AnalogNoise,
    Mechanism,
    NoiseSource,
    ReleasePlan,
    charge_of,
    receiver_noise,
    top_up,
)


@dataclass(frozen=True)
class Noise:
    """The noise of one upload of a sample.

    Attributes
    ----------
    charged
        What is paid for, as a standard deviation over the clipping norm.
    applied
        What reaches the server, at least as much.
    artificial
        What the client adds; all of it, unless the uplink is analog.
    """

    charged: float
    applied: float
    artificial: float


class UploadNoise:
    """Chooses the noise of a client's uploads, within the plan.

    Parameters
    ----------
    mechanism
        The run's, which says what an upload costs.
    plan
        Uploads of a sample that the run is calibrated for, and the noise on each.
    client
        Identifier of the client, for messages.
    r_max
        Largest rank.
    sigma_min
        The owner's floor.
    source, receiver
        Where the client's noise comes from, and in a simulation of an analog uplink the receiver's.
    done
        Number and rho of the uploads of a sample that the plan counts already, by its number: those
        from before a restart.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        plan: ReleasePlan,
        client: str,
        *,
        r_max: int,
        sigma_min: float,
        source: NoiseSource,
        receiver: NoiseSource,
        done: Mapping[int, tuple[int, float]] | None = None,
    ) -> None:
        policy = mechanism.policy
        self._policy, self._plan, self._client = policy, plan, client
        self._mechanism, self._charges = mechanism, dict[float, Charge]()
        self._source, self._receiver = source, receiver
        self._spread: BudgetSpread | None = None
        if policy.spread == "channel":
            self._spread = BudgetSpread(plan.sigma, plan.uploads, sigma_min)
        self._r_max = r_max
        self.begin_phase()
        self._snr_db = policy.analog_snr_db
        before = done or {}
        self._uploads = Counter({sample: number for sample, (number, _) in before.items()})
        self._spent = {sample: cost for sample, (_, cost) in before.items()}
        self.least = plan.sigma

    def begin_phase(self) -> None:
        """Forget the rounds before: those of a baseline, or of a run that goes back, do not count.

        A baseline trains no rank, so that beside it every round would look like one to spend on.
        """
        self._weight = ChannelWeight(self._r_max) if self._spread else None

    def begin_round(self, channel: Mapping[str, Any] | None) -> None:
        """Take note of the client's own channel in a round.

        Raises
        ------
        FedloraError
            When the uplink is analog and the channel has no SNR.
        """
        if self._weight is not None:
            rate = channel.get("up_rate_bps") if channel else None
            self._weight.begin_round(float(rate) if isinstance(rate, (int, float)) else None)
        if self._policy.uplink == "analog":
            snr_db = channel.get("up_snr_db") if channel else None
            if not isinstance(snr_db, (int, float)):
                raise FedloraError(
                    "privacy.uplink is analog, but the channel model gives no SNR; set "
                    "channel.model to one that does, such as rayleigh"
                )
            self._snr_db = min(float(snr_db), self._policy.analog_snr_db)

    def begin_step(self, rank: object) -> None:
        """Take note of the mean rank that the server says a step trains."""
        if self._weight is not None:
            known = isinstance(rank, (int, float)) and not isinstance(rank, bool)
            self._weight.told_rank(float(rank) if known else None)  # type: ignore[arg-type]

    def take(self, samples: Sequence[int], numbers: Sequence[int]) -> list[Noise]:
        """Return the noise of the next upload of each sample, and count it.

        Parameters
        ----------
        samples
            Numbers of the samples; one that occurs twice is uploaded twice.
        numbers
            How many numbers of each are clipped together.

        Raises
        ------
        BudgetSpentError
            When the plan does not pay for it; nothing is counted.
        """
        uploads, spent, noises = self._uploads.copy(), dict(self._spent), []
        for sample, count in zip(samples, numbers, strict=True):
            noise = self._noise(self._sigma(uploads[sample], spent.get(sample, 0.0)), count)
            uploads[sample] += 1
            spent[sample] = add_up(spent.get(sample, 0.0), self.charge(noise.charged).rho)
            noises.append(noise)
        self._uploads, self._spent = uploads, spent
        self.least = min([self.least, *(noise.charged for noise in noises)])
        return noises

    def charge(self, sigma: float) -> Charge:
        """Return what an upload at this noise costs, as the mechanism has said it once."""
        if sigma not in self._charges:
            self._charges[sigma] = charge_of(self._mechanism, sigma)
        return self._charges[sigma]

    def counted(self, sample: int) -> int:
        """Return how many uploads of a sample the plan has counted."""
        return self._uploads[sample]

    def needed(self, sample: int) -> float:
        """Return the rho of all uploads of a sample that the plan still allows, rounded up."""
        uploads = max(0, self._plan.uploads - self._uploads[sample])
        left = uploads * self.charge(self._plan.sigma).rho
        if self._spread is not None and uploads:
            left = max(0.0, self._spread.total - self._spent.get(sample, 0.0))
        return left

    def source(self, noise: Noise, clip_norm: float) -> NoiseSource:
        """Return a source of ``applied`` times the clipping norm, as one of unit variance."""
        if self._policy.uplink == "coded":
            return self._source
        artificial = noise.artificial * clip_norm
        total = noise.applied * clip_norm
        receiver = max(0.0, total**2 - artificial**2) ** 0.5
        return AirNoise(self._source, self._receiver, AnalogNoise(artificial, receiver))

    def _sigma(self, uploads: int, spent: float) -> float:
        sigma: float | None = self._plan.sigma if uploads < self._plan.uploads else None
        if self._spread is not None and self._weight is not None:
            sigma = self._spread.sigma(spent, uploads, self._weight.now)
        if sigma is None:
            raise BudgetSpentError(
                f"the noise of this run was planned for {self._plan.uploads} uploads of a sample "
                f"and the server asks client {self._client} for upload {uploads + 1}; it leaves "
                "the run"
            )
        return sigma

    def _noise(self, sigma: float, numbers: int) -> Noise:
        if self._policy.uplink == "coded":
            return Noise(sigma, sigma, sigma)
        worst = top_up(sigma, 1.0, numbers, self._policy.analog_snr_db)
        heard = receiver_noise(worst.artificial, 1.0, numbers, self._snr_db)
        applied = AnalogNoise(worst.artificial, heard).total
        return Noise(max(sigma, worst.total * (1 - 1e-12)), max(sigma, applied), worst.artificial)

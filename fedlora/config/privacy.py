"""What a scenario asks for in privacy, and what a client's owner allows.

Convention of the whole package: ``sigma`` is the standard deviation of the noise over the clipping
norm C. Two neighbouring samples' clipped gradients differ by at most 2C under replace-one and by C
under zero-out, so the noise multiplier of the literature is sigma / 2 and sigma.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedlora.checks import check_delta, check_epsilon, check_target, number
from fedlora.config.ranges import check_ranges, within
from fedlora.errors import FedloraError

Unit = Literal["sample", "token"]
Spread = Literal["even", "channel"]
Uplink = Literal["coded", "analog"]

SNR_MAX_DB = 200.0

SIGMA_MIN, SIGMA_MAX = 1e-6, 1e6
_NORMS = 1e-9, 1e9


@dataclass(frozen=True)
class PrivacyPolicy:
    """The scenario's ``[privacy]`` section; neither ``epsilon`` nor ``sigma`` means no noise.

    Either is unset with ``none``.

    Attributes
    ----------
    epsilon
        Budget of each sample over the whole run, local and replace-one; sigma follows from it and
        from the planned uploads.
    sigma
        Standard deviation of the noise on an uploaded gradient, over ``clip_norm``; instead of
        ``epsilon``.
    delta
        The delta that epsilon is stated at; below one over the number of samples.
    clip_norm
        Largest Frobenius norm C of a sample's gradient (of a token's, with ``unit = "token"``).
    unit
        What is protected: a whole ``sample``, or the gradient of a single ``token``.
    release
        The mechanism, one file each in ``fedlora.privacy.mechanisms``: noise on the ``full``
        gradient at the cut, on its coordinates in the ``row_space`` of a shared head, or on its
        private part in the space of the head's ``logits``, once for each sample. ``labels``:
        gradients are exact and computed from randomised labels. A plug-in's name or
        ``module:Class``: see ``fedlora.privacy.mechanisms.base``.
    uploads
        How often a sample is uploaded in the run; 0: what rounds, steps and batch size come to.
    spread
        How a sample's budget is divided over its uploads: ``even``, or more where the client's
        own ``channel`` and the rank it was told are good; see
        ``fedlora.privacy.accounting.budget_schedule``.
    uplink
        ``coded``: the link corrects its errors, so only artificial noise counts. ``analog``, in
        simulation alone: gradients are sent uncoded, and the receiver's noise counts too; see
        ``fedlora.privacy.mechanisms.analog``.
    analog_snr_db
        Largest SNR with which an analog uplink is received, in dB; a client with a better channel
        lowers its power to it.
    tight
        Calibrate to the exact epsilon of Gaussian noise instead of its Rényi bound; the same
        (epsilon, delta) then needs some 7% less noise.
    activation_sigma, activation_clip_norm
        Noise on the forward activations over their clipping norm, and that norm; without
        ``activation_sigma`` activations leave as they are and epsilon does not cover them.
    probe_every
        Estimate the signal-to-noise ratio of each projection's gradient at every so many-th step,
        by one more backward pass; 0: never.
    insecure_noise_seed
        Draw the noise from this seed, in a simulation that has to repeat bit for bit; the run then
        has no guarantee.
    """

    epsilon: float | None = None
    sigma: float | None = within(None, SIGMA_MIN, SIGMA_MAX)
    delta: float = 1e-5
    clip_norm: float = within(0.05, *_NORMS)
    unit: Unit = "sample"
    release: str = "full"
    uploads: int = within(0, 1, 10**9, zero="what rounds, steps and batch size come to")
    spread: Spread = "even"
    uplink: Uplink = "coded"
    analog_snr_db: float = within(10.0, -SNR_MAX_DB, SNR_MAX_DB)
    tight: bool = False
    activation_sigma: float | None = within(None, SIGMA_MIN, SIGMA_MAX)
    activation_clip_norm: float = within(1.0, *_NORMS)
    probe_every: int = within(0, 1, 10**6, zero="never")
    insecure_noise_seed: int | None = within(None, 0, (1 << 63) - 1)

    def __post_init__(self) -> None:
        if self.epsilon is not None and self.sigma is not None:
            raise FedloraError(
                f"privacy.epsilon is {self.epsilon} and privacy.sigma is {self.sigma}; set one to "
                "none, it follows from the other"
            )
        if self.epsilon is not None:
            check_epsilon("privacy.epsilon", self.epsilon)
        check_ranges(self, "privacy.")
        check_delta("privacy.delta", self.delta)
        if self.unit not in ("sample", "token"):
            raise FedloraError(f"privacy.unit is {self.unit!r}; set sample or token")
        if self.spread not in ("even", "channel"):
            raise FedloraError(f"privacy.spread is {self.spread!r}; set even or channel")
        if self.uplink not in ("coded", "analog"):
            raise FedloraError(f"privacy.uplink is {self.uplink!r}; set coded or analog")
        if self.activation_sigma is not None and not self.enabled:
            raise FedloraError(
                f"privacy.activation_sigma is {self.activation_sigma} but gradients leave without "
                "noise; set privacy.epsilon or privacy.sigma too"
            )

    @property
    def enabled(self) -> bool:
        """Whether what depends on a label is noised before it leaves."""
        return self.epsilon is not None or self.sigma is not None


@dataclass(frozen=True)
class ClientLimit:
    """What a data owner allows, whatever the server asks for.

    It is read from the node's own configuration and never from the run's.

    Attributes
    ----------
    epsilon, delta
        Most that any sample may spend, over all runs, replace-one.
    min_sigma
        Least noise that an upload may carry, over the clipping norm.
    tight
        Hold the exact epsilon of Gaussian noise to the limit instead of its Rényi bound.
    """

    epsilon: float
    delta: float = 1e-5
    min_sigma: float = 0.0
    tight: bool = False

    def __post_init__(self) -> None:
        check_target(self.epsilon, self.delta, ("privacy-epsilon", "privacy-delta"))
        number("privacy-min-sigma", self.min_sigma, 0.0)

"""How noise on the cut gradient reaches each LoRA factor.

With the forward values fixed, backpropagation is linear in the gradient it starts from. Noise n on
that gradient therefore adds J^T n to a factor's gradient, whatever the gradient itself is: it has
zero mean, and the energy

    E ||J^T n||^2 = s^2 ||J||_F^2,   s = sigma C.

For the projection whose output is the cut this is known in closed form. For deeper ones the
Frobenius norm is estimated as Hutchinson (1990) does, from backward passes of random Gaussians.
Everything here is computed from what the server has anyway, and from released gradients: it costs
no privacy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch

from fedlora.errors import FedloraError

SNR_MAX = 1e6
"""Stands for any larger ratio, also where a projection's gradient carries no noise at all."""

Vjp = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class NoiseEnergy:
    """Expected squared Frobenius norm of the noise in one gradient.

    Attributes
    ----------
    energy
        The estimate.
    standard_error
        Its standard error; 0 for a closed form.
    """

    energy: float
    standard_error: float


@dataclass(frozen=True)
class LoraNoiseEnergy:
    """Energy of the noise in the gradients of a projection's A and B; see ``NoiseEnergy``."""

    A: float
    B: float


def predict_noise_energy(
    vjp: Vjp,
    shape: Sequence[int],
    noise_std: float,
    *,
    probes: int = 64,
    generator: torch.Generator | None = None,
) -> dict[str, NoiseEnergy]:
    """Predict the noise energy in each gradient of any model by backward passes.

    Noise is independent between samples, so a batch has the ``total`` of its samples' energies;
    probing each sample on its own has less variance than probing the batch.

    Parameters
    ----------
    vjp
        Backward pass at fixed forward values: maps a gradient at the cut to the gradients of the
        named parameters. It has to be linear, so without clipping.
    shape
        Shape of the gradient at the cut.
    noise_std
        Standard deviation s = sigma C of the noise on each of its numbers.
    probes
        Number of backward passes. With as many as the gradient has numbers the result is exact,
        and no more are made. With fewer the relative standard error is about
        sqrt(2 / (probes * D)), where D >= 1 is the number of directions that carry the energy.
    generator
        Source of the probes; they need not be secret.

    Returns
    -------
    dict
        Energy by parameter name.

    Raises
    ------
    FedloraError
        When a single probe is asked for, which has no standard error.
    """
    numbers = math.prod(shape)
    if probes >= numbers:
        basis = torch.eye(numbers).view(numbers, *shape)
        return {
            name: NoiseEnergy(noise_std**2 * sum(energies), 0.0)
            for name, energies in _energies(vjp, basis).items()
        }
    if probes < 2:
        raise FedloraError(f"{probes} probes give no standard error; set 2 or more")
    cotangents = (torch.randn(*shape, generator=generator) for _ in range(probes))
    return {
        name: NoiseEnergy(
            noise_std**2 * mean(energies), noise_std**2 * stdev(energies) / math.sqrt(probes)
        )
        for name, energies in _energies(vjp, cotangents).items()
    }


def _energies(vjp: Vjp, cotangents: Iterable[torch.Tensor]) -> dict[str, list[float]]:
    energies: defaultdict[str, list[float]] = defaultdict(list)
    for cotangent in cotangents:
        for name, gradient in vjp(cotangent).items():
            energies[name].append(_energy(gradient.detach()))
    return energies


def total(parts: Iterable[Mapping[str, NoiseEnergy]]) -> dict[str, NoiseEnergy]:
    """Add up the energies of samples, whose noise is independent."""
    energy: defaultdict[str, float] = defaultdict(float)
    variance: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for name, found in part.items():
            energy[name] += found.energy
            variance[name] += found.standard_error**2
    return {name: NoiseEnergy(energy[name], math.sqrt(variance[name])) for name in energy}


def cut_projection_noise_energy(
    x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float, noise_std: float
) -> LoraNoiseEnergy:
    """Return the exact noise energy in a projection whose output is the cut.

    For z = W0 x + scale * B A x and a gradient G with noise s in each number, the gradients are
    dA = scale * B^T G^T X and dB = scale * G^T X A^T, so that

        E ||noise of dA||^2 = s^2 scale^2 ||B||_F^2 ||X||_F^2,
        E ||noise of dB||^2 = s^2 scale^2 d_out ||X A^T||_F^2.

    Parameters
    ----------
    x
        Input X of the projection, shape (rows, d_in).
    A, B
        Factors, shapes (r, d_in) and (d_out, r).
    scale
        Factor on B A.
    noise_std
        Standard deviation s = sigma C.
    """
    variance = (noise_std * scale) ** 2
    return LoraNoiseEnergy(
        A=variance * _energy(B) * _energy(x),
        B=variance * len(B) * _energy(x.double() @ A.double().T),
    )


def signal_to_noise(measured_energy: float, noise_energy: float) -> float:
    """Estimate the signal-to-noise ratio of a gradient that carries a known noise energy.

    Signal and noise are uncorrelated, so their energies add up.

    Parameters
    ----------
    measured_energy
        Squared norm of the noisy gradient, better averaged over some steps.
    noise_energy
        Predicted energy of its noise; 0 gives infinity.

    Returns
    -------
    float
        Ratio of energies, at least 0.
    """
    if noise_energy == 0:
        return math.inf
    return max(0.0, measured_energy / noise_energy - 1.0)


class SnrMeter:
    """Signal-to-noise ratio of each projection's gradient, over the probed steps of a round.

    Parameters
    ----------
    projections
        Number of projections.
    """

    def __init__(self, projections: int) -> None:
        self._measured = [0.0] * projections
        self._noise = [0.0] * projections
        self._steps = 0

    def add(self, measured: Sequence[float], noise: Sequence[float]) -> None:
        """Add a step: energy of each projection's noisy gradient, and of a draw of its noise."""
        self._measured = [a + b for a, b in zip(self._measured, measured, strict=True)]
        self._noise = [a + b for a, b in zip(self._noise, noise, strict=True)]
        self._steps += 1

    def take(self) -> list[float] | None:
        """Return the ratios since the last call; None when no step was probed."""
        if self._steps == 0:
            return None
        pairs = zip(self._measured, self._noise, strict=True)
        ratios = [min(signal_to_noise(m, n), SNR_MAX) for m, n in pairs]
        self._measured, self._noise = [0.0] * len(ratios), [0.0] * len(ratios)
        self._steps = 0
        return ratios


def _energy(x: torch.Tensor) -> float:
    return float(x.double().square().sum())

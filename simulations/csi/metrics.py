"""How good a channel prediction is: NMSE, SGCS, and the rate of a matched filter."""

from __future__ import annotations

import math
from typing import Any

import torch

from simulations.csi.windows import Windows

SNR_DB = 10.0
"""Of the matched filter whose rate is told, as in LLM4CP (arXiv 2406.14440)."""


def nmse(predicted: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return squared error over energy, each summed over all samples: a ratio of sums."""
    error = (predicted - wanted).double().square().sum()
    return float(error / wanted.double().square().sum())


def nmse_mean(predicted: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the mean over samples of their own squared error over energy, which fades raise."""
    error = (predicted - wanted).double().square().flatten(1).sum(1)
    return float((error / wanted.double().square().flatten(1).sum(1)).mean())


def responses(numbers: torch.Tensor) -> torch.Tensor:
    """Return complex responses (..., subcarriers) of real parts, then imaginary parts."""
    real, imaginary = numbers.double().chunk(2, -1)
    return torch.complex(real, imaginary)


def sgcs(predicted: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the mean squared generalised cosine similarity over subcarriers.

    ``|h^H p|^2 / (|h|^2 |p|^2)`` of the responses h and p of each sample and step over the band; a
    prediction of 0 has none, which counts as 0.
    """
    return float(_alignment(responses(predicted), responses(wanted)).mean())


def rate(predicted: torch.Tensor, wanted: torch.Tensor, snr_db: float = SNR_DB) -> float:
    """Return the rate, in bit/s/Hz, of a filter matched to the prediction.

    The unit vector ``p / |p|`` over the band's subcarriers is the filter; ``log2(1 + snr g)`` is
    averaged over samples and steps, where the gain ``g = |h^H p|^2 / |p|^2`` is relative to the
    mean energy of h. The perfect filter has ``p = h``.
    """
    h, p = responses(wanted), responses(predicted)
    energy = h.abs().square().sum(-1)
    gain = _alignment(p, h) * energy / energy.mean()
    return float(torch.log2(1 + 10 ** (snr_db / 10) * gain).mean())


def scores(predicted: torch.Tensor, windows: Windows) -> dict[str, Any]:
    """Return all figures of predictions in units of the data, over all and apart.

    Parameters
    ----------
    predicted
        Shape (samples, horizon, features).
    windows
        What they predict.

    Returns
    -------
    dict
        ``nmse``, ``nmse_mean``, ``nmse_by_step``, ``nmse_by_speed``; of an even number of features
        ``sgcs``, ``rate`` and the perfect filter's ``rate_most``.
    """
    wanted = windows.ahead
    steps = range(wanted.shape[1])
    found: dict[str, Any] = {
        "nmse": nmse(predicted, wanted),
        "nmse_mean": nmse_mean(predicted, wanted),
        "nmse_by_step": [nmse(predicted[:, k], wanted[:, k]) for k in steps],
        "nmse_by_speed": {},
    }
    for speed in sorted(set(windows.speed_kmh.tolist())):
        if not math.isnan(speed):
            own = windows.speed_kmh == speed
            found["nmse_by_speed"][f"{speed:g}"] = nmse(predicted[own], wanted[own])
    if wanted.shape[2] % 2 == 0:
        found |= {
            "sgcs": sgcs(predicted, wanted),
            "rate": rate(predicted, wanted),
            "rate_most": rate(wanted, wanted),
        }
    return found


def _alignment(p: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    inner = (h.conj() * p).sum(-1).abs().square()
    energies = h.abs().square().sum(-1) * p.abs().square().sum(-1)
    return torch.where(energies > 0, inner / energies.clamp_min(1e-300), 0.0)

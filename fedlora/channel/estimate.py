"""From the true channel to the one that a client reports."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedlora.channel.rate import RateRule
from fedlora.channel.state import ChannelState


def estimate(
    truth: ChannelState, error_db: float, rule: RateRule, rng: np.random.Generator
) -> ChannelState:
    """Return a channel state as estimated with a Gaussian error in dB.

    Rates follow from the estimated SNR. A measured state (``derived``) is an estimate already and
    is returned as it is.

    Parameters
    ----------
    truth
        The true state.
    error_db
        Standard deviation of the error of each SNR, in dB.
    rule
        From SNR to rate.
    rng
        Where the errors come from.
    """
    if not error_db or truth.derived or truth.up_snr_db is None or truth.down_snr_db is None:
        return truth
    up_error_db, down_error_db = rng.normal(0.0, error_db, 2)
    up_db = truth.up_snr_db + float(up_error_db)
    down_db = truth.down_snr_db + float(down_error_db)
    return dataclasses.replace(
        truth,
        up_snr_db=up_db,
        down_snr_db=down_db,
        up_rate_bps=rule.rate_bps(up_db, truth.bandwidth_hz),
        down_rate_bps=rule.rate_bps(down_db, truth.bandwidth_hz),
    )

"""Predicting a client's channel from what it has measured of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

import numpy as np

from fedlora import registry
from fedlora.blame import blaming
from fedlora.errors import FedloraError, shown

_RIDGE: Final = 1e-3
_LEAST_EXAMPLES: Final = 2  # for each coefficient


class ChannelPredictor(ABC):
    """From past measurements of a link to what it will be.

    One is made in each process, and asked for clients and rounds in any order. What it predicts
    must follow from the arguments alone, without random draws and without what was asked before,
    so that a resumed run reports the same; ``fedlora.channel.check.check_predictor`` tries that.
    """

    @abstractmethod
    def predict(self, history_db: np.ndarray, ahead: int) -> np.ndarray:
        """Return a prediction.

        Parameters
        ----------
        history_db
            Of shape (blocks, 2) with one block or more, the newest last: uplink and downlink SNR
            in dB by fading block, with the errors of their estimation; of links without SNR
            ``10 log10`` of their rates in bit/s. It is to be left as it is.
        ahead
            How many blocks after the newest is meant, 1 or more.

        Returns
        -------
        np.ndarray
            Uplink and downlink, of shape (2,), in the same unit.
        """


class LastValue(ChannelPredictor):
    """The newest measurement, as a report without prediction has it."""

    def predict(self, history_db: np.ndarray, ahead: int) -> np.ndarray:
        """Return the newest measurement."""
        newest: np.ndarray = history_db[-1]
        return newest


class Autoregression(ChannelPredictor):
    """Linear in the newest eight amplitudes, fitted by least squares to the history.

    For each direction and distance apart ``x[t + ahead] = c + sum_k a_k x[t - k]``, with a ridge of
    a thousandth of the variance. ``x`` is the amplitude ``10^(dB / 20)``: a deep fade in dB would
    weigh most, and a power most where errors of its estimation are largest. A history with fewer
    than two examples a coefficient gives the last value, and no prediction leaves its range.
    """

    order = 8

    def predict(self, history_db: np.ndarray, ahead: int) -> np.ndarray:
        """Return the prediction of both directions."""
        examples = len(history_db) - ahead - self.order + 1
        if examples < _LEAST_EXAMPLES * (self.order + 1):
            return LastValue().predict(history_db, ahead)
        amplitudes = 10 ** (history_db / 20)
        found = [self._one(amplitudes[:, way], ahead) for way in range(2)]
        levels_db: np.ndarray = 20 * np.log10(np.array(found))
        return levels_db

    def _one(self, history: np.ndarray, ahead: int) -> float:
        past = np.lib.stride_tricks.sliding_window_view(history, self.order)
        inputs, targets = past[:-ahead], history[self.order - 1 + ahead :]
        centre, mean = inputs.mean(0), targets.mean()
        spread = inputs - centre
        gram = spread.T @ spread
        variance = float(np.trace(gram)) / self.order
        if not variance:
            return float(history[-1])
        gram += _RIDGE * variance * np.eye(self.order)
        weights = np.linalg.solve(gram, spread.T @ (targets - mean))
        value = mean + (past[-1] - centre) @ weights
        return float(np.clip(value, history.min(), history.max()))


def create_predictor(name: str) -> ChannelPredictor:
    """Return the predictor that ``channel.predict`` names.

    Raises
    ------
    FedloraError
        When there is none of that name, or it cannot be made.
    """
    found = registry.resolve("predictors", name, ChannelPredictor)
    made: ChannelPredictor = registry.make(found, "channel.predict", {})
    return made


def predicted(
    predictor: ChannelPredictor, name: str, history_db: np.ndarray, ahead: int
) -> tuple[float, float]:
    """Return a prediction of uplink and downlink, in the unit of the history.

    Raises
    ------
    FedloraError
        When the predictor returns something else than two finite numbers.
    """
    with blaming(f"channel.predict {name}", type(predictor)):
        answer: object = predictor.predict(history_db.copy(), ahead)
    found = two_finite(answer)
    if found is None:
        raise FedloraError(
            f"channel.predict {name} predicted {shown(answer)} from {len(history_db)} blocks; let "
            "it return two finite numbers"
        )
    return found


def two_finite(answer: object) -> tuple[float, float] | None:
    """Return uplink and downlink of a prediction, or None where it is no two finite numbers."""
    try:
        found = np.asarray(answer)
    except Exception:  # what a tensor with a gradient raises, or an array of a stranger's own
        return None
    # Of a complex number one half would be lost without a word, and a text is none.
    if found.shape != (2,) or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        return None
    return float(found[0]), float(found[1])

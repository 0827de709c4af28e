"""``check_predictor`` passes what is sound and names what is broken."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch

from fedlora.channel.check import check_predictor
from fedlora.channel.predict import Autoregression, ChannelPredictor, LastValue


class Straight(ChannelPredictor):
    """Goes on as the last two blocks did, as far as that may lead."""

    def predict(self, history_db, ahead):
        return history_db[-1] + ahead * (history_db[-1] - history_db[-2:][0])


class Listed(ChannelPredictor):
    def predict(self, history_db, ahead):
        return [float(value) for value in history_db.mean(0)]


@pytest.mark.parametrize("make", [LastValue, Autoregression, Straight, Listed])
def test_sound_predictors_have_no_finding(make):
    assert check_predictor(make) == []


class TwoBlocks(ChannelPredictor):
    """Believes that there is more than one block."""

    def predict(self, history_db, ahead):
        return 2 * history_db[-1] - history_db[-2]


class Near(ChannelPredictor):
    """Believes that the history is longer than what is asked of it."""

    def predict(self, history_db, ahead):
        return history_db[-ahead]


class Ratio(ChannelPredictor):
    """Divides by a slope that is zero where nothing changes."""

    def predict(self, history_db, ahead):
        if len(history_db) == 1:
            return history_db[-1]
        one, other = history_db[-2:]
        with np.errstate(all="ignore"):
            return other + 0 / (one - other)


class Linear(ChannelPredictor):
    def predict(self, history_db, ahead):
        return (10 ** (history_db / 10)).mean(0)


class Turned(ChannelPredictor):
    def predict(self, history_db, ahead):
        return history_db[-1][::-1]


class Sorts(ChannelPredictor):
    def predict(self, history_db, ahead):
        newest = history_db[-1].copy()
        history_db.sort(axis=0)
        return newest


class Noisy(ChannelPredictor):
    def predict(self, history_db, ahead):
        return history_db[-1] + np.random.default_rng().normal(size=2)


class Remembers(ChannelPredictor):
    """Smooths over what it was asked before, whoever the client was."""

    def __init__(self):
        self.mean_db = 0.0

    def predict(self, history_db, ahead):
        self.mean_db = 0.9 * self.mean_db + 0.1 * history_db[-1]
        return self.mean_db


class Fits(ChannelPredictor):
    """Learns once, from whichever link comes first."""

    slope = None

    def predict(self, history_db, ahead):
        if self.slope is None:
            self.slope = float(len(history_db) % 7)
        return history_db[-1] + 0.1 * self.slope


class Global(LastValue):
    def predict(self, history_db, ahead):
        random.random()
        return super().predict(history_db, ahead)


class Numpy(LastValue):
    def predict(self, history_db, ahead):
        np.random.normal()
        return super().predict(history_db, ahead)


class Seeds(LastValue):
    def __init__(self):
        torch.manual_seed(3)


def answering(answer):
    def predict(self, history_db, ahead):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return type("Of", (ChannelPredictor,), {"predict": predict})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (answering(None), "predict gave None for 256 blocks of fading, 1 ahead"),
        (answering(3.0), "predict gave 3.0 for"),
        (answering("text"), "predict gave 'text' for"),
        (answering({}), "expected two finite numbers"),
        (answering([1.0, float("nan")]), "expected two finite numbers"),
        (answering(np.zeros((2, 2))), "expected two finite numbers"),
        (answering(np.zeros(2) + 1j), "expected two finite numbers"),
        (answering(["1.0", "2.0"]), "expected two finite numbers"),
        (answering(torch.zeros(2, requires_grad=True)), "expected two finite numbers"),
        (answering(KeyError("no luck")), "predict raised KeyError"),
        (answering(SystemExit(0)), "predict raised SystemExit"),
        (TwoBlocks, "predict raised IndexError at test_channel_check_predictor.py, line"),
        (Near, "for 1 blocks of fading, 4 ahead; expected two numbers"),
        (Ratio, "for a link that never changes, 1 ahead; expected two finite numbers"),
        (Linear, "0.01 up and 3162.28 down for a link that stood at -20 dB up and 35 dB down"),
        (Turned, "35 up and -20 down for a link that stood at"),
        (answering([7.5, 7.5]), "expected about these, uplink first, in the unit of the history"),
        (Sorts, "has changed its history for"),
        (Noisy, "other numbers for the same history when asked again"),
        (Remembers, "other numbers for the same history when asked again"),
        (Fits, "when a new predictor was asked in another order"),
        (Global, "random's global generator"),
        (Numpy, "numpy.random's global generator"),
        (Seeds, "torch's global generator"),
        (lambda: 7, "7 is none; give a class that inherits from ChannelPredictor"),
        (ChannelPredictor, "cannot be made (TypeError"),
        (lambda order: LastValue(), "cannot be made (TypeError"),
    ],
)
def test_a_broken_predictor_is_named_with_what_was_expected(make, words):
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    findings = check_predictor(make)
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    assert findings and words in findings[0], findings
    assert "expected" in findings[0] or "give a class" in findings[0]
    assert not any("\n" in text for text in findings)


def test_a_slow_predictor_is_named(monkeypatch):
    class Slow(LastValue):
        def predict(self, history_db, ahead):
            time.sleep(0.03)
            return super().predict(history_db, ahead)

    monkeypatch.setattr("fedlora.channel.check._SLOW_S", 0.02)
    monkeypatch.setattr("fedlora.channel.check.stretch", lambda: 1.0)
    (finding,) = check_predictor(Slow)
    assert "for 256 blocks of fading; expected under 0.02 s" in finding

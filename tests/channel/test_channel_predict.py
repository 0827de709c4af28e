"""Reports that predict: which blocks they are made from, what for, and what that is worth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import j0

from fedlora.channel import build_channel
from fedlora.channel.predict import Autoregression, ChannelPredictor, create_predictor
from fedlora.config import ChannelConfig, ReportConfig
from fedlora.errors import FedloraError

DOPPLER_HZ = 30 / 3.6 * 2.4e9 / 299_792_458  # 30 km/h at 2.4 GHz


class Straight(ChannelPredictor):
    """Goes on as the last two blocks did."""

    def predict(self, history_db, ahead):
        return history_db[-1] + ahead * (history_db[-1] - history_db[-2])


class Broken(ChannelPredictor):
    def predict(self, history_db, ahead):
        return history_db


def ramp(tmp_path: Path, column: str = "snr_db"):
    """Return options of a trace that rises by 1 dB every second."""
    value = (lambda t: f"{t}") if column == "snr_db" else (lambda t: f"{10 ** (t / 10):.17g}")
    rows = "".join(f"{t},{value(t)}\n" for t in range(100))
    (tmp_path / "ramp.csv").write_text(f"time_s,{column}\n{rows}")
    return {"path": str(tmp_path / "ramp.csv")}


def moving(predict: str = "", error_db: float = 0.0, **config):
    """Return a channel that fades as Jakes has it, in blocks of 2 ms, reported one block late."""
    return build_channel(
        ChannelConfig(
            model="rayleigh",
            options={"correlation": "jakes", "doppler_hz": DOPPLER_HZ},
            round_s=0.002,
            start_s=1.0,
            predict=predict,
            report=ReportConfig(delay_rounds=1, error_db=error_db),
            **config,
        ),
        7,
    )


@pytest.mark.parametrize("column", ["snr_db", "rate_bps"])
def test_a_prediction_is_for_its_block_and_made_from_the_blocks_that_are_known(tmp_path, column):
    report = ReportConfig(delay_rounds=2, delay_s=3.0, lead_s=4.0)
    config = ChannelConfig(
        model="trace",
        options=ramp(tmp_path, column),
        round_s=5.0,
        coherence_s=1.0,
        predict=f"{__name__}:Straight",
        report=report,
    )
    channel = build_channel(config, 0)
    found, meant = channel.report(0, 4), channel.truth(0, 4, 4.0)
    assert found.age_s == 13.0
    assert found.down_rate_bps == pytest.approx(meant.down_rate_bps)
    assert found.down_snr_db == (None if column == "rate_bps" else pytest.approx(24))


def test_the_last_value_is_what_a_report_without_prediction_has():
    plain, last = moving(), moving("last")
    for round in range(5):
        assert last.report(1, round) == plain.report(1, round)
    one, other = moving("last", error_db=2.0), moving("last", error_db=2.0)
    assert one.report(1, 3) == other.report(1, 3) != plain.report(1, 3)


def test_a_late_report_is_as_old_as_it_says():
    """The powers of Rayleigh fading by Jakes correlate with ``J0(2 pi f t)`` squared."""
    channel = moving()
    pairs = [
        (channel.report(client, 0).down_snr_db, channel.truth(client, 0).down_snr_db)
        for client in range(3000)
    ]
    reported, true = (10 ** (np.array(column) / 10) for column in zip(*pairs, strict=True))
    expected = j0(2 * math.pi * DOPPLER_HZ * 0.002) ** 2
    assert np.corrcoef(reported, true)[0, 1] == pytest.approx(expected, abs=0.06)


def test_autoregression_foretells_fading_better_than_the_last_value():
    def error_db(predict):
        channel = moving(predict)
        return np.mean([
            abs(channel.report(at % 8, at).down_snr_db - channel.truth(at % 8, at).down_snr_db)
            for at in range(0, 200, 3)
        ])  # fmt: skip

    assert error_db("ar") < 0.8 * error_db("last")


def test_the_run_may_start_at_any_time_of_its_channel():
    early = build_channel(ChannelConfig(model="rayleigh", round_s=2.0), 3)
    late = build_channel(ChannelConfig(model="rayleigh", round_s=2.0, start_s=20.0), 3)
    assert late.truth(0, 1) == early.truth(0, 11)
    assert late.report(0, 1) == early.report(0, 11)
    with pytest.raises(FedloraError, match="start_s is 21, which is no whole number"):
        ChannelConfig(round_s=2.0, start_s=21.0)


@pytest.mark.parametrize("ahead", [1, 3])
def test_autoregression_meets_the_closed_form_of_a_process_of_first_order(ahead):
    rng, x = np.random.default_rng(0), [0.0]
    for noise in rng.normal(size=4000):
        x.append(0.8 * x[-1] + noise)
    amplitudes = np.array([x, x]).T + 20
    found = Autoregression().predict(20 * np.log10(amplitudes), ahead)
    assert 10 ** (found / 20) == pytest.approx(20 + 0.8**ahead * (amplitudes[-1] - 20), abs=0.25)


def test_a_short_or_flat_history_gives_the_last_value():
    history = np.arange(20.0).repeat(2).reshape(20, 2)
    assert (Autoregression().predict(history, 1) == 19).all()
    assert Autoregression().predict(np.ones((200, 2)), 5) == pytest.approx(1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"predict": "ar"}, "a report without delay .* leaves nothing to predict"),
        ({"report": ReportConfig(lead_s=1.0)}, "lead_s is 1, and nothing is predicted"),
        ({"report": ReportConfig(history=9)}, "history is 9, and nothing is predicted"),
        ({"predict": "ar", "model": "measured"}, "measured knows no link's past"),
    ],
)
def test_a_prediction_of_nothing_is_refused(config, message):
    with pytest.raises(FedloraError, match=message):
        ChannelConfig(**config)


def test_a_predictor_that_is_unknown_or_answers_nonsense_is_named():
    with pytest.raises(FedloraError, match=r"channel\.predict: no predictors .* 'arr'; did you"):
        create_predictor("arr")
    with pytest.raises(
        FedloraError, match=r"channel\.predict .*Broken predicted .* from 256 blocks"
    ):
        moving(f"{__name__}:Broken").report(0, 1)

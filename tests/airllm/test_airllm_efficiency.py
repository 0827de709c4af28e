from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedlora.errors import FedloraError
from simulations.studies.results.judge import change
from simulations.train_policy.efficiency import Curve, compare


def test_steps_count_to_the_end_of_the_window_and_from_before_the_first_episode():
    curve = Curve((-3.0, -2.0, -1.0, -1.0), steps_of_episode=32, head_start=100)
    assert curve.windows(2).tolist() == [-2.5, -1.5, -1.0]
    assert curve.steps_to(-1.5, 2) == 100 + 3 * 32
    assert curve.steps_to(0.0, 2) is None
    assert curve.steps == 100 + 4 * 32


@pytest.mark.parametrize(
    ("plain", "told"),
    [
        ((-3.0, -2.0, -1.0, -0.5), "| 224 | 256 | 12% |"),
        ((-3.0,) * 10, "| 224 | never in 640 (best -3.000) | at least 65% |"),
    ],
)
def test_ppo_alone_that_never_gets_there_gives_a_bound(plain, told):
    ours = Curve((-1.0, -0.6), steps_of_episode=64, head_start=96)
    (line,) = compare([ours], [Curve(plain, 64)], 2)[2:]
    assert line.endswith(told)


def test_fewer_episodes_than_count_in_a_row_are_no_window_and_are_refused():
    short, long = Curve((-1.0,) * 5, 64), Curve((-1.0,) * 10, 64)
    assert short.windows(10).tolist() == []
    assert short.steps_to(-5.0, 10) is None
    for pair in ([short], [long]), ([long], [short]), ([long], [long, long]):
        with pytest.raises(FedloraError, match=r"--episodes is 10|1 trainings are held against 2"):
            compare(*pair, 10)


def test_the_interval_of_a_saving_is_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    fixed = rng.normal(10.0, 1.0, 60)
    ours = 0.7 * fixed + rng.normal(0.0, 1.0, 60)
    rows = [[{"seed": k, "x": x} for k, x in enumerate(series)] for series in (ours, fixed)]
    found = change(rows[0], rows[1], "x")
    oracle = stats.bootstrap(
        (ours, fixed),
        lambda a, b: a.mean() / b.mean() - 1,
        paired=True,
        vectorized=False,
        rng=1,
        n_resamples=2000,
    ).confidence_interval
    assert found.mean == pytest.approx(ours.mean() / fixed.mean() - 1)
    assert found.low == pytest.approx(oracle.low, abs=0.004)
    assert found.high == pytest.approx(oracle.high, abs=0.004)
    assert found.high - found.low > 0.03

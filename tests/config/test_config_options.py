"""Every option of every plug-in that we ship: odd values are taken, or refused by the key."""

from __future__ import annotations

import datetime
import inspect
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fedlora import registry
from fedlora.channel import build_channel
from fedlora.channel.models.base import ChannelModel
from fedlora.channel.schedule.base import ClientLoad, Scheduler, build_scheduler
from fedlora.config import (
    ChannelConfig,
    RanksConfig,
    RobustConfig,
    Scenario,
    ScheduleConfig,
    assignment,
    scenario_from_toml,
    scenario_to_toml,
    with_overrides,
)
from fedlora.errors import FedloraError
from fedlora.ranks import GuardedStrategy, Projection, RankSpace, RankStrategy, create_strategy
from fedlora.ranks.reports import ClientReport
from fedlora.robust.aggregation import create_average
from fedlora.robust.base import Block, RobustAverage

ODD = [
    *("0", "-1", "nan", "inf", "1e30", "-1e30", "1e308", "-1e308", "1e-300", "5e-324", "0.5", "1"),
    *(str(2**63), str(-(2**63)), "1" + "0" * 400, "true", '"text"', "[]", "{}", "[nan]", '["x"]'),
]
SPACE = RankSpace((Projection("q_proj", 0, 8, 8), Projection("v_proj", 0, 8, 8)), 4)
NEEDED = {  # that the option is looked at, or that the plug-in can be made
    "lyapunov": {"mean_delay_s": 1.0},
    "random_k": {"clients": 1},
    "trace": {"path": "package:simulations/traces/hsdpa.log"},
    "ar1_coefficient": {"correlation": "ar1"},
    "doppler_hz": {"correlation": "jakes"},
    "k_factor_db": {"small_scale": "rician"},
    "speed_mps": {"mobility": "waypoint"},
}


def air(name: str, options: Mapping[str, Any]) -> None:
    channel = build_channel(ChannelConfig(model=name, options=options), 0)
    for round_ in (0, 7):
        assert channel.truth(1, round_).down_rate_bps > 0


def schedule(name: str, options: Mapping[str, Any]) -> None:
    scheduler = build_scheduler(ScheduleConfig(name, options=options), rounds=3, seed=0)
    channel = build_channel(ChannelConfig(), 0)
    reports = {client: channel.report(client, 0) for client in range(3)}
    loads = {client: ClientLoad(1e5, 1e6) for client in range(3)}
    for round_ in range(3):
        assert scheduler.select(round_, reports, loads)
        scheduler.observe(round_, 1.0)


def choose(name: str, options: Mapping[str, Any]) -> None:
    strategy = GuardedStrategy(create_strategy(RanksConfig(name, options), 0))
    strategy.prepare(SPACE)
    channel = build_channel(ChannelConfig(), 0)
    reports = {c: ClientReport(channel=channel.report(int(c), 0), budget_bits=900.0) for c in "01"}
    for round_ in (1, 2):
        assert strategy.allocate(round_, reports, SPACE).keys() == reports.keys()
    assert not strategy.complaints


def average(name: str, options: Mapping[str, Any]) -> None:
    made = create_average(RobustConfig(average=name, options=options))
    block = Block(torch.randn(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))
    assert made is not None
    assert made.average([block], torch.ones(3))[0].isfinite().all()


Use = Callable[[str, Mapping[str, Any]], None]
KINDS: tuple[tuple[str, type, str, Use], ...] = (
    ("channels", ChannelModel, "channel.options.", air),
    ("schedulers", Scheduler, "channel.schedule.options.", schedule),
    ("strategies", RankStrategy, "ranks.options.", choose),
    ("averages", RobustAverage, "robust.options.", average),
)
GIVEN = {"self", "config", "seed", "rounds", "total_bandwidth_hz", "hostile", "args", "kwargs"}
OPTIONS = [
    (kind[3], name, kind[2], option)
    for kind in KINDS
    for name in registry.names(kind[0])
    if name != "measured"  # which is what devices measure
    for option in inspect.signature(registry.resolve(kind[0], name, kind[1])).parameters
    if option not in GIVEN - ({"seed", "rounds"} if kind[0] == "strategies" else set())
]


def test_there_are_options():
    assert {(name, option) for _, name, _, option in OPTIONS} >= {
        *(("log_distance", "exponent"), ("lyapunov", "trade_off"), ("bandit", "price")),
        *(("norm_filter", "factor"), ("airllm", "policy"), ("uniform", "r"), ("umi", "indoor")),
    }


@pytest.mark.parametrize(("use", "name", "prefix", "option"), OPTIONS)
def test_an_odd_option_is_taken_or_refused_in_a_sentence_with_its_key(use, name, prefix, option):
    for text in ODD:
        value = tomllib.loads(f"x = {text}")["x"]
        options = {**NEEDED.get(name, {}), option: value}
        options |= {
            k: v for k, v in NEEDED.get(option, {}).items() if (use, name, prefix, k) in OPTIONS
        }
        try:
            use(name, options)
        except FedloraError as error:
            said = str(error)
            if "needs Sionna" in said:
                pytest.skip("Sionna is not installed")
            assert prefix + option in said and "; " in said, (text, said)
            assert len(said) < 350 and "\n" not in said


def test_numbers_and_arrays_of_numpy_and_torch_are_numbers_and_lists():
    strategy = {"fraction": np.float32(0.5), "every": np.int64(2), "train": "held"}
    overrides = {
        "train.rounds": np.int64(3),
        "train.lr": torch.tensor(0.5),
        "train.overlap": np.bool_(True),
        "channel.snr_db": np.linspace(0, 10, 3),
        "channel.bandwidth_hz": [np.float64(1e6), 2e6],
        "ranks.options": strategy,
    }
    changed = with_overrides(Scenario(), [assignment(*pair) for pair in overrides.items()])
    assert (changed.train.rounds, changed.train.lr, changed.train.overlap) == (3, 0.5, True)
    assert changed.channel.snr_db == (0.0, 5.0, 10.0)
    assert changed.channel.bandwidth_hz == (1e6, 2e6)
    made = Scenario(ranks=RanksConfig(options=strategy))  # by hand, and then run
    for found in (changed, with_overrides(made, ())):
        kept = found.ranks.options
        assert kept == {"fraction": 0.5, "every": 2, "train": "held"}
        assert [type(value) for value in kept.values()] == [float, int, str]
        assert scenario_from_toml(scenario_to_toml(found)).ranks.options == kept


@pytest.mark.parametrize("value", [None, {1, 2}, b"bytes", 1j, object, np.array([1j]), [[None]]])
def test_what_no_scenario_can_hold_is_no_option_instead_of_a_text(value):
    for key, given in (("ranks.options.r", value), ("ranks.options", {"r": value})):
        with pytest.raises(FedloraError, match=r"ranks\.options\.r is .*, which no scenario"):
            assignment(key, given)
    with pytest.raises(FedloraError, match=r"ranks\.options\.r is .*, which no scenario can hold"):
        with_overrides(Scenario(ranks=RanksConfig(options={"r": value})), ())


def test_a_date_of_an_option_stays_one():
    table = "[ranks.options]\nday = 2026-01-02\nat = 2026-01-02T03:04:05Z\n"
    found = scenario_from_toml(table)
    assert scenario_from_toml(scenario_to_toml(found)).ranks.options == found.ranks.options
    assert type(found.ranks.options["day"]) is datetime.date

"""Schedulers against exhaustive search and long runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from scipy.optimize import brentq

from fedlora.channel import ChannelState
from fedlora.channel.channel import Channel
from fedlora.channel.models.fading import RayleighChannel
from fedlora.channel.schedule.bandwidth import DelayCurves, fastest_round
from fedlora.channel.schedule.base import ClientLoad, build_scheduler
from fedlora.channel.schedule.lyapunov import LyapunovScheduler
from fedlora.channel.schedule.simple import AllClients, RandomClients
from fedlora.config import ChannelConfig, ScheduleConfig
from fedlora.errors import FedloraError

COMMON = {"rounds": 100, "seed": 0}


def cohort(seed: int, clients: int) -> tuple[dict[int, ChannelState], dict[int, ClientLoad]]:
    rng = np.random.default_rng(seed)
    reports, loads = {}, {}
    for client in range(clients):
        up_db, down_db = rng.uniform(-8, 18, 2)
        up, down = (1e6 * math.log2(1 + 10 ** (x / 10)) for x in (up_db, down_db))
        reports[client] = ChannelState(up_db, down_db, 1e6, up, down)
        up_bits, down_bits = rng.uniform(1e4, 5e6, 2) * rng.integers(0, 2, 2)
        loads[client] = ClientLoad(up_bits, down_bits + 1e3, rng.uniform(0, 2))
    return reports, loads


def delay_s(state: ChannelState, load: ClientLoad, bandwidth_hz: float) -> float:
    """A client's round by the textbook: power fixed, noise in proportion to the bandwidth."""
    total = load.compute_s
    for bits, snr_db in ((load.up_bits, state.up_snr_db), (load.down_bits, state.down_snr_db)):
        snr = 10 ** (snr_db / 10) * state.bandwidth_hz / bandwidth_hz
        total += bits / (bandwidth_hz * math.log2(1 + snr))
    return total


def fastest_of_set(members: tuple, reports: dict, loads: dict, total_hz: float) -> float:
    """Smallest delay of a fixed set, by nested bisection on the textbook formula."""

    def need_hz(client: int, limit_s: float) -> float:
        def late(log_hz: float) -> float:
            return delay_s(reports[client], loads[client], math.exp(log_hz)) - limit_s

        if late(math.log(total_hz)) > 0:
            return 2 * total_hz
        return math.exp(brentq(late, math.log(1e-6), math.log(total_hz), xtol=1e-13))

    low = max(delay_s(reports[k], loads[k], total_hz) for k in members) * (1 + 1e-12)
    high = max(delay_s(reports[k], loads[k], total_hz / len(members)) for k in members) + 1e-9

    def excess(limit_s: float) -> float:
        return sum(need_hz(k, limit_s) for k in members) - total_hz

    return low if excess(low) <= 0 else brentq(excess, low, high, xtol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_fastest_round_of_each_size_is_that_of_exhaustive_search(seed: int) -> None:
    reports, loads = cohort(seed, 5)
    curves = DelayCurves.of(range(5), reports, loads)
    for count in range(1, 6):
        best = min(
            fastest_of_set(members, reports, loads, 3e6)
            for members in itertools.combinations(range(5), count)
        )
        found_s, chosen, bandwidth_hz = fastest_round(curves, count, 3e6)
        assert found_s == pytest.approx(best, rel=1e-6)
        assert bandwidth_hz.sum() == pytest.approx(3e6)
        for client, hz in zip(chosen, bandwidth_hz, strict=True):
            assert delay_s(reports[client], loads[client], hz) <= found_s * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("queue_s", [0.0, 0.3, 5.0])
def test_lyapunov_minimises_its_objective_over_all_sets(seed: int, queue_s: float) -> None:
    reports, loads = cohort(seed, 5)
    scheduler = LyapunovScheduler(
        **COMMON,
        total_bandwidth_hz=2e6,
        mean_delay_s=1.0,
        trade_off=0.4,
        max_delay_s=1e6,
    )
    scheduler.load_state_dict({"queue_s": queue_s})
    division = scheduler.select(0, reports, loads)

    def objective(members: tuple) -> float:
        return queue_s * fastest_of_set(members, reports, loads, 2e6) - 0.4 * len(members)

    sets = (s for n in range(1, 6) for s in itertools.combinations(range(5), n))
    assert objective(tuple(division)) == pytest.approx(min(map(objective, sets)), abs=1e-6)


@pytest.mark.parametrize("queue_s", [0.0, 0.02, 0.1, 1.0])
@pytest.mark.parametrize(("most_s", "fewest"), [(1e6, 1), (2.5, 1), (2.5, 12)])
def test_lyapunov_passes_over_no_number_of_participants_that_wins(queue_s, most_s, fewest):
    reports, loads = cohort(7, 24)
    options = {"mean_delay_s": 1.0, "trade_off": 0.4, "max_delay_s": most_s, "min_clients": fewest}
    scheduler = LyapunovScheduler(**COMMON, total_bandwidth_hz=2e7, **options)
    scheduler.load_state_dict({"queue_s": queue_s})
    curves = DelayCurves.of(range(24), reports, loads)
    delays = {n: fastest_round(curves, n, 2e7)[0] for n in range(fewest, 25)}
    open_ = {n: d for n, d in delays.items() if d <= most_s or n == fewest}
    best = min(open_, key=lambda n: (queue_s * open_[n] - 0.4 * n, -n))
    assert len(scheduler.select(0, reports, loads)) == best


def test_lyapunov_takes_the_fewest_where_no_round_ends_and_nobody_where_nobody_is() -> None:
    reports = {k: ChannelState(None, None, 1e6, 1e-30, 1e-30) for k in range(4)}
    loads = {k: ClientLoad(1e6, 1e6, 0.1) for k in range(4)}
    options = {"mean_delay_s": 1.0, "min_clients": 2}
    scheduler = LyapunovScheduler(**COMMON, total_bandwidth_hz=2e6, **options)
    assert len(scheduler.select(0, reports, loads)) == 2
    assert scheduler.select(0, {}, {}) == {}


def test_a_fixed_order_of_clients_would_not_be_optimal() -> None:
    # Client 0 computes long and sends little, client 1 the reverse: which of them is cheaper
    # depends on the delay, so no sorting beforehand can tell.
    reports = {k: ChannelState(10.0, 10.0, 1e6, 3.459e6, 3.459e6) for k in range(3)}
    loads = {
        0: ClientLoad(1e4, 1.0, 2.0),
        1: ClientLoad(6e6, 1.0, 0.0),
        2: ClientLoad(6e6, 1.0, 0.1),
    }
    curves = DelayCurves.of(range(3), reports, loads)
    assert fastest_round(curves, 1, 1.5e6)[1].tolist() == [1]
    assert sorted(fastest_round(curves, 2, 1.5e6)[1].tolist()) == [0, 1]


def test_least_bandwidth_is_the_unique_root() -> None:
    reports, loads = cohort(7, 30)
    curves = DelayCurves.of(range(30), reports, loads)
    needed = curves.least_bandwidth_hz(3.0, 5e6)
    for client in range(30):
        if math.isinf(needed[client]):
            assert delay_s(reports[client], loads[client], 5e6) > 3.0
        else:
            assert delay_s(reports[client], loads[client], needed[client]) == pytest.approx(3.0)


def test_clients_with_nothing_to_send_need_no_bandwidth() -> None:
    reports, loads = cohort(1, 3)
    loads[1] = ClientLoad(0.0, 0.0, 0.5)
    curves = DelayCurves.of(range(3), reports, loads)
    assert curves.least_bandwidth_hz(1.0, 1e6)[1] == 0.0
    assert math.isinf(curves.least_bandwidth_hz(0.4, 1e6)[1])
    assert fastest_round(curves, 1, 1e6)[0] == pytest.approx(0.5)


def run(trade_off: float, rounds: int = 250) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Delays, participants and queue over rounds of Rayleigh fading that is known exactly."""
    config = ChannelConfig(snr_db=(8.0,), bandwidth_hz=(1e6,))
    channel = Channel(config, RayleighChannel(config, 2), 2)
    scheduler = LyapunovScheduler(
        rounds=rounds, seed=0, mean_delay_s=1.0, trade_off=trade_off, min_clients=1
    )
    loads = {k: ClientLoad(1.5e6 + 3e5 * k, 1e6, 0.05) for k in range(4)}
    delays, participants, queue = [], [], []
    for round in range(rounds):
        reports = {k: channel.report(k, round) for k in range(4)}
        division = scheduler.select(round, reports, loads)
        delays.append(max(delay_s(reports[k], loads[k], hz) for k, hz in division.items()))
        participants.append(len(division))
        scheduler.observe(round, delays[-1])
        queue.append(scheduler.queue_s)
    return np.array(delays), np.array(participants), queue


def test_the_mean_delay_keeps_its_limit_and_the_trade_off_buys_participants() -> None:
    results = {trade_off: run(trade_off) for trade_off in (0.2, 2.0)}
    for delays, participants, queue in results.values():
        assert delays.mean() <= 1.0 + queue[-1] / len(delays) + 1e-9  # the queue's guarantee
        assert delays[50:].mean() == pytest.approx(1.0, abs=0.05)
        assert participants.min() >= 1
    assert results[0.2][1].mean() < results[2.0][1].mean()
    assert np.mean(results[0.2][2]) < np.mean(results[2.0][2])


def test_later_rounds_weigh_more_when_the_bound_forgets() -> None:
    reports, loads = cohort(3, 8)
    chosen = []
    for round in (0, 50, 99):
        scheduler = LyapunovScheduler(
            **COMMON, total_bandwidth_hz=4e6, mean_delay_s=1.0, trade_off=3.0, contraction=0.97
        )
        scheduler.load_state_dict({"queue_s": 3.0})
        chosen.append(len(scheduler.select(round, reports, loads)))
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_a_queue_survives_a_checkpoint() -> None:
    scheduler = LyapunovScheduler(**COMMON, mean_delay_s=1.0)
    scheduler.observe(0, 3.5)
    again = LyapunovScheduler(**COMMON, mean_delay_s=1.0)
    again.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    assert again.queue_s == scheduler.queue_s == 2.5


def test_measured_links_can_be_scheduled_by_their_rates() -> None:
    reports, loads = cohort(4, 4)
    measured = {
        k: dataclasses.replace(s, up_snr_db=None, down_snr_db=None, derived=True)
        for k, s in reports.items()
    }
    scheduler = LyapunovScheduler(**COMMON, mean_delay_s=1.0)
    assert scheduler.select(0, measured, loads) == scheduler.select(0, reports, loads)


def test_all_keep_their_bandwidth_or_share_the_total() -> None:
    reports, loads = cohort(5, 4)
    assert AllClients(**COMMON).select(0, reports, loads) == dict.fromkeys(range(4), 1e6)
    shared = AllClients(**COMMON, total_bandwidth_hz=2e6).select(0, reports, loads)
    assert shared == dict.fromkeys(range(4), 5e5)


def test_random_clients_are_drawn_evenly_and_repeatably() -> None:
    reports, loads = cohort(6, 8)
    scheduler = RandomClients(**COMMON, total_bandwidth_hz=3e6, clients=3)
    draws = [scheduler.select(round, reports, loads) for round in range(800)]
    assert all(len(draw) == 3 and set(draw.values()) == {1e6} for draw in draws)
    counts = np.bincount([client for draw in draws for client in draw], minlength=8)
    assert counts.min() > 250
    assert counts.max() < 350
    again = RandomClients(**COMMON, total_bandwidth_hz=3e6, clients=3)
    assert again.select(417, reports, loads) == draws[417]


def test_schedulers_are_found_by_name_and_their_options_checked() -> None:
    config = ScheduleConfig("lyapunov", 1e6, {"mean_delay_s": 2.0, "trade_off": 5})
    assert isinstance(build_scheduler(config, **COMMON), LyapunovScheduler)
    assert isinstance(build_scheduler(ScheduleConfig(), **COMMON), AllClients)
    with pytest.raises(FedloraError, match="'mean_delay_s'; known options: mean_delay_s, trade_"):
        build_scheduler(ScheduleConfig("lyapunov"), **COMMON)
    with pytest.raises(FedloraError, match="clients is 0; set a whole number from 1"):
        build_scheduler(ScheduleConfig("random_k", options={"clients": 0}), **COMMON)
    with pytest.raises(FedloraError, match="min_clients is 0; set a whole number from 1"):
        options = {"mean_delay_s": 1.0, "min_clients": 0}
        build_scheduler(ScheduleConfig("lyapunov", options=options), **COMMON)
    with pytest.raises(FedloraError, match="mean_delay_s is -1"):
        build_scheduler(ScheduleConfig("lyapunov", options={"mean_delay_s": -1}), **COMMON)
    with pytest.raises(FedloraError, match=r"name a class that inherits from .*Scheduler"):
        build_scheduler(ScheduleConfig("fractions:Fraction"), **COMMON)


def test_whatever_a_client_may_report_somebody_is_scheduled() -> None:
    """At both ends of what a state allows, and at random between, beside ordinary clients."""
    rng = np.random.default_rng(9)

    def some(low: float, high: float) -> float:
        return float(10 ** rng.choice([low, high, rng.uniform(low, high)]))

    for _ in range(300):
        reports, loads = cohort(9, 4)
        for client in range(rng.integers(1, 5)):
            rates = some(-30, 15), some(-30, 15)
            reports[client] = ChannelState(0.0, 0.0, some(0, 13), *rates)
            loads[client] = ClientLoad(some(0, 12), some(0, 12))
        total_hz = 0.0 if rng.random() < 0.5 else some(0, 13)
        scheduler = LyapunovScheduler(
            **COMMON,
            total_bandwidth_hz=total_hz,
            mean_delay_s=1.0,
            min_clients=int(rng.integers(1, 5)),
        )
        scheduler.observe(0, some(0, 30))
        division = scheduler.select(1, reports, loads)
        pool_hz = total_hz or sum(state.bandwidth_hz for state in reports.values())
        assert division
        assert all(hz > 0 for hz in division.values())
        assert sum(division.values()) == pytest.approx(pool_hz)


def test_a_client_in_a_deep_fade_does_not_hold_up_the_round() -> None:
    reports, loads = cohort(8, 4)
    reports[2] = ChannelState(-60.0, -60.0, 1e6, 1.44, 1.44)
    loads[2] = ClientLoad(1e6, 1e6)
    scheduler = LyapunovScheduler(**COMMON, mean_delay_s=5.0)
    assert sorted(scheduler.select(0, reports, loads)) == [0, 1, 3]  # although the queue is empty
    assert len(scheduler.select(0, {2: reports[2]}, loads)) == 1

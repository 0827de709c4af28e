"""``check_scheduler`` passes what is sound and names what is broken."""

from __future__ import annotations

import itertools
import random
import time
from functools import partial

import numpy as np
import pytest
import torch

from fedlora.channel.schedule.base import Scheduler
from fedlora.channel.schedule.check import check_scheduler
from fedlora.channel.schedule.lyapunov import LyapunovScheduler
from fedlora.channel.schedule.simple import AllClients, RandomClients


class InTurn(Scheduler):
    """Two clients after the other two; whose turn it is lies in the state."""

    turn = 0

    def select(self, round, reports, loads):
        clients = sorted(reports)
        chosen = [clients[(self.turn + n) % len(clients)] for n in range(2)]
        self.turn += 2
        return self.share(sorted(set(chosen)), reports)

    def state_dict(self):
        return {"turn": self.turn}

    def load_state_dict(self, state):
        self.turn = state["turn"]


class Best(Scheduler):
    def select(self, round, reports, loads):
        best = max(sorted(reports), key=lambda client: reports[client].down_rate_bps)
        return self.share([best], reports)


@pytest.mark.parametrize(
    "make",
    [
        *(AllClients, partial(RandomClients, clients=3), InTurn, Best),
        partial(LyapunovScheduler, mean_delay_s=1.0),
    ],
)
def test_sound_schedulers_have_no_finding(make):
    assert check_scheduler(make) == []


class Plain(Scheduler):
    def select(self, round, reports, loads):
        return self.share(sorted(reports), reports)


class Narrow(Scheduler):
    """Thinks that a run has eight clients."""

    def select(self, round, reports, loads):
        return self.share([reports and list(range(8))[len(reports) - 1] and 0], reports)


class Snr(Scheduler):
    """Believes that each link has an SNR."""

    def select(self, round, reports, loads):
        good = [client for client in sorted(reports) if reports[client].down_snr_db > -1e9]
        return self.share(good, reports)


class Thresholded(Scheduler):
    """Chooses nobody where all are in a fade."""

    def select(self, round, reports, loads):
        return self.share([c for c in sorted(reports) if reports[c].down_rate_bps > 1e5], reports)


class InverseRates(Scheduler):
    """Divides by what is too large or small at the ends of what a state may have."""

    def select(self, round, reports, loads):
        return {client: 1.0 / state.down_rate_bps**12 for client, state in reports.items()}


class Strangers(Plain):
    """Remembers who was there once."""

    def __init__(self, **common):
        super().__init__(**common)
        self.known = {}

    def select(self, round, reports, loads):
        self.known.update(super().select(round, reports, loads))
        return self.known if not self.total_bandwidth_hz else super().select(round, reports, loads)


class Pops(Plain):
    def select(self, round, reports, loads):
        chosen = super().select(round, reports, loads)
        reports.popitem()
        return chosen


class Whole(Scheduler):
    """Gives each client all that there is."""

    def select(self, round, reports, loads):
        total_hz = self.total_bandwidth_hz or 1e6
        return dict.fromkeys(reports, total_hz)


class More(Scheduler):
    def select(self, round, reports, loads):
        if self.total_bandwidth_hz:
            return self.share(sorted(reports), reports)
        return {client: 2 * reports[client].bandwidth_hz for client in reports}


class Drawn(Scheduler):
    def select(self, round, reports, loads):
        drawn = np.random.default_rng().choice(sorted(reports), (len(reports) + 1) // 2, False)
        return self.share([int(client) for client in drawn], reports)


class Counted(Plain):
    """Draws from a stream that a second run of the process goes on with."""

    calls = itertools.count()

    def select(self, round, reports, loads):
        clients = sorted(reports)
        return self.share([clients[next(self.calls) % len(clients)]], reports)


class Listed(Scheduler):
    def select(self, round, reports, loads):
        return self.share(list(reports)[:2], reports)


class Forgets(InTurn):
    def load_state_dict(self, state):
        del state


class Observed(Plain):
    """Chooses by how long rounds took, and keeps that to itself."""

    mean_s = 0.0

    def select(self, round, reports, loads):
        most = 2 if self.mean_s > 5 else 8
        return self.share(sorted(reports)[:most], reports)

    def observe(self, round, delay_s):
        self.mean_s += delay_s


class Foresees(Best):
    def foresee(self, round, clients):
        return list(clients)


class Twice(Plain):
    def foresee(self, round, clients):
        return [*clients, clients[0]]


class Global(Plain):
    def select(self, round, reports, loads):
        random.random()
        return super().select(round, reports, loads)


class Numpy(Plain):
    def select(self, round, reports, loads):
        np.random.shuffle(sorted(reports))
        return super().select(round, reports, loads)


class Reseeds(Plain):
    def __init__(self, *, seed, **common):
        super().__init__(seed=seed, **common)
        torch.manual_seed(seed)


def of(**methods):
    made = {name: lambda self, *_, _of=value: _of() for name, value in methods.items()}
    return type("Of", (Plain,), made)


def exits():
    raise SystemExit(0)


def returns(value):
    return lambda: value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of(select=returns(None)), "returns a NoneType from select(); expected a dict of Hz"),
        (of(select=returns([0, 1])), "returns a list from select()"),
        (of(select=returns({})), "chose none of 100 clients for round 1"),
        (of(select=returns({"0": 1e5})), "chose none of 100 clients"),
        (of(select=returns({0: "text"})), "gives client 0, in Hz, is 'text'"),
        (of(select=returns({0: 0.0})), "gives client 0, in Hz, is 0.0; set a finite number"),
        (of(select=returns({0: float("nan")})), "gives client 0, in Hz, is nan"),
        (of(select=returns({0: 1.0, 999: 1.0})), "select chose 999, who reports nothing"),
        (of(select=exits), "select raised SystemExit"),
        (Narrow, "with 100 clients, select raised IndexError"),
        (Snr, "with links of which the rates alone are known, select raised TypeError"),
        (Thresholded, "with 8 clients in deep fades, the scheduler chose none of 8"),
        (InverseRates, "with links at the ends of what they may be, select raised ZeroDivision"),
        (Strangers, "with one client, select chose"),
        (Pops, "select changed reports or loads"),
        (Whole, "divides 2e+08 Hz among 100 clients, and channel.schedule.total_bandwidth_hz is"),
        (More, "divides 2e+08 Hz where no total is set; expected 1e+08 Hz"),
        (Drawn, "otherwise in a second run with the same seed"),
        (Counted, "otherwise in a second run with the same seed"),
        (Listed, "when the same clients were listed in another order"),
        (Forgets, "a new scheduler that was given the state chose or divided otherwise"),
        (Observed, "so put all that select and observe learn into state_dict"),
        (of(observe=exits), "observe raised SystemExit"),
        (of(state_dict=returns({"seen": {1}})), "state_dict gives what no checkpoint holds"),
        (of(state_dict=exits), "state_dict gives what no checkpoint holds (SystemExit"),
        (of(load_state_dict=exits), "load_state_dict raised SystemExit"),
        (Foresees, "foresee names [0, 1, 2, 3, 4, 5, 6, 7], and select chose ["),
        (Twice, "from foresee(); expected a list of some of the clients"),
        (of(foresee=returns([[0]])), "returns [[0]] from foresee()"),
        (of(foresee=returns([])), "returns [] from foresee()"),
        (of(foresee=exits), "in foresee; expected a list or None"),
        (Global, "random's global generator"),
        (Numpy, "numpy.random's global generator"),
        (Reseeds, "torch's global generator"),
        (lambda **_: 7, "7 is none; give a class that inherits from Scheduler"),
        (LyapunovScheduler, "cannot be made (TypeError"),
        (of(__init__=exits), "cannot be made"),
    ],
)
def test_a_broken_scheduler_is_named_with_what_was_expected(make, words):
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    findings = check_scheduler(make)
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    assert findings and words in findings[0], findings
    assert any(word in findings[0] for word in ("expected", "; let ", "; give ", "; set "))
    assert not any("\n" in text for text in findings)


def test_a_slow_scheduler_is_named(monkeypatch):
    class Slow(Plain):
        def select(self, round, reports, loads):
            time.sleep(0.03)
            return super().select(round, reports, loads)

    monkeypatch.setattr("fedlora.channel.schedule.check._SLOW_S", 0.02)
    monkeypatch.setattr("fedlora.channel.schedule.check.stretch", lambda: 1.0)
    (finding,) = check_scheduler(Slow)
    assert "for 100 clients; expected under 0.02 s" in finding

"""Try a strategy on what a run may bring, and say in plain words what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedlora.channel import ChannelState
from fedlora.errors import FedloraError
from fedlora.ranks.calls import Caller, CallError, read_decisions
from fedlora.ranks.reports import ClientOutcome, ClientReport, DataStatistics, DeviceInfo
from fedlora.ranks.space import Projection, RankDecision, RankSpace
from fedlora.ranks.strategy import RankStrategy
from fedlora.storage.tree import pack_state, unpack_state

FAILED = object()  # what a call that raised returned


def check_rank_strategy(
    strategy: object, space: RankSpace | None = None, *, time_limit_s: float = 1.0
) -> list[str]:
    """Run a strategy through rounds with all that may be missing, and through its state.

    Parameters
    ----------
    strategy
        A fresh instance of a ``RankStrategy``, which the check leaves in another state.
    space
        Space to choose from; if left out, a decoder of four layers with r_max 8. Give the real one
        for a strategy that serves only some models.
    time_limit_s
        Longest that a call may take, in seconds.

    Returns
    -------
    list of str
        One sentence for each finding: where, what happened, and what was expected. Empty if the
        strategy is sound.
    """
    if not isinstance(strategy, RankStrategy):
        return [f"{strategy!r:.80} is no strategy; give an instance of a class of RankStrategy"]
    return _Check(strategy, space or _small_decoder(), time_limit_s).run()


@dataclass(frozen=True)
class _Round:
    title: str
    clients: Mapping[str, ClientReport]
    outcomes: Mapping[str, ClientOutcome]


class _Check:
    def __init__(self, strategy: RankStrategy, space: RankSpace, time_limit_s: float) -> None:
        self.strategy = strategy
        self.space = space
        self.caller = Caller(time_limit_s)
        self.findings: dict[str, str] = {}  # by fault, so that each is told once

    def run(self) -> list[str]:
        try:
            self.caller.call("prepare", lambda: self.strategy.prepare(self.space))
        except CallError as failure:
            return [f"{failure}, or give the check a space that it takes"]
        rounds = _rounds(self.space)
        middle = len(rounds) // 2
        try:
            self._play(rounds[:middle], 1)
            state = self._state()
            first = self._play(rounds[middle:], middle + 1)
            if state is not None:
                self._load(state)
                if self._play(rounds[middle:], middle + 1) != first:
                    self._find(
                        "after load_state_dict the same reports and outcomes led to other ranks; "
                        "expected the same, so put all that was learnt into state_dict"
                    )
        except CallError as failure:
            self._find(str(failure))
        return list(self.findings.values())

    def _play(self, rounds: list[_Round], start: int) -> list[Mapping[str, RankDecision]]:
        return [self._play_round(number, item) for number, item in enumerate(rounds, start)]

    def _play_round(self, number: int, item: _Round) -> Mapping[str, RankDecision]:
        state = self._state()
        decisions = self._allocate(number, item)
        if state is not None:
            self._load(state)
            if self._allocate(number, item) != decisions:
                self._find(
                    "allocate decided otherwise when called again with the same state and reports; "
                    "expected the same ranks, so draw from a generator seeded with (seed, round, "
                    "client) or keep the generator's state in state_dict"
                )
        outcomes = copy.deepcopy(dict(item.outcomes))
        self._call("observe", item.title, lambda: self.strategy.observe(number, outcomes))
        if outcomes != item.outcomes:
            self._find("observe changed the outcomes; expected it to leave its arguments alone")
        return decisions

    def _allocate(self, number: int, item: _Round) -> Mapping[str, RankDecision]:
        clients = dict(item.clients)
        answer = self._call(
            "allocate", item.title, lambda: self.strategy.allocate(number, clients, self.space)
        )
        if clients != item.clients:
            self._find("allocate changed the reports; expected it to leave its arguments alone")
        if answer is FAILED:
            return {}
        decisions, problems = read_decisions(answer, item.clients, self.space)
        for client, problem in list(problems.items())[:1]:
            self._find(problem, f"with {item.title}, client {client}: ")
        return decisions

    def _state(self) -> Any:
        """Return the state as a checkpoint would give it back, or None if it cannot be stored."""
        state = self._call("state_dict", "", self.strategy.state_dict)
        if state is FAILED:
            return None
        try:
            tree, tensors = pack_state(state)
        except FedloraError as error:
            self._find(f"state_dict cannot be stored: {error}")
            return None
        return unpack_state(json.loads(json.dumps(tree)), tensors)

    def _load(self, state: dict[str, Any]) -> None:
        self._call("load_state_dict", "", lambda: self.strategy.load_state_dict(state))

    def _call(self, name: str, title: str, function: Callable[[], Any]) -> Any:
        """Return the call's result, or FAILED and a finding; a call that hangs ends the check."""
        try:
            return self.caller.call(name, function)
        except CallError as failure:
            if self.caller.busy:
                raise
            self._find(str(failure), f"with {title}, " if title else "")
            return FAILED

    def _find(self, fault: str, where: str = "") -> None:
        self.findings.setdefault(fault, where + fault)


def _small_decoder() -> RankSpace:
    width, hidden = 64, 256
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.v_proj": (width, width // 2),
        "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
    }
    projections = tuple(
        Projection(name, layer, d_in, d_out)
        for layer in range(4)
        for name, (d_in, d_out) in shapes.items()
    )
    return RankSpace(projections, r_max=8)


def _rounds(space: RankSpace) -> list[_Round]:
    """Return rounds in which first all is known, and then one thing after the other is missing."""
    full = _reports(space, 4)
    blind = {
        client: replace(
            report,
            channel=report.channel and replace(report.channel, up_snr_db=None, down_snr_db=None),
            statistics=None,
            device=None,
        )
        for client, report in full.items()
    }
    stranger = {"stranger": ClientOutcome(delivered=True)}
    plain = {client: ClientOutcome() for client in full}
    lone = dict(list(full.items())[:1])
    return [
        _Round("full reports", full, _outcomes(space, full)),
        _Round("full reports and empty outcomes", full, plain),
        _Round("statistics, device and SNR None", blind, _outcomes(space, blind, losses=False)),
        _Round("empty reports", dict.fromkeys(full, ClientReport()), plain),
        _Round("a budget of 0 bits", dict.fromkeys(full, ClientReport(budget_bits=0.0)), {}),
        _Round("full reports once more", full, _outcomes(space, full, losses=False)),
        _Round("one client", lone, _outcomes(space, full)),
        _Round("new clients", _reports(space, 3, "new"), stranger),
        _Round("100 clients", (many := _reports(space, 100)), _outcomes(space, many)),
        _Round("clients that left and came back", full, _outcomes(space, full)),
    ]


def _reports(space: RankSpace, count: int, prefix: str = "edge") -> dict[str, ClientReport]:
    """Return reports whose budgets pay for a uniform rank from 0.25 to above r_max."""
    reports = {}
    for index in range(count):
        uniform_rank = 0.25 + (space.r_max + 1) * ((index * 0.37) % 1)
        rate_bps = uniform_rank * space.bits(space.uniform(space.r_max)) / space.r_max
        snr_db = float(index % 5) * 5 - 5
        reports[f"{prefix}-{index:03d}"] = ClientReport(
            ChannelState(snr_db - 3, snr_db, 1e6, rate_bps / 2, rate_bps, age_s=0.01),
            DataStatistics(8.0 + index % 3, 0.4, 1.3, 24.0),
            DeviceInfo(1e12, 4e9, 0.8),
            budget_bits=rate_bps,
        )
    return reports


def _outcomes(
    space: RankSpace, clients: Mapping[str, ClientReport], *, losses: bool = True
) -> dict[str, ClientOutcome]:
    return {
        client: ClientOutcome(
            loss_before=2.0 if losses else None,
            loss_after=1.9 - 0.01 * (index % 7) if losses else None,
            delivered=index % 3 != 2,
            bits={"up": {"activation": 1e5, "gradient": 1e5}, "down": {"adapter": 1e4}},
            seconds={"up": {"activation": 0.1, "gradient": 0.1}, "down": {"adapter": 0.5}},
            epsilon=1.0 if losses else None,
            sensitivity=tuple(1e-6 * (1 + p % 5) for p in range(len(space))) if losses else None,
            gradient_snr=tuple(0.5 * (p % 4) for p in range(len(space))) if losses else None,
        )
        for index, client in enumerate(clients)
    }

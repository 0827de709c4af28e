"""Strategies that each err in one way."""

from __future__ import annotations

import itertools
import math
import sys
import threading

from fedlora.ranks import RankDecision, RankStrategy


class Sound(RankStrategy):
    def allocate(self, round, clients, space):
        return {client: self.decide(client, clients, space) for client in clients}

    def decide(self, client, clients, space):
        return RankDecision(space.uniform(1))


class WithLastRank(Sound):
    last: object = 1

    def decide(self, client, clients, space):
        return RankDecision([*space.uniform(1)[:-1], self.last])


class OutOfRange(WithLastRank):
    last = 99


class Negative(WithLastRank):
    last = -1


class NotANumber(WithLastRank):
    last = math.nan


class Fractional(WithLastRank):
    last = 1.5


class TooFew(Sound):
    def decide(self, client, clients, space):
        return RankDecision(space.uniform(1)[:-1])


class DeliversTooMuch(Sound):
    def decide(self, client, clients, space):
        return RankDecision(space.uniform(1), deliver=[99] * len(space))


class BareRanks(Sound):
    def decide(self, client, clients, space):
        return [1] * len(space)


class NotADict(Sound):
    def allocate(self, round, clients, space):
        return [RankDecision(space.uniform(1)) for _ in clients]


class ReturnsNothing(Sound):
    def allocate(self, round, clients, space):
        pass


class ForgetsTheLast(Sound):
    def allocate(self, round, clients, space):
        decisions = super().allocate(round, clients, space)
        del decisions[max(decisions)]
        return decisions


class InventsAClient(Sound):
    def allocate(self, round, clients, space):
        decision = RankDecision(space.uniform(1))
        return dict.fromkeys([*clients, "ghost"], decision)


class Raises(Sound):
    def decide(self, client, clients, space):
        raise KeyError("policy")


class Exits(Sound):
    def decide(self, client, clients, space):
        sys.exit(3)


class NeedsStatistics(Sound):
    def decide(self, client, clients, space):
        ratio = clients[client].statistics.type_token_ratio
        return RankDecision(space.uniform(1 + round(ratio)))


class NeedsSnr(Sound):
    def decide(self, client, clients, space):
        channel = clients[client].channel
        good = channel is None or channel.down_snr_db > 5
        return RankDecision(space.uniform(2 if good else 1))


class NeedsLosses(Sound):
    def observe(self, round, outcomes):
        for outcome in outcomes.values():
            outcome.loss_before - outcome.loss_after


class NeedsTwoClients(Sound):
    def decide(self, client, clients, space):
        rates = sorted(report.budget_bits or 0 for report in clients.values())
        return RankDecision(space.uniform(1 if rates[1] else 0))


class KnowsItsClients(Sound):
    def __init__(self):
        self.known = None

    def allocate(self, round, clients, space):
        self.known = self.known or dict.fromkeys(clients, 1)
        return {c: RankDecision(space.uniform(self.known[c])) for c in clients}

    def state_dict(self):
        return {"known": self.known}

    def load_state_dict(self, state):
        self.known = state["known"]


class MeetsOnlyItsClients(Sound):
    def allocate(self, round, clients, space):
        self.asked = set(clients)
        return super().allocate(round, clients, space)

    def observe(self, round, outcomes):
        for client in outcomes:
            self.asked.remove(client)


class Hangs(Sound):
    """Does not return until ``released`` is set."""

    def __init__(self):
        self.released = threading.Event()

    def decide(self, client, clients, space):
        self.released.wait(30)
        return super().decide(client, clients, space)


class ChangesReports(Sound):
    def allocate(self, round, clients, space):
        decisions = super().allocate(round, clients, space)
        clients.clear()
        return decisions


class ChangesOutcomes(Sound):
    def observe(self, round, outcomes):
        for outcome in outcomes.values():
            outcome.bits["down"] = {}


class CountsItsCalls(Sound):
    """Decides otherwise at each call, without saying so in its state."""

    def __init__(self):
        self.count = itertools.count()

    def allocate(self, round, clients, space):
        ranks = space.uniform(next(self.count) % 2)
        return dict.fromkeys(clients, RankDecision(ranks))


class ForgetsWhatItLearnt(Sound):
    def __init__(self):
        self.observed = 0

    def allocate(self, round, clients, space):
        return dict.fromkeys(clients, RankDecision(space.uniform(min(self.observed, space.r_max))))

    def observe(self, round, outcomes):
        self.observed += 1


class KeepsASet(Sound):
    def state_dict(self):
        return {"seen": {"a"}}


class CannotReadItsState(Sound):
    def state_dict(self):
        return {"round": 3}

    def load_state_dict(self, state):
        raise RuntimeError("wrong version")


class StateWithoutReader(Sound):
    def state_dict(self):
        return {"round": 3}

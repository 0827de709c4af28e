"""Rank strategies: what they see, what they decide, and how a run calls them.

Whoever writes a strategy needs this module alone.
"""

from fedlora.channel import ChannelState
from fedlora.errors import FedloraError
from fedlora.ranks.budget import fit_budget
from fedlora.ranks.check import check_rank_strategy
from fedlora.ranks.guard import GuardedStrategy, StrategyFault
from fedlora.ranks.reports import ClientOutcome, ClientReport, DataStatistics, DeviceInfo
from fedlora.ranks.space import Projection, RankDecision, RankSpace, RankVector
from fedlora.ranks.strategy import RankStrategy, create_strategy
from fedlora.storage.tree import pack_state, unpack_state

Complaint = StrategyFault  # its name before release 0.2; goes with release 0.3

__all__ = [
    "ChannelState",
    "ClientOutcome",
    "ClientReport",
    "Complaint",
    "DataStatistics",
    "DeviceInfo",
    "FedloraError",
    "GuardedStrategy",
    "Projection",
    "RankDecision",
    "RankSpace",
    "RankStrategy",
    "RankVector",
    "StrategyFault",
    "check_rank_strategy",
    "create_strategy",
    "fit_budget",
    "pack_state",
    "unpack_state",
]

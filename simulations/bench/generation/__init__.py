"""Generation: tokens a second, what drafts bring, and what few bits and leaving early change."""

from simulations.bench.generation.agreement import agreement, ticks as agreement_ticks
from simulations.bench.generation.leave import leave_early, ticks as leave_ticks
from simulations.bench.generation.over_tls import generate_over_tls, ticks as over_tls_ticks
from simulations.bench.generation.slow_link import slow_link, ticks as slow_link_ticks
from simulations.bench.generation.speed import generate_in_process, ticks

__all__ = [
    "agreement",
    "agreement_ticks",
    "generate_in_process",
    "generate_over_tls",
    "leave_early",
    "leave_ticks",
    "over_tls_ticks",
    "slow_link",
    "slow_link_ticks",
    "ticks",
]

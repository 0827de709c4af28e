"""What the owner's door costs a simulation: ``python -m simulations.bench.owner_share``.

A profile of every thread: the time spent in ``clients/owner`` itself and in the libraries that it
calls, over the whole time of the server's thread. What the door is handed to compute (embedding,
loss, encoding) is not the door's: it was computed before there was one. The profiler slows many
short calls down more than few long ones, so that the share is an upper bound.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import threading
import time
from pathlib import Path

import clients.owner
from fedlora.config import Scenario, with_overrides
from fedlora.scenarios import find_scenario
from simulations.in_process import Record, run
from simulations.refusals import one_sentence

DOOR = str(Path(clients.owner.__file__).parent)
PROJECT = tuple(
    str(Path(clients.owner.__file__).parents[2] / package)
    for package in ("fedlora", "clients", "strategies", "simulations")
)


def door_seconds(stats: pstats.Stats) -> float:
    """Return the seconds of a profile in the door and in libraries called by it."""
    spent = 0.0
    for (file, _, _), (_, _, own, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if file.startswith(DOOR):
            spent += own
        elif not file.startswith(PROJECT):
            spent += sum(
                call[3] for (caller, _, _), call in callers.items() if caller.startswith(DOOR)
            )
    return spent


def share(scenario: Scenario) -> tuple[float, float]:
    """Simulate under a profiler; return the door's share of the time, and the seconds."""
    profiles: list[cProfile.Profile] = []

    def begin(*_: object) -> None:
        profile = cProfile.Profile()
        profiles.append(profile)
        profile.enable()

    threading.setprofile(begin)
    begun = time.perf_counter()
    begin()
    try:
        run(scenario, Record(), workers=1)
    finally:
        profiles[0].disable()
        threading.setprofile(None)
    seconds = time.perf_counter() - begun
    return sum(door_seconds(pstats.Stats(profile)) for profile in profiles) / seconds, seconds


def main() -> None:
    """Print the share of the door in a simulation, without and with a privacy budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="quickstart")
    parser.add_argument("--set", action="append", default=[], help="as for `fedlora run`")
    given = parser.parse_args()
    for epsilon in ("none", "8.0"):
        scenario = with_overrides(
            find_scenario(given.scenario), [f"privacy.epsilon={epsilon}", *given.set]
        )
        door, seconds = share(scenario)
        print(f"epsilon {epsilon}: at most {door:.2%} of {seconds:.0f} s")


if __name__ == "__main__":
    with one_sentence():
        main()

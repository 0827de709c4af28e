"""Rounds of an older build beside this one's: ``python -m simulations.bench.rounds_of_builds``.

Each build simulates one scenario in a process of its own, with its own code. Of the two, one at a
time computes: each round waits until the other build has ended the same one, so that both meet the
same load, and who begins changes from round to round. The printed ratio is the median over the
rounds of this build's seconds over the older one's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from simulations.refusals import one_sentence

# Runs under either build, so it uses only names that both have.
WORKER = """
import json, sys, time
from fedlora.config import with_overrides
from fedlora.scenarios import find_scenario
from simulations.in_process import run


class Pace:
    def append_event(self, event, /, **fields):
        pass

    def append_round(self, record):
        spent, processor = time.perf_counter() - self.begun, time.process_time() - self.used
        losses = [record.get("train_loss"), record.get("loss"), record.get("metric")]
        print(json.dumps(["round", spent, processor, losses]), flush=True)
        self.wait()

    def wait(self):
        if not sys.stdin.readline():
            raise SystemExit
        self.begun, self.used = time.perf_counter(), time.process_time()


pace, assignments = Pace(), sys.argv[2:]
scenario = with_overrides(find_scenario(sys.argv[1]), assignments)
pace.wait()
run(scenario, pace, 1)
"""


class Build:
    """One build that simulates a scenario, round by round as it is asked.

    Parameters
    ----------
    python
        Interpreter of the environment that the build is installed in.
    scenario, assignments
        What to simulate, and what is set in it.
    """

    def __init__(self, python: str, scenario: str, assignments: list[str]) -> None:
        self._python = python
        self._process = subprocess.Popen(
            [python, "-I", "-c", WORKER, scenario, *assignments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def round(self) -> tuple[float, float, Any]:
        """Return the seconds of the next round, the processor's seconds, and its losses.

        Raises
        ------
        SystemExit
            When the build ended before; what it said stands on stderr.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('["round"'):
                _, seconds, processor, losses = json.loads(line)
                return seconds, processor, losses
        raise SystemExit(f"the build of {self._python} ended before its rounds did")

    def close(self) -> None:
        """End the build's process."""
        self._process.kill()
        self._process.wait()


def beside(
    older: str, newer: str, scenario: str, assignments: list[str], rounds: int
) -> dict[str, Any]:
    """Simulate with two builds in turn; return ratios of newer to older with their quartiles.

    The first round of each, in which threads and memory warm up, is left out.
    """
    total = [f"train.rounds={rounds + 1}", *assignments]
    builds = [Build(python, scenario, total) for python in (older, newer)]
    try:
        walls, processors, equal = [], [], True
        for number in range(rounds + 1):
            found: dict[int, tuple[float, float, Any]] = {}
            for turn in (0, 1) if number % 2 else (1, 0):
                found[turn] = builds[turn].round()
            equal &= found[0][2] == found[1][2]
            if number:
                walls.append(found[1][0] / found[0][0])
                processors.append(found[1][1] / found[0][1])
    finally:
        for build in builds:
            build.close()
    return {
        "scenario": scenario,
        "rounds": rounds,
        "newer_to_older_seconds": statistics.median(walls),
        "quartiles": statistics.quantiles(walls, n=4)[::2],
        "newer_to_older_processor_seconds": statistics.median(processors),
        "processor_quartiles": statistics.quantiles(processors, n=4)[::2],
        "losses_equal": equal,
    }


def main() -> None:
    """Compare two builds over the scenarios given and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("older", type=Path, help="python of the older build's environment")
    parser.add_argument("--newer", default=sys.executable, help="python of the newer one's")
    parser.add_argument("--scenario", default="quickstart")
    parser.add_argument("--set", action="append", default=[], help="as for `fedlora run`")
    parser.add_argument("--rounds", type=int, default=24, help="rounds that count")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error(f"--rounds is {given.rounds}; quartiles need 2 or more")
    print(
        json.dumps(beside(str(given.older), given.newer, given.scenario, given.set, given.rounds))
    )


if __name__ == "__main__":
    with one_sentence():
        main()

"""What a user waits for, beside an older build: ``python -m simulations.bench.first_minute OLDER``.

``OLDER`` is the ``fedlora`` command of an environment that holds the older build. The two builds
take turns, and who begins changes from time to time; each figure is the seconds from a command's
start to its end, the run's report written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.storage import check_new_file
from simulations.bench.machine import machine_facts
from simulations.refusals import one_sentence

# What each wait may be of the older build's at most.
AT_MOST: Mapping[str, float] = {
    "run quickstart": 0.3,
    "--help": 0.1,
    "keys": 0.1,
    "a typo refused": 0.1,
    "infer": 0.4,
}


def commands(run: Path) -> dict[str, list[str]]:
    """Return the arguments of each command, of which the first makes the run of the last."""
    return {
        "run quickstart": ["run", "quickstart", "--out", str(run)],
        "--help": ["--help"],
        "keys": ["keys"],
        "a typo refused": ["run", "quickstart", "--set", "train.round=3"],
        "infer": ["infer", str(run), "could you dim the lamp please"],
    }


def seconds(program: str, arguments: list[str], folder: Path) -> float:
    """Return how long a command takes.

    Raises
    ------
    SystemExit
        When it fails though it should not, or does not though it should.
    """
    log = folder / "output.txt"
    begun = time.perf_counter()
    with log.open("w") as output:
        status = subprocess.run(
            [program, *arguments], cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    taken = time.perf_counter() - begun
    if (status != 0) != ("--set" in arguments):
        raise SystemExit(
            f"{program} {' '.join(arguments)} ended with status {status}:\n{log.read_text()}"
        )
    return taken


def measure(older: str, newer: str, times: int, names: list[str]) -> dict[str, Any]:
    """Return the seconds of each command under both builds, and their ratio's median."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"older": [], "newer": []} for name in commands(Path()) if name in names
    }
    programs = {"older": older, "newer": newer}
    with tempfile.TemporaryDirectory() as place:
        for number in range(times):
            order = list(programs) if number % 2 else list(programs)[::-1]
            for name, taken in found.items():
                for build in order:
                    folder = Path(place, build)
                    folder.mkdir(exist_ok=True)
                    if name == "run quickstart":
                        shutil.rmtree(folder / "run", ignore_errors=True)
                    arguments = commands(folder / "run")[name]
                    taken[build].append(seconds(programs[build], arguments, folder))
                    print(f"{name}, {build}: {taken[build][-1]:.2f} s", file=sys.stderr)
    return {
        name: {
            "older_seconds": statistics.median(taken["older"]),
            "newer_seconds": statistics.median(taken["newer"]),
            "newer_to_older": statistics.median(
                new / old for new, old in zip(taken["newer"], taken["older"], strict=True)
            ),
            "at_most": AT_MOST[name],
        }
        for name, taken in found.items()
    }


def main() -> None:
    """Compare two builds' waits; print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("older", help="the older build's `fedlora` command")
    parser.add_argument("--newer", default=str(Path(sys.executable).with_name("fedlora")))
    parser.add_argument("--times", type=int, default=3, help="how often each command is run")
    parser.add_argument("--only", action="append", choices=list(AT_MOST), help="not all of them")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier file")
    given = parser.parse_args()
    check_new_file(given.json, "--json", overwrite=given.overwrite)
    machine = machine_facts()
    if given.times < 1:
        parser.error(f"--times is {given.times}; run each command at least once")
    for program in (given.older, given.newer):
        if shutil.which(program) is None:
            parser.error(f"{program} is no program; give the path of an environment's fedlora")
    names = given.only or list(AT_MOST)
    if "infer" in names and "run quickstart" not in names:
        parser.error("infer needs the run that it asks: --only 'run quickstart' as well")
    figures = measure(given.older, given.newer, given.times, names)
    print(f"{machine['processor']}, load {machine['load_average_1_min']} at the start")
    print(f"{'command':16} {'older, s':>9} {'newer, s':>9} {'ratio':>6} {'at most':>8}")
    for name, figure in figures.items():
        print(
            f"{name:16} {figure['older_seconds']:9.2f} {figure['newer_seconds']:9.2f} "
            f"{figure['newer_to_older']:6.2f} {figure['at_most']:8.2f}"
        )
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2))


if __name__ == "__main__":
    with one_sentence():
        main()

"""What a user waits for, beside an older build: ``python -m simulations.bench.first_minute OLDER``.

``OLDER`` is the ``fedlora`` command of an environment that holds the older build. The two builds
take turns, and who begins changes from time to time. Each has two figures: the seconds from a
command's start to its end, the run's report written, and the processor time of all its processes,
which other work on the machine moves less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

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


def seconds(program: str, arguments: list[str], folder: Path) -> tuple[float, float]:
    """Return how long a command takes, and how much processor time it and its descendants take.

    Raises
    ------
    SystemExit
        When it fails though it should not, or does not though it should.
    """
    log = folder / "output.txt"
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as output:
        process = psutil.Popen(
            [program, *arguments], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        used: dict[psutil.Process, float] = {}
        while process.poll() is None:
            for own in family(process):
                with contextlib.suppress(psutil.Error):
                    used[own] = sum(own.cpu_times()[:2])
            # looking takes time of the cores, too
            time.sleep(min(0.5, max(0.02, 0.02 * (time.perf_counter() - begun))))
    taken = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited_for = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if (process.returncode != 0) != ("--set" in arguments):
        raise SystemExit(
            f"{program} {' '.join(arguments)} ended with status {process.returncode}:\n"
            f"{log.read_text()}"
        )
    return taken, max(waited_for, sum(used.values()))  # the former lacks whom nobody waits for


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants; none when it has ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def measure(older: str, newer: str, times: int, names: list[str]) -> dict[str, Any]:
    """Return the figures of each command under both builds, and their ratios' medians."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {
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
                    clock, used = taken[build][-1]
                    print(
                        f"{name}, {build}: {clock:.2f} s, processor {used:.2f} s", file=sys.stderr
                    )
    return {
        name: {
            **compared(*(zip(*taken[build], strict=True) for build in ("older", "newer"))),
            "at_most": AT_MOST[name],
        }
        for name, taken in found.items()
    }


def compared(
    older: Iterable[Sequence[float]], newer: Iterable[Sequence[float]]
) -> dict[str, float]:
    """Return the medians of both builds' clock and processor time, and of their ratios."""
    figures = {}
    for kind, before, now in zip(("", "_processor"), older, newer, strict=True):
        figures[f"older{kind}_seconds"] = statistics.median(before)
        figures[f"newer{kind}_seconds"] = statistics.median(now)
        ratios = [new / old for new, old in zip(now, before, strict=True)]
        figures[f"newer_to_older{kind}"] = statistics.median(ratios)
    return figures


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
    for kind, what in (("", "by the clock"), ("_processor", "processor time")):
        print(f"{what:16} {'older, s':>9} {'newer, s':>9} {'ratio':>6} {'at most':>8}")
        for name, figure in figures.items():
            print(
                f"{name:16} {figure[f'older{kind}_seconds']:9.2f} "
                f"{figure[f'newer{kind}_seconds']:9.2f} "
                f"{figure[f'newer_to_older{kind}']:6.2f} {figure['at_most']:8.2f}"
            )
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2))


if __name__ == "__main__":
    with one_sentence():
        main()

"""What lanes save on two threads: ``python -m simulations.bench.engines.lanes``.

The server's step and its evaluation, rows of a scenario as they are, the batch's rows in two lanes
of one thread each and all together on two threads, the same batches in turn.
"""

from __future__ import annotations

from fedlora.config import Scenario
from fedlora.server.compute import lanes
from fedlora.server.compute.engine import SplitEngine
from fedlora.split import Checkpoint
from simulations.bench.engines.two_engines import report
from simulations.refusals import one_sentence


def build(scenario: Scenario, checkpoint: Checkpoint) -> tuple[SplitEngine, SplitEngine]:
    """Return engines with lanes, whatever the batch's size, and without."""
    lanes.LEAST_NUMBERS = 0
    side_by_side, together = SplitEngine(checkpoint, scenario), SplitEngine(checkpoint, scenario)
    together.prefix.lanes.used = False
    return side_by_side, together


def main() -> None:
    """Print the ratio of a scenario."""
    report(__doc__, "one whose rows are texts", "one lane / two", build, threads=lanes.LANES)


if __name__ == "__main__":
    with one_sentence():
        main()

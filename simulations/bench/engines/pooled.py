"""What the last block saves at one token a row: ``python -m simulations.bench.engines.pooled``.

The server's step and its evaluation, rows of a scenario as they are, with the last block at all
tokens and at the pooled ones alone, the same batches in turn.
"""

from __future__ import annotations

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.server.compute.engine import SplitEngine
from fedlora.split import Checkpoint
from simulations.bench.engines.two_engines import report
from simulations.refusals import one_sentence


def build(scenario: Scenario, checkpoint: Checkpoint) -> tuple[SplitEngine, SplitEngine]:
    """Return engines whose last block is computed at the pooled tokens, and at all."""
    alone, everywhere = SplitEngine(checkpoint, scenario), SplitEngine(checkpoint, scenario)
    if not alone.prefix.one_token:
        raise FedloraError(
            f"all tokens of {scenario.name} pass the last block (task.pool is "
            f"{scenario.task.pool!r}); take one that pools cls or last, as --set task.pool=cls does"
        )
    everywhere.prefix.one_token = False
    return alone, everywhere


def main() -> None:
    """Print the ratio of a scenario."""
    report(
        __doc__, "one whose task pools one token of a row", "all tokens / one of each row", build
    )


if __name__ == "__main__":
    with one_sentence():
        main()

"""What matrices laid out beforehand save: ``python -m simulations.bench.engines.prepacked``.

The server's step and its evaluation, rows of a scenario as they are, with plain matrices and with
those of ``compute.prepack_mib``, the same batches in turn.
"""

from __future__ import annotations

from dataclasses import replace

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.server.compute.engine import SplitEngine
from fedlora.split import Checkpoint, PrepackedLinear
from simulations.bench.engines.two_engines import report
from simulations.refusals import one_sentence


def build(scenario: Scenario, checkpoint: Checkpoint) -> tuple[SplitEngine, SplitEngine]:
    """Return engines with matrices laid out beforehand, and with plain ones."""
    own = SplitEngine(checkpoint, scenario)
    if not any(isinstance(module, PrepackedLinear) for module in own.blocks.modules()):
        raise FedloraError(
            f"{scenario.name} has no matrices laid out beforehand (compute.prepack_mib is "
            f"{scenario.compute.prepack_mib}); take a scenario with larger blocks in fp32 on the "
            "CPU, or allow more"
        )
    without = replace(scenario, compute=replace(scenario.compute, prepack_mib=0))
    return own, SplitEngine(checkpoint, without)


def main() -> None:
    """Print the ratio of a scenario."""
    title = "plain / laid out beforehand"
    report(__doc__, "one whose blocks compute in fp32 on the CPU", title, build)


if __name__ == "__main__":
    with one_sentence():
        main()

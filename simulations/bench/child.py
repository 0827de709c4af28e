"""The process of one experiment or several: prints progress and figures as JSON lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fedlora.errors import FedloraError
from simulations.bench.context import Context, Settings
from simulations.bench.experiments import experiments
from simulations.bench.machine import machine_facts


def main() -> None:
    """Run the experiments that the first line of the input names."""
    order = json.loads(sys.stdin.readline())
    context = Context(Settings(**order["settings"]), Path(order["folder"]))
    by_name = {experiment.name: experiment for experiment in experiments(context.settings)}
    for name in order["names"]:
        experiment = by_name[name]
        _say("begin", name)
        facts = machine_facts()
        try:
            figures = experiment.measure(context, experiment.model, lambda: _say("tick", None))
        except FedloraError as error:
            _say("error", f"experiment {name} failed: {error}")
            return
        named = {f"{name}.{figure.name}": figure.to_dict() for figure in figures}
        _say("end", {"figures": named, "machine": facts})


def _say(kind: str, value: object) -> None:
    print(json.dumps([kind, value]), flush=True)


if __name__ == "__main__":
    main()

"""Memory and start of one client's own process, on a model of GPT-2's shape."""

from __future__ import annotations

import tempfile
from pathlib import Path

from simulations.bench.contest import Contest
from simulations.bench.context import Context, Figure, Tick
from simulations.bench.federation import over_tls
from simulations.bench.workload import Load, Workload

STEPS = 3
_PEAK_TARGET_MIB = {"classification": 450.0, "causal_lm": 600.0}


def edge_client(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Run a few steps with one client in its own process, and take what it reports at its end."""
    figures = []
    for task, target in _PEAK_TARGET_MIB.items():
        settings = context.settings
        load = Load(context.model(model), task, 1, settings.edge_rows, settings.edge_length)
        with tempfile.TemporaryDirectory() as folder:
            workload = Workload(load, STEPS, Path(folder))
            with over_tls(workload, Contest(0, STEPS, tick)) as (server, [process]):
                server.training.run()
        facts = process.facts
        figures += [
            Figure(f"{task}.peak_resident", facts["peak_mib"], "MiB", at_most=target),
            Figure(f"{task}.import", facts["import_seconds"], "s", at_most=3.0),
            Figure(f"{task}.import_cpu", facts["import_cpu_seconds"], "s"),
            Figure(f"{task}.heavy_packages", len(facts["heavy"]), "imported", at_most=0),
        ]
    return figures

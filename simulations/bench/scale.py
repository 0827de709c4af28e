"""Many clients in a few host processes: what the stream costs, and the memory of all together."""

from __future__ import annotations

import tempfile
from pathlib import Path

from simulations.bench.contest import SPLIT, Contest
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.federation import over_tls
from simulations.bench.machine import memory_mib
from simulations.bench.speed import UNSPLIT, contest_steps, in_process, over_stream
from simulations.bench.workload import Load, Workload

MEMORY_STEPS = 3


def many_clients(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Compare a step over the stream with the same batch in-process, unsplit training between."""
    settings = context.settings
    load = Load(
        context.model(model),
        "classification",
        settings.scale_clients,
        settings.scale_rows,
        settings.scale_length,
    )
    resident_mib = _resident_mib(load, settings.scale_hosts, tick)
    stream = over_stream(load, settings, tick, hosts=settings.scale_hosts)
    local = in_process(load, settings, tick, in_turn=False)
    ratio = local.speed_ratio(SPLIT, UNSPLIT) / stream.speed_ratio(SPLIT, UNSPLIT)
    return [
        Figure("stream", stream.median_seconds(SPLIT), "s/step"),
        Figure("in_process", local.median_seconds(SPLIT), "s/step"),
        Figure("stream_to_in_process", ratio, "ratio", at_most=1.3 if model == "minilm" else None),
        Figure("split_to_unsplit", local.speed_ratio(SPLIT, UNSPLIT), "ratio"),
        Figure("peak_resident", resident_mib, "MiB", at_most=6 * 1024),
    ]


def _resident_mib(load: Load, hosts: int, tick: Tick) -> float:
    """Return the peaks of server and host processes, added up, of a run without a baseline."""
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(load, MEMORY_STEPS, Path(folder))
        with over_tls(workload, Contest(0, MEMORY_STEPS, tick), hosts) as (server, processes):
            server.training.run()
    hosts_mib: list[float] = [process.facts["peak_mib"] for process in processes]
    return memory_mib("VmHWM") + sum(hosts_mib)


def ticks(settings: Settings) -> int:
    """Return the steps of the three runs."""
    return MEMORY_STEPS + 2 * contest_steps(settings)

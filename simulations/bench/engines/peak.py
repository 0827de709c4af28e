"""Peak memory beyond the weights, beside PEFT: ``python -m simulations.bench.engines.peak``.

The server's steps on a scenario's texts, 8 clients, with lanes and without, and undivided PEFT's on
the same rows padded. Each in a process of its own that has met its weights before (Linux alone).
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Checkpoint, model_folder
from fedlora.tasks import Sample
from simulations.bench.machine import memory_mib
from simulations.bench.text import CLIENTS, PaddedText, TextWorkload, shipped
from simulations.refusals import one_sentence

LANES, ONE, PEFT = "server, two lanes", "server, one lane", "undivided PEFT"
STEPS, THREADS = 4, 2


def peak_mib(name: str, who: str, rows: int) -> float:
    """Return how much memory steps took at most, beyond what was there before them."""
    torch.set_num_threads(THREADS)
    workload = TextWorkload(shipped(name), STEPS, rows=rows)
    checkpoint = Checkpoint(model_folder(workload.scenario.model.path))
    engine = SplitEngine(checkpoint, workload.scenario)
    engine.prefix.lanes.used &= who == LANES
    batches = workload.batches(workload.samples(checkpoint.folder))
    step = _server(engine, lambda: next(batches), rows)
    if who == PEFT:
        peft = PaddedText(workload, engine, batches)
        step = peft.step
        with torch.no_grad():
            peft.model(input_ids=torch.ones(1, 4, dtype=torch.long))
    else:  # few tokens meet all weights, too
        width = engine.geometry.activation_width
        _step(engine, [ClientRows(torch.randn(4, width), [4], engine.full_ranks(), "0")], 0)
    del engine
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before_mib = memory_mib("VmRSS")
    for number in range(STEPS):
        step(number)
    return memory_mib("VmHWM") - before_mib


def _server(
    engine: SplitEngine, draw: Callable[[], list[Sample]], rows: int
) -> Callable[[int], object]:
    width, ranks = engine.geometry.activation_width, engine.full_ranks()

    def step(number: int) -> None:
        lengths = [len(row.ids) for row in draw()]
        own = [lengths[at : at + rows] for at in range(0, len(lengths), rows)]
        batch = [
            ClientRows(torch.randn(sum(each), width), each, ranks, str(client))
            for client, each in enumerate(own)
        ]
        _step(engine, batch, number)

    return step


def _step(engine: SplitEngine, batch: list[ClientRows], number: int) -> None:
    outputs = engine.forward(batch, train=True)
    engine.backward([torch.ones_like(z) / 100 for z in outputs], [1.0] * len(outputs))
    engine.update.step(number)


def main() -> None:
    """Print a scenario's peaks, and their ratio to PEFT's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", help="one whose rows are texts")
    parser.add_argument("--rows", type=int, default=8, help="rows of each client (8)")
    given = parser.parse_args()
    shipped(given.scenario)
    peaks = {}
    for who in (PEFT, LANES, ONE):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            peaks[who] = process.submit(peak_mib, given.scenario, who, given.rows).result()
    print(f"{CLIENTS} clients, {given.rows} rows each; peak beyond the weights")
    for who, mib in peaks.items():
        print(f"{who}: {mib:.0f} MiB, {mib / peaks[PEFT]:.2f} of PEFT's")


if __name__ == "__main__":
    with one_sentence():
        main()

"""One client over TLS, its server a process of its own, beside Hugging Face's ``generate``."""

from __future__ import annotations

import statistics
import time

import torch

from clients.generation import DraftPace
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.generation.served import server_process, writer_over_tls
from simulations.bench.generation.speed import (
    END_TO_END,
    SpeedBed,
    Timed,
    beside_peft,
)

_TARGET = 0.85


@torch.no_grad()
def generate_over_tls(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Let one client write over a stream that is open, and PEFT's model in this process.

    Both write the same prompts alike, pair by pair. Loopback stands for the link, so that what is
    measured is what the split costs beside the link's own delay. Processor time is that of both
    processes, which other work on the machine moves less than the clock.

    Parameters
    ----------
    model
        Which one writes.
    """
    bed = SpeedBed(context.model(model), context.settings)
    adapter, certs = context.folder / "adapter", context.folder / "certs"
    bed.server.end()  # another process serves
    bed.adapter.save(adapter)
    with (
        server_process(context.model(model), certs, adapter) as server,
        writer_over_tls(bed, certs, server.port, DraftPace(0)) as writer,
    ):
        timed = Timed(lambda: time.process_time() + server.processor_s())
        agree = beside_peft(bed, timed, adapter, tick, lambda: writer)
    ratios = timed.ratio("single", "hf")
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    processor = statistics.median(timed.processor_ratio("single", "hf"))
    goal = _TARGET if model in END_TO_END else None
    each = 1000 * statistics.median(timed.seconds["single"]) / context.settings.generate_tokens
    return [
        Figure("single_to_hf", middle, "ratio", goal, None, low, high),
        Figure("single_to_hf_processor_time", processor, "ratio"),
        Figure("single_a_token_ms", each, "ms"),
        Figure("single_tokens_as_hf", agree, "ratio"),
    ]


def ticks(settings: Settings) -> int:
    """Return how often progress is reported."""
    return settings.warm_up + settings.pairs

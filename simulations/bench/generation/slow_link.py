"""Drafts by the clock: texts over TLS with a round trip of 50 ms, with drafts and without."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from clients.generation import DraftHistory, DraftPace, Drafts, Sampler, Sampling, Writer
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.generation.delayed import DelayedPort
from simulations.bench.generation.drafts import LONGEST, people_texts
from simulations.bench.generation.served import ServedBed

ROUND_TRIP_S = 0.05
_FASTER, _NEVER_BELOW = 1.6, 0.98
_EARLIER = 200  # texts that the client wrote before

Text = tuple[list[int], list[int]]
"""A prompt, and what is written after it."""


class _Dictated(Sampler):
    """Chooses as transformers would, and writes what it is told instead."""

    def __init__(self, written: Sequence[int]) -> None:
        super().__init__(Sampling())
        self._written = written

    def pick(self, ids: Sequence[int], logits: torch.Tensor) -> int:
        """See ``Sampler``."""
        super().pick(ids, logits)
        return self._written[self.drawn - 1]


@dataclass
class _Contest:
    """The same texts with drafts and without, pair by pair."""

    server: ServedBed
    port: int
    history: DraftHistory
    pace: DraftPace = field(default_factory=lambda: DraftPace(LONGEST))
    ratios: list[float] = field(default_factory=list)

    def pair(self, texts: Sequence[Text]) -> None:
        """Write texts both ways; whoever comes first changes."""
        seconds = {}
        ways = [True, False] if len(self.ratios) % 2 else [False, True]
        for drafted in ways:
            pace = self.pace if drafted else DraftPace(0)
            with self.server.writer(self.port, pace) as writer:
                seconds[drafted] = sum(self._write(writer, *text, drafted) for text in texts)
        self.ratios.append(seconds[False] / seconds[True])

    def _write(
        self, writer: Writer, prompt: Sequence[int], written: Sequence[int], drafted: bool
    ) -> float:
        drafts = Drafts(prompt, self.history) if drafted else None
        begun = time.perf_counter()
        found = list(writer.tokens(prompt, _Dictated(written), len(written), drafts))
        assert found == list(written), "drafts change no token"
        return time.perf_counter() - begun

    def figures(self, name: str, target: float | None) -> list[Figure]:
        """Return the median over all pairs but the first, in which lengths of drafts are found."""
        low, middle, high = statistics.quantiles(self.ratios[1:], n=4, method="inclusive")
        each = self.pace.tokens / self.pace.exchanges
        return [
            Figure(f"{name}.drafts_to_none", middle, "ratio", target, None, low, high),
            Figure(f"{name}.tokens_an_exchange", each, "tokens"),
        ]


def slow_link(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Write people's texts of E2E, and texts in which every guess is wrong.

    Blocks, head, frames, TLS and the rule for the length of drafts are the product's; what is
    written is dictated, people's texts standing for those of a tuned model.

    Parameters
    ----------
    model
        Whose tokens are written; its blocks compute.
    """
    settings, figures = context.settings, list[Figure]()
    server = ServedBed(context.model(model), context.folder / "certs")
    try:
        history, people, odd = _texts(server, settings)
        for milliseconds in (1000 * ROUND_TRIP_S, 0.0):
            with DelayedPort(server.listener.port, milliseconds / 2000) as far:
                port = far.port if milliseconds else server.listener.port
                for name, texts in (("people", people), ("nothing_repeats", odd)):
                    contest = _Contest(server, port, history)
                    for batch in texts:
                        contest.pair(batch)
                        tick()
                    target = _NEVER_BELOW
                    if name == "people" and milliseconds:
                        target = _FASTER
                    goal = None if settings.tiny else target
                    figures += contest.figures(f"round_trip_{milliseconds:.0f}_ms.{name}", goal)
    finally:
        server.end()
    return figures


def ticks(settings: Settings) -> int:
    """Return how often progress is reported."""
    return 4 * (settings.slow_link_pairs + 1)


def _texts(
    server: ServedBed, settings: Settings
) -> tuple[DraftHistory, list[list[Text]], list[list[Text]]]:
    """Return what was written before, and texts of people and of chance for each pair."""
    rng, vocabulary = random.Random(0), server.checkpoint.size("vocab_size")
    pairs, each = settings.slow_link_pairs + 1, settings.slow_link_texts

    def chance(length: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(length)]

    odd = [[(chance(8), chance(settings.slow_link_tokens))] for _ in range(pairs)]
    if settings.tiny:
        found = [(chance(4), chance(3) * 3) for _ in range(pairs * each + 2)]
    else:
        found = people_texts(server.folder, _EARLIER + pairs * each)
    earlier, new = found[: -pairs * each], found[-pairs * each :]
    history = DraftHistory()
    for _, written in earlier:
        history.add(written)
    return history, [new[n * each : (n + 1) * each] for n in range(pairs)], odd

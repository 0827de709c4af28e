"""Leaving early: tokens a second, and tokens that all blocks would have given, by threshold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from clients.generation import DraftPace, LeaveEarly, Sampler, Sampling, Writer
from fedlora.generation.early_rows import EarlyRow
from fedlora.generation.engine import NewTokens, WaitingTokens
from fedlora.generation.server import GenerationServer
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.generation.bed import Bed
from simulations.bench.generation.drafts import BEGUN, people_or_chance

_THRESHOLDS = (0.3, 0.5, 0.7, 0.9, 0.99)
_GREEDY = Sampling()


class _Written:
    """Texts of one device in this process, and what they took."""

    def __init__(self, bed: Bed, begun: Sequence[list[int]], tokens: int) -> None:
        self._bed, self._begun, self._tokens = bed, begun, tokens
        self._server = GenerationServer(
            bed.engine, bed.scenario, bed.identity, default=bed.full_ranks
        )

    def write(self, leaving: LeaveEarly | None) -> tuple[list[list[int]], float, int]:
        """Return texts, seconds, and how many tokens left early; what skipped blocks cost is in."""
        writer = Writer(
            self._bed.text_ends(), self._bed.row(self._server.carry, "0"), (), DraftPace(0)
        )
        writer.leaving = leaving
        texts, start = [], time.perf_counter()
        for ids in self._begun:
            texts.append([*ids, *writer.tokens(ids, Sampler(_GREEDY), self._tokens)])
        seconds = time.perf_counter() - start
        writer.close()
        return texts, seconds, writer.early

    def end(self) -> None:
        """End the server's thread."""
        self._server.end()


def leave_early(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Let one device write greedily, both sides in this process, beside a server of all blocks.

    Tokens leave after two thirds of the blocks. A token agrees where all blocks give the same one
    after the same text.

    Parameters
    ----------
    model
        Which writes, going on with the first tokens of people's texts.
    """
    settings, path = context.settings, context.model(model)
    whole = Bed(path)
    after = max(1, 2 * whole.checkpoint.blocks // 3)
    bed = Bed(path, leave_after=after)
    begun = [
        ids[:BEGUN] for ids in people_or_chance(whole, settings.leave_texts, tiny=settings.tiny)
    ]
    plain, leaving = (_Written(b, begun, settings.leave_tokens) for b in (whole, bed))
    figures = [Figure("after_blocks", after, "blocks")]
    count = len(begun) * settings.leave_tokens
    try:
        for each in (plain, leaving):  # what the first forward sets up is not timed
            each.write(None)
        for at in _THRESHOLDS:
            ratios, speeds = [], []
            for _ in range(settings.leave_pairs):
                _, full_s, _ = plain.write(None)
                texts, seconds, early = leaving.write(LeaveEarly(after, at))
                ratios.append(full_s / seconds)
                speeds.append(count / seconds)
            name, middle = f"at_{at:g}", statistics.median
            figures += [
                Figure(f"{name}.to_all_blocks", middle(ratios), "ratio"),
                Figure(f"{name}.tokens_a_second", middle(speeds), "tokens/s"),
                Figure(f"{name}.left_early", early / count, "ratio"),
                Figure(f"{name}.agreement", _agreement(bed, texts, begun), "ratio"),
            ]
            tick()
    finally:
        plain.end()
        leaving.end()
    return figures


def ticks(settings: Settings) -> int:
    """Return how often progress is reported."""
    del settings
    return len(_THRESHOLDS)


@torch.inference_mode()
def _agreement(bed: Bed, texts: Sequence[list[int]], begun: Sequence[list[int]]) -> float:
    ends, same, tokens = bed.text_ends(), 0, 0
    for text, first in zip(texts, begun, strict=True):
        row, new = EarlyRow(), text[:-1]
        bed.engine.forward([NewTokens(row, ends.embed(new, 0), bed.full_ranks)])
        [states] = bed.engine.finish([WaitingTokens(row, len(new), bed.full_ranks)])
        chosen = ends.logits(states, 0, len(text) - len(first)).argmax(-1).tolist()
        same += sum(a == b for a, b in zip(chosen, text[len(first) :], strict=True))
        tokens += len(chosen)
    return same / tokens

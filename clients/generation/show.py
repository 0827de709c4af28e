"""One text as a user sees it: written piece by piece, kept meanwhile, measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from clients.generation.drafts import DraftHistory
from clients.generation.kept_text import Asked, KeptText
from clients.generation.leaving import LeaveEarly
from clients.generation.sampling import Sampler
from clients.generation.text_model import TextModel
from fedlora.errors import FedloraError


@dataclass(frozen=True)
class Asking:
    """What one text is written from."""

    ids: Sequence[int]
    sampler: Sampler
    most: int
    stops: tuple[str, ...]
    messages: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def again(cls, kept: KeptText, local: TextModel) -> Asking:
        """Return what a text was written from that was begun before."""
        asked = kept.asked
        sampler = Sampler(asked.sampling)
        local.writer.leaving = LeaveEarly.of(asked.leave_after, asked.leave_at)
        vocabulary = local.parts.checkpoint.size("vocab_size")
        sampler.skip(asked.drawn + len(kept.tokens), vocabulary)
        return cls(asked.prompt, sampler, asked.most, asked.stops, asked.messages)


def write_text(
    local: TextModel,
    asked: Asking,
    history: DraftHistory | None,
    folder: Path,
    *,
    stats: bool,
    kept: KeptText | None = None,
) -> str:
    """Write a text, show it as it comes, and return it."""
    leaving = local.writer.leaving
    if kept is None and local.texts is not None:
        kept = KeptText.begin(
            local.texts,
            Asked(
                "chat" if asked.messages else "generate",
                str(folder.resolve()),
                tuple(asked.ids),
                asked.sampler.sampling,
                asked.sampler.drawn,
                asked.most,
                asked.stops,
                local.writer.row.adapter,
                asked.messages,
                leaving.after if leaving else 0,
                leaving.at if leaving else 0.0,
            ),
        )
    meter, answer = _Meter(local, len(asked.ids)), ""
    try:
        for piece in local.write(asked.ids, asked.sampler, asked.most, asked.stops, history, kept):
            meter.show(piece)
            answer += piece
    except FedloraError:
        if kept is not None and kept.tokens:
            typer.echo()
            kept.leave()
            typer.echo("the text so far is kept; --resume goes on with it", err=True)
        elif kept is not None:
            kept.done()
        raise
    except KeyboardInterrupt:
        if kept is not None:
            kept.done()
        raise
    typer.echo()
    if kept is not None:
        kept.done()
    if stats:
        meter.tell()
    return answer


def kept_text(local: TextModel, folder: Path, verb: str) -> KeptText:
    """Return the text that a process of this device was killed in.

    Raises
    ------
    FedloraError
        When there is none, or the server has another adapter by now.
    """
    assert local.texts is not None, "only texts of servers are kept"
    kept = KeptText.unfinished(local.texts, verb, folder)
    if kept is None:
        raise FedloraError(
            f"--resume finds no text of fedlora {verb} {folder} in {local.texts} that a process "
            "was killed in; leave it out"
        )
    if kept.asked.adapter != local.writer.row.adapter:
        raise FedloraError(
            f"the text in {kept.path} was begun with adapter {kept.asked.adapter[:12]}, and the "
            f"server has {local.writer.row.adapter[:12]} now; remove the file and write it anew"
        )
    return kept


class _Meter:
    """Shows a text as it comes, and how fast it was."""

    def __init__(self, local: TextModel, prompt: int) -> None:
        self._local, self._prompt = local, prompt
        self._pace, self._row = local.writer.pace, local.writer.row
        self._began = time.perf_counter()
        self._first: float | None = None
        self._before = (
            *(self._pace.exchanges, self._pace.tokens),
            *(self._row.bits_up, self._row.bits_down, local.writer.early),
        )

    def show(self, piece: str) -> None:
        """Print a piece at once."""
        if self._first is None:
            self._first = time.perf_counter()
        sys.stdout.write(piece)
        sys.stdout.flush()

    def tell(self) -> None:
        """Say on stderr what it came to."""
        ended = time.perf_counter()
        now = (
            *(self._pace.exchanges, self._pace.tokens),
            *(self._row.bits_up, self._row.bits_down, self._local.writer.early),
        )
        exchanges, tokens, up, down, early = (a - b for a, b in zip(now, self._before, strict=True))
        first = (self._first or ended) - self._began
        rest = max(ended - self._began - first, 1e-9)
        typer.echo(
            f"prompt {self._prompt} tokens, first token after {first:.2f} s, then {tokens} tokens "
            f"at {tokens / rest:.1f} a second, {tokens / max(1, exchanges):.2f} an exchange"
            + (f", {early} left early" if self._local.writer.leaving else "")
            + f"; {up / 8000:.0f} kB up, {down / 8000:.0f} kB down",
            err=True,
        )

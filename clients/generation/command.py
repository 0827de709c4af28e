"""``fedlora generate`` and ``fedlora chat``: what a run was trained for, word by word."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import click
import typer

from clients.generation.drafts import DraftHistory
from clients.generation.local import LocalModel
from clients.generation.sampling import Sampler, Sampling
from fedlora.commands.options import ClientOption, RankOption
from fedlora.errors import FedloraError

DraftsFrom = Literal["none", "prompt", "history"]
LONGEST_DRAFT = 8

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
ModelOption = Annotated[
    str, typer.Option(help="The backbone on this machine (default: the run's `model.path`).")
]
MostOption = Annotated[int, typer.Option(min=1, help="Tokens to write at most.")]
TemperatureOption = Annotated[
    float, typer.Option(help="0 takes the likeliest token; above it tokens are drawn.")
]
TopKOption = Annotated[int, typer.Option(help="Draw among so many likeliest tokens; 0: all.")]
TopPOption = Annotated[
    float, typer.Option(help="Draw among the likeliest tokens that have this probability together.")
]
PenaltyOption = Annotated[
    float, typer.Option(help="Above 1, tokens that were there already become less likely.")
]
SeedOption = Annotated[
    int | None, typer.Option(help="Of the draws: one seed writes one text (default: any).")
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text; may be given repeatedly."),
]
DraftsOption = Annotated[
    str,
    typer.Option(
        click_type=click.Choice(["none", "prompt", "history"]),
        help="Where to look for what may come next, so that one exchange brings several tokens: "
        "nowhere, in prompt and output, or also in what was written before, which is then kept in "
        "`~/.fedlora/drafts`. No choice changes the text.",
    ),
]
StatsOption = Annotated[
    bool, typer.Option("--stats", help="Say on stderr how fast it was, and what crossed the cut.")
]


def generate(
    run_folder: RunArgument,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; none: all of stdin.")] = None,
    client: ClientOption = None,
    rank: RankOption = None,
    model: ModelOption = "",
    max_new_tokens: MostOption = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    repetition_penalty: PenaltyOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    drafts: DraftsOption = "prompt",
    stats: StatsOption = False,
) -> None:
    """Write on after a prompt with a run's split model, and show it as it comes.

    Embedding, head and the choice of tokens are the device's; blocks and adapter the server's, here
    both in this process. The prompt is rendered as the run's records were: by the chat template, or
    with `data.prompt_separator`. It is the text that transformers' `generate` makes.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    if prompt is None:
        prompt = sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n")
    with _opened(run_folder, client, rank, model, drafts) as (local, history):
        ids = local.prompt(prompt)
        meter = _Meter(local, len(ids))
        for piece in local.write(ids, Sampler(sampling), max_new_tokens, stop or (), history):
            meter.show(piece)
        typer.echo()
        if stats:
            meter.tell()


def chat(
    run_folder: RunArgument,
    client: ClientOption = None,
    rank: RankOption = None,
    model: ModelOption = "",
    system: Annotated[str, typer.Option(help="What the system's turn says.")] = "",
    max_new_tokens: MostOption = 256,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    repetition_penalty: PenaltyOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    drafts: DraftsOption = "prompt",
    stats: StatsOption = False,
) -> None:
    """Talk with a run's split model, a line a turn; an empty line or Ctrl-D ends it.

    The model's chat template renders the conversation. What two turns begin with alike stays on the
    server, so that only what is new is sent. `/new` begins another conversation.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    opening = [{"role": "system", "content": system}] if system else []
    with _opened(run_folder, client, rank, model, drafts) as (local, history):
        local.tokenizer.chat.check()
        sampler, messages = Sampler(sampling), list(opening)
        while (said := _line()).strip():
            if said.strip() == "/new":
                messages = list(opening)
                continue
            messages.append({"role": "user", "content": said})
            ids, answer = local.conversation(messages), ""
            meter = _Meter(local, len(ids))
            for piece in local.write(ids, sampler, max_new_tokens, stop or (), history):
                meter.show(piece)
                answer += piece
            typer.echo()
            messages.append({"role": "assistant", "content": answer})
            if stats:
                meter.tell()


@contextmanager
def _opened(
    folder: Path, client: str | None, rank: int | None, model: str, drafts: str
) -> Iterator[tuple[LocalModel, DraftHistory | None]]:
    quiet_transformers()
    if not folder.is_dir():
        raise FedloraError(f"{folder} is no folder; give that of a finished run")
    local = LocalModel.open(folder, client, rank, model, 0 if drafts == "none" else LONGEST_DRAFT)
    try:
        history = None
        if drafts == "history":
            digest = local.tokenizer.digest
            place = Path.home() / ".fedlora" / "drafts" / f"{digest[:16]}.json"
            history = DraftHistory(place, digest)
        yield local, history
    finally:
        local.end()


def quiet_transformers() -> None:
    """Keep the library's progress and warnings away from the text."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()


def _line() -> str:
    """Return what is typed next, nothing at the end of the input."""
    if sys.stdin.isatty():
        typer.echo("> ", nl=False, err=True)
    raw = sys.stdin.buffer.readline()
    return raw.decode(errors="surrogateescape").rstrip("\r\n")


class _Meter:
    """Shows a text as it comes, and how fast it was."""

    def __init__(self, local: LocalModel, prompt: int) -> None:
        self._local, self._prompt = local, prompt
        self._pace, self._row = local.writer.pace, local.writer.row
        self._began = time.perf_counter()
        self._first: float | None = None
        self._before = (
            *(self._pace.exchanges, self._pace.tokens),
            *(self._row.bits_up, self._row.bits_down),
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
            *(self._row.bits_up, self._row.bits_down),
        )
        exchanges, tokens, up, down = (a - b for a, b in zip(now, self._before, strict=True))
        first = (self._first or ended) - self._began
        rest = max(ended - self._began - first, 1e-9)
        typer.echo(
            f"prompt {self._prompt} tokens, first token after {first:.2f} s, then {tokens} tokens "
            f"at {tokens / rest:.1f} a second, {tokens / max(1, exchanges):.2f} an exchange; "
            f"{up / 8000:.0f} kB up, {down / 8000:.0f} kB down",
            err=True,
        )

"""``fedlora generate`` and ``fedlora chat``: what a run was trained for, word by word."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.generation.drafts import DraftHistory
from clients.generation.leaving import LeaveEarly
from clients.generation.options import (
    DraftsOption,
    GiveUpOption,
    InsecureOption,
    KeyOption,
    LeaveAfterOption,
    LeaveAtOption,
    ModelOption,
    MostOption,
    NodeConfigOption,
    PenaltyOption,
    ResumeOption,
    RootOption,
    RunArgument,
    SeedOption,
    ServerOption,
    StatsOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from clients.generation.sampling import Sampler, Sampling
from clients.generation.show import Asking, kept_text, write_text
from fedlora.commands.options import ClientOption, RankOption
from fedlora.errors import FedloraError

if TYPE_CHECKING:
    from clients.generation.remote import Reach
    from clients.generation.text_model import TextModel
    from fedlora.generation.bounds import CacheBounds

LONGEST_DRAFT = 8
_SEEN = (
    "the server is sent embeddings without noise, from which it can mostly read prompt and text "
    "(docs/generation.md)"
)


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
    server: ServerOption = None,
    root_certificates: RootOption = None,
    node_key: KeyOption = None,
    insecure: InsecureOption = False,
    node_config: NodeConfigOption = "",
    give_up_s: GiveUpOption = 60.0,
    resume: ResumeOption = False,
    leave_after: LeaveAfterOption = 0,
    leave_at: LeaveAtOption = 0.0,
) -> None:
    """Write on after a prompt with a run's split model, and show it as it comes.

    Embedding, head and the choice of tokens are the device's; blocks and adapter the server's, here
    both in this process, or with `--server` those of `fedlora serve`. The prompt is rendered as the
    run's records were: by the chat template, or with `data.prompt_separator`. It is the text that
    transformers' `generate` makes.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    reach = reach_of(server, root_certificates, node_key, insecure, node_config, give_up_s)
    leaving = LeaveEarly.of(leave_after, leave_at)
    _check_resume(resume, reach, prompt is not None, leaving)
    if prompt is None and not resume:
        prompt = sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n")
    with _opened(run_folder, client, rank, model, drafts, reach, leaving) as (local, history):
        kept = kept_text(local, run_folder, "generate") if resume else None
        if kept is None:
            ids = local.prompt(prompt or "")
            asked = Asking(ids, Sampler(sampling), max_new_tokens, tuple(stop or ()))
        else:
            asked = Asking.again(kept, local)
        write_text(local, asked, history, run_folder, stats=stats, kept=kept)


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
    server: ServerOption = None,
    root_certificates: RootOption = None,
    node_key: KeyOption = None,
    insecure: InsecureOption = False,
    node_config: NodeConfigOption = "",
    give_up_s: GiveUpOption = 60.0,
    resume: ResumeOption = False,
    leave_after: LeaveAfterOption = 0,
    leave_at: LeaveAtOption = 0.0,
) -> None:
    """Talk with a run's split model, a line a turn; an empty line or Ctrl-D ends it.

    The model's chat template renders the conversation. What two turns begin with alike stays on the
    server, so that only what is new is sent. `/new` begins another conversation.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    reach = reach_of(server, root_certificates, node_key, insecure, node_config, give_up_s)
    leaving = LeaveEarly.of(leave_after, leave_at)
    _check_resume(resume, reach, False, leaving)
    opening = [{"role": "system", "content": system}] if system else []
    with _opened(run_folder, client, rank, model, drafts, reach, leaving) as (local, history):
        local.tokenizer.chat.check()
        sampler, messages = Sampler(sampling), list(opening)
        most, stops = max_new_tokens, tuple(stop or ())
        if resume:
            kept = kept_text(local, run_folder, "chat")
            asked = Asking.again(kept, local)
            messages, sampler = [dict(said) for said in kept.asked.messages], asked.sampler
            most, stops = asked.most, asked.stops
            answer = write_text(local, asked, history, run_folder, stats=stats, kept=kept)
            messages.append({"role": "assistant", "content": answer})
        while (said := _line()).strip():
            if said.strip() == "/new":
                messages = list(opening)
                continue
            messages.append({"role": "user", "content": said})
            asked = Asking(local.conversation(messages), sampler, most, stops, tuple(messages))
            answer = write_text(local, asked, history, run_folder, stats=stats)
            messages.append({"role": "assistant", "content": answer})


def reach_of(
    servers: Sequence[str] | None,
    root_certificates: Path | None,
    node_key: Path | None,
    insecure: bool,
    node_config: str,
    give_up_s: float,
) -> Reach | None:
    """Return which servers are meant; None for this process.

    Raises
    ------
    FedloraError
        When an option means nothing, or the node configuration cannot be read.
    """
    if servers:
        from clients.generation.remote import Reach

        config = {}
        if node_config:
            from fedlora.commands.deploy.doctor_site import read_node_config

            config = read_node_config(node_config)
        return Reach(servers, root_certificates, node_key, insecure, config, give_up_s)
    given = {
        "--root-certificates": root_certificates,
        "--node-key": node_key,
        "--insecure": insecure,
        "--node-config": node_config,
    }
    odd = [name for name, value in given.items() if value]
    if odd:
        raise FedloraError(f"{odd[0]} means nothing without --server; name HOST:PORT of one")
    return None


def _check_resume(
    resume: bool, reach: Reach | None, asked: bool, leaving: LeaveEarly | None
) -> None:
    if resume and reach is None:
        raise FedloraError("--resume means nothing without --server; name HOST:PORT of one")
    if resume and asked:
        raise FedloraError("--resume goes on with a prompt that is kept; leave PROMPT out")
    if resume and leaving:
        raise FedloraError(
            f"--resume goes on as the text was begun; leave --leave-after {leaving.after} and "
            f"--leave-at {leaving.at:g} out"
        )


@contextmanager
def _opened(
    folder: Path,
    client: str | None,
    rank: int | None,
    model: str,
    drafts: str,
    reach: Reach | None,
    leaving: LeaveEarly | None,
) -> Iterator[tuple[TextModel, DraftHistory | None]]:
    longest = 0 if drafts == "none" else LONGEST_DRAFT
    local = open_model(folder, client, rank, model, longest, reach, leaving=leaving)
    try:
        history = None
        if drafts == "history":
            digest = local.tokenizer.digest
            place = Path.home() / ".fedlora" / "drafts" / f"{digest[:16]}.json"
            history = DraftHistory(place, digest)
        yield local, history
    finally:
        local.end()


def open_model(
    folder: Path,
    client: str | None,
    rank: int | None,
    model: str,
    longest_draft: int,
    reach: Reach | None,
    bounds: CacheBounds | None = None,
    leaving: LeaveEarly | None = None,
) -> TextModel:
    """Open a run's model with the blocks of this process, or of a server.

    Parameters
    ----------
    folder
        Of the run, or what ``fedlora slice`` wrote of it.
    client, rank, model, longest_draft
        See ``LocalModel.open``.
    reach
        The servers; None for this process.
    bounds
        How much sessions may hold in this process.
    leaving
        When a token is taken before the last blocks; None for never.

    Raises
    ------
    FedloraError
        When it cannot be opened, or no server takes this device in.
    """
    if not folder.is_dir():
        raise FedloraError(f"{folder} is no folder; give that of a finished run")
    if reach is None:
        from clients.generation.local import LocalModel

        quiet_transformers()
        return LocalModel.open(folder, client, rank, model, longest_draft, bounds, leaving)
    from clients.generation.remote import RemoteModel

    if rank is not None:
        raise FedloraError(
            f"--rank is {rank}, and with --server the server has each client's; leave it out"
        )
    found = RemoteModel.open(folder, client, model, longest_draft, reach, leaving)
    typer.echo(_SEEN, err=True)
    return found


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

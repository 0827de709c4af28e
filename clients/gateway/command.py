"""``fedlora gateway``: existing applications use a run's split model through OpenAI's API."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from clients.gateway.keys import drawn_key, read_key
from clients.generation.command import LONGEST_DRAFT, open_model, reach_of
from clients.generation.options import (
    GiveUpOption,
    InsecureOption,
    KeyOption,
    ModelOption,
    NodeConfigOption,
    RootOption,
    RunArgument,
    ServerOption,
)
from fedlora.commands.options import ClientOption, RankOption
from fedlora.errors import FedloraError
from fedlora.generation.bounds import CacheBounds

if TYPE_CHECKING:
    import uvicorn

    from clients.gateway.writers import TextModel

_HOST = "127.0.0.1"


def gateway(
    run_folder: RunArgument,
    client: ClientOption = None,
    rank: RankOption = None,
    model: ModelOption = "",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port on 127.0.0.1; 0: any that is free.")
    ] = 8080,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of mode 0600 with the bearer key (default: one is drawn and printed once).",
        ),
    ] = None,
    at_once: Annotated[
        int, typer.Option(min=1, max=256, help="Texts written at once; further requests wait.")
    ] = 8,
    drafts: Annotated[
        str,
        typer.Option(
            click_type=click.Choice(["none", "prompt"]),
            help="Whether to guess tokens from prompt and output; no choice changes the text.",
        ),
    ] = "prompt",
    server: ServerOption = None,
    root_certificates: RootOption = None,
    node_key: KeyOption = None,
    insecure: InsecureOption = False,
    node_config: NodeConfigOption = "",
    give_up_s: GiveUpOption = 60.0,
) -> None:
    """Answer applications of this machine with a run's split model, as OpenAI's API does.

    `/v1/chat/completions`, `/v1/completions` and `/v1/models` on 127.0.0.1, for who has the key;
    what web pages ask is refused. Requests that come together are computed in one batch, here or
    with `--server` by `fedlora serve`.
    """
    require_server()
    key = drawn_key() if key_file is None else read_key(key_file)
    reach = reach_of(server, root_certificates, node_key, insecure, node_config, give_up_s)
    with listening(port) as listener:
        longest = 0 if drafts == "none" else LONGEST_DRAFT
        most = CacheBounds().tokens_in_all
        bounds = CacheBounds(tokens_per_client=most, sessions_per_client=at_once)
        local = open_model(run_folder, client, rank, model, longest, reach, bounds)
        try:
            name = run_folder.resolve().name
            place = f"http://{_HOST}:{listener.getsockname()[1]}/v1"
            typer.echo(f"{name} answers at {place}, until Ctrl-C")
            if key_file is None:
                typer.echo(f"the key, shown this once: {key}")
            server_of(local, name, at_once, key).run(sockets=[listener])
        finally:
            local.end()


def require_server() -> None:
    """Refuse to begin where the extra is not installed."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise FedloraError(
            f"fedlora gateway needs starlette and uvicorn ({error}); pip install 'fedlora[gateway]'"
        ) from None
    del starlette, uvicorn


def listening(port: int) -> socket.socket:
    """Return a socket that listens on loopback alone.

    Raises
    ------
    FedloraError
        When the port is taken, or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise FedloraError(
            f"--port {port} on {_HOST}: {error.strerror}; name another, or 0 for any"
        ) from None
    return listener


def server_of(model: TextModel, name: str, at_once: int, key: str) -> uvicorn.Server:
    """Return the server that answers for a model; run it with a socket that listens."""
    import uvicorn

    from clients.gateway.app import Gateway

    config = uvicorn.Config(
        Gateway(model, name, at_once).app(key),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="critical",  # what fails is told in a line, without the texts of a traceback
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)

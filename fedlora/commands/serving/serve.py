"""``fedlora serve``: the blocks of a finished run, for devices that generate with them."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fedlora.errors import FedloraError

_TOLD_S = 1.0
_NO_KEYS = (
    "--certs is missing, the folder with server.pem, server.key and each device's nodeK.pub; make "
    "them with fedlora certs, or try on loopback in plain text with --insecure"
)


@dataclass(frozen=True)
class ServeOptions:
    """What ``fedlora serve`` was told; see its options."""

    model: str = ""
    certs: Path | None = None
    insecure: bool = False
    host: str = "127.0.0.1"
    port: int = 0
    rank: int | None = None
    cache_tokens: int = 1 << 16
    client_tokens: int = 1 << 13
    idle_s: float = 600.0
    prometheus_port: int = 0
    stats: Path | None = None
    leave_after: int = 0


def serve(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    model: Annotated[
        str, typer.Option(help="The backbone on this machine (default: the run's `model.path`).")
    ] = "",
    certs: Annotated[
        Path | None,
        typer.Option(
            help="Folder with `server.pem`, `server.key` and each device's `nodeK.pub`, which is "
            "client K, as `fedlora certs` writes them."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Plain text and no keys, on loopback alone: a device is the client that it says.",
        ),
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any.")
    ] = 9100,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of clients that took no part (default: they are refused)."),
    ] = None,
    cache_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens whose keys and values all sessions hold at most.")
    ] = 1 << 16,
    client_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that the sessions of one client hold at most.")
    ] = 1 << 13,
    idle_s: Annotated[
        float, typer.Option(help="Seconds without a request after which a session is forgotten.")
    ] = 600.0,
    prometheus_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of loopback for Prometheus; 0: none.")
    ] = 0,
    leave_after: Annotated[
        int,
        typer.Option(
            min=0,
            help="Let devices that ask for it take tokens after so many of the model's blocks "
            "(default: none does).",
        ),
    ] = 0,
    stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="At the end, write bits, air time, energy, speed here."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier FILE of `--stats`.")
    ] = False,
) -> None:
    """Let devices generate with a run's blocks and their own ranks, until Ctrl-C.

    Devices call `fedlora generate` or `fedlora chat` with `--server`. Embedding, head and texts are
    theirs; here are blocks, adapter, and each session's keys and values.
    """
    from fedlora.storage import check_new_file

    # Before torch is loaded: threads that wait must not spin on cores that others want.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    check_new_file(stats, "--stats", overwrite=overwrite)
    options = ServeOptions(
        *(model, certs, insecure, host, port, rank, cache_tokens, client_tokens, idle_s),
        *(prometheus_port, stats, leave_after),
    )
    serve_run(run_folder, options)


def serve_run(folder: Path, options: ServeOptions) -> None:
    """Serve a run until the process is interrupted, which is its end in order.

    Raises
    ------
    FedloraError
        When the run cannot generate, keys are missing, or the address cannot be listened on.
    """
    from fedlora.link.stream import read_known_devices, tls
    from fedlora.report import RunFolder

    identity = known = None
    if options.insecure:
        if options.certs is not None:
            raise FedloraError(f"--insecure and --certs {options.certs} exclude each other")
        tls.require_loopback(options.host)
    elif options.certs is None:
        raise FedloraError(_NO_KEYS)
    elif not options.certs.is_dir():
        raise FedloraError(f"--certs {options.certs} is no folder; make it with fedlora certs")
    else:
        identity = tls.read_identity(options.certs / "server.pem", options.certs / "server.key")
        known = read_known_devices(options.certs)
    with opened(folder, options, identity, known) as (listener, usage, told):
        typer.echo(f"fedlora: {folder} serves {told} on {options.host} port {listener.port}")
        if known is None:
            typer.echo("plain text, and no device is asked for a key: for trials on one machine")
        try:
            _watch(RunFolder(folder).serving(listener.port), usage)
        except KeyboardInterrupt:  # Ctrl-C and SIGTERM are how serving ends
            _close(options, usage)


@contextlib.contextmanager
def opened(
    folder: Path, options: ServeOptions, identity: Any, known: Any
) -> Iterator[tuple[Any, Any, str]]:
    """Yield listener, usage and what is served, until the context ends.

    Parameters
    ----------
    folder, options
        What is served, and how.
    identity, known
        Certificate and devices; None for plain text.
    """
    from fedlora.commands.serving.served_run import open_served
    from fedlora.generation.admission import Admission
    from fedlora.generation.bounds import CacheBounds
    from fedlora.generation.listener import GenerationListener
    from fedlora.generation.usage import Usage
    from fedlora.observe.serving import serving_metrics

    bounds = CacheBounds(options.cache_tokens, options.client_tokens, idle_s=options.idle_s)
    clients = None if known is None else {device.client for device in known.values()}
    run = open_served(
        folder, options.model, options.rank, bounds, clients, leave_after=options.leave_after
    )
    scenario, server = run.scenario, run.server
    try:
        usage = Usage(scenario, server)
        admission = Admission(
            scenario.link,
            server.engine.geometry,
            known,
            identity.certificate_pem if identity else None,
        )
        with (
            serving_metrics(usage.told, options.prometheus_port),
            GenerationListener(
                *(server, admission, usage, options.host, options.port),
                identity=identity,
                max_frame_bytes=_frame_bytes(scenario.link.max_frame_mib << 20, server),
            ) as listener,
        ):
            yield listener, usage, run.told
    finally:
        server.end()


def _frame_bytes(most: int, server: Any) -> int:
    """Return how large a request may be: that of a client's whole text, in fp32, and no more."""
    bounds, geometry = server.sessions.bounds, server.engine.geometry
    tokens = min(bounds.tokens_per_client, server.engine.most_tokens)
    width = max(geometry.activation_width, geometry.representation_width)
    return int(min(most, 4 * tokens * width * 1.25 + (1 << 20)))


def _watch(place: Path, usage: Any) -> None:
    """Write down how serving goes, for ``fedlora top``, until the process is interrupted."""
    from fedlora.storage import json_line, replace_file

    writes = True
    while True:
        if writes:
            line = json_line({"time": time.time(), **usage.told()}, indent=1)
            try:
                replace_file(place, line, sync=False)
            except FedloraError as error:
                logging.getLogger("fedlora.generation").warning("%s", error)
                writes = False
        usage.evict()
        time.sleep(_TOLD_S)


def _close(options: ServeOptions, usage: Any) -> None:
    """Say what serving came to."""
    from fedlora.report import bits_text
    from fedlora.storage import json_line, replace_file

    told = usage.told()
    totals, a_token = told["totals"], told["a_token"]
    line = f"{totals['tokens']} tokens in {totals['exchanges']} exchanges"
    if a_token:
        up, down = (bits_text(a_token[f"bits_{way}"]) for way in ("up", "down"))
        line += f"; a token {up} up, {down} down"
        if a_token["air_seconds"] is not None:
            line += (
                f", {1e3 * a_token['air_seconds']:.3g} ms on the air, "
                f"{a_token['energy_joules']:.3g} J"
            )
    typer.echo(line)
    if options.stats is not None:
        replace_file(options.stats, json_line(told, indent=1))

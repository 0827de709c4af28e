"""The command line: ``fedlora run``, ``export``, ``doctor``, and the verbs of other packages."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import click
import typer

from fedlora import __version__
from fedlora.blame import naming_plugins
from fedlora.commands.channel.command import channel
from fedlora.commands.data import data
from fedlora.commands.deploy.kit import kit
from fedlora.commands.deploy.rehearse import rehearse
from fedlora.commands.doctor import doctor
from fedlora.commands.new import new
from fedlora.commands.options import (
    ClientOption,
    OutOption,
    OverwriteOption,
    RankOption,
    ScenarioArgument,
    SetOption,
)
from fedlora.commands.plan import plan
from fedlora.commands.report import report
from fedlora.commands.serving.serve import serve
from fedlora.commands.site import site
from fedlora.commands.slice import slice_
from fedlora.errors import FedloraError
from fedlora.import_path import (
    Importing,
    blamed_on_path,
    children_environment,
    leave_working_folder,
    working_folder,
)
from fedlora.terminal import leave_out_chatter, open_streams, reader_gone, silence
from fedlora.verbs import add_plugin_verbs

app = typer.Typer(
    name="fedlora",
    help="Federated split fine-tuning of language models with LoRA, over links that fade.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    suggest_commands=not hasattr(click.exceptions, "NoSuchCommand"),  # which suggests by itself
)

_INTERRUPTED = 130
_OF_OUTPUT = (errno.ENOSPC, errno.EIO, errno.EBADF)


@app.command()
def run(
    scenario: ScenarioArgument = "quickstart",
    out: OutOption = None,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Run a scenario through Flower's simulation, and show what came of it.

    Everything lands in the run folder: `summary.json`, `metrics.jsonl`, the adapter in PEFT's
    layout, plots and `report.html`. Ctrl-C ends the run and keeps what there is.
    """
    from fedlora.commands.run import run_simulation

    run_simulation(scenario, out, set_ or [], overwrite=overwrite)


@app.command()
def check(
    scenario: ScenarioArgument = "quickstart",
    set_: SetOption = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here as well.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Show what a scenario comes to before anything runs, or all that is wrong with it.

    Rows by client and class, lengths in tokens, rows that are cut or left out, three rows as the
    model sees them, bytes of a step, memory. Status 2 where it cannot be run.
    """
    from fedlora.commands.check import show_check

    if not show_check(scenario, set_ or [], json_, overwrite=overwrite):
        raise typer.Exit(2)


@app.command()
def resume(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run that stopped.")],
) -> None:
    """Go on with a simulation that was interrupted, or died, from its last finished round."""
    from fedlora.commands.resume import resume_simulation

    resume_simulation(run_folder)


app.command()(new)


@app.command("from-gguf")
def from_gguf(
    file: Annotated[
        str,
        typer.Argument(help="The GGUF file, or `package:NAME/FILE` inside an installed package."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Write the model of a GGUF file as a folder that fedlora, transformers and PEFT read.

    Its weights become fp32; tokenizer and chat template come along. Needs `pip install gguf`.
    """
    from fedlora.commands.from_gguf import write_model

    write_model(file, out)


@app.command()
def scenarios() -> None:
    """List the shipped scenarios."""
    from fedlora.scenarios import describe_scenarios

    for name, purpose in describe_scenarios():
        typer.echo(f"{name:24} {purpose}")


@app.command()
def keys(
    part: Annotated[str, typer.Argument(help="Show only keys that contain this.")] = "",
    node: Annotated[
        bool, typer.Option("--node", help="Keys of a device's node configuration instead.")
    ] = False,
) -> None:
    """List every scenario key with its default and its meaning, or every key of a node."""
    from fedlora.commands.keys import print_keys

    print_keys(part, node=node)


@app.command()
def top(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run, going on or finished.")],
    once: Annotated[bool, typer.Option("--once", help="Print one view and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two views.")] = 1.0,
) -> None:
    """Show how a run goes: round, steps a second, and each client's state, rate and misses."""
    from fedlora.commands.top import show_run

    show_run(run_folder, once=once, interval_s=interval)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="`peft`: an adapter at the chosen ranks; `padded`: the same with one rank for all "
            "(for servers such as vLLM that know one rank); `gguf-ready`: the same with one alpha "
            "for all (for llama.cpp's converter); `merged`: the whole model.",
            click_type=click.Choice(["peft", "padded", "gguf-ready", "merged"]),
        ),
    ] = "peft",
    client: ClientOption = None,
    rank: RankOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a run's adapter for PEFT, for readers that know less, or merged into the model.

    A classifier goes with its head, as transformers' class for the family where that computes the
    same. A README.md says how to load it. The `peft` folder is all that `fedlora infer` needs on a
    device, beside the backbone.
    """
    from fedlora.commands.export import export_run

    export_run(run_folder, out, format_, client, rank, overwrite=overwrite)


@app.command()
def infer(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a finished run, or of its `peft` export on a device.")
    ],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: lines of stdin.")] = None,
    client: ClientOption = None,
    rank: RankOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="For language models.")] = 48,
    model: Annotated[
        str, typer.Option(help="The backbone on this machine (default: the run's `model.path`).")
    ] = "",
) -> None:
    """Use backbone and adapter on this machine: classify texts, or continue them."""
    with Importing():
        from fedlora.commands.infer import infer_texts

    # Bytes that are no UTF-8 are kept, so that the refusal can name their line.
    lines = texts or sys.stdin.buffer.read().decode(errors="surrogateescape").splitlines()
    infer_texts(folder, lines, client, rank, max_new_tokens, model)


app.command()(channel)
app.command()(data)
app.command()(doctor)
app.command()(kit)
app.command()(rehearse)
app.command()(site)
app.command()(plan)
app.command()(report)
app.command()(serve)
app.command(name="slice")(slice_)


@app.command()
def certs(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    host: Annotated[
        list[str],
        typer.Option("--host", help="Name or address that clients dial; may be given repeatedly."),
    ],
    nodes: Annotated[int, typer.Option(min=0, help="Number of node keys.")],
    days: Annotated[
        int, typer.Option(min=1, max=36500, help="Days until the certificates end.")
    ] = 365,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The SuperLink's port, for the commands.")
    ] = 8000,
) -> None:
    """Make the keys of a deployment, and print the commands that use them.

    A second call with the same folder adds what is missing, such as more nodes.
    """
    from fedlora.commands.certs import print_certificates

    print_certificates(out, host, nodes, days, port)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Federated split fine-tuning of language models with LoRA, over links that fade."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn a termination signal into KeyboardInterrupt, so that everything is ended in order."""

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _sheltered() -> Iterator[None]:
    """Keep this process and its children from importing what lies where the user stands."""
    if not working_folder():
        raise FedloraError("the folder in which you stand is gone; cd to one that exists")
    leave_working_folder()
    further = children_environment()
    before = {name: os.environ.get(name) for name in further}
    os.environ.update(further)
    try:
        with naming_plugins():
            yield
    except Exception as error:
        blamed = "" if isinstance(error, FedloraError) else blamed_on_path(error)
        if not blamed:
            raise
        raise FedloraError(blamed) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _call(arguments: list[str]) -> int:
    """Run the command line and return its status."""
    verb = arguments[0] if arguments else ""
    add_plugin_verbs(app, verb)
    if "" in arguments[1:] and verb != "infer":  # whose texts may be empty
        raise FedloraError(
            f"an argument of fedlora {verb} is empty, as of a variable that is not set; write "
            "what was meant, or leave it out"
        )
    with _interruptible():
        status = app(standalone_mode=False)
    if status == _INTERRUPTED:  # typer's own answer to KeyboardInterrupt
        raise KeyboardInterrupt
    sys.stdout.flush()  # where it fails here, it is told
    return status if isinstance(status, int) else 0


def main() -> None:
    """Run the command line; a user's mistake is one sentence and status 2."""
    open_streams()
    leave_out_chatter()
    try:
        with _sheltered():
            status = _call(sys.argv[1:])
    except FedloraError as error:
        _complain(str(error))
        sys.exit(2)
    except BrokenPipeError:
        if not reader_gone(sys.stdout):  # it was another pipe
            raise
        silence(sys.stdout)
        sys.exit(1)
    except OSError as error:
        if error.filename is not None:
            _complain(f"cannot use {error.filename}: {error.strerror}; check path and rights")
            sys.exit(2)
        if error.errno not in _OF_OUTPUT:
            raise
        silence(sys.stdout)
        _complain(f"cannot go on writing: {error.strerror}; mend that and try again")
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; what was finished is kept", colour=None)
        sys.exit(_INTERRUPTED)
    sys.exit(status)


def _complain(text: str, colour: str | None = typer.colors.RED) -> None:
    """Say what went wrong, where anybody reads it."""
    text = f"fedlora: {text}"
    with suppress(OSError):  # not typer's echo, which writes UTF-8 to a terminal of ASCII
        print(typer.style(text, fg=colour) if sys.stderr.isatty() else text, file=sys.stderr)

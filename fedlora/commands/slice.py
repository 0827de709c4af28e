"""``fedlora slice``: the part of a model, or of a run, that a client needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.commands.options import BackOption, FrontOption, OverwriteOption, TaskOption
from fedlora.errors import FedloraError

if TYPE_CHECKING:
    from fedlora.split import Package


def slice_(
    model: Annotated[
        str,
        typer.Argument(
            help="A whole model: folder, `hub:NAME`, or `package:NAME/FOLDER`; or the folder of a "
            "run that writes texts."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    front: FrontOption = 0,
    back: BackOption = 0,
    task: TaskOption = "",
    client: Annotated[
        str | None, typer.Option(help="Of a run with personal heads: whose head goes along.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make the edge package of a model: all that a client needs, without the server's blocks.

    Of a run, it is all that `fedlora generate` and `chat` need on a device with `--server`.
    """
    slice_model(model, out, front, back, task=task, overwrite=overwrite, client=client)


def slice_model(
    model: str,
    out: Path,
    client_front: int,
    client_back: int,
    *,
    task: str,
    overwrite: bool,
    client: str | None = None,
) -> None:
    """Write a model's or a run's edge package, and say how large it is.

    Parameters
    ----------
    model
        As ``model.path`` in a scenario, or the folder of a finished run.
    out
        Folder to write.
    client_front, client_back
        Blocks that stay on the client.
    task
        The scenario's ``task.kind``; empty for any task of texts.
    overwrite
        Whether an earlier package in ``out`` is replaced.
    client
        Of a run with personal heads, whose head goes along.

    Raises
    ------
    FedloraError
        When the model cannot be read or cut so, there is no such task, the run cannot generate, or
        the folder is in use.
    """
    from fedlora.split import model_folder, slice_checkpoint
    from fedlora.tasks import load_tokenizer, task_class

    if (Path(model) / "events.jsonl").is_file():
        if client_front or client_back or task:
            raise FedloraError(
                f"{model} is a run, whose scenario says front, back and task; leave --front, "
                "--back and --task out"
            )
        package = _slice_run(Path(model), out, client, overwrite=overwrite)
    else:
        if client is not None:
            raise FedloraError(f"--client is {client!r:.40}, and {model} is no run; leave it out")
        source = model_folder(model)
        tokens = not task or task_class(task).tokens
        if tokens:
            load_tokenizer(source)  # slicing copies its files unread
        package = slice_checkpoint(
            source, out, client_front, client_back, overwrite=overwrite, tokens=tokens
        )
    typer.echo(
        f"wrote {package.tensors} tensors, {package.size_bytes / 1e6:.1f} of "
        f"{package.whole_bytes / 1e6:.1f} MB, to {out} (checkpoint "
        f"{package.manifest.weights_digest[:16]})"
    )


def _slice_run(folder: Path, out: Path, client: str | None, *, overwrite: bool) -> Package:
    """Write what a device needs of a run to write texts with it."""
    from fedlora.commands.serving.run_package import read_package
    from fedlora.generation.engine import check_generates
    from fedlora.lora.export import Adapter
    from fedlora.report import RunFolder
    from fedlora.split import Checkpoint, model_folder, slice_checkpoint
    from fedlora.tasks import load_tokenizer

    run = read_package(folder, client)
    model = run.scenario.model
    source = model_folder(model.path, Adapter.load(RunFolder(folder).adapter).revision)
    check_generates(Checkpoint(source), run.scenario)
    load_tokenizer(source)
    package = slice_checkpoint(
        source, out, model.client_front, model.client_back, overwrite=overwrite
    )
    run.write(out)
    return package

"""``fedlora slice``: the part of a model that a client needs."""

from __future__ import annotations

from pathlib import Path

import typer

from fedlora.split import model_folder
from fedlora.split.slice import slice_checkpoint
from fedlora.tasks import load_tokenizer, task_class


def slice_model(
    model: str, out: Path, client_front: int, client_back: int, *, task: str, overwrite: bool
) -> None:
    """Write a model's edge package, and say how large it is.

    Parameters
    ----------
    model
        As ``model.path`` in a scenario.
    out
        Folder to write.
    client_front, client_back
        Blocks that stay on the client.
    task
        The scenario's ``task.kind``; empty for any task of texts.
    overwrite
        Whether an earlier package in ``out`` is replaced.

    Raises
    ------
    FedloraError
        When the model cannot be read or cut so, there is no such task, or the folder is in use.
    """
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

"""``fedlora export``: a run's adapter in the form that others load."""

from __future__ import annotations

from pathlib import Path

import typer

from fedlora.errors import FedloraError
from fedlora.lora.export import Adapter
from fedlora.report.run_folder import RunFolder


def export_run(
    run_folder: Path, out: Path, format_: str, client: str | None, rank: int | None
) -> None:
    """Write the adapter of a run.

    Parameters
    ----------
    run_folder
        A finished run.
    out
        Folder to write.
    format_
        ``peft``, ``padded`` or ``merged``.
    client
        Whose last ranks to use.
    rank
        One rank for every projection; by default r_max.

    Raises
    ------
    FedloraError
        When the run has no adapter or no such client.
    """
    folder = RunFolder(run_folder)
    adapter = Adapter.load(folder.adapter)
    ranks = chosen_ranks(folder, adapter, client, rank)
    if format_ == "peft":
        adapter.save(out, ranks)
    elif format_ == "padded":
        adapter.truncated(ranks).save(out)
    else:
        adapter.truncated(ranks).merge(out)
    typer.echo(
        f"wrote {format_} export of {len(ranks)} projections, mean rank "
        f"{sum(ranks) / len(ranks):.2f}, to {out}"
    )


def chosen_ranks(
    folder: RunFolder, adapter: Adapter, client: str | None, rank: int | None
) -> list[int]:
    """Return one rank everywhere, a client's last ranks, or r_max.

    Raises
    ------
    FedloraError
        When both are asked for, the rank is too large, or the client is unknown.
    """
    if client is not None and rank is not None:
        raise FedloraError(f"--client {client} and --rank {rank} exclude each other; give one")
    if rank is not None:
        if rank > adapter.r_max:
            raise FedloraError(f"--rank {rank} exceeds the run's r_max {adapter.r_max}; lower it")
        return [rank] * len(adapter.factors)
    if client is None:
        return [adapter.r_max] * len(adapter.factors)
    for record in reversed(folder.read_metrics()):
        found = (record.get("clients") or {}).get(client)
        if found and found.get("ranks"):
            return [int(r) for r in found["ranks"]]
    known = {c for record in folder.read_metrics() for c in record.get("clients") or {}}
    raise FedloraError(
        f"the run has no client {client!r} with ranks; its clients are {', '.join(sorted(known))}"
    )

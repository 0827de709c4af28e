"""``fedlora site``: what a device took part in, what left it and what it cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fedlora.commands.options import OverwriteOption
from fedlora.errors import FedloraError
from fedlora.storage import check_new_file, json_line, replace_file


def site(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="The device's `state` folder, as its node configuration says (default: "
            "`~/.fedlora/states`)."
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures here as well."),
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="Runs to show one by one, the latest.")] = 20,
    overwrite: OverwriteOption = False,
) -> None:
    """On a device: show what it took part in, what left it, what that cost, and whether it adds up.

    FOLDER is the `state` folder of the node configuration (default `~/.fedlora/states`). Reads the
    audit file there and the privacy ledgers that it names; needs no server, no Flower, and changes
    nothing. For each invitation: who asked for
    what, accepted or refused, records used and left out, bytes that left by kind, epsilon spent
    and left, how it ended. Then sums, budgets by data set and time, and each ledger: whether it is
    whole, and the one that was charged. Whole sentences, such as why a run was refused, are in
    `device.log` beside the audit file. Status 2: a file was changed, cut short or put back.
    """
    _show(folder, json, last, overwrite=overwrite)


def _show(folder: Path | None, file: Path | None, last: int, *, overwrite: bool) -> None:
    """Print a device's runs, budgets and ledgers; from its disk alone.

    Raises
    ------
    FedloraError
        When the folder is no device's, its audit file was changed, a ledger is not whole, or the
        file is there.
    """
    from fedlora.config import NodeKeys
    from fedlora.site.audit import NAME
    from fedlora.site.history import read_history
    from fedlora.site.ledgers import verify_ledgers
    from fedlora.site.show import lines

    folder = (folder or NodeKeys().states()).expanduser()
    check_new_file(file, "--json", overwrite=overwrite)
    history = read_history(folder)
    try:
        ledgers = verify_ledgers(history.sessions)
        text = list(lines(history, ledgers, last))
    except FedloraError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FedloraError(
            f"{folder / NAME} follows on itself but holds what no device writes ({error!r:.80}); "
            "restore a copy, or move the file away and the device begins another"
        ) from None
    for line in text:
        typer.echo(line)
    if file is not None:
        facts = {
            "folder": str(folder),
            "audit": {"lines": history.lines, "torn": history.torn},
            "sessions": [session.facts() for session in history.sessions],
            "texts": dataclasses.asdict(history.texts),
            "ledgers": [dataclasses.asdict(ledger) for ledger in ledgers],
        }
        replace_file(file, json_line(facts, indent=2), private=True)
    for ledger in ledgers:
        if ledger.fault:
            raise FedloraError(ledger.fault)

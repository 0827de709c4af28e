"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what an earlier call has written there."),
]

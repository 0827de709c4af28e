"""``fedlora audit --device``."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedlora.storage import json_line, replace_file
from simulations.audit.device.interference import DeviceAudit, audit_device
from simulations.progress import Bars


def audit_devices(messages: int, seed: int, json_: Path | None) -> bool:
    """Audit this machine's device code, print what was found, and return whether it passes.

    Parameters
    ----------
    messages
        Requests that the devices answer, at least.
    seed
        Of everything that is drawn.
    json_
        Where the figures go; None for nowhere.
    """
    logging.getLogger("fedlora").setLevel(logging.CRITICAL)  # refusals are what is looked for
    with tempfile.TemporaryDirectory() as folder, Bars() as bar:
        task = bar.add_task("requests answered", total=messages)

        def advance(audit: DeviceAudit) -> None:
            bar.update(task, completed=min(audit.messages, messages))

        audit = audit_device(Path(folder), messages, seed, advance)
    console = Console()
    table = Table("what", "number", title="audit of the device")
    table.add_row("requests answered by each of two devices", str(audit.messages))
    table.add_row("messages of Flower, each with another scenario", str(audit.sessions))
    table.add_row("sessions that the device took part in", str(audit.taken))
    table.add_row("pairs of devices in which something was charged", str(audit.charged))
    table.add_row("differences that nothing paid for, or too little", str(len(audit.findings)))
    console.print(table)
    for found in audit.findings:
        console.print(f"trial {found.trial}: {found.what}", highlight=False, markup=False)
    if json_ is not None:
        replace_file(json_, json_line(dataclasses.asdict(audit), indent=1))
        console.print(f"Figures: {json_}", markup=False, highlight=False, soft_wrap=True)
    return not audit.findings
